// @ts-check
/**
 * Sending a file so that a cut costs nothing: tus 1.0.0 (https://tus.io/protocols/resumable-upload), in pieces. After a
 * cut the server is asked how much it has, and the rest is sent.
 *
 * An upload goes on only with the rest of the same bytes. What the server has is compared with this file's beginning, by
 * digest, whenever an upload goes on, and each piece says what it is to follow (`Headway-Upload-Digest`,
 * docs/reference.md): so two that send different files to one upload never mix.
 *
 * What has come of it is not told from here: the server counts the bytes, and says so on the task's stream.
 */

import { begunOf, claim, claimForSending, forget, keepForSending, lookalikes, release, remember } from "./begun-uploads.js";
import { Problem, backoff, call, pause, request } from "./http.js";
import { sha256 } from "./sha256.js";
import { Turns } from "./turns.js";

export { isBeingSent } from "./begun-uploads.js";

/** @typedef {import("./headway.js").Task} Task */

/** Of those who call `send`: however many files a page gives, a few are sent at a time. */
const turns = new Turns();

/** Small enough for most proxies' limits on a body, large enough that the answers between them cost nothing. */
const PIECE_BYTES = 16 * 1024 * 1024;
/** The server's: a prefix's digest is over the digests of so many bytes each. */
const DIGESTED_BYTES = 8 * 1024 * 1024;
const TUS = { "tus-resumable": "1.0.0" };
/** Of a Problem. */
export const ANOTHER_FILE = "another-file";

/** @param {File} file */
export const contentType = (file) => file.type || "application/octet-stream";

/**
 * Begins an upload: its task is `uploading` from here on.
 *
 * @param {File} file
 * @param {{processor: string, options: Record<string, unknown>, batchId?: string, token?: import("./http.js").Token, signal?: AbortSignal}} what
 * @returns {Promise<Task>}
 */
export async function create(file, { processor, options, batchId, token, signal }) {
  const about = { filename: file.name, filetype: contentType(file), processor, options: JSON.stringify(options), batch_id: batchId };
  const pairs = Object.entries(about).flatMap(([key, value]) => (value === undefined ? [] : [`${key} ${base64(value)}`]));
  const headers = { ...TUS, "upload-length": String(file.size), "upload-metadata": pairs.join(",") };
  const answer = await call("uploads", { method: "POST", headers, token, signal });
  const id = answer.headers.get("headway-task-id") ?? "";
  begun.set(id, begunOf(file, { processor, options, batchId }));
  return request(`tasks/${id}`, { token, signal });
}

/** What is to be remembered of an upload once it is claimed. @type {Map<string, import("./begun-uploads.js").Begun>} */
const begun = new Map();

/**
 * Sends what the server does not have yet when it is its turn, and tries again until it has it. Raises Problem where the
 * server refuses the bytes, has another file's, the file cannot be read or another tab sends it; what the `signal` says
 * where it was aborted.
 *
 * @param {Task} task an `uploading` one
 * @param {File} file
 * @param {{signal?: AbortSignal, token?: import("./http.js").Token}} [how]
 */
export const send = (task, file, how = {}) => alone(task.task_id, () => turns.take(() => sendRest(task, file, how)));

/** As `send`, for who has made sure that no other tab does. @param {Task} task @param {File} file @param {{signal?: AbortSignal, token?: import("./http.js").Token, onsent?: (bytes: number) => void}} how `onsent`: how much has left this browser */
export async function sendRest(task, file, { signal, token, onsent }) {
  const url = task.links.upload ?? `uploads/${task.task_id}`;
  // Announced by JSON: the whole of it in one request.
  if (url.endsWith("/upload"))
    return void (await call(url, { method: "PUT", headers: { "content-type": contentType(file) }, body: file, signal, token }));
  let offset = task.version === 1 ? 0 : await askAgain(() => offsetOf(url, file, token, signal), file, signal);
  for (let fruitless = 0; offset < file.size; ) {
    const from = offset;
    offset = await askAgain((again) => (again ? offsetOf(url, file, token, signal) : sendPiece(url, file, from, token, signal, onsent)), file, signal);
    fruitless = offset > from ? 0 : fruitless + 1;
    // Pieces that are answered, and are not there afterwards: something between takes them.
    if (fruitless) await pause(backoff(fruitless), signal);
  }
  forget(task.task_id);
}

/**
 * Does it until it is done, as often as the line breaks. Raises what is no matter of trying again.
 *
 * @param {(again: boolean) => Promise<number>} ask @param {File} file @param {AbortSignal} [signal]
 */
async function askAgain(ask, file, signal) {
  for (let failures = 0; ; failures++) {
    try {
      return await ask(failures > 0);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      const busy = error.status === 423 || (error.status === 409 && failures === 0); // another request had it, or moved it on
      if (error.type === ANOTHER_FILE || !(error.passes || busy)) throw error;
      if (error.status === 0) await readable(file);
      await pause(backoff(failures), signal);
    }
  }
}

