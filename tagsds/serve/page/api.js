// Calls of /api: the answer, or an Error whose message is the server's sentence.

async function answered(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; see whether tagsds-serve still runs.");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error ? body.error[0].toUpperCase() + body.error.slice(1) : `The server answered ${response.status}.`);
  return body;
}

export const get = (path, signal) => answered(path, {signal});

export const post = (path, body, signal) =>
  answered(path, {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body), signal});

export const picture = (key, small) => `/api/picture/${encodeURIComponent(key)}${small ? "?small=true" : ""}`;

const kept = new Map();

// An image's captions and regions, asked for once.
export async function image(key, signal) {
  if (!kept.has(key)) kept.set(key, await get(`/api/image/${encodeURIComponent(key)}`, signal));
  if (kept.size > 200) kept.delete(kept.keys().next().value);
  return kept.get(key);
}
