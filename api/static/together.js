// @ts-check
/**
 * The tasks that a page watches, on one stream together: one alone has its own, `/tasks/ID/events`; from the second on
 * all share `/events`. Each sees what its own stream would tell: every event once, in order, under its version.
 *
 * The shared stream has numbers of its own, so each task is taken over exactly: a newcomer's state comes under the
 * number at which the task last changed, and what has a greater number came after that state. Who knows an earlier
 * version reads on from it on a stream of its own until it has come to that state. An event that is no state does not
 * say its version; it is the next one, because versions rise by one.
 *
 * A task's token opens the stream of its task alone. Who comes with one stays apart, and takes turns: see stream.js.
 */

import { Problem, backoff, call, soon } from "./http.js";
import { hasEnded, hold } from "./stream.js";

/** @typedef {import("./headway.js").State} State */
/** @typedef {import("./headway.js").NamedEvent} NamedEvent */
/** @typedef {import("./headway.js").Connection} Connection */
/** @typedef {"state" | NamedEvent["type"]} Type */
/**
 * @typedef {object} Told
 * @property {(state: State) => void} onstate may be told one again; its version says so
 * @property {(event: NamedEvent) => unknown} onevent
 * @property {(connection: Connection) => unknown} onconnection
 * @property {(onlyWhether?: boolean) => Promise<boolean>} ask asks for the task itself, or only whether it is there, and
 *   says whether there was an answer; the watcher leaves where there is nothing more to come
 */

/** Those that come together are taken in together. */
const GATHER_MS = 150;
/** Tasks named in an address, which many proxies take 8 KB of; for more than that all of the owner's are listened to. */
const NAMED = 100;
const ASKED_AT_ONCE = 3;
const STREAM = /^(.*\/)(?:tasks\/([0-9a-f]{32})\/events|task-progress\/([0-9a-f]{32}))$/;

/** Refused for good: asking again would be answered the same. @param {unknown} error @returns {error is Problem} */
export const isRefusal = (error) => error instanceof Problem && error.status >= 400 && !error.passes;

/** One who watches a task. */
class Watcher {
  /** @param {Together} room @param {string} id @param {URL} address @param {number | null} version @param {Told} told */
  constructor(room, id, address, version, told) {
    this.root = room;
    this.id = id;
    this.address = address;
    this.told = told;
    /** The last version told; null: the state as it is comes first. */
    this.version = version;
    /** @type {{close: () => void} | null} its own stream */
    this.own = null;
    /** @type {number | null} the last number heard on the shared stream; null: not taken in yet */
    this.seen = null;
    /** The version of the state with which it was taken in, and of what came last after that. */
    this.base = 0;
    this.counted = 0;
    /** @type {[Type, any][]} of the shared stream, until its own has come to `base` */
    this.ahead = [];
    /** @type {Connection | null} */
    this.said = null;
    this.left = false;
  }

  close() {
    this.left = true;
    this.own?.close();
    this.root.leave(this);
  }

  openOwn() {
    this.own ??= hold(this.address, {
      token: this.root.token,
      lastId: this.version === null ? "" : String(this.version),
      onstate: (state, id) => this.takeOwn(id, () => this.told.onstate(state)),
      onevent: (event) => this.takeOwn(event.id, () => this.told.onevent(event)),
      onconnection: (connection) => this.say(connection),
      ask: async () => void (await this.told.ask()),
      truth: () => this.told.ask(),
    });
  }

  /** @param {string} id @param {() => void} tell */
  takeOwn(id, tell) {
    if (!id) return tell(); // of this moment alone
    this.version = Number(id);
    tell();
    this.letGoOfOwn();
  }

  /** Its own stream has come to where the shared one goes on. */
  letGoOfOwn() {
    if (this.seen === null || (this.version ?? 0) < this.base) return;
    this.own?.close();
    this.own = null;
    for (const [type, data] of this.ahead.splice(0)) this.follow(type, data);
  }

