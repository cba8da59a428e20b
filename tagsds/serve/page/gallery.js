// The corpus's pictures, a page at a time.

import {get, picture} from "./api.js";
import {count, h} from "./dom.js";

const SIZE = 24;

// A filter, a grid and a pager. `card(image)` makes an item's content.
export function gallery(card) {
  const grid = h("ul", {class: "grid"});
  const line = h("span", {"aria-live": "polite", class: "soft small"});
  const back = h("button", {type: "button", onclick: () => show(start - SIZE)}, "Previous");
  const on = h("button", {type: "button", onclick: () => show(start + SIZE)}, "Next");
  const filter = h("input", {type: "search", id: "contains", maxlength: 200, autocomplete: "off", placeholder: "any", oninput: later});
  let start = 0, timer, asked = 0;

  function later() {
    clearTimeout(timer);
    timer = setTimeout(() => show(0), 200);
  }

  async function show(from) {
    const mine = ++asked;
    const query = new URLSearchParams({start: Math.max(0, from), count: SIZE, contains: filter.value});
    let page;
    try {
      page = await get(`/api/images?${query}`);
    } catch (error) {
      line.textContent = error.message;
      return;
    }
    if (mine !== asked) return;
    start = page.start;
    grid.replaceChildren(...page.images.map(image => h("li", {}, card(image))));
    const last = start + page.images.length;
    line.textContent = page.total ? `${(start + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${count(page.total, "picture")}` : "No key contains this.";
    back.disabled = start === 0;
    on.disabled = last >= page.total;
  }

  const head = h("div", {class: "row"}, h("div", {class: "field wide"}, h("label", {for: "contains"}, "Key contains"), filter));
  const element = h("div", {class: "gallery"}, head, grid, h("div", {class: "pager"}, back, on, line));
  return {element, show};
}

// A dialog that answers with the key of the chosen picture, or null.
export function choose(current) {
  return new Promise(resolve => {
    let chosen = null;
    const pictures = gallery(image => [
      h("button", {type: "button", class: "thumb", "aria-label": `${image.key}: ${image.alt}`, "aria-current": image.key === current,
        onclick: () => { chosen = image.key; dialog.close(); }}, h("img", {src: picture(image.key, true), alt: "", loading: "lazy"})),
      h("span", {class: "name"}, image.key),
    ]);
    const close = h("button", {type: "button", onclick: () => dialog.close()}, "Close");
    const dialog = h("dialog", {"aria-labelledby": "choosing"}, h("div", {class: "head"}, h("h2", {id: "choosing"}, "Choose a picture"), close), pictures.element);
    dialog.addEventListener("close", () => { dialog.remove(); resolve(chosen); });
    document.body.append(dialog);
    dialog.showModal();
    pictures.show(0);
  });
}
