// False sentences that the encoder writes from a true one, and what its filters dropped.

import {post} from "./api.js";
import {count, h, milliseconds, number, score} from "./dom.js";
import {held} from "./held.js";
import {sentence, weights} from "./words.js";

function field(id, label, input) {
  return h("div", {class: "field"}, h("label", {for: id}, label), input);
}

function marked(text, marks) {
  const parts = [];
  let end = 0;
  for (const [start, stop] of marks) {
    parts.push(text.slice(end, start), h("mark", {}, text.slice(start, stop)));
    end = stop;
  }
  return h("p", {class: "text"}, ...parts, text.slice(end));
}

export async function write(context) {
  const {state, about, signal} = context;
  const n = h("input", {id: "n", type: "number", min: 1, max: about.most_negatives, value: state.n || 8, required: true});
  const seed = h("input", {id: "seed", type: "number", min: 0, max: 2147483647, value: state.seed || 0, required: true});
  const words = h("select", {id: "most_words"}, ...["any number", 1, 2, 3].map(value =>
    h("option", {value: value === "any number" ? "" : value, selected: String(value) === state.most_words}, value)));
  const {image, text, status, answer, overlay} = await held(context, {
    view: "write", title: "Write hard negatives", action: "Write",
    lead: "The encoder masks words of a true caption and fills them again. What is left after the filters is false, and hard to tell from the truth.",
    hint: "Point at a word of the caption to see which regions it looks at.",
    more: [field("n", "At most", n), field("most_words", "Changed words", words), field("seed", "Seed", seed)],
    values: () => ({n: n.value, seed: seed.value, most_words: words.value}),
  });
  const asked = {image: image.key, sentence: text, n: Number(n.value), seed: Number(seed.value), most_words: words.value ? Number(words.value) : null};
  const [found, aligned] = await Promise.all([post("/api/write", asked, signal), weights(about, image.key, text, signal)]);
  const kept = found.negatives.length + found.spare;
  status.textContent = `${count(found.negatives.length, "negative")} of ${kept} that passed, from ${count(found.written, "candidate")} · ${milliseconds(found.milliseconds)}`;
  const items = found.negatives.map(one => {
    const changes = one.changes.map(change => `${change.old} → ${change.new}`).join(", ");
    return h("li", {}, marked(one.text, one.marks), score(one.score), h("p", {class: "about"}, `${one.kind} · ${changes}`));
  });
  const shares = h("div", {class: "shares", "aria-hidden": "true"}, h("i", {class: "kept", grow: kept}), ...found.dropped.map(part => h("i", {grow: part.count})));
  const dropped = found.dropped.map(part =>
    h("details", {}, h("summary", {}, h("b", {}, part.filter.replaceAll("_", " ")), ` · ${part.count}: ${part.why}`),
      h("ul", {tabindex: 0, "aria-label": `dropped by ${part.filter}`}, ...part.sentences.map(one => h("li", {}, one)))));
  const caption = aligned ? sentence(text, aligned.words, overlay) : h("p", {class: "sentence"}, text);
  answer.replaceChildren(
    h("div", {class: "own"}, caption, h("p", {class: "small soft"}, `The caption: s(I, T) ${number(found.score)}`)),
    h("h2", {}, "Negatives, the hardest first"),
    items.length ? h("ul", {class: "negatives", id: "negatives"}, ...items) : h("p", {}, "No candidate passed the filters. Allow more changed words, or try another seed."),
    h("h2", {}, "What the filters dropped"), shares,
    h("p", {class: "small soft"}, `Of ${count(found.written, "candidate")} ${kept} passed; the others, by filter:`), ...dropped);
}
