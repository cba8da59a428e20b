// What is shown lives in the address: "#/find?sentence=...&k=12". A link to it shows the same again.

export function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return {view: path || "find", ...Object.fromEntries(new URLSearchParams(query))};
}

export function address(view, values = {}) {
  const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== ""));
  return `#/${view}${query.size ? `?${query}` : ""}`;
}

export function go(view, values) {
  const next = address(view, values);
  if (location.hash === next) window.dispatchEvent(new HashChangeEvent("hashchange"));
  else location.hash = next;
}
