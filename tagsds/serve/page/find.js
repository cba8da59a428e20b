// Pictures by a sentence, and sentences by a picture.

import {get, image as load, picture, post} from "./api.js";
import {count, h, milliseconds, score} from "./dom.js";
import {gallery} from "./gallery.js";
import {panel} from "./panel.js";
import {address, go} from "./state.js";

const SIZES = [12, 24, 48];

const ordinal = n => `${n}${["th", "st", "nd", "rd"][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] ?? "th"}`;

function stages(found, things, what) {
  const parts = found.stages.map(stage =>
    h("span", {class: "stage"}, `${stage.name} ${stage.model}: ${stage.scored.toLocaleString("en")} ${what} in ${milliseconds(stage.milliseconds)}`));
  const waited = found.waited_ms > 50 ? h("span", {}, `waited ${milliseconds(found.waited_ms)}`) : null;
  return [h("span", {}, things), ...parts, waited].filter(Boolean);
}

function moved(hit, place) {
  if (hit.matcher_rank === null) return null;
  return h("span", {class: "soft"}, hit.matcher_rank === place ? "matcher agrees" : `matcher: ${ordinal(hit.matcher_rank)}`);
}

function frame(main, by, ...children) {
  const tab = (name, view, current) => h("a", {href: view, "aria-current": current ? "true" : null}, name);
  const modes = h("div", {class: "switch", role: "group", "aria-label": "Find by"},
    tab("By a sentence", address("find"), by === "sentence"), tab("By a picture", address("find", {by: "picture"}), by === "picture"));
  const focused = document.activeElement?.id;
  main.replaceChildren(h("h1", {}, by === "picture" ? "Find sentences for a picture" : "Find pictures by a sentence"), modes, ...children);
  if (focused) document.getElementById(focused)?.focus();
}

export function find(context) {
  return context.state.image || context.state.by === "picture" ? sentences(context) : pictures(context);
}

async function pictures({main, state, about, signal}) {
  const area = h("textarea", {id: "sentence", rows: 2, maxlength: about.most_characters, required: true, placeholder: "What should the picture show?"});
  area.value = state.sentence || "";
  const k = h("select", {id: "k"}, ...SIZES.map(size => h("option", {value: size, selected: String(size) === (state.k || "12")}, `${size} pictures`)));
  const submit = text => text.trim() && go("find", {sentence: text.trim(), k: k.value});
  const form = h("form", {onsubmit: event => { event.preventDefault(); submit(area.value); }},
    h("label", {for: "sentence"}, "Sentence"), area,
    h("div", {class: "row"}, h("div", {class: "field"}, h("label", {for: "k"}, "Show"), k), h("button", {class: "main", id: "run"}, "Find pictures")));
  area.addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); form.requestSubmit(); }
  });
  const status = h("div", {class: "status", role: "status"}, state.sentence ? "Searching …" : "");
  const answer = h("div", {});
  const results = h("div", {class: "results"}, status, answer);
  frame(main, "sentence", form, results);
  if (!state.sentence) {
    const begin = gallery(image => h("div", {class: "card"},
      h("a", {href: address("proofread", {image: image.key})}, h("img", {src: picture(image.key, true), alt: image.alt, loading: "lazy"})),
      h("span", {class: "name"}, image.key)));
    status.hidden = true;
    answer.replaceChildren(h("h2", {}, "Or begin with a picture"), begin.element);
    await begin.show(0);
    const first = await get("/api/images?count=1", signal);
    const some = (await load(first.images[0].key, signal)).captions.slice(0, 3);
    if (some.length) {
      form.append(h("div", {class: "tries"}, h("span", {class: "soft"}, "Try"),
        ...some.map(text => h("button", {type: "button", class: "plain", onclick: () => { area.value = text; submit(text); }}, text))));
    }
    return;
  }
  const found = await post("/api/find/images", {sentence: state.sentence, k: Number(state.k) || 12}, signal);
  const most = Math.max(1, ...found.hits.map(hit => hit.score));
  status.replaceChildren(...stages(found, count(found.hits.length, "picture"), "pictures"));
  answer.replaceChildren(h("ol", {class: "grid", id: "hits"}, ...found.hits.map((hit, n) => h("li", {class: "card"},
    h("a", {href: address(about.proofreads ? "proofread" : "find", {image: hit.key, sentence: state.sentence}), "aria-label": `${n + 1}: ${hit.alt}`},
      h("img", {src: picture(hit.key, true), alt: hit.alt, loading: "lazy"})),
    score(hit.score, most),
    h("div", {class: "line"}, h("span", {class: "number"}, `${n + 1}`), moved(hit, n + 1)),
    h("a", {class: "small", href: address("find", {image: hit.key})}, hit.key)))));
}

async function sentences({main, state, signal}) {
  const key = state.image || (await get("/api/images?count=1", signal)).images[0].key;
  const image = await load(key, signal);
  const status = h("div", {class: "status", role: "status"}, "Searching …");
  const answer = h("div", {});
  const results = h("div", {class: "results"}, status, answer);
  const show = panel(image, "The sentences of the corpus that describe this picture best.", other => go("find", {image: other}), null);
  frame(main, "picture", h("div", {class: "split"}, show.element, results));
  const found = await post("/api/find/sentences", {image: image.key, k: Number(state.k) || 12}, signal);
  const most = Math.max(1, ...found.hits.map(hit => hit.score));
  status.replaceChildren(...stages(found, count(found.hits.length, "sentence"), "sentences"));
  answer.replaceChildren(h("ol", {class: "negatives", id: "hits"}, ...found.hits.map((hit, n) => h("li", {class: hit.own ? "own" : ""},
    h("p", {class: "text"}, h("a", {href: address("find", {sentence: hit.sentence})}, hit.sentence)), score(hit.score, most),
    h("p", {class: "about"}, hit.own ? "written for this picture" : "written for another", hit.matcher_rank ? ` · ${ordinal(hit.matcher_rank)} of the matcher` : "")))));
}
