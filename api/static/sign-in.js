// @ts-check
/** Signing in, where the server has keys: a key goes there once, a cookie stays that no script can read. */

import { byId, setText } from "./dom.js";
import { request } from "./headway.js";
import { fillComplaint } from "./task-view.js";

export class SignIn {
  /** @param {() => void} onchange somebody has signed in, or out */
  constructor(onchange) {
    this.onchange = onchange;
    this.root = byId("sign-in", HTMLElement);
    this.form = byId("sign-in-form", HTMLFormElement);
    this.key = byId("key", HTMLInputElement);
    this.problem = byId("sign-in-problem", HTMLElement);
    this.button = byId("sign-in-button", HTMLButtonElement);
    this.who = byId("who", HTMLElement);
    this.out = byId("sign-out", HTMLButtonElement);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.enter();
    });
    this.out.addEventListener("click", () => void this.leave());
  }

  /** Raises Problem: 401 where nobody is signed in. */
  async check() {
    this.show(await request("session"));
  }

  /** @param {{owner: string | null}} session `owner` is null where nobody needs to sign in */
  show({ owner }) {
    this.root.hidden = true;
    this.out.hidden = this.who.hidden = owner === null;
    setText(this.who, owner ?? "");
  }

  ask() {
    if (!this.root.hidden) return;
    this.root.hidden = false;
    this.out.hidden = this.who.hidden = true;
    this.problem.hidden = true;
    this.key.value = "";
    this.key.focus();
  }

  async enter() {
    this.button.disabled = true;
    this.problem.hidden = true;
    try {
      const body = JSON.stringify({ key: this.key.value.trim() });
      this.show(await request("session", { method: "POST", headers: { "content-type": "application/json" }, body }));
      this.key.value = "";
      this.onchange();
    } catch (error) {
      const problem = /** @type {import("./headway.js").Problem} */ (error);
      fillComplaint(this.problem, problem.title, problem.detail);
      this.key.focus();
    } finally {
      this.button.disabled = false;
    }
  }

  async leave() {
    this.out.disabled = true;
    await request("session", { method: "DELETE" }).catch(() => {}); // who is not signed in any more is out
    this.out.disabled = false;
    this.onchange();
  }
}
