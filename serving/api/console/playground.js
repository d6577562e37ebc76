// The playground: sends what the form says, shows the answer as it comes, and how fast it came.

import { byId, make } from "./dom.js";
import { events } from "./events.js";
import { Fields } from "./fields.js";
import { bodyOf, readEvent } from "./request.js";
import { ask } from "./server.js";
import { curl, python } from "./snippets.js";

export class Playground {
  // refused(error) is called when a key is needed.
  constructor(refused) {
    this.refused = refused;
    this.fields = new Fields(byId("fields"));
    byId("form").addEventListener("submit", (event) => { event.preventDefault(); this.#send(); });
    byId("stop").addEventListener("click", () => this.abort?.abort());
    byId("endpoint").addEventListener("change", () => this.#offer());
    this.#offer();
    for (const button of document.querySelectorAll("[data-copies]")) button.addEventListener("click", () => copy(button));
  }

  #offer() {
    byId("system-row").hidden = byId("endpoint").value === "/v1/completions";
    this.fields.offer("raw", byId("endpoint").value === "/predict");
  }

  async #send() {
    try {
      const endpoint = byId("endpoint").value;
      const system = byId("system-row").hidden ? "" : byId("system").value;
      const body = bodyOf(endpoint, { system, prompt: byId("prompt").value, parameters: this.fields.values() });
      this.#begin(endpoint, body);
      await this.#receive(endpoint, body);
      tell("Done.");
    } catch (error) {
      tell(error.name === "AbortError" ? "Stopped." : error.message);
      if (error.status === 401) this.refused(error);
    } finally {
      this.#busy(false);
    }
  }

  #begin(endpoint, body) {
    this.abort = new AbortController();
    Object.assign(this, { began: performance.now(), first: null, tokens: 0, answers: new Map() });
    byId("answers").replaceChildren();
    byId("progress").textContent = "";
    byId("curl").textContent = curl(endpoint, body);
    byId("python").textContent = python(endpoint, body);
    byId("snippets").hidden = false;
    this.#busy(true);
    tell("Sent.");
  }

  async #receive(endpoint, body) {
    const response = await ask(endpoint, { body: JSON.stringify(body), signal: this.abort.signal });
    for await (const event of events(response)) this.#take(readEvent(event));
  }

  #take({ pieces, tokens }) {
    for (const piece of pieces) this.#write(piece);
    this.tokens = tokens ?? this.tokens + pieces.length;  // /predict counts at the end only: an event is a token, nearly
    this.first ??= performance.now();
    this.#measure();
  }

  #write({ place, text, finish, likelihoods }) {
    if (!this.answers.has(place)) this.answers.set(place, answer());
    const { words, likely, end } = this.answers.get(place);
    words.append(text);
    likely.append(likelihoods.map(([token, logprob]) => `${JSON.stringify(token)} ${logprob.toFixed(2)}  `).join(""));
    if (finish) end.textContent = `finish_reason: ${finish}`;
  }

  #measure() {
    const seconds = (performance.now() - this.first) / 1000;
    const speed = this.tokens > 1 && seconds > 0 ? ` · ${((this.tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    byId("progress").textContent = `TTFT ${(this.first - this.began).toFixed(0)} ms · ${this.tokens} tokens${speed}`;
  }

  // The focus follows from one button to the other, so that a keyboard never stands on a disabled one.
  #busy(busy) {
    const [off, on] = busy ? [byId("send"), byId("stop")] : [byId("stop"), byId("send")];
    const moves = document.activeElement === off;
    [off.disabled, on.disabled] = [true, false];
    if (moves) on.focus();
    byId("answers").setAttribute("aria-busy", String(busy));
  }
}

function answer() {
  const [words, likely, end] = ["words", "hint likely", "hint"].map((className) => make("p", { className }));
  byId("answers").append(make("article", {}, words, likely, end));
  return { words, likely, end };
}

const tell = (sentence) => { byId("told").textContent = sentence; };

async function copy(button) {
  const text = byId(button.dataset.copies);
  try {
    await navigator.clipboard.writeText(text.textContent);
    tell(`Copied ${button.dataset.copies}.`);
  } catch {  // pages that came over plain HTTP from another machine have no clipboard
    getSelection().selectAllChildren(text);
    tell("Selected: press Ctrl+C to copy.");
  }
}
