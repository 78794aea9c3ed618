// @ts-check
/** The chat of a task: notes of everybody who watches it, and a line to write one. */

import { byId, element } from "./dom.js";
import { request } from "./headway.js";
import { fillComplaint } from "./task-view.js";

/** @typedef {{author: string, text: string, at: string}} Note */

const KEY = "headway.author";

export class Notes {
  constructor() {
    this.root = byId("notes", HTMLElement);
    this.list = byId("note-list", HTMLElement);
    this.form = byId("note-form", HTMLFormElement);
    this.author = byId("note-author", HTMLInputElement);
    this.text = byId("note-text", HTMLInputElement);
    this.problem = byId("note-problem", HTMLElement);
    this.send = byId("note-send", HTMLButtonElement);
    this.taskId = "";
    /** @type {Set<string>} */
    this.seen = new Set();
    this.author.value = kept();
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.post();
    });
  }

  /** Another task's. @param {string} taskId */
  reset(taskId) {
    this.taskId = taskId;
    this.seen.clear();
    this.list.replaceChildren();
    this.text.value = "";
    this.problem.hidden = true;
    this.root.hidden = false;
    void this.load(taskId);
  }

  /** What was said before, after the task's end too. @param {string} taskId */
  async load(taskId) {
    try {
      const { notes } = await request(`tasks/${taskId}/notes`);
      if (taskId === this.taskId) notes.forEach((/** @type {Note} */ note) => this.add(note));
    } catch {
      // a task that is not there says so itself, and what was said is on its stream too
    }
  }

  /** Each once, in order of time, whichever way it came. @param {Note} note */
  add({ author, text, at }) {
    const key = JSON.stringify([at, author, text]);
    if (this.seen.has(key)) return;
    this.seen.add(key);
    const time = element("time", { dateTime: at, textContent: new Date(at).toLocaleTimeString("en", { hourCycle: "h23", hour: "2-digit", minute: "2-digit" }) });
    const made = element("li", {}, [element("span", { className: "author", textContent: author }), time, element("p", { textContent: text })]);
    made.dataset.at = at;
    const after = [...this.list.children].find((one) => (/** @type {HTMLElement} */ (one).dataset.at ?? "") > at);
    this.list.insertBefore(made, after ?? null);
    this.list.scrollTop = this.list.scrollHeight;
  }

  async post() {
    const author = this.author.value.trim() || "Somebody";
    const text = this.text.value.trim();
    if (!text) return this.text.focus();
    this.problem.hidden = true;
    this.send.disabled = true;
    const { taskId } = this;
    try {
      const body = JSON.stringify({ author, text });
      await request(`tasks/${taskId}/notes`, { method: "POST", headers: { "content-type": "application/json" }, body });
      if (taskId === this.taskId) this.text.value = ""; // the note itself comes by the feed, as it does to everybody
      keep(this.author.value.trim());
    } catch (error) {
      const problem = /** @type {import("./headway.js").Problem} */ (error);
      fillComplaint(this.problem, "The note was not taken", problem.detail || problem.title);
    } finally {
      this.send.disabled = false;
      this.text.focus();
    }
  }
}

function kept() {
  try {
    return localStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

/** @param {string} author */
function keep(author) {
  try {
    localStorage.setItem(KEY, author);
  } catch {
    // asked again next time
  }
}
