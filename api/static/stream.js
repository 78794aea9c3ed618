// @ts-check
/**
 * A stream, held open: opened again after the last event that came, for as long as it is wanted. Where it is given up for
 * good (EventSource stops at a 204, 404, 502 or 503), `ask` asks the server what is the matter first.
 *
 * A browser has six connections to a server over HTTP/1.1. A page of ours holds two streams at most, so that uploads
 * (turns.js: three) and questions always have theirs. Who wants more takes turns: a stream that has had its time is
 * let go, and goes on later after its last event, so it is late and misses nothing.
 *
 * A line may pass no more bytes and say nothing of it; a proxy may collect a stream until it ends; a computer sleeps. So
 * silence is not believed: heartbeats are events (`alive`), and after two and a half of them without a word, or where a
 * new stream does not speak soon, the server is asked by a plain request, as often as every few seconds, and the stream
 * is opened anew. What is told meanwhile is what was asked for, and `onconnection` says `asking`.
 */

import { FetchSource } from "./fetch-source.js";
import { backoff, parse } from "./http.js";

/** @typedef {import("./headway.js").State} State */
/** @typedef {import("./headway.js").NamedEvent} NamedEvent */
/** @typedef {import("./headway.js").Connection} Connection */
/** @typedef {{open: () => void, pause: () => void, hasHadItsTime: () => boolean}} Stream */

/** The server's own, until it says another. */
const HEARTBEAT_MS = 15_000;
const SILENT_HEARTBEATS = 2.5;
/** A server begins to speak at once. */
const SPEAK_MS = 5000;
const ASK_MS = 3000;
const LOOK_MS = 1000;
/** A look that comes so late comes after a sleep. */
const SLEPT_MS = 5000;
/** Connections that end without having told anything, until we wait ourselves: EventSource's own wait does not grow. */
const FRUITLESS = 3;
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
 * @param {{token?: import("./http.js").Token, lastId: string, onstate: (state: State, id: string) => void, onevent?: (event: NamedEvent) => void,
 *   onconnection?: (connection: Connection) => void, onalive?: (seconds: number) => void, ask: () => Promise<void>,
 *   truth: (lastId: string) => Promise<boolean>}} told what `ask` raises is its own; it closes the stream itself where there
 *   is nothing more to come. `truth` tells what the server answers to a plain request, and whether it answered
 */
export function hold(address, { token, lastId, onstate, onevent, onconnection, onalive, ask, truth }) {
  /** @type {EventSource | FetchSource | null} */
  let source = null;
  let failures = 0;
  let closed = false;
  /** @type {Connection | null} */
  let said = null;
  let since = 0;
  let answered = false;
  /** When anything came last, by the clock on the wall, which goes on while a computer sleeps. */
  let heard = Date.now();
  let heartbeatMs = HEARTBEAT_MS;
  /** This connection has spoken. */
  let spoke = false;
  let opened = Date.now();
  let looked = Date.now();
  let asked = 0;
  let asking = false;
  let fruitless = 0;
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
    clearInterval(looking);
    globalThis.removeEventListener?.("online", hurry);
    globalThis.removeEventListener?.("pageshow", wake);
    globalThis.document?.removeEventListener("visibilitychange", wake);
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
    hear();
    if (event.lastEventId) lastId = event.lastEventId;
    const data = parse(event.data);
    // A transfer is of this moment and has no id: what stands there is that of an event before it.
    if (type !== "state") onevent?.({ type, id: type === "transfer" ? "" : event.lastEventId, data });
    else if (data?.status) onstate(data, lastId);
  }

  /** The line has passed something on. */
  function hear() {
    heard = Date.now();
    spoke = true;
    fruitless = 0;
    if (said === "asking" || said === "waiting") say("open");
  }

  /** @param {MessageEvent} event */
  function beat(event) {
    const told = parse(event.data);
    if (told?.heartbeat_seconds > 0) heartbeatMs = told.heartbeat_seconds * 1000;
    hear();
    onalive?.(heartbeatMs / 1000);
  }

  /** Whether it is silent for too long. */
  function look() {
    const now = Date.now();
    const slept = now - looked > LOOK_MS + SLEPT_MS;
    looked = now;
    if (globalThis.document?.hidden) return; // nobody looks, and timers are slow
    if (slept) return wake();
    if (now - Math.max(heard, spoke ? 0 : opened) >= (spoke ? SILENT_HEARTBEATS * heartbeatMs : SPEAK_MS) || said === "asking") void doubt();
  }

  /** Somebody looks again, or this computer woke up: nobody knows what was missed. */
  function wake() {
    looked = Date.now();
    if (!globalThis.document?.hidden && Date.now() - heard > heartbeatMs) void doubt();
  }

  async function doubt() {
    if (closed || asking || !source || source.readyState === CLOSED || Date.now() - asked < ASK_MS) return;
    asking = true;
    asked = Date.now();
    const answered = await truth(lastId).catch(() => false);
    asking = false;
    if (closed || heard >= asked || !source) return;
    say(answered ? "asking" : "waiting");
    if (spoke || Date.now() - opened >= SILENT_HEARTBEATS * heartbeatMs) {
      pause();
      open();
    }
  }

  function open() {
    const from = new URL(address);
    from.searchParams.set("alive", "1");
    spoke = false;
    opened = Date.now();
    if (lastId !== "") from.searchParams.set("last_event_id", lastId);
    if (failures || !said) say(failures ? "waiting" : "connecting"); // a turn that comes again is no news
    since = performance.now();
    answered = false;
    const begun = token ? new FetchSource(from, { token }) : new EventSource(from);
    source = begun;
    begun.onopen = () => {
      if (begun !== source) return;
      since = performance.now();
      answered = true;
      spoke = false; // EventSource comes back by itself, on a line that has yet to speak
      opened = Date.now();
      if (said !== "asking") say("open");
    };
    const told = (/** @type {"state" | NamedEvent["type"]} */ type) => (/** @type {any} */ event) => begun === source && take(type, event);
    begun.onmessage = told("state");
    for (const type of NAMES) begun.addEventListener(type, told(type));
    begun.addEventListener("alive", (event) => begun === source && beat(/** @type {MessageEvent} */ (event)));
    begun.onerror = () => {
      if (begun !== source) return;
      say("waiting");
      if (++fruitless >= FRUITLESS) begun.close();
      if (begun.readyState === CLOSED) void recover(begun); // else it comes back by itself
    };
  }

  /** @param {EventSource | FetchSource} ended */
  async function recover(ended) {
    await ask();
    if (ended === source) timer = setTimeout(open, backoff(failures++) * 1000);
  }

  /** The network is back: no need to wait any longer. */
  function hurry() {
    if (source?.readyState !== CLOSED) return wake();
    clearTimeout(timer);
    open();
  }

  const line = lineTo(address.origin);
  const stream = { open, pause, hasHadItsTime: () => performance.now() - since >= (answered ? TURN_MS : UNANSWERED_TURN_MS) };
  const looking = setInterval(look, LOOK_MS);
  globalThis.addEventListener?.("online", hurry);
  globalThis.addEventListener?.("pageshow", wake);
  globalThis.document?.addEventListener("visibilitychange", wake);
  line.enter(stream);
  return { close };
}
