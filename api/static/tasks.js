// @ts-check
/**
 * All tasks this tab knows, each as new as anything that was heard of it: what lists and answers say, and the states of
 * the feed laid over that. A state does not say a task's name, so of one that nobody knows yet the server is asked; many
 * at a time are one question.
 */

import { Problem, fetchTask, hasEnded, request } from "./headway.js";
import { backoff } from "./http.js";
import { isNews } from "./watch.js";

/** @typedef {import("./headway.js").Task} Task */
/** @typedef {import("./headway.js").State} State */

/** Those that come together are asked about together. */
const GATHER_MS = 120;
const PAGE = 100;
/** So few are asked about one by one. */
const FEW = 3;

export class Tasks {
  /** @param {(taskId: string) => void} onchange a task has come, changed or gone */
  constructor(onchange) {
    this.onchange = onchange;
    /** @type {Map<string, Task>} */
    this.known = new Map();
    /** @type {Map<string, State | null>} states of tasks to be asked about */
    this.wanted = new Map();
    /** @type {Set<string>} deleted: a late answer does not bring them back */
    this.dropped = new Set();
    this.asking = false;
    this.failures = 0;
  }

  /** @param {string} id */
  get = (id) => this.known.get(id);

  /** Newest first. @returns {Task[]} */
  all() {
    return [...this.known.values()].sort((one, other) => (one.created_at < other.created_at ? 1 : one.created_at > other.created_at ? -1 : 0));
  }

  clear() {
    this.known.clear();
    this.wanted.clear();
  }

  /** A state of the feed. @param {State} state */
  take(state) {
    const id = state.task_id;
    if (this.dropped.has(id)) return;
    const task = this.known.get(id);
    if (!task) {
      if (isNews(this.wanted.get(id), state)) this.want(id, state);
      return;
    }
    if (!isNews(task, state)) return;
    this.known.set(id, { ...task, ...state });
    if (hasEnded(state) && !hasEnded(task) && state.status !== "completed") this.want(id, null); // whether it can be tried again
    this.onchange(id);
  }

  /** A whole task, as the server answered. @param {Task} task */
  put(task) {
    const known = this.known.get(task.task_id);
    if (this.dropped.has(task.task_id) || (known && known.version > task.version && task.error?.type !== "lost")) return;
    const heard = this.wanted.get(task.task_id);
    this.known.set(task.task_id, heard && isNews(task, heard) ? { ...task, ...heard } : task);
    if (heard) this.wanted.delete(task.task_id);
    this.onchange(task.task_id);
  }

  /** It is gone. @param {string} id */
  drop(id) {
    this.dropped.add(id);
    this.wanted.delete(id);
    if (this.known.delete(id)) this.onchange(id);
  }

  /**
   * A page of the server's list. Raises Problem.
   *
   * @param {{status?: string, cursor?: string | null}} [what]
   * @returns {Promise<string | null>} the cursor of the next one
   */
  async page({ status, cursor } = {}) {
    const query = new URLSearchParams({ limit: String(PAGE), ...(status && { status }), ...(cursor && { cursor }) });
    const { tasks, next_cursor } = await request(`tasks?${query}`);
    for (const task of tasks) this.put(task);
    return next_cursor;
  }

  /** @param {string} id @param {State | null} state */
  want(id, state) {
    this.wanted.set(id, state);
    if (this.asking) return;
    this.asking = true;
    setTimeout(() => void this.ask(), GATHER_MS);
  }

  async ask() {
    let wait = 0;
    const before = this.wanted.size;
    try {
      const unknown = [...this.wanted.keys()].filter((id) => !this.known.has(id));
      if (unknown.length > FEW) await this.page(); // a new task is on the first page
      const asked = [...this.wanted.keys()];
      for (let at = 0; at < asked.length; at += FEW) await Promise.all(asked.slice(at, at + FEW).map((id) => this.askOne(id)));
      this.failures = this.wanted.size < before ? 0 : this.failures + 1;
    } catch {
      this.failures++;
    }
    if (this.failures) wait = backoff(this.failures) * 1000; // who waits for an answer says so: see feed.js
    this.asking = false;
    const [next] = this.wanted.entries();
    if (next) setTimeout(() => this.want(...next), wait);
  }

  /** @param {string} id */
  async askOne(id) {
    if (!this.wanted.has(id)) return; // a list had it
    try {
      this.put(await fetchTask(id));
    } catch (error) {
      if (!(error instanceof Problem) || error.passes) throw error;
      if (error.status === 404) this.drop(id);
    }
    this.wanted.delete(id);
  }
}
