// Asks for an API key when the server wants one. It stays in this tab.

import { byId } from "./dom.js";
import { setKey } from "./server.js";

export class KeyDialog {
  // given() is called with the key in place.
  constructor(given) {
    this.dialog = byId("key-dialog");
    byId("key-form").addEventListener("submit", (event) => { event.preventDefault(); this.#take(given); });
    byId("ask-key").addEventListener("click", () => this.#open());
    byId("key-later").addEventListener("click", () => this.dialog.close());
  }

  ask(reason) {
    byId("key-reason").textContent = reason;
    byId("ask-key").hidden = false;
    this.#open();
  }

  #open() {
    if (!this.dialog.open) this.dialog.showModal();
  }

  #take(given) {
    setKey(byId("key").value.trim());
    byId("key").value = "";
    byId("ask-key").hidden = true;
    this.dialog.close();
    given();
  }
}
