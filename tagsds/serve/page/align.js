// Which regions of the picture each word looks at.

import {h, milliseconds, percent} from "./dom.js";
import {held} from "./held.js";
import {sentence, weights} from "./words.js";

export async function align(context) {
  const {image, text, status, answer, overlay} = await held(context, {
    view: "align", title: "Which regions a word looks at", action: "Align",
    lead: "Point at a word, or reach it with the Tab key: the boxes show how much it and each region attend to each other.",
    hint: "Point at a word of the sentence to see where it looks.",
  });
  const found = await weights(context.about, image.key, text, context.signal);
  const rows = found.words.filter(word => /[\p{L}\p{N}]/u.test(word.text)).map(word => {
    const order = word.weights.map((_, n) => n).sort((a, b) => word.weights[b] - word.weights[a]);
    const best = order[0], name = found.regions[best].name || `region ${best + 1}`;
    return h("li", {}, h("span", {class: "text"}, word.text), h("span", {}, name),
      h("div", {class: "score"}, h("div", {class: "track"}, h("i", {"width%": percent(word.weights[best]).replace(" ", "")})), percent(word.weights[best])));
  });
  status.textContent = `${rows.length} words over ${found.regions.length} regions in ${milliseconds(found.milliseconds)}`;
  answer.replaceChildren(sentence(text, found.words, overlay), h("h2", {}, "The region of each word"), h("ul", {class: "words", id: "aligned"}, ...rows));
}
