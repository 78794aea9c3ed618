// @ts-check
/** What states and errors are called. Pure. */

import { hasEnded } from "./headway.js";

/** @typedef {import("./headway.js").Task} Task */

export const STATUS = /** @type {Record<string, string>} */ ({
  uploading: "Uploading", queued: "Queued", processing: "Processing",
  completed: "Completed", failed: "Failed", cancelled: "Cancelled", gone: "Gone",
});

/** What each type of error is called; its message says the rest. */
const FAILURE = /** @type {Record<string, string>} */ ({
  bad_input: "The file or its options do not fit the processor", timeout: "It ran too long", memory: "It needed too much memory",
  worker_lost: "Its workers were lost", processor_error: "The processor failed", storage_full: "The server's disk is full",
  lost: "The server lost the task",
});

/** @param {import("./headway.js").TaskError} error */
export const failureOf = (error) => FAILURE[error.type] ?? "It failed";

/** It has ended, and its links are those of its end. @param {Task} task */
export const isSettled = (task) => hasEnded(task) && !task.links.cancel;

/** It ended before its file was whole: there is nothing to try again, only to send again. @param {Task} task */
export const isUnsent = (task) => isSettled(task) && task.status !== "completed" && task.filename !== null && !task.links.input;
