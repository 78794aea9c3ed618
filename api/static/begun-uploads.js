// @ts-check
/**
 * The uploads that were begun in this browser and not ended, so that a file that is given again after a reload goes on
 * where it was. Each is kept under its task's id. Its file's path, size and date only say which ones to look at: whether
 * it is the same file is decided by its bytes (tus.js).
 *
 * Who sends an upload, or wants to, claims it first: one tab and one file at a time.
 */

import { BASE, parse } from "./http.js";

/** @typedef {{path: string, size: number, modified: number, processor: string, options: string, batch?: string, at: number}} Begun */

const KEY = `headway.upload.${BASE.href}.`;
/** The server gives an upload up a day after its last piece. */
const KEPT_MS = 24 * 3600 * 1000;
/** A claim that nobody follows up is let go. */
const CLAIM_MS = 60_000;

/** Of a file in a folder that was chosen or dropped: with the folders. @type {WeakMap<File, string>} */
const paths = new WeakMap();

/** @param {File} file @param {string} path */
export const holdPath = (file, path) => void paths.set(file, path);

/**
 * @param {File} file
 * @param {{processor: string, options?: Record<string, unknown>, batchId?: string}} work
 * @returns {Begun}
 */
export const begunOf = (file, { processor, options = {}, batchId }) => ({
  path: paths.get(file) || file.webkitRelativePath || file.name,
  size: file.size,
  modified: file.lastModified,
  processor,
  options: JSON.stringify(options),
  batch: batchId,
  at: Date.now(),
});

/** Those that may be this one. @param {Begun} begun @returns {string[]} ids of tasks */
export function lookalikes(begun) {
  const same = /** @type {const} */ (["path", "size", "processor", "options", "batch"]);
  return [...all()].filter(([, other]) => same.every((name) => other[name] === begun[name])).map(([id]) => id);
}

/** @returns {Iterable<[string, Begun]>} */
function* all() {
  try {
    localStorage.removeItem("headway.uploads"); // of a version that knew a file by its name, size and date
    for (const key of Object.keys(localStorage).filter((key) => key.startsWith(KEY))) {
      const begun = parse(localStorage.getItem(key) ?? "");
      if (begun && Date.now() - begun.at < KEPT_MS) yield [key.slice(KEY.length), begun];
      else localStorage.removeItem(key);
    }
  } catch {
    // this browser keeps nothing for us
  }
}

/** @param {string} taskId @param {Begun} begun */
export function remember(taskId, begun) {
  try {
    localStorage.setItem(KEY + taskId, JSON.stringify(begun));
  } catch {
    // full or forbidden: a reload begins anew
  }
}

/** @param {string} taskId */
export function forget(taskId) {
  try {
    localStorage.removeItem(KEY + taskId);
  } catch {
    // nothing was kept
  }
}

/** @param {string} taskId */
const lockOf = (taskId) => `headway-upload-${taskId}`;

/** The claims of this page, each with what ends it. @type {Map<string, () => void>} */
const claims = new Map();

/**
 * Claims an upload for this page. Where the page is no secure context there are no locks, and other tabs are not asked:
 * the server ends the older of two that send, and bytes are compared in any case.
 *
 * @param {string} taskId
 * @returns {Promise<boolean>} false where this page or another tab has it
 */
export async function claim(taskId) {
  if (claims.has(taskId)) return false;
  claims.set(taskId, () => {});
  const locks = globalThis.navigator?.locks;
  if (!locks) return true;
  return new Promise((resolve, reject) => {
    locks
      .request(lockOf(taskId), { ifAvailable: true }, (lock) => {
        resolve(Boolean(lock));
        if (lock) return /** @type {Promise<void>} */ (new Promise((done) => claims.set(taskId, done)));
        claims.delete(taskId);
      })
      .catch(reject);
  });
}

/** @param {string} taskId */
export function release(taskId) {
  claims.get(taskId)?.();
  claims.delete(taskId);
  kept.delete(taskId);
}

/** Claims that wait for their sending. @type {Set<string>} */
const kept = new Set();

/** Keeps a claim for who is about to send. @param {string} taskId */
export function keepForSending(taskId) {
  kept.add(taskId);
  setTimeout(() => kept.has(taskId) && release(taskId), CLAIM_MS);
}

/** A claim that was kept, or a new one. @param {string} taskId @returns {Promise<boolean>} */
export const claimForSending = async (taskId) => kept.delete(taskId) || claim(taskId);

/** Whether a tab of this browser sends it. @param {string} taskId */
export async function isBeingSent(taskId) {
  if (claims.has(taskId)) return true;
  const held = (await globalThis.navigator?.locks?.query())?.held ?? [];
  return held.some(({ name }) => name === lockOf(taskId));
}
