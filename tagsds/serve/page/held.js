// What Proofread, Write and Align share: a picture beside a sentence, a form, and the place of the answer.

import {get, image as load} from "./api.js";
import {h} from "./dom.js";
import {panel} from "./panel.js";
import {go} from "./state.js";

// Builds the view and gives what is held together: {image, text, results, status, overlay}. `more` are further fields of the form,
// read as `values()` into the address.
export async function held({main, state, about, signal}, {view, title, lead, hint, action, more = [], values = () => ({})}) {
  const key = state.image || (await get("/api/images?count=1", signal)).images[0].key;
  const image = await load(key, signal);
  const text = state.sentence || image.captions[0] || "";
  const area = h("textarea", {id: "sentence", rows: 2, maxlength: about.most_characters, required: true, spellcheck: "false"});
  area.value = text;
  const submit = h("button", {class: "main", id: "run"}, action);
  const form = h("form", {onsubmit: event => { event.preventDefault(); again(area.value); }},
    h("label", {for: "sentence"}, "Sentence"), area, h("div", {class: "row"}, ...more, submit));
  area.addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); form.requestSubmit(); }
  });
  const again = sentence => sentence.trim() && go(view, {image: image.key, sentence: sentence.trim(), ...values()});
  const overlay = panel(image, hint, other => go(view, {image: other, ...values()}), again);
  const status = h("div", {class: "status", role: "status"}, "Reading …");
  const answer = h("div", {});
  const results = h("div", {class: "results"}, status, answer);
  const focused = document.activeElement?.id;
  main.replaceChildren(h("h1", {}, title), h("p", {class: "lead"}, lead), h("div", {class: "split"}, overlay.element, h("div", {}, form, results)));
  if (focused) document.getElementById(focused)?.focus();
  return {image, text, status, answer, overlay, area};
}
