// @ts-check
/**
 * The tasks this browser has seen lately, newest first, in localStorage: a convenience, not the truth. Where the
 * browser keeps nothing for us (private windows, blocked storage) the list is empty and nothing else changes.
 */

/** @typedef {{task_id: string, filename: string | null, processor: string, status: string, at: string}} Seen */

const KEY = "headway.recent";
const LONGEST = 8;

/** @returns {Seen[]} */
export function recent() {
  try {
    const list = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(list) ? list.filter((one) => typeof one?.task_id === "string").slice(0, LONGEST) : [];
  } catch {
    return [];
  }
}

/** Puts a task at the top, or updates it where it stands. @param {import("./headway.js").Task} task */
export function remember({ task_id, filename, processor, status, created_at }) {
  const list = recent();
  const seen = { task_id, filename, processor, status, at: created_at };
  const at = list.findIndex((one) => one.task_id === task_id);
  if (at >= 0) list[at] = seen;
  else list.unshift(seen);
  store(list);
}

/** @param {string} taskId */
export const forget = (taskId) => store(recent().filter((one) => one.task_id !== taskId));

export const forgetAll = () => store([]);

/** @param {Seen[]} list */
function store(list) {
  try {
    localStorage.setItem(KEY, JSON.stringify(list.slice(0, LONGEST)));
  } catch {
    // full or forbidden: the address bar still has the task
  }
}
