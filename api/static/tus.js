// @ts-check
/**
 * Sending a file so that a cut costs nothing: tus 1.0.0 (https://tus.io/protocols/resumable-upload), in pieces. After a
 * cut the server is asked how much it has, and the rest is sent. An upload that was begun is remembered in this browser
 * by its file's name, size and date, so that the same file given again after a reload goes on where it was.
 *
 * What has come of it is not told from here: the server counts the bytes, and says so on the task's stream.
 */

import { BASE, Problem, backoff, call, parse, pause, request } from "./http.js";

/** @typedef {import("./headway.js").Task} Task */
/** @typedef {{task_id: string, processor: string, options: string, at: number}} Begun */

/** Small enough for most proxies' limits on a body, large enough that the answers between them cost nothing. */
const PIECE_BYTES = 16 * 1024 * 1024;
const TUS = { "tus-resumable": "1.0.0" };
const KEY = "headway.uploads";
/** The server gives an upload up a day after its last piece. */
const KEPT_MS = 24 * 3600 * 1000;

/** @param {File} file */
export const contentType = (file) => file.type || "application/octet-stream";

/**
 * Begins an upload: its task is `uploading` from here on.
 *
 * @param {File} file
 * @param {{processor: string, options: Record<string, unknown>, batchId?: string, token?: string, signal?: AbortSignal}} what
 * @returns {Promise<Task>}
 */
export async function create(file, { processor, options, batchId, token, signal }) {
  const about = { filename: file.name, filetype: contentType(file), processor, options: JSON.stringify(options), batch_id: batchId };
  const pairs = Object.entries(about).flatMap(([key, value]) => (value === undefined ? [] : [`${key} ${base64(value)}`]));
  const headers = { ...TUS, "upload-length": String(file.size), "upload-metadata": pairs.join(",") };
  const answer = await call("uploads", { method: "POST", headers, token, signal });
  const id = answer.headers.get("headway-task-id") ?? "";
  remember(file, { task_id: id, processor, options: about.options, at: Date.now() });
  return request(`tasks/${id}`, { token, signal });
}

/**
 * Sends what the server does not have yet, and tries again until it has it. Raises Problem where the server refuses the
 * bytes, the file cannot be read or another tab sends it; what the `signal` says where it was aborted.
 *
 * @param {Task} task an `uploading` one
 * @param {File} file
 * @param {{signal?: AbortSignal, token?: string}} [how]
 */
export const send = (task, file, how = {}) => alone(task.task_id, () => sendRest(task, file, how));

/** As `send`, for who has made sure that no other tab does. @param {Task} task @param {File} file @param {{signal?: AbortSignal, token?: string}} how */
export async function sendRest(task, file, { signal, token }) {
  const url = task.links.upload ?? `uploads/${task.task_id}`;
  // Announced by JSON: the whole of it in one request.
  if (url.endsWith("/upload"))
    return void (await call(url, { method: "PUT", headers: { "content-type": contentType(file) }, body: file, signal, token }));
  let offset = task.version === 1 ? 0 : await safely(() => offsetOf(url, token, signal), file, signal);
  while (offset < file.size) {
    const from = offset;
    offset = await safely((again) => (again ? offsetOf(url, token, signal) : sendPiece(url, file, from, token, signal)), file, signal);
  }
  forget(file);
}

/**
 * Does it until it is done, as often as the line breaks. Raises what is no matter of trying again.
 *
 * @param {(again: boolean) => Promise<number>} ask @param {File} file @param {AbortSignal} [signal]
 */
async function safely(ask, file, signal) {
  for (let failures = 0; ; failures++) {
    try {
      return await ask(failures > 0);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      const busy = error.status === 423 || (error.status === 409 && failures === 0); // another request had it, or moved it on
      if (!error.passes && !busy) throw error;
      if (error.status === 0) await readable(file);
      await pause(backoff(failures), signal);
    }
  }
}

/** @param {string} url @param {string} [token] @param {AbortSignal} [signal] */
async function offsetOf(url, token, signal) {
  const answer = await call(url, { method: "HEAD", headers: TUS, token, signal });
  return Number(answer.headers.get("upload-offset"));
}

/** @param {string} url @param {File} file @param {number} from @param {string} [token] @param {AbortSignal} [signal] */
async function sendPiece(url, file, from, token, signal) {
  const headers = { ...TUS, "upload-offset": String(from), "content-type": "application/offset+octet-stream" };
  const body = file.slice(from, from + PIECE_BYTES);
  const answer = await call(url, { method: "PATCH", headers, body, token, signal });
  return Number(answer.headers.get("upload-offset"));
}

/** A file that was changed or moved cannot be sent any more, however good the line is. @param {File} file */
async function readable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem({ title: "The file cannot be read", detail: "It was changed, moved or deleted since you chose it." });
  }
}

/** One tab sends an upload: two would take it from each other. @param {string} taskId @param {() => Promise<void>} work */
export async function alone(taskId, work) {
  if (!globalThis.navigator?.locks) return work(); // not a secure context: the server ends the older of two
  await navigator.locks.request(lockOf(taskId), { ifAvailable: true }, (lock) => {
    if (!lock) throw new Problem({ title: "It is being sent", detail: "Another tab of this browser sends this file." });
    return work();
  });
}

/** @param {string} taskId */
const lockOf = (taskId) => `headway-upload-${taskId}`;

/** Whether a tab of this browser sends it. @param {string} taskId */
export async function isBeingSent(taskId) {
  const held = (await globalThis.navigator?.locks?.query())?.held ?? [];
  return held.some(({ name }) => name === lockOf(taskId));
}

/**
 * The task whose upload of this file was begun in this browser and not ended, if it was for the same work.
 *
 * @param {File} file
 * @param {{processor: string, options?: Record<string, unknown>, token?: string}} what
 * @returns {Promise<Task | null>}
 */
export async function unfinished(file, { processor, options = {}, token }) {
  const begun = all()[fingerprint(file)];
  if (begun?.processor !== processor || begun.options !== JSON.stringify(options)) return null;
  if (await isBeingSent(begun.task_id)) return null;
  try {
    const task = await request(`tasks/${begun.task_id}`, { token });
    if (task.status === "uploading" && task.links.upload) return task;
    forget(file);
  } catch (error) {
    if (error instanceof Problem && error.status === 404) forget(file);
  }
  return null;
}

/** @param {File} file */
const fingerprint = (file) => [BASE.href, file.name, file.size, file.lastModified].join("|");

/** @returns {Record<string, Begun>} */
function all() {
  try {
    const found = parse(localStorage.getItem(KEY) ?? "{}") ?? {};
    return Object.fromEntries(Object.entries(found).filter(([, one]) => Date.now() - one.at < KEPT_MS));
  } catch {
    return {}; // this browser keeps nothing for us
  }
}

/** @param {File} file @param {Begun} begun */
const remember = (file, begun) => store({ ...all(), [fingerprint(file)]: begun });

/** @param {File} file */
function forget(file) {
  const { [fingerprint(file)]: _, ...rest } = all();
  store(rest);
}

/** @param {Record<string, Begun>} uploads */
function store(uploads) {
  try {
    localStorage.setItem(KEY, JSON.stringify(uploads));
  } catch {
    // full or forbidden: a reload begins anew
  }
}

/** Of UTF-8. @param {string} text */
const base64 = (text) => btoa(Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join(""));
