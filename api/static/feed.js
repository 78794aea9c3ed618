// @ts-check
/**
 * The events of all tasks, on one connection for all tabs of this browser: a browser has six to a server over HTTP/1.1,
 * and a seventh tab would wait for ever. One tab holds the Web Lock and the stream, and passes what comes to the others
 * by a BroadcastChannel. When it goes, the lock is another's, which goes on after the last event it was passed: nobody
 * misses one, somebody may see one again.
 *
 * Where there are no locks (http on another host than this machine), each tab has a stream of its own.
 */

import { BASE, watchAll } from "./headway.js";

/** @typedef {import("./headway.js").State} State */
/** @typedef {import("./headway.js").NamedEvent} NamedEvent */
/** @typedef {import("./headway.js").Connection} Connection */
/**
 * What tabs tell each other. `hello`: a new one asks how things are; `signed`: somebody signed in or out.
 *
 * @typedef {{type: "state", state: State, id: string} | {type: "event", event: NamedEvent}
 *   | {type: "connection", connection: Connection} | {type: "refused"} | {type: "hello"} | {type: "signed"}} Message
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
    /** @type {AbortController | null} */
    this.running = null;
  }

  start() {
    if (this.running) return;
    const running = (this.running = new AbortController());
    this.tellTabs({ type: "hello" });
    if (!navigator.locks) return void this.lead(running.signal);
    navigator.locks.request(NAME, { signal: running.signal }, () => this.lead(running.signal)).catch(() => {}); // stopped
  }

  /** Another tab may lead now. */
  stop() {
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
    switch (message.type) {
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
        if (this.watching) this.tellTabs({ type: "connection", connection: this.connection });
    }
  }
}
