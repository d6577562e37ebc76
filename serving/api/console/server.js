// The server, as this page asks it. The API key lives in the tab's session storage: another tab asks for it again.

const PATIENCE_MS = 5000;

const PLACE = "gangway.key";

export class Refused extends Error {
  // An answer that is an error: its status, and the server's own sentence where it gave one.
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const setKey = (key) => sessionStorage.setItem(PLACE, key);
export const hasKey = () => sessionStorage.getItem(PLACE) !== null;

// Addresses are relative to the page, so that it works behind a proxy's prefix, too.
export const address = (path) => new URL(path.replace(/^\//, ""), document.baseURI).href;

export async function ask(path, { signal = AbortSignal.timeout(PATIENCE_MS), body } = {}) {
  const headers = {};
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(PLACE)}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  const response = await fetch(address(path), { method, headers, body, signal, cache: "no-store" });
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    return new Refused(response.status, error.message);
  } catch {  // what stands before the server answered, not the server
    return new Refused(response.status, `${response.status} ${text.trim().slice(0, 200)}`);
  }
}
