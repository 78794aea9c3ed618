// @ts-check
/**
 * The Headway client: sends a file, watches its task. No dependency, no build step; the page uses it, and any other
 * page can, on the same origin or, with a `token`, on another:
 *
 *     import { submit } from "/static/headway.js";
 *     const task = await submit(file, { processor: "checksum", onprogress: (task) => (bar.value = task.progress) });
 *     console.log(task.status, task.result?.summary);
 *
 * or `<task-progress href="/tasks/ID"></task-progress>`. What each takes and gives is in headway.d.ts. This module is
 * the client's face; the work is in watch.js (streams), tus.js (uploads), http.js and task-progress.js.
 */

import { request } from "./http.js";
import { create, send, unfinished } from "./tus.js";
import { hasEnded, watch } from "./watch.js";

/** @typedef {import("./headway.js").Task} Task */

export { BASE, Problem, request } from "./http.js";
export { TaskProgress } from "./task-progress.js";
export { send, unfinished } from "./tus.js";
export { hasEnded, watch, watchAll } from "./watch.js";

/** @param {string} id @param {{token?: string}} [how] @returns {Promise<Task>} */
export const fetchTask = (id, how) => request(`tasks/${encodeURIComponent(id)}`, how);

/** @param {{token?: string}} [how] @returns {Promise<import("./headway.js").Processor[]>} */
export const fetchProcessors = async (how) => (await request("processors", how)).processors;

/**
 * Makes the task, before a byte of its file is sent: its stream can be opened from here on.
 *
 * @param {File | null} file null for a processor that needs none
 * @param {import("./headway.js").Work} what
 * @returns {Promise<Task>}
 */
export function announce(file, { processor, options = {}, batchId, signal, token }) {
  if (file) return create(file, { processor, options, batchId, signal, token });
  const body = JSON.stringify({ processor, options, batch_id: batchId });
  return request("tasks", { method: "POST", headers: { "content-type": "application/json" }, body, signal, token });
}

/**
 * Sends a file and follows it to its end. A file whose upload was cut off by a reload goes on where it was. Resolves
 * with the ended task, failed and cancelled ones included; rejects with Problem where the server refused it.
 *
 * @param {File | null} file
 * @param {import("./headway.js").SubmitOptions} what
 * @returns {Promise<Task>}
 */
export async function submit(file, { oncreated, onprogress, onevent, onconnection, onanother, ...work }) {
  const { signal, token } = work;
  const begun = file ? await unfinished(file, { ...work, onanother }) : null;
  const task = begun ?? (await announce(file, work));
  oncreated?.(task);
  onprogress?.(task);
  const onstate = (/** @type {import("./headway.js").State} */ state) => onprogress?.({ ...task, ...state });
  const events = /** @type {string} */ (task.links.events);
  const watching = watch(events, { onstate, onevent, onconnection, token });
  const ended = new AbortController(); // a task that has ended takes no more bytes
  const stopped = signal ? AbortSignal.any([signal, ended.signal]) : ended.signal;
  const upload = file && task.links.upload ? send(task, file, { signal: stopped, token }) : Promise.resolve();
  const sent = upload.then(
    () => watching.closed,
    async (problem) => {
      // Bytes that are refused because the task has ended are no error of their own: the task says how it ended.
      if (!signal?.aborted && hasEnded(await fetchTask(task.task_id, { token }))) return watching.closed;
      throw problem;
    },
  );
  const given = signal ? aborted(signal) : watching.closed;
  try {
    const end = await Promise.race([watching.closed, sent, given]);
    ended.abort();
    if (end.problem) throw end.problem;
    return await fetchTask(task.task_id, { token }); // the whole result: a state's may be cut to fit an event
  } finally {
    sent.catch(() => {}); // aborted by us
    watching.close();
  }
}

/** @param {AbortSignal} signal @returns {Promise<never>} */
const aborted = (signal) =>
  new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    else signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
