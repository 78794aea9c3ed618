// @ts-check
/**
 * What was said about a task before this page listened: its log and its notes. It is read once, from the beginning, on
 * a stream that is let go as soon as it has come to the present; what follows comes by the feed.
 */

import { call, parse } from "./http.js";

/** @typedef {{type: "log" | "note", data: any}} Said */

/**
 * @param {import("./headway.js").Task} task
 * @param {AbortSignal} signal
 * @returns {Promise<Said[]>} in order; those of an ended task up to its end
 */
export async function readHistory(task, signal) {
  const headers = { accept: "application/x-ndjson" };
  const response = await call(`tasks/${task.task_id}/events?last_event_id=0`, { headers, signal });
  /** @type {Said[]} */
  const said = [];
  if (!response.body) return said;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    const lines = (rest + read.value).split("\n");
    rest = lines.pop() ?? "";
    for (const event of lines.map(parse)) {
      if (event?.event === "log" || event?.event === "note") said.push({ type: event.event, data: event });
      if (event?.version >= task.version) {
        await reader.cancel();
        return said;
      }
    }
  }
  return said;
}
