// @ts-check
/**
 * The events of all tasks, on one connection for all tabs of this browser: a browser has six to a server over HTTP/1.1,
 * and a seventh tab would wait for ever. One tab holds the Web Lock and the stream, and passes what comes to the others
 * by a BroadcastChannel. When it goes, the lock is another's, which goes on after the last event it was passed: nobody
 * misses one, somebody may see one again.
 *
 * The tab that leads passes the server's signs of life on. One that was frozen keeps its lock and says nothing; then a
 * tab that is looked at takes the lock from it. Whoever lost it so waits for its turn again.
 *
 * Where there are no locks (http on another host than this machine), each tab has a stream of its own, and lets go of it
 * while nobody looks at it.
 */

import { BASE, watchAll } from "./headway.js";

/** @typedef {import("./headway.js").State} State */
/** @typedef {import("./headway.js").NamedEvent} NamedEvent */
/** @typedef {import("./headway.js").Connection} Connection */
/**
 * What tabs tell each other. `hello`: a new one asks how things are; `signed`: somebody signed in or out.
 *
 * @typedef {{type: "state", state: State, id: string} | {type: "event", event: NamedEvent}
 *   | {type: "connection", connection: Connection} | {type: "refused"} | {type: "hello"} | {type: "signed"}
 *   | {type: "alive", seconds: number}} Message
 */
/**
 * @typedef {object} Told
 * @property {(state: State) => void} onstate
 * @property {(event: NamedEvent) => void} onevent
 * @property {(connection: Connection) => void} onconnection
 * @property {(taskId: string) => void} ondeleted
 * @property {() => void} onrefused nobody is signed in
 * @property {() => void} onsigned somebody signed in or out in another tab
 */

/** Another platform may be on this origin, under another path. */
const NAME = `headway-feed${BASE.pathname}`;
const LOOK_MS = 1000;
/** A tab that leads and lives answers a hello at once. */
const ANSWER_MS = 5000;
const SILENT_HEARTBEATS = 2.5;
/** The server's own, until it says another. */
const HEARTBEAT_SECONDS = 15;
/** Who only looks elsewhere for a moment loses nothing. */
const HIDDEN_MS = 10_000;

export class Feed {
  /** @param {Told} told */
  constructor(told) {
    this.told = told;
    this.lastId = "";
    /** @type {Connection} */
    this.connection = "connecting";
    this.channel = new BroadcastChannel(NAME);
    this.channel.onmessage = ({ data }) => this.take(data);
    /** @type {{close: () => void} | null} the stream, in the tab that leads */
    this.watching = null;
    /** @type {AbortController | undefined} of the lock that is waited for */
    this.waiting = undefined;
    /** The stream was let go of, because nobody looks. */
    this.let = false;
    /** @type {AbortController | null} */
    this.running = null;
    /** When anything came from the tab that leads, and when it is to be doubted. */
    this.heard = 0;
    this.patienceMs = ANSWER_MS;
    this.seconds = HEARTBEAT_SECONDS;
    this.timer = 0;
    this.hidden = 0;
    document.addEventListener("visibilitychange", () => this.seen());
  }

  start() {
    if (this.running) return;
    const running = (this.running = new AbortController());
    this.greet();
    if (!navigator.locks) return void this.lead(running.signal);
    this.queue(running, {});
    this.timer = window.setInterval(() => this.look(), LOOK_MS);
  }

  /** Is anybody there who leads? */
  greet() {
    this.heard = Date.now();
    this.patienceMs = ANSWER_MS;
    this.tellTabs({ type: "hello" });
  }

  /** Leads when it is its turn. @param {AbortController} running @param {LockOptions} how */
  queue(running, how) {
    const { signal } = running;
    const waiting = new AbortController();
    signal.addEventListener("abort", () => waiting.abort(), { once: true });
    this.waiting = waiting;
    const asked = how.steal ? how : { ...how, signal: waiting.signal }; // what is taken is not waited for
    const granted = () => this.lead(signal);
    navigator.locks.request(NAME, asked, granted).catch(() => {
      if (signal.aborted || waiting.signal.aborted) return; // stopped, or taken at once
      this.watching?.close(); // it was taken from us
      this.watching = null;
      this.greet();
      this.queue(running, {});
    });
  }

  look() {
    const { running } = this;
    if (!running || this.watching || document.hidden || Date.now() - this.heard < this.patienceMs) return;
    this.heard = Date.now();
    this.waiting?.abort();
    this.queue(running, { steal: true });
  }

  seen() {
    clearTimeout(this.hidden);
    if (!this.running) return;
    if (navigator.locks) {
      if (!document.hidden && !this.watching) this.greet();
    } else if (document.hidden) {
      this.hidden = window.setTimeout(() => this.watching?.close(), HIDDEN_MS);
      this.let = true;
    } else if (this.let) {
      this.let = false;
      this.stop();
      this.start();
    }
  }

  /** Another tab may lead now. */
  stop() {
    clearInterval(this.timer);
    clearTimeout(this.hidden);
    this.running?.abort();
    this.running = null;
  }

  /** Holds the stream until it is stopped or refused. @param {AbortSignal} signal @returns {Promise<void>} */
  lead(signal) {
    return new Promise((resolve) => {
      if (signal.aborted) return resolve();
      const end = () => {
        this.watching?.close();
        this.watching = null;
        resolve();
      };
      signal.addEventListener("abort", end, { once: true });
      this.watching = watchAll({
        lastEventId: this.lastId || undefined,
        onstate: (state, id) => this.pass({ type: "state", state, id }),
        onevent: (event) => this.pass({ type: "event", event }),
        onconnection: (connection) => this.pass({ type: "connection", connection }),
        onalive: (seconds) => this.pass({ type: "alive", seconds }),
        onend: () => {
          this.pass({ type: "refused" });
          this.stop();
        },
      });
    });
  }

  /** To this tab and to the others. @param {Message} message */
  pass(message) {
    if (navigator.locks) this.tellTabs(message);
    this.take(message);
  }

  /** To the other tabs. @param {Message} message */
  tellTabs(message) {
    this.channel.postMessage(message);
  }

  /** @param {Message} message */
  take(message) {
    if (message.type !== "hello" && message.type !== "signed") this.heard = Date.now();
    switch (message.type) {
      case "alive":
        this.seconds = message.seconds;
        this.patienceMs = SILENT_HEARTBEATS * message.seconds * 1000;
        return;
      case "state":
        this.lastId = message.id;
        return this.told.onstate(message.state);
      case "event":
        if (message.event.id) this.lastId = message.event.id;
        if (message.event.type === "deleted") return this.told.ondeleted(message.event.data.task_id);
        return this.told.onevent(message.event);
      case "connection":
        this.connection = message.connection;
        return this.told.onconnection(message.connection);
      case "refused":
        this.stop();
        return this.told.onrefused();
      case "signed":
        return this.told.onsigned();
      case "hello":
        if (!this.watching) return;
        this.tellTabs({ type: "connection", connection: this.connection });
        this.tellTabs({ type: "alive", seconds: this.seconds });
    }
  }
}
