// @ts-check
/**
 * The list of all tasks, newest first, each drawn when something of it has changed and never more than once a frame.
 * A batch's tasks stand together under its roll-up, which is the server's own count: it is asked for after one of them
 * has changed, at most once a second, however many they are.
 */

import { BatchRow } from "./batch-row.js";
import { byId, setText } from "./dom.js";
import { hasEnded } from "./headway.js";
import { TaskRow } from "./task-row.js";

/** @typedef {import("./headway.js").Task} Task */
/** @typedef {import("./task-row.js").Action} Action */

export class TaskList {
  /**
   * @param {import("./tasks.js").Tasks} tasks
   * @param {import("./uploads.js").Uploads} uploads
   * @param {(action: Action, id: string, button: HTMLButtonElement) => void} act
   * @param {(batchId: string, button: HTMLButtonElement) => Promise<string>} cancelAll
   */
  constructor(tasks, uploads, act, cancelAll) {
    this.tasks = tasks;
    this.uploads = uploads;
    this.act = act;
    this.cancelAll = cancelAll;
    this.root = byId("tasks", HTMLElement);
    this.list = byId("task-list", HTMLElement);
    this.empty = byId("no-tasks", HTMLElement);
    this.text = byId("filter-text", HTMLInputElement);
    this.status = byId("filter-status", HTMLSelectElement);
    this.more = byId("more", HTMLButtonElement);
    /** @type {Map<string, TaskRow>} */
    this.rows = new Map();
    /** @type {Map<string, BatchRow>} */
    this.batches = new Map();
    /** @type {Set<string>} */
    this.dirty = new Set();
    this.frame = 0;
    /** @type {string | null} */
    this.cursor = null;
    this.loaded = false;

    this.text.addEventListener("input", () => this.redraw());
    this.status.addEventListener("change", () => {
      this.redraw();
      void this.load().catch(() => {}); // older ones of this status
    });
    this.more.addEventListener("click", () => void this.older());
  }

  /** The first page of the list, as it is filtered. Raises Problem. */
  async load() {
    const status = this.status.value;
    this.cursor = await this.tasks.page({ status: status === "active" ? "" : status });
    this.loaded = true;
    this.redraw();
  }

  async older() {
    this.more.disabled = true;
    try {
      const status = this.status.value;
      this.cursor = await this.tasks.page({ status: status === "active" ? "" : status, cursor: this.cursor });
    } catch {
      // it stays where it is, to be pressed again
    }
    this.more.disabled = false;
    this.redraw();
  }

  /** Somebody else may look now. */
  clear() {
    this.rows.clear();
    this.batches.clear();
    this.list.replaceChildren();
    this.loaded = false;
    this.cursor = null;
  }

  /** A task has come, changed or gone. @param {string} id */
  touch(id) {
    const task = this.tasks.get(id);
    if (task?.batch_id) this.batches.get(task.batch_id)?.touch();
    this.dirty.add(id);
    this.schedule();
  }

  redraw() {
    for (const task of this.tasks.known.keys()) this.dirty.add(task);
    this.schedule();
  }

  schedule() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    if (this.root.hidden) return; // drawn whole when it is shown
    const shown = this.tasks.all().filter((task) => this.fits(task));
    const ids = new Set(shown.map(({ task_id }) => task_id));
    for (const [id, row] of this.rows) {
      if (ids.has(id)) continue;
      row.root.remove();
      this.rows.delete(id);
    }
    /** @type {HTMLElement[]} */
    const top = [];
    /** @type {Map<BatchRow, HTMLElement[]>} */
    const inside = new Map();
    for (const task of shown) {
      const row = this.row(task);
      const batch = task.batch_id ? this.batch(task.batch_id) : null;
      const members = batch && inside.get(batch);
      if (members) members.push(row);
      else if (batch) {
        inside.set(batch, [row]);
        top.push(batch.root);
      } else top.push(row);
    }
    for (const [id, batch] of this.batches) {
      if (!inside.has(batch)) this.batches.delete(id);
    }
    arrange(this.list, top);
    for (const [batch, members] of inside) {
      arrange(batch.list, members);
      batch.drawCount(members.length);
    }
    this.dirty.clear();
    this.empty.hidden = shown.length > 0;
    const all = this.tasks.known.size === 0;
    setText(this.empty, !this.loaded ? "Asking for the tasks…" : all ? "Nothing here yet. Drop a file above." : "None of the tasks fits the filter.");
    this.more.hidden = !this.cursor;
  }

  /** @param {Task} task */
  row(task) {
    const id = task.task_id;
    let row = this.rows.get(id);
    if (row && !this.dirty.has(id)) return row.root;
    if (!row) this.rows.set(id, (row = new TaskRow(id, this.act)));
    row.draw(task, this.uploads.get(id));
    return row.root;
  }

  /** @param {string} id */
  batch(id) {
    const found = this.batches.get(id);
    if (found) return found;
    const made = new BatchRow(id, (button) => this.cancelAll(id, button));
    this.batches.set(id, made);
    made.touch();
    return made;
  }

  /** @param {Task} task */
  fits(task) {
    const status = this.status.value;
    const text = this.text.value.trim().toLowerCase();
    const right = !status || status === task.status || (status === "active" && !hasEnded(task));
    return right && `${task.filename ?? ""} ${task.processor} ${task.batch_id ?? ""}`.toLowerCase().includes(text);
  }
}

/** Puts the children in this order, and moves none that stands right: what has the focus keeps it. @param {HTMLElement} parent @param {HTMLElement[]} wanted */
function arrange(parent, wanted) {
  const keep = new Set(wanted);
  for (const child of [...parent.children]) if (!keep.has(/** @type {HTMLElement} */ (child))) child.remove();
  let at = parent.firstElementChild;
  for (const child of wanted) {
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
}
