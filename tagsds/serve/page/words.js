// A sentence whose words can be pointed at, by the pointer or by the keyboard.

import {post} from "./api.js";
import {h} from "./dom.js";

// `heat(n)`: how much word n is marked, 0..1; `describe(n)`: more about it for who hears the page.
export function sentence(text, words, {show, clear, heat = () => 0, describe = () => null}) {
  const element = h("p", {class: "sentence"});
  let end = 0;
  words.forEach((word, n) => {
    element.append(text.slice(end, word.start));
    end = word.end;
    if (!/[\p{L}\p{N}]/u.test(word.text) && heat(n) < 0.5) {  // punctuation: nothing to point at
      element.append(text.slice(word.start, word.end));
      return;
    }
    const on = () => word.weights && show(word.text, word.weights);
    element.append(h("button", {
      type: "button", class: "word", "--heat": heat(n), "aria-label": describe(n),
      onpointerenter: on, onfocus: on, onclick: on, onpointerleave: clear, onblur: clear,
    }, text.slice(word.start, word.end)));
  });
  element.append(text.slice(end));
  return element;
}

// Shares of the regions in each word, or none where they cannot be had: pointing is an extra.
export async function weights(about, image, text, signal) {
  if (!about.aligns) return null;
  return post("/api/align", {image, sentence: text}, signal);
}