  /** An event of the shared stream. @param {Type} type @param {number} number @param {any} data */
  take(type, number, data) {
    if (this.left) return;
    if (this.seen === null) this.takeIn(number, data);
    else if (number > this.seen) {
      this.seen = number;
      if (this.own) this.ahead.push([type, data]);
      else this.follow(type, data);
    }
  }

  /** @param {number} number @param {State} state */
  takeIn(number, state) {
    this.seen = number;
    this.base = this.counted = state.version;
    if (this.version === null) {
      this.version = state.version;
      this.told.onstate(state);
    } else if (this.version < state.version) return this.openOwn();
    else if (hasEnded(state)) this.told.onstate(state);
    this.letGoOfOwn();
  }

  /** @param {Type} type @param {any} data */
  follow(type, data) {
    if (this.left) return;
    const known = this.counted;
    this.counted = type === "state" ? data.version : known + 1;
    const isNew = this.counted > (this.version ?? 0);
    if (isNew && this.counted > known + 1) {
      const [from, to] = [Math.max(known, this.version ?? 0) + 1, this.counted - 1];
      if (from <= to) this.told.onevent({ type: "gap", id: String(to), data: { task_id: this.id, from, to } });
    }
    if (isNew) this.version = this.counted;
    if (type === "state") this.told.onstate(data);
    else if (isNew) this.told.onevent({ type, id: String(this.counted), data });
  }

  /** @param {Connection} connection */
  say(connection) {
    if (this.left || connection === this.said || (connection === "connecting" && this.said)) return;
    this.said = connection;
    this.told.onconnection(connection);
  }

  /** What was heard on the shared stream does not count any more. */
  forget() {
    this.seen = null;
    this.ahead = [];
  }
}

/** All who watch tasks of one server with one token, or none. */
class Together {
  /** @param {URL | null} root where `/events` is; null: nothing can be shared @param {import("./http.js").Token | undefined} token @param {() => void} onempty */
  constructor(root, token, onempty) {
    this.root = root;
    this.token = token;
    this.onempty = onempty;
    this.apart = root === null;
    /** @type {Set<Watcher>} */
    this.watchers = new Set();
    /** @type {Set<Watcher>} those whom the stream that is open is for */
    this.audience = new Set();
    /** @type {{close: () => void} | null} */
    this.held = null;
    this.address = new URL("about:blank");
    /** The last number heard. */
    this.number = 0;
    /** Whether those of the audience are being taken in. */
    this.takingIn = false;
    /** How often the numbers have begun anew since all were taken in. */
    this.resets = 0;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
  }