/**
 * How much the server has, all of it being this file's. Raises Problem where it is another's.
 *
 * @param {string} url @param {File} file @param {import("./http.js").Token} [token] @param {AbortSignal} [signal]
 */
async function offsetOf(url, file, token, signal) {
  const answer = await call(url, { method: "HEAD", headers: { ...TUS, "headway-want-digest": "1" }, token, signal });
  const offset = offsetTold(answer, 0, file);
  if (offset > 0 && answer.headers.get("headway-upload-digest") !== (await prefixDigest(file, offset)))
    throw new Problem({
      status: 409,
      type: ANOTHER_FILE,
      title: "Another file",
      detail: "What the server has of this upload is not the beginning of this file.",
    });
  return offset;
}

/** @param {string} url @param {File} file @param {number} from @param {import("./http.js").Token} [token] @param {AbortSignal} [signal] @param {(bytes: number) => void} [onsent] */
async function sendPiece(url, file, from, token, signal, onsent) {
  /** @type {Record<string, string>} */
  const headers = { ...TUS, "upload-offset": String(from), "content-type": "application/offset+octet-stream" };
  if (from > 0) headers["headway-upload-digest"] = await prefixDigest(file, from);
  const body = file.slice(from, from + PIECE_BYTES);
  const told = onsent && ((/** @type {number} */ bytes) => onsent(from + bytes));
  const answer = await call(url, { method: "PATCH", headers, body, token, signal, onsent: told });
  return offsetTold(answer, from + 1, file);
}

/**
 * The offset of an answer. One that does not go on is a proxy's or a mistake: it is asked again, later each time.
 *
 * @param {Response} answer @param {number} least @param {File} file
 */
function offsetTold(answer, least, file) {
  const offset = Number(answer.headers.get("upload-offset") ?? NaN);
  if (Number.isInteger(offset) && offset >= least && offset <= file.size) return offset;
  throw new Problem({ status: 502, title: "Not understood", detail: "The answer does not say how much the server has." });
}

/** Of pieces that were read already, by file and place. @type {WeakMap<File, Promise<Uint8Array<ArrayBuffer>>[]>} */
const digests = new WeakMap();

/** The digest of a file's first bytes, as the server makes it. @param {File} file @param {number} size */
async function prefixDigest(file, size) {
  const known = digests.get(file) ?? [];
  digests.set(file, known);
  const whole = Math.floor(size / DIGESTED_BYTES);
  const parts = [];
  for (let place = 0; place < whole; place++) {
    known[place] ??= digestOf(file, place * DIGESTED_BYTES, (place + 1) * DIGESTED_BYTES);
    known[place].catch(() => delete known[place]);
    parts.push(await known[place]);
  }
  if (size % DIGESTED_BYTES) parts.push(await digestOf(file, whole * DIGESTED_BYTES, size));
  const digest = await sha256(new Uint8Array(await new Blob(parts).arrayBuffer()));
  return btoa(String.fromCharCode(...digest));
}

/** @param {File} file @param {number} start @param {number} end */
async function digestOf(file, start, end) {
  try {
    return await sha256(new Uint8Array(await file.slice(start, end).arrayBuffer()));
  } catch {
    throw unreadable();
  }
}

/** A file that was changed or moved cannot be sent any more, however good the line is. @param {File} file */
async function readable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw unreadable();
  }
}

const unreadable = () =>
  new Problem({ status: 400, title: "The file cannot be read", detail: "It was changed, moved or deleted since you chose it." });

/** One tab sends an upload: two would take it from each other. @param {string} taskId @param {() => Promise<void>} work */
export async function alone(taskId, work) {
  if (!(await claimForSending(taskId))) throw new Problem({ title: "It is being sent", detail: "Another tab of this browser sends this file." });
  try {
    const what = begun.get(taskId);
    if (what) remember(taskId, what);
    begun.delete(taskId);
    await work();
  } finally {
    release(taskId);
  }
}

/**
 * The task whose upload of this file was begun in this browser and not ended, if it was for the same work. It is claimed
 * for `send`. `onanother` is called where one with the file's face turned out to be another file's.
 *
 * @param {File} file
 * @param {{processor: string, options?: Record<string, unknown>, batchId?: string, token?: import("./http.js").Token, onanother?: () => void}} what
 * @returns {Promise<Task | null>}
 */
export async function unfinished(file, { token, onanother, ...work }) {
  let another = false;
  for (const id of lookalikes(begunOf(file, work))) {
    if (!(await claim(id))) continue;
    try {
      const task = await request(`tasks/${id}`, { token });
      // Of one without a byte nothing is known, so it may be any file's.
      if (task.status === "uploading" && task.links.upload && (await offsetOf(task.links.upload, file, token)) > 0) {
        keepForSending(id);
        return task;
      }
      if (task.status !== "uploading") forget(id);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      another ||= error.type === ANOTHER_FILE;
      if (error.status === 404 || error.status === 410) forget(id);
    }
    release(id);
  }
  if (another) onanother?.();
  return null;
}

/** Of UTF-8. @param {string} text */
const base64 = (text) => btoa(Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join(""));
