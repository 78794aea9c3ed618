// @ts-check
/**
 * A stream, held open: opened again after the last event that came, for as long as it is wanted. Where it is given up for
 * good (EventSource stops at a 204, 404, 502 or 503), `ask` asks the server what is the matter first.
 *
 * A browser has six connections to a server over HTTP/1.1. A page of ours holds two streams at most, so that uploads
 * (turns.js: three) and questions always have theirs. Who wants more takes turns: a stream that has had its time is
 * let go, and goes on later after its last event, so it is late and misses nothing.
 */

import { FetchSource } from "./fetch-source.js";
import { backoff, parse } from "./http.js";

/** @typedef {import("./headway.js").State} State */
/** @typedef {import("./headway.js").NamedEvent} NamedEvent */
/** @typedef {import("./headway.js").Connection} Connection */
/** @typedef {{open: () => void, pause: () => void, hasHadItsTime: () => boolean}} Stream */

const STREAMS = 2;
const TURN_MS = 1000;
/** A server that does not answer has not more time than this. */
const UNANSWERED_TURN_MS = 5000;

/** As EventSource says it. */
const CLOSED = 2;
const TERMINAL = new Set(["completed", "failed", "cancelled"]);
const NAMES = /** @type {const} */ (["log", "note", "transfer", "gap", "deleted"]);

/** @param {{status: string}} task */
export const hasEnded = (task) => TERMINAL.has(task.status);

/** Who holds a stream to one server, and who waits for it. */
class Line {
  constructor() {
    /** @type {Set<Stream>} longest first */
    this.running = new Set();
    /** @type {Stream[]} */
    this.waiting = [];
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
  }

  /** @param {Stream} stream */
  enter(stream) {
    this.waiting.push(stream);
    this.next();
  }

  /** @param {Stream} stream */
  leave(stream) {
    this.running.delete(stream);
    this.waiting = this.waiting.filter((one) => one !== stream);
    this.next();
  }

  next() {
    while (this.waiting.length && this.running.size < STREAMS) {
      const [stream] = this.waiting.splice(0, 1);
      this.running.add(stream);
      stream.open();
    }
    if (this.waiting.length) this.timer ??= setTimeout(() => this.turn(), TURN_MS);
  }

  turn() {
    this.timer = undefined;
    const stream = this.waiting.length ? [...this.running].find((one) => one.hasHadItsTime()) : undefined;
    if (stream) {
      this.running.delete(stream);
      stream.pause();
      this.waiting.push(stream);
    }
    this.next();
  }
}

/** @type {Map<string, Line>} by the server's origin */
const lines = new Map();

/** @param {string} origin */
function lineTo(origin) {
  const line = lines.get(origin) ?? new Line();
  lines.set(origin, line);
  return line;
}

/**
 * @param {URL} address
 * @param {{token?: string, lastId: string, onstate: (state: State, id: string) => void, onevent?: (event: NamedEvent) => void,
 *   onconnection?: (connection: Connection) => void, ask: () => Promise<void>}} told what `ask` raises is its own; it
 *   closes the stream itself where there is nothing more to come
 */
export function hold(address, { token, lastId, onstate, onevent, onconnection, ask }) {
  /** @type {EventSource | FetchSource | null} */
  let source = null;
  let failures = 0;
  let closed = false;
  /** @type {Connection | null} */
  let said = null;
  let since = 0;
  let answered = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;

  function pause() {
    source?.close();
    source = null;
    clearTimeout(timer);
  }

  function close() {
    closed = true;
    pause();
    globalThis.removeEventListener?.("online", hurry);
    line.leave(stream);
  }

  /** @param {Connection} connection */
  function say(connection) {
    if (closed || connection === said) return;
    said = connection;
    onconnection?.(connection);
  }

  /** @param {"state" | NamedEvent["type"]} type @param {MessageEvent} event */
  function take(type, event) {
    failures = 0;
    if (event.lastEventId) lastId = event.lastEventId;
    const data = parse(event.data);
    // A transfer is of this moment and has no id: what stands there is that of an event before it.
    if (type !== "state") onevent?.({ type, id: type === "transfer" ? "" : event.lastEventId, data });
    else if (data?.status) onstate(data, lastId);
  }

  function open() {
    const from = new URL(address);
    if (lastId !== "") from.searchParams.set("last_event_id", lastId);
    if (failures || !said) say(failures ? "waiting" : "connecting"); // a turn that comes again is no news
    since = performance.now();
    answered = false;
    const opened = token ? new FetchSource(from, { token }) : new EventSource(from);
    source = opened;
    opened.onopen = () => {
      if (opened !== source) return;
      since = performance.now();
      answered = true;
      say("open");
    };
    const heard = (/** @type {"state" | NamedEvent["type"]} */ type) => (/** @type {any} */ event) => opened === source && take(type, event);
    opened.onmessage = heard("state");
    for (const type of NAMES) opened.addEventListener(type, heard(type));
    opened.onerror = () => {
      if (opened !== source) return;
      say("waiting");
      if (opened.readyState === CLOSED) void recover(opened); // else it comes back by itself
    };
  }

  /** @param {EventSource | FetchSource} ended */
  async function recover(ended) {
    await ask();
    if (ended === source) timer = setTimeout(open, backoff(failures++) * 1000);
  }

  /** The network is back: no need to wait any longer. */
  function hurry() {
    if (source?.readyState !== CLOSED) return;
    clearTimeout(timer);
    open();
  }

  const line = lineTo(address.origin);
  const stream = { open, pause, hasHadItsTime: () => performance.now() - since >= (answered ? TURN_MS : UNANSWERED_TURN_MS) };
  globalThis.addEventListener?.("online", hurry);
  line.enter(stream);
  return { close };
}
