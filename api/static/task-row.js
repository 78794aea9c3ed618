// @ts-check
/** One task in the list: its name, one bar, what it does now, and what can be done with it. */

import { element, setText } from "./dom.js";
import { hasEnded } from "./headway.js";
import { STATUS, failureOf } from "./task-words.js";
import * as units from "./units.js";

/** @typedef {import("./headway.js").Task} Task */
/** @typedef {"cancel" | "retry" | "delete"} Action */

export class TaskRow {
  /** @param {string} id @param {(action: Action, id: string, button: HTMLButtonElement) => void} act */
  constructor(id, act) {
    this.link = element("a", { href: `#task=${encodeURIComponent(id)}`, className: "name", id: `row-${id}` });
    this.about = element("span", { className: "quiet about" });
    this.status = element("span", { className: "badge" });
    this.meter = new Meter(this.link.id);
    this.now = element("p", { className: "now" });
    this.cancel = button("Cancel", (self) => act("cancel", id, self));
    this.retry = button("Try again", (self) => act("retry", id, self));
    this.delete = confirmButton("Delete", "Delete for good?", (self) => act("delete", id, self));
    const buttons = element("div", { className: "row-actions" }, [this.cancel, this.retry, this.delete]);
    const head = element("div", { className: "row-head" }, [element("div", { className: "who" }, [this.link, this.about]), this.status]);
    const foot = element("div", { className: "row-foot" }, [this.now, buttons]);
    this.root = element("li", { className: "task-row" }, [head, this.meter.root, foot]);
  }

  /** @param {Task} task @param {import("./uploads.js").Sending | undefined} sending */
  draw(task, sending) {
    const ended = hasEnded(task);
    const name = task.filename || task.options?.title || task.processor;
    this.root.dataset.status = task.status;
    setText(this.link, name);
    const size = task.filename && typeof task.size_bytes === "number" ? units.bytes(task.size_bytes) : "";
    setText(this.about, [name === task.processor ? "" : task.processor, size, units.moment(task.created_at)].filter(Boolean).join(" · "));
    setText(this.status, STATUS[task.status] ?? task.status);
    this.meter.draw(task.progress, task.message || STATUS[task.status]);
    const stopped = sending?.problem && task.status === "uploading" ? `The upload stopped: ${sending.problem.message}` : "";
    setText(this.now, stopped || (task.status === "failed" && task.error ? `${failureOf(task.error)}: ${task.error.message}` : ended ? took(task) : units.phase(task)));
    for (const [what, label] of /** @type {const} */ ([[this.cancel, "Cancel"], [this.retry, "Try again"], [this.delete, "Delete"]]))
      if (!what.dataset.sure) what.setAttribute("aria-label", `${label}: ${name}`);
    this.cancel.hidden = ended;
    this.delete.hidden = !ended;
    this.retry.hidden = !ended || !task.links.retry;
  }
}

/** A bar: the server's percentage and nothing else. */
export class Meter {
  /** @param {string} labelledBy */
  constructor(labelledBy) {
    this.fill = element("div", { className: "fill" });
    this.bar = element("div", { className: "bar" }, [this.fill]);
    this.bar.setAttribute("role", "progressbar");
    this.bar.setAttribute("aria-labelledby", labelledBy);
    this.bar.setAttribute("aria-valuemin", "0");
    this.bar.setAttribute("aria-valuemax", "100");
    this.percent = element("span", { className: "percent", ariaHidden: "true" });
    this.root = element("div", { className: "progress" }, [this.bar, this.percent]);
  }

  /** @param {number} progress @param {string} words */
  draw(progress, words) {
    const shown = Math.floor(progress); // rounded up, 99.6 would claim to be done
    setText(this.percent, `${shown} %`);
    this.fill.style.width = `${progress}%`;
    this.bar.setAttribute("aria-valuenow", String(shown));
    this.bar.setAttribute("aria-valuetext", `${shown} %, ${words}`);
  }
}

/** @param {Task} task */
function took({ started_at, created_at, finished_at, attempt, message, status }) {
  const from = attempt > 1 ? started_at : created_at;
  const seconds = from && finished_at ? (Date.parse(finished_at) - Date.parse(from)) / 1000 : null;
  const words = ["Done", STATUS[status]].includes(message) ? "" : message;
  return [words, seconds === null ? "" : `took ${units.duration(seconds)}`, attempt > 1 ? `attempt ${attempt}` : ""].filter(Boolean).join(" · ");
}

/** @param {string} text @param {(self: HTMLButtonElement) => void} press */
export function button(text, press) {
  const made = element("button", { type: "button", className: "small", textContent: text });
  made.addEventListener("click", () => press(made));
  return made;
}

/** How long a question stays before it is taken back. */
const UNSURE_MS = 5000;

/** A button that asks back once before it does what cannot be undone. @param {string} text @param {string} question @param {(self: HTMLButtonElement) => void} press */
export function confirmButton(text, question, press) {
  let timer = 0;
  let label = "";
  const calm = () => {
    clearTimeout(timer);
    if (!made.dataset.sure) return;
    delete made.dataset.sure;
    made.textContent = text;
    if (label) made.setAttribute("aria-label", label);
  };
  const made = button(text, () => {
    if (made.dataset.sure) {
      calm();
      return press(made);
    }
    made.dataset.sure = "asked";
    label = made.getAttribute("aria-label") ?? "";
    made.removeAttribute("aria-label"); // the question is what is heard
    made.textContent = question;
    timer = window.setTimeout(calm, UNSURE_MS);
  });
  made.addEventListener("blur", calm);
  return made;
}
