// Asks the server how it is, once a second, and tells the page. Nobody is asked while nobody looks.

import { parse } from "./prometheus.js";
import { ask } from "./server.js";

const PAUSE_MS = 1000;

export class Watch {
  // show(status, samples) and fail(error) are called in turn, never at the same time.
  constructor(show, fail) {
    Object.assign(this, { show, fail, timer: 0, asking: false });
    document.addEventListener("visibilitychange", () => this.now());
  }

  // Ask at once, and go on asking.
  async now() {
    clearTimeout(this.timer);
    if (document.hidden || this.asking) return;
    this.asking = true;
    const again = await this.#once();
    this.asking = false;
    if (again) this.timer = setTimeout(() => this.now(), PAUSE_MS);
  }

  // False when asking again is of no use before somebody gives a key.
  async #once() {
    try {
      const [status, metrics] = await Promise.all([ask("v1/status"), ask("metrics")]);
      this.show(await status.json(), parse(await metrics.text()));
      return true;
    } catch (error) {
      this.fail(error);
      return error.status !== 401;
    }
  }
}
