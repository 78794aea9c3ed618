// @ts-check
/**
 * Watching: one task to its end, or all tasks for as long as it is wanted. Each owns the stream it opens and the timers
 * it sets, and gives both back at its end or by `close()`.
 *
 * Where the stream is given up for good (EventSource stops at a 204, 404, 502 or 503), the server is asked what is the
 * matter, and the stream is opened again, after the last event that came, unless there is nothing more to come.
 */

import { FetchSource } from "./fetch-source.js";
import { BASE, Problem, backoff, parse, request } from "./http.js";

/** @typedef {import("./headway.js").State} State */
/** @typedef {import("./headway.js").End} End */
/** @typedef {import("./headway.js").NamedEvent} NamedEvent */

/** As EventSource says it. */
const CLOSED = 2;
const TERMINAL = new Set(["completed", "failed", "cancelled"]);
const NAMES = /** @type {const} */ (["log", "note", "transfer", "gap", "deleted"]);

/** @param {{status: string}} task */
export const hasEnded = (task) => TERMINAL.has(task.status);

/** Refused for good: asking again would be answered the same. @param {unknown} error @returns {error is Problem} */
const isRefusal = (error) => error instanceof Problem && error.status >= 400 && !error.passes;

/**
 * A stream, held open. `ask` is called where it was given up for good; what it raises is its own, and it closes the
 * stream itself where there is nothing more to come.
 *
 * @param {URL} address
 * @param {{token?: string, lastId: string, onstate: (state: State, id: string) => void, onevent?: (event: NamedEvent) => void,
 *   onconnection?: (connection: import("./headway.js").Connection) => void, ask: () => Promise<void>}} told
 */
function hold(address, { token, lastId, onstate, onevent, onconnection, ask }) {
  /** @type {EventSource | FetchSource | null} */
  let source = null;
  let failures = 0;
  let closed = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;

  function close() {
    closed = true;
    source?.close();
    clearTimeout(timer);
    globalThis.removeEventListener?.("online", hurry);
  }

  /** @param {"state" | NamedEvent["type"]} type @param {MessageEvent} event */
  function take(type, event) {
    if (closed) return;
    failures = 0;
    if (event.lastEventId) lastId = event.lastEventId;
    const data = parse(event.data);
    if (type !== "state") onevent?.({ type, id: event.lastEventId, data });
    else if (data?.status) onstate(data, lastId);
  }

  function open() {
    const from = new URL(address);
    if (lastId !== "") from.searchParams.set("last_event_id", lastId);
    onconnection?.(failures ? "waiting" : "connecting");
    const opened = token ? new FetchSource(from, { token }) : new EventSource(from);
    source = opened;
    opened.onopen = () => closed || onconnection?.("open");
    opened.onmessage = (event) => take("state", event);
    for (const type of NAMES)
      opened.addEventListener(type, (/** @type {any} */ event) => take(type, event));
    opened.onerror = () => {
      if (closed || opened !== source) return;
      onconnection?.("waiting");
      if (opened.readyState === CLOSED) void recover(); // else it comes back by itself
    };
  }

  async function recover() {
    await ask();
    if (!closed) timer = setTimeout(open, backoff(failures++) * 1000);
  }

  /** The network is back: no need to wait any longer. */
  function hurry() {
    if (closed || source?.readyState !== CLOSED) return;
    clearTimeout(timer);
    open();
  }

  globalThis.addEventListener?.("online", hurry);
  open();
  return { close };
}

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
    held.close();
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

  /** Only the task itself can say whether there is more to come. */
  async function ask() {
    try {
      take(await request(taskUrl, { token }));
    } catch (error) {
      if (!isRefusal(error)) return;
      const status = error.status === 404 || error.status === 410 ? "gone" : "refused";
      finish({ status, state: latest, problem: error });
    }
  }

  const lastId = lastEventId === undefined ? "" : String(lastEventId);
  const held = hold(address, { token, lastId, onstate: take, onevent: (event) => closed || onevent?.(event), onconnection, ask });
  return { closed: ended, close };
}

/**
 * Watches all tasks of whoever asks, or a batch's, on one connection, until `close()`: each task's state, then every
 * event of each. `onend` is called only where the server refuses for good, as it does without a sign-in.
 *
 * @param {import("./headway.js").WatchAllOptions} [options]
 * @returns {{close: () => void}}
 */
export function watchAll({ onstate, onevent, onend, onconnection, lastEventId, batchId, token } = {}) {
  const address = new URL("events", BASE);
  if (batchId) address.searchParams.set("batch_id", batchId);
  async function ask() {
    try {
      await request("session", { token });
    } catch (error) {
      if (!isRefusal(error)) return;
      held.close();
      onend?.(error);
    }
  }
  const lastId = lastEventId === undefined ? "" : String(lastEventId);
  const told = { onstate: onstate ?? (() => {}), onevent, onconnection };
  const held = hold(address, { token, lastId, ...told, ask });
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
