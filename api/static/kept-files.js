// @ts-check
/**
 * Where a file being sent is on the disk, if the browser says (Chromium does, for a drop) and keeps it: then an upload
 * goes on after a reload by itself, or after one press where the browser wants to ask. In IndexedDB, one handle a task,
 * forgotten when the upload has ended. Where there is none of this, the file is asked for again.
 */

import { BASE } from "./http.js";

/** Another platform may be on this origin, under another path. */
const DATABASE = `headway-files${BASE.pathname.replace(/\/$/, "")}`;
const STORE = "handles";

/** @typedef {FileSystemFileHandle & {queryPermission?: (how: {mode: "read"}) => Promise<PermissionState>, requestPermission?: (how: {mode: "read"}) => Promise<PermissionState>}} Handle */

/** @type {WeakMap<File, Handle>} */
const handles = new WeakMap();

/** @param {File} file @param {Handle | null | undefined} handle */
export function holdHandle(file, handle) {
  if (handle?.kind === "file") handles.set(file, handle);
}

/** Keeps the way to a task's file past a reload, if there is one. @param {string} taskId @param {File} file */
export async function keepFile(taskId, file) {
  const handle = handles.get(file);
  if (handle) await act("readwrite", (store) => store.put(handle, taskId));
}

/** @param {string} taskId */
export const forgetFile = (taskId) => act("readwrite", (store) => store.delete(taskId));

/**
 * A task's file, if it is still what was being sent.
 *
 * @param {import("./headway.js").Task} task
 * @param {{ask: boolean}} how `ask`: somebody has just pressed something, so the browser may ask them
 * @returns {Promise<File | null>}
 */
export async function keptFile(task, { ask }) {
  try {
    /** @type {Handle | undefined} */
    const handle = await act("readonly", (store) => store.get(task.task_id));
    if (!handle) return null;
    const how = /** @type {const} */ ({ mode: "read" });
    let allowed = (await handle.queryPermission?.(how)) ?? "granted";
    if (allowed === "prompt" && ask) allowed = (await handle.requestPermission?.(how)) ?? "denied";
    if (allowed !== "granted") return null;
    const file = await handle.getFile();
    return file.name === task.filename && file.size === task.size_bytes ? file : null;
  } catch {
    return null; // moved, deleted, or not to be read
  }
}

/** @param {IDBTransactionMode} mode @param {(store: IDBObjectStore) => IDBRequest} what @returns {Promise<any>} undefined where the browser keeps nothing */
function act(mode, what) {
  return new Promise((resolve) => {
    const none = () => resolve(undefined);
    if (!globalThis.indexedDB) return none();
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
    opening.onerror = opening.onblocked = none;
    opening.onsuccess = () => {
      const database = opening.result;
      try {
        const request = what(database.transaction(STORE, mode).objectStore(STORE));
        request.onsuccess = () => resolve(request.result);
        request.onerror = none;
      } catch {
        none(); // a handle that cannot be kept
      } finally {
        database.close(); // once the transaction is over
      }
    };
  });
}
