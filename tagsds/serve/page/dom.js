// Elements from values. Text always becomes text nodes: nothing that a server or a caption says is read as HTML.

export function h(tag, values = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(values)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--") || name === "width%") element.style.setProperty(name === "width%" ? "width" : name, value);
    else if (name === "grow") element.style.flexGrow = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

export const number = (value, digits = 3) => value.toFixed(digits);
export const percent = value => `${Math.round(100 * value)} %`;
export const milliseconds = value => (value < 1000 ? `${value < 10 ? value.toFixed(1) : Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`);

export function count(value, one, several = `${one}s`) {
  return `${value.toLocaleString("en")} ${value === 1 ? one : several}`;
}

// A score with a bar; bars of scores outside 0..1 (a matcher's) are relative to the best.
export function score(value, most = 1) {
  const share = Math.max(0, Math.min(1, value / (most || 1)));
  return h("div", {class: "score"}, h("div", {class: "track", "aria-hidden": "true"}, h("i", {"width%": `${100 * share}%`})), number(value));
}
