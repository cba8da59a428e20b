// Which words of a sentence are wrong of the picture, and what they should be.

import {post} from "./api.js";
import {h, milliseconds, number, percent} from "./dom.js";
import {held} from "./held.js";
import {sentence, weights} from "./words.js";

const SUSPECT = 0.5;

export async function proofread(context) {
  const {image, text, status, answer, overlay} = await held(context, {
    view: "proofread", title: "Proofread a sentence", action: "Proofread",
    lead: "Take a caption, change a word, and see whether the encoder notices that the picture says otherwise.",
    hint: "Point at a word to see which regions it looks at.",
  });
  const asked = {image: image.key, sentence: text};
  const [found, aligned] = await Promise.all([
    post("/api/proofread", asked, context.signal), weights(context.about, image.key, text, context.signal),
  ]);
  const words = found.words.map((word, n) => ({...word, weights: aligned?.words[n]?.weights}));
  const suspects = words.filter(word => word.suspicion >= SUSPECT);
  const said = word => {
    const other = word.suggestion && word.suggestion !== word.text.toLowerCase();
    return other ? `rather “${word.suggestion}” (${percent(word.certainty)})` : word.suggestion ? `no other word is likelier (${percent(word.certainty)})` : "";
  };
  status.textContent = `${suspects.length ? `${suspects.length} of ${words.length} words suspected` : "No word suspected"} · ` +
    `s(I, T) ${number(found.score)} · ${milliseconds(found.milliseconds)}`;
  const marked = sentence(text, words, {
    ...overlay, heat: n => words[n].suspicion,
    describe: n => (words[n].suspicion >= SUSPECT ? `${words[n].text}, suspected ${percent(words[n].suspicion)}, ${said(words[n])}` : words[n].text),
  });
  const rows = [...words].sort((a, b) => b.suspicion - a.suspicion).map(word =>
    h("li", {}, h("span", {class: "text"}, word.text),
      h("div", {class: "score"}, h("div", {class: "track", "aria-hidden": "true"}, h("i", {"width%": `${100 * word.suspicion}%`})), percent(word.suspicion)),
      h("span", {class: word.suspicion >= SUSPECT ? "" : "soft"}, said(word))));
  answer.replaceChildren(marked, h("p", {class: "legend"}, "The redder a word, the more probably it was replaced."),
    h("h2", {}, "Word by word"), h("ul", {class: "words", id: "proofread"}, ...rows));
}
