// @ts-check
/**
 * Watching: one task to its end, or all tasks for as long as it is wanted. Each gives back what it holds open at its end
 * or by `close()`. How a stream is held is in stream.js, how many watches share one in together.js.
 */

import { BASE, request, soon } from "./http.js";
import { hasEnded, hold } from "./stream.js";
import { follow, isRefusal } from "./together.js";

/** @typedef {import("./headway.js").State} State */
/** @typedef {import("./headway.js").End} End */
/** @typedef {import("./headway.js").NamedEvent} NamedEvent */

export { hasEnded };

/**
 * Watches one task's stream to its end: `onstate` sees each state once and in order (by `version`), the last one is the
 * terminal one, and `onend` is called once.
 *
 * @param {string | URL} url the task's `links.events`
 * @param {import("./headway.js").WatchOptions} [options]
 * @returns {import("./headway.js").Watch} `close()` ends the watch without an end: `closed` stays pending
 */
export function watch(url, { onstate, onevent, onend, onconnection, lastEventId, state: known, self, token } = {}) {
  const address = new URL(url, BASE);
  const taskUrl = self ? new URL(self, BASE) : taskUrlOf(address);
  /** @type {State | null} */
  let latest = known ?? null;
  let closed = false;
  /** @type {(end: End) => void} */
  let resolve;
  /** @type {Promise<End>} */
  const ended = new Promise((done) => (resolve = done));

  function close() {
    closed = true;
    watching.close();
  }

  /** @param {End} end */
  function finish(end) {
    if (closed) return;
    close();
    onend?.(end);
    resolve(end);
  }

  /** @param {State} state */
  function take(state) {
    if (closed || !isNews(latest, state)) return; // a replay may bring what a snapshot has said already
    latest = state;
    onstate?.(state);
    if (hasEnded(state)) finish({ status: /** @type {any} */ (state.status), state, problem: null });
  }

  /** Only the task itself can say whether there is more to come. @param {boolean} [onlyWhether] its stream tells the rest */
  async function ask(onlyWhether) {
    try {
      const task = await request(taskUrl, { token, signal: soon() });
      if (!task?.status) return false; // a proxy's page
      if (!onlyWhether) take(task);
    } catch (error) {
      if (!isRefusal(error)) return false;
      const status = error.status === 404 || error.status === 410 ? "gone" : "refused";
      finish({ status, state: latest, problem: error });
    }
    return true;
  }

  const watching = follow(address, {
    token,
    version: lastEventId === undefined || lastEventId === "" ? null : Number(lastEventId),
    onstate: take,
    onevent: (event) => closed || onevent?.(event),
    onconnection: (connection) => closed || onconnection?.(connection),
    ask,
  });
  return { closed: ended, close };
}

/**
 * Watches all tasks of whoever asks, or a batch's, on one connection, until `close()`: each task's state, then every
 * event of each. `onend` is called only where the server refuses for good, as it does without a sign-in.
 *
 * @param {import("./headway.js").WatchAllOptions} [options]
 * @returns {{close: () => void}}
 */
export function watchAll({ onstate, onevent, onend, onconnection, onalive, lastEventId, batchId, token } = {}) {
  const address = new URL("events", BASE);
  if (batchId) address.searchParams.set("batch_id", batchId);
  async function ask() {
    try {
      await request("session", { token, signal: soon() });
    } catch (error) {
      if (!isRefusal(error)) return;
      held.close();
      onend?.(error);
    }
  }
  const lastId = lastEventId === undefined ? "" : String(lastEventId);
  const told = { onstate: onstate ?? (() => {}), onevent, onconnection, onalive };
  /** The newest of them, under the last number that the stream has told. @param {string} number */
  async function truth(number) {
    const query = new URLSearchParams({ limit: "100", ...(batchId && { batch_id: batchId }) });
    const answer = await request(`tasks?${query}`, { token, signal: soon() }).catch((/** @type {unknown} */ error) => isRefusal(error) && ask());
    for (const task of answer?.tasks ?? []) told.onstate(task, number);
    return Boolean(answer?.tasks);
  }
  const held = hold(address, { token, lastId, ...told, ask, truth });
  return held;
}

/**
 * Whether a state says something that `known` does not. A task Redis came back without starts its versions again.
 *
 * @param {{version: number} | null | undefined} known @param {State} state
 */
export const isNews = (known, state) => !known || state.version > known.version || (state.error?.type === "lost" && state.version < known.version);

/** `/tasks/ID/events` and `/task-progress/ID` are streams of `/tasks/ID`. @param {URL} stream */
function taskUrlOf(stream) {
  const url = new URL(stream);
  url.search = "";
  url.pathname = url.pathname.replace(/\/events$/, "").replace(/\/task-progress\/([^/]+)$/, "/tasks/$1");
  return url;
}