  /** @param {Watcher} watcher */
  join(watcher) {
    this.watchers.add(watcher);
    if (this.apart || this.watchers.size === 1) return watcher.openOwn();
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      if (!this.takingIn) this.open();
    }, GATHER_MS);
  }

  /** @param {Watcher} watcher */
  leave(watcher) {
    if (!this.watchers.delete(watcher)) return;
    this.audience.delete(watcher);
    if (this.watchers.size) return this.goOn();
    clearTimeout(this.timer);
    this.timer = undefined;
    this.close();
    this.onempty();
  }

  close() {
    this.held?.close();
    this.held = null;
    this.takingIn = false;
    this.audience.clear();
  }

  /** For those who are to be taken in, from their states on; else for all, from where the first of them is. */
  open() {
    this.close();
    const newcomers = [...this.watchers].filter(({ seen }) => seen === null).slice(0, NAMED);
    if (newcomers.length === this.watchers.size && newcomers.length === 1 && newcomers[0].own) return; // the others have left
    this.takingIn = newcomers.length > 0;
    this.audience = new Set(this.takingIn ? newcomers : this.watchers);
    this.number = this.takingIn ? 0 : Math.min(...[...this.audience].map(({ seen }) => seen ?? 0));
    this.address = new URL("events", /** @type {URL} */ (this.root));
    const ids = new Set([...this.audience].map(({ id }) => id));
    if (ids.size <= NAMED) for (const id of ids) this.address.searchParams.append("task", id);
    this.held = hold(this.address, {
      token: this.token,
      lastId: this.takingIn ? "" : String(this.number),
      onstate: (state, id) => this.take("state", Number(id), state),
      onevent: ({ type, id, data }) => this.take(type, Number(id), data),
      onconnection: (connection) => [...this.audience].forEach((one) => one.say(connection)),
      ask: () => this.ask(),
      truth: () => this.askEach(),
    });
  }

  /** Of each task itself, where the stream says nothing. @returns {Promise<boolean>} whether there was an answer */
  async askEach() {
    let answered = false;
    const rest = [...this.audience];
    while (rest.length) {
      const heard = await Promise.all(rest.splice(0, ASKED_AT_ONCE).map((one) => one.told.ask()));
      if (!heard.some(Boolean)) break; // nobody answers; the others would wait as long
      answered = true;
    }
    return answered;
  }

  /** @param {Type} type @param {number} number @param {any} data */
  take(type, number, data) {
    if (type === "transfer") {
      for (const one of this.audience) if (one.id === data.task_id && !one.left) one.told.onevent({ type, id: "", data });
      return;
    }
    if (number < this.number) {
      // Redis came back without what it had: its numbers begin anew.
      for (const one of this.watchers) one.forget();
      this.close();
      this.timer ??= setTimeout(() => {
        this.timer = undefined;
        if (this.watchers.size) this.open();
      }, this.resets++ && backoff(this.resets) * 1000);
      return;
    }
    this.number = number;
    if (type === "gap") return; // of the feed's numbers; each task's own shows in its versions
    for (const one of [...this.audience]) if (one.id === data.task_id) one.take(type, number, data);
    this.goOn();
  }

  /** Everybody who was to be taken in has been: now the stream is for all. */
  goOn() {
    if (!this.takingIn || [...this.audience].some(({ seen }) => seen === null)) return;
    this.takingIn = false;
    if (this.audience.size < this.watchers.size) this.open();
    else this.resets = 0;
  }

  /** The shared stream was given up: who has ended or is unknown leaves, and the others go on. */
  async ask() {
    const { held } = this;
    const from = new URL(this.address);
    from.searchParams.set("last_event_id", String(this.number));
    let refused = false;
    const stop = new AbortController();
    try {
      const { status } = await call(from, { token: this.token, signal: AbortSignal.any([stop.signal, soon()]) });
      if (status !== 204) return; // it is there again
    } catch (error) {
      if (!isRefusal(error)) return;
      refused = true;
    } finally {
      stop.abort();
    }
    const before = this.watchers.size;
    for (const one of [...this.watchers]) await one.told.ask(refused);
    if (!refused || held !== this.held || !this.watchers.size) return;
    if (this.watchers.size < before) return this.open();
    this.apart = true; // this token is good for one task, or there is no such stream here
    this.close();
    for (const one of this.watchers) {
      one.forget();
      one.openOwn();
    }
  }
}

/** @type {Map<string, Together>} by server and token */
const rooms = new Map();
/** @type {WeakMap<Function, number>} functions that are asked for a token */
const names = new WeakMap();
let named = 0;

/** @param {Function} token */
function nameOf(token) {
  if (!names.has(token)) names.set(token, ++named);
  return `(${names.get(token)})`;
}

/**
 * Follows a task, with those that are followed already. What is told is the watcher's, until it is closed.
 *
 * @param {URL} address a task's stream
 * @param {{token?: import("./http.js").Token, version: number | null} & Told} how `version`: the last one that is known
 * @returns {{close: () => void}}
 */
export function follow(address, { token, version, ...told }) {
  const [, root, ...ids] = (address.search ? null : STREAM.exec(address.pathname)) ?? [];
  const key = root === undefined ? address.href : `${new URL(root, address)} ${typeof token === "function" ? nameOf(token) : token ?? ""}`;
  const room = (root !== undefined && rooms.get(key)) || new Together(root === undefined ? null : new URL(root, address), token, () => rooms.delete(key));
  if (root !== undefined) rooms.set(key, room);
  const watcher = new Watcher(room, ids.find(Boolean) ?? "", address, version, told);
  room.join(watcher);
  return watcher;
}
