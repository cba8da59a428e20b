// A picture with its regions drawn over it, its captions, and ways to another picture.

import {picture} from "./api.js";
import {h, percent} from "./dom.js";
import {choose} from "./gallery.js";

const SVG = "http://www.w3.org/2000/svg";
const FAINT = 0.12; // share of a region below which its box is hardly drawn

function shape(tag, values, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function box({box: [x1, y1, x2, y2]}, name, opacity) {
  return shape("rect", {x: 100 * x1, y: 100 * y1, width: 100 * (x2 - x1), height: 100 * (y2 - y1), class: name, opacity});
}

// A shade over the picture that is lifted in each region, as far as the word looks at it.
function shade(regions, strength) {
  const whole = {width: 100, height: 100};
  const lit = shape("mask", {id: "lit", maskUnits: "userSpaceOnUse", x: 0, y: 0, ...whole},
    shape("rect", {class: "all", ...whole}), ...regions.map((region, n) => box(region, "hole", strength(n))));
  return [lit, shape("rect", {class: "shade", mask: "url(#lit)", ...whole})];
}

// `to(key)`: shows another picture. `use(caption)`: takes a caption as the sentence.
export function panel(image, hint, to, use) {
  const shapes = document.createElementNS(SVG, "svg");
  shapes.setAttribute("viewBox", "0 0 100 100");
  shapes.setAttribute("preserveAspectRatio", "none");
  shapes.setAttribute("aria-hidden", "true");
  const tag = h("span", {class: "tag", "aria-hidden": "true", hidden: true});
  const img = h("img", {src: picture(image.key), alt: image.alt});
  const frame = h("div", {class: "frame"}, img, shapes, tag);
  const sized = () => frame.style.setProperty("--aspect", img.naturalWidth / img.naturalHeight || 1.333);
  img.addEventListener("load", sized);
  const looks = h("p", {class: "looks", "aria-live": "polite"}, h("span", {class: "soft"}, hint));

  // Boxes as strong as the word's share of them; the strongest has its name.
  function show(word, weights) {
    const most = Math.max(...weights), order = weights.map((_, n) => n).sort((a, b) => weights[a] - weights[b]);
    const strength = n => Math.max(FAINT, (weights[n] / most) ** 1.5);
    shapes.replaceChildren(...shade(image.regions, strength), ...order.flatMap(n => [
      box(image.regions[n], "under", strength(n)), box(image.regions[n], "over", strength(n)),
    ]));
    const best = order.at(-1), [x1, y1] = image.regions[best].box;
    tag.textContent = image.regions[best].name || "region";
    tag.hidden = false;
    tag.style.left = `${100 * x1}%`;
    tag.style.top = `${100 * y1}%`;
    const left = Math.min(100 * x1, 100 - (100 * tag.offsetWidth) / frame.offsetWidth);
    tag.style.left = `${Math.max(0, left)}%`;
    tag.style.translate = y1 * frame.offsetHeight > tag.offsetHeight + 4 ? "0 calc(-100% - 4px)" : "0 4px";
    const told = order.reverse().slice(0, 3).filter(n => weights[n] >= 0.05);
    const parts = told.map(n => `${image.regions[n].name || `region ${n + 1}`} ${percent(weights[n])}`);
    looks.replaceChildren("“", h("b", {}, word), "” looks at ", parts.join(", "), ".");
  }

  function clear() {
    shapes.replaceChildren();
    tag.hidden = true;
    looks.replaceChildren(h("span", {class: "soft"}, hint));
  }

  async function other() {
    const key = await choose(image.key);
    if (key) to(key);
    else another.focus();
  }

  const another = h("button", {type: "button", id: "choose", onclick: other}, "Choose a picture");
  const step = (name, key) => h("button", {type: "button", disabled: key === null, onclick: () => to(key), "aria-label": `${name} picture`}, name);
  const captions = image.captions.map(text => h("li", {}, h("button", {type: "button", class: "caption", onclick: () => use(text)}, text)));
  const element = h("section", {class: "panel", "aria-label": "Picture"}, frame, looks,
    h("div", {class: "row"}, another, step("Previous", image.previous), step("Next", image.next)),
    h("p", {class: "small soft number"}, image.key, image.drawn ? " · drawn from its regions, as the corpus has no picture" : ""),
    use && captions.length ? h("details", {open: matchMedia("(min-width: 56rem)").matches},
      h("summary", {}, "Its captions"), h("ul", {class: "captions"}, ...captions)) : null);
  return {element, show, clear};
}
