// @ts-check
/**
 * The files this tab sends: a few at a time, whatever is shown meanwhile. What has come of them is the tasks' own
 * business; here is only what ended the sending, if something did.
 */

import { Problem, announce, fetchTask, hasEnded, unfinished } from "./headway.js";
import { backoff, pause } from "./http.js";
import { forgetFile, keepFile } from "./kept-files.js";
import { Turns } from "./turns.js";
import { alone, sendRest } from "./tus.js";
import { number } from "./units.js";

/** @typedef {import("./headway.js").Task} Task */
/** @typedef {{file: File, stop: AbortController | null, problem: Problem | null, notice: string, sent: number}} Sending `stop` is null once it is over; `sent`: bytes that have left this browser */

export const ANOTHER_TITLE = "Sent as a new task";

/** What is said of files that turned out not to be those whose uploads wait. @param {number} [count] @param {number} [of] */
export const another = (count = 1, of = 1) =>
  of === 1
    ? "This file differs from the one that was begun earlier, so it is sent as a new task; the earlier task stays unfinished until it expires."
    : `${number(count)} of these ${number(of)} files differ from those that were begun earlier, so they are sent as new tasks; the earlier tasks stay unfinished until they expire.`;

/** Making the tasks runs ahead of sending, so that all of them are there to be seen. */
const BEGUN_AT_ONCE = 2;
/** What has left this browser is shown so often. */
const SHOWN_MS = 300;

export class Uploads {
  /** @param {(task: Task) => void} onbegun @param {(taskId: string) => void} onchange */
  constructor(onbegun, onchange) {
    this.onbegun = onbegun;
    this.onchange = onchange;
    this.beginning = 0;
    /** @type {Map<string | undefined, Promise<unknown>>} by batch: whose tasks are being made */
    this.batches = new Map();
    /** @type {Set<string | undefined>} batches of which no more tasks are made */
    this.givenUp = new Set();
    /** @type {Map<string, Sending>} */
    this.sendings = new Map();
    this.turns = new Turns();
    window.addEventListener("beforeunload", (event) => {
      if (this.beginning || [...this.sendings.values()].some(({ stop }) => stop)) event.preventDefault();
    });
  }

  /** @param {string} taskId */
  get = (taskId) => this.sendings.get(taskId);

  /**
   * Makes a task and sends its file; a file whose upload was cut off goes on where it was. Raises Problem.
   *
   * @param {File | null} file @param {import("./headway.js").Work & {onanother?: () => void}} work @param {string} [notice] shown with the task
   */
  async begin(file, work, notice = "") {
    const onanother = () => {
      notice = another();
      work.onanother?.();
    };
    const task = (file && (await unfinished(file, { ...work, onanother }))) || (await announce(file, work));
    this.onbegun(task);
    if (file) void keepFile(task.task_id, file);
    if (file && task.links.upload) void this.add(task, file, notice);
    return task;
  }

  /**
   * The same for many, in order.
   *
   * @param {File[]} files @param {import("./headway.js").Work & {onanother?: () => void}} work
   * @returns {Promise<{file: File, problem: Problem}[]>} those that the server refused
   */
  async beginAll(files, work) {
    /** @type {{file: File, problem: Problem}[]} */
    const refused = [];
    const rest = [...files];
    const { batchId } = work;
    const some = async () => {
      for (let file = rest.shift(), failures = 0; file && !this.givenUp.has(batchId); ) {
        try {
          await this.begin(file, work);
        } catch (error) {
          const problem = /** @type {Problem} */ (error);
          if (problem.passes) {
            await pause(backoff(failures++));
            continue;
          }
          refused.push({ file, problem });
        }
        file = rest.shift();
        failures = 0;
      }
    };
    this.beginning++;
    const begun = Promise.all(Array.from({ length: BEGUN_AT_ONCE }, some));
    this.batches.set(batchId, begun);
    await begun;
    this.batches.delete(batchId);
    this.beginning--;
    return refused;
  }

  /** Sends a file when it is its turn, if no other tab does. @param {Task} task @param {File} file @param {string} [notice] */
  async add(task, file, notice = "") {
    const stop = new AbortController();
    /** @type {Sending} */
    const sending = { file, stop, problem: null, notice, sent: 0 };
    this.sendings.set(task.task_id, sending);
    this.onchange(task.task_id);
    const { signal } = stop;
    let shown = 0;
    const onsent = (/** @type {number} */ bytes) => {
      sending.sent = bytes;
      if (performance.now() - shown < SHOWN_MS && bytes < file.size) return;
      shown = performance.now();
      this.onchange(task.task_id);
    };
    const work = async () => signal.aborted || sendRest(task, file, { signal, onsent });
    try {
      await alone(task.task_id, async () => void (await this.turns.take(work)));
    } catch (error) {
      // Bytes that are refused because the task has ended are no error of their own: the task says how it ended.
      const now = signal.aborted ? null : await fetchTask(task.task_id).catch(() => task);
      if (now && !hasEnded(now)) sending.problem = error instanceof Problem ? error : new Problem({ detail: String(error) });
    }
    if (!sending.problem) void forgetFile(task.task_id);
    sending.stop = null;
    this.onchange(task.task_id);
  }

  /** Makes no more tasks of a batch: after this, the server knows all that there will be. @param {string} batchId */
  async giveUp(batchId) {
    this.givenUp.add(batchId);
    await this.batches.get(batchId);
  }

  /** The file that was given for a task is not its file. @param {string} taskId */
  forget(taskId) {
    this.sendings.delete(taskId);
    void forgetFile(taskId);
  }

  /** The task has ended, so it takes no more bytes. @param {string} taskId */
  stop(taskId) {
    this.sendings.get(taskId)?.stop?.abort();
  }
}
