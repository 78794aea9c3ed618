// @ts-check
/**
 * The one task on the screen: its state from the store, what was said about it from its history, what is said now from
 * the feed. It holds nothing open once it is left.
 */

import { byId } from "./dom.js";
import { fetchTask, hasEnded } from "./headway.js";
import { readHistory } from "./history.js";
import { backoff, pause } from "./http.js";
import { Notes } from "./notes.js";
import { isSettled } from "./task-words.js";
import { TaskView } from "./task-view.js";
import { isBeingSent } from "./tus.js";

/** @typedef {import("./headway.js").Problem} Problem */

/** A task that says `uploading` and nothing else for this long, while no tab sends its file, has nobody who sends. */
const QUIET_SECONDS = 3;

export class ShownTask {
  /** @param {import("./tasks.js").Tasks} tasks @param {import("./uploads.js").Uploads} uploads */
  constructor(tasks, uploads) {
    this.tasks = tasks;
    this.uploads = uploads;
    this.root = byId("task", HTMLElement);
    this.view = new TaskView();
    this.notes = new Notes();
    /** Empty: none is shown. */
    this.id = "";
    this.quiet = false;
    this.timer = 0;
    this.left = new AbortController();
  }

  get task() {
    return this.tasks.get(this.id);
  }

  /** @param {string} id */
  show(id) {
    this.leave();
    this.id = id;
    this.left = new AbortController();
    this.view.reset(this.task?.filename || "Task");
    this.notes.reset(id);
    this.root.hidden = false;
    this.redraw();
    void this.load(this.left.signal);
  }

  leave() {
    clearTimeout(this.timer);
    this.left.abort();
    this.root.hidden = true;
    this.quiet = false;
    this.id = "";
  }

  /** The task itself, which the list may not have, or not whole; and what was said about it. @param {AbortSignal} signal */
  async load(signal) {
    for (let failures = 0; !signal.aborted; failures++) {
      try {
        const known = this.task;
        const task = known && !known.result?.truncated ? known : await fetchTask(this.id);
        if (signal.aborted) return;
        this.tasks.put(task);
        this.expectBytes();
        const said = await readHistory(task, signal);
        if (!signal.aborted) for (const { type, data } of said) this.say(type, data);
        return;
      } catch (error) {
        const problem = /** @type {Problem} */ (error);
        if (signal.aborted) return;
        if (problem.status === 404 || problem.status === 410) return this.gone(this.id, problem.detail);
        if (problem.status >= 400 && !problem.passes) return this.view.complain(problem.title, problem.detail, problem.errors);
        await pause(backoff(failures));
      }
    }
  }

  /** Something of the feed that is no state. @param {import("./headway.js").NamedEvent} event */
  take({ type, data }) {
    if (this.id && data?.task_id === this.id) this.say(type, data);
  }

  /** @param {import("./headway.js").NamedEvent["type"]} type @param {any} data */
  say(type, data) {
    if (type === "log") this.view.addLine(data);
    if (type === "note") this.notes.add(data);
    if (type === "transfer") this.view.transfer(data);
  }

  /** A task has come or changed. @param {string} id */
  changed(id) {
    const { task } = this;
    if (id !== this.id || !task) return;
    this.quiet = false;
    if (hasEnded(task) && !isSettled(task)) this.tasks.want(id, null); // its links, and a result that no event could hold
    this.redraw();
    this.expectBytes();
  }

  redraw() {
    const { task } = this;
    if (!task) return;
    const sending = this.uploads.get(this.id);
    this.view.draw(task, { sending: Boolean(sending?.stop), quiet: this.quiet, problem: sending?.problem ?? null, notice: sending?.notice ?? "", sent: sending?.stop ? sending.sent : 0 });
  }

  /** If an upload goes quiet and no tab sends it, we offer to send the file. */
  expectBytes() {
    clearTimeout(this.timer);
    if (this.task?.status !== "uploading") return;
    const { id } = this;
    this.timer = window.setTimeout(async () => {
      const known = this.task?.version;
      const quiet = !(await isBeingSent(id));
      // What is said of it now is asked now: the stream may be held back.
      const now = quiet ? await fetchTask(id).catch(() => null) : this.task;
      if (id !== this.id) return;
      if (!now) return this.expectBytes();
      if (now.version !== known) return this.tasks.put(now);
      this.quiet = quiet;
      this.redraw();
      if (!quiet) this.expectBytes();
    }, QUIET_SECONDS * 1000);
  }

  /** It is gone, here or on the server. @param {string} id @param {string} [why] */
  gone(id, why) {
    this.tasks.drop(id);
    if (id !== this.id) return;
    this.view.gone(why || "The server does not know it, or no longer keeps it.");
    this.notes.root.hidden = true;
  }
}
