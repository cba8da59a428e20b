// The views and the frame around them.

import {get} from "./api.js";
import {h} from "./dom.js";
import {read, address} from "./state.js";
import {find} from "./find.js";
import {proofread} from "./proofread.js";
import {write} from "./write.js";
import {align} from "./align.js";

const views = {find, proofread, write, align};
const titles = {find: "Find", proofread: "Proofread", write: "Write", align: "Align"};
const main = document.getElementById("main");
let about, running, shown;

async function render() {
  const state = read();
  const view = views[state.view] ? state.view : "find";
  running?.abort();
  running = new AbortController();
  const {signal} = running;
  document.title = `${titles[view]} · tagsds`;
  for (const link of document.querySelectorAll("#views a")) {
    const name = link.dataset.view;
    if (name === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    const carried = name === "find" ? {sentence: state.sentence} : {image: state.image, sentence: state.sentence};
    link.href = address(name, name === view ? state_of(state) : carried);
  }
  main.className = "busy";
  main.setAttribute("aria-busy", "true");
  try {
    about ??= await get("/api/about", signal);
    introduce();
    await views[view]({main, state, about, signal, fresh: shown !== view});
    shown = view;
  } catch (error) {
    if (error.name === "AbortError") return;
    shown = undefined;
    const again = h("button", {type: "button", onclick: render}, "Try again");
    const problem = h("div", {class: "problem", role: "alert"}, h("p", {}, error.message),
      h("div", {class: "row"}, again, h("a", {class: "button", href: address(view)}, "Start afresh")));
    const place = main.querySelector(".results");
    if (place) place.replaceChildren(problem);
    else main.replaceChildren(h("h1", {}, titles[view]), problem);
  }
  if (!signal.aborted) {
    main.className = "";
    main.removeAttribute("aria-busy");
  }
}

function state_of({view, ...values}) {
  return values;
}

function introduce() {
  const place = document.getElementById("about");
  const models = about.matcher ? `${about.matcher.name} → ${about.model.name}` : about.model.name;
  place.textContent = `${models} · ${about.corpus}/${about.split} · ${about.images.toLocaleString("en")} images`;
  for (const [view, able] of [["proofread", about.proofreads], ["write", about.writes], ["align", about.aligns]]) {
    document.querySelector(`#views [data-view=${view}]`).hidden = !able;
  }
}

window.addEventListener("hashchange", render);
document.querySelector(".skip").addEventListener("click", event => {
  event.preventDefault();
  main.focus();
});
render();
