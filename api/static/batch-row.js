// @ts-check
/** A batch in the list: its roll-up, as the server counts it, over its tasks, which can be folded away. */

import { element, setText } from "./dom.js";
import { request } from "./headway.js";
import { STATUS } from "./task-words.js";
import { Meter, confirmButton } from "./task-row.js";
import * as units from "./units.js";

const AGAIN_MS = 1000;
/** More tasks than this are folded away until somebody looks. */
const OPEN_TASKS = 10;

export class BatchRow {
  /** @param {string} id @param {(button: HTMLButtonElement) => Promise<string>} cancelAll answers with what came of it, in words */
  constructor(id, cancelAll) {
    this.id = id;
    this.timer = 0;
    this.asked = 0;
    /** @type {boolean | null} as somebody wants it, else as many as there are */
    this.open = null;
    this.count = 0;
    this.name = element("span", { className: "name", textContent: id, id: `batch-${id}` });
    this.status = element("span", { className: "badge" });
    this.meter = new Meter(this.name.id);
    this.now = element("p", { className: "now" });
    this.list = element("ul", { className: "members", id: `members-${id}` });
    this.fold = element("button", { type: "button", className: "small" });
    this.fold.setAttribute("aria-controls", this.list.id);
    this.fold.addEventListener("click", () => {
      this.open = Boolean(this.list.hidden);
      this.drawFold();
    });
    /** What came of cancelling all. */
    this.answer = "";
    this.cancel = confirmButton("Cancel all", "Cancel all of them?", async (button) => {
      this.answer = await cancelAll(button);
      this.touch();
    });
    const kind = element("span", { className: "quiet about", textContent: "batch" });
    const head = element("div", { className: "row-head" }, [element("div", { className: "who" }, [this.name, kind]), this.status]);
    const buttons = element("div", { className: "row-actions" }, [this.cancel, this.fold]);
    const rollup = element("div", { className: "rollup" }, [head, this.meter.root, element("div", { className: "row-foot" }, [this.now, buttons])]);
    this.root = element("li", { className: "batch" }, [rollup, this.list]);
    this.cancel.hidden = true;
  }

  /** One of its tasks has changed. */
  touch() {
    if (this.timer) return;
    const wait = Math.max(0, this.asked + AGAIN_MS - Date.now());
    this.timer = window.setTimeout(async () => {
      this.timer = 0; // what happens from here on is asked about again
      this.asked = Date.now();
      const rollup = await request(`batches/${encodeURIComponent(this.id)}`).catch(() => null);
      if (rollup) this.draw(rollup);
    }, wait);
  }

  /** @param {{status: string, progress: number, eta_seconds: number | null, total: number, counts: Record<string, number>}} rollup */
  draw({ status, progress, eta_seconds, total, counts }) {
    const words = Object.entries(counts).filter(([, number]) => number).map(([name, number]) => `${units.number(number)} ${(STATUS[name] ?? name).toLowerCase()}`);
    this.root.dataset.status = status !== "ended" ? "processing" : counts.completed ? "completed" : counts.failed ? "failed" : "cancelled";
    // What failed is the bar's end, so that one bad file of a hundred looks like that.
    this.meter.fill.style.setProperty("--failed", `${total && progress ? (10_000 * (counts.failed ?? 0)) / (total * progress) : 0}%`);
    setText(this.status, status === "ended" ? "Ended" : "Processing");
    this.meter.draw(progress, words.join(", "));
    const left = status !== "ended" && eta_seconds !== null ? `${units.timeLeft(eta_seconds)} left` : "";
    setText(this.now, [`${units.number(total)} tasks`, ...words, left, this.answer].filter(Boolean).join(" · "));
    this.cancel.hidden = status === "ended";
  }

  /** @param {number} count of its tasks that are in the list */
  drawCount(count) {
    this.count = count;
    this.drawFold();
  }

  drawFold() {
    const open = this.open ?? this.count <= OPEN_TASKS;
    this.list.hidden = !open;
    this.fold.setAttribute("aria-expanded", String(open));
    setText(this.fold, open ? "Fold" : `Show ${units.number(this.count)}`);
  }
}
