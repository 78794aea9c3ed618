// @ts-check
/**
 * The Headway client: sends a file, watches a task. It owns the event source it opens and the timers it sets, and
 * gives both back when the task has ended or `close()` is called. No dependency, no build step; the page uses it, and
 * any other page can:
 *
 *     import { submit } from "/static/headway.js";
 *     const task = await submit(file, { processor: "checksum", onprogress: (task) => (bar.value = task.progress) });
 *     console.log(task.status, task.result?.summary);
 *
 * What is guaranteed: `onstate` sees each state once and in order (by `version`), the last one is the terminal one, and
 * `onend` is called once, whatever the connection went through. Where EventSource gives up for good (a 204, 404, 502
 * or 503), the task itself is asked, and the stream is opened again if the task is still going on.
 */

/** @typedef {"uploading" | "queued" | "processing" | "completed" | "failed" | "cancelled"} Status */
/** @typedef {{name: string, size_bytes: number, content_type: string, sha256: string, url: string}} ResultFile */
/** @typedef {{summary: Record<string, unknown>, files: ResultFile[], truncated?: boolean}} Result */
/** @typedef {{type: string, message: string, retryable: boolean}} TaskError */
/** @typedef {{self?: string, events?: string, upload?: string, cancel?: string, retry?: string, input?: string}} Links */
/**
 * A task. A state of the event stream has every field of it that changes, so `{...task, ...state}` is the task now.
 *
 * @typedef {object} Task
 * @property {string} task_id
 * @property {string} processor
 * @property {string | null} filename
 * @property {number | null} size_bytes
 * @property {Record<string, unknown>} options
 * @property {Status} status
 * @property {number} progress 0 to 100, over the whole of the work
 * @property {number} step
 * @property {number} total_steps
 * @property {string} message
 * @property {number} done
 * @property {number | null} total
 * @property {string | null} unit
 * @property {number | null} rate units a second
 * @property {number | null} eta_seconds
 * @property {number} attempt
 * @property {number} version
 * @property {string} created_at
 * @property {string | null} started_at
 * @property {string | null} finished_at
 * @property {Result | null} result
 * @property {TaskError | null} error
 * @property {Links} links
 */
/** @typedef {Partial<Task> & Pick<Task, "task_id" | "version" | "status" | "progress">} State */
/** @typedef {{name: string, description: string, accepts: string[], options: Record<string, any>, needs_file: boolean}} Processor */
/** @typedef {{type: "log" | "note" | "transfer" | "gap", id: string, data: any}} NamedEvent */
/** @typedef {"connecting" | "open" | "waiting"} Connection `waiting`: lost, and being opened again */
/**
 * How a watch ended: a terminal state; `gone`, the server has no such task; or `refused`, `problem` says why.
 *
 * @typedef {{status: "completed" | "failed" | "cancelled" | "gone" | "refused", state: State | null, problem: Problem | null}} End
 */
/**
 * @typedef {object} WatchOptions
 * @property {(state: State) => void} [onstate]
 * @property {(event: NamedEvent) => void} [onevent]
 * @property {(end: End) => void} [onend]
 * @property {(connection: Connection) => void} [onconnection]
 * @property {string | number} [lastEventId] replay what came after this version; 0 is from the beginning
 * @property {State} [state] what is known already: only later states are told, however much is replayed
 * @property {string} [self] the task's own address, where it is not the stream's without `/events`
 */
/** @typedef {{closed: Promise<End>, close: () => void}} Watch */

/** Where the server is: the parent of the folder this module was served from. */
export const BASE = new URL("../", import.meta.url);

const TERMINAL = new Set(["completed", "failed", "cancelled"]);
/** The first wait before a stream that ended for good is opened again; it doubles up to the longest. */
const FIRST_WAIT_SECONDS = 0.5;
const LONGEST_WAIT_SECONDS = 15;

/** @param {{status: Status} | {status: string}} task */
export const hasEnded = (task) => TERMINAL.has(task.status);

/** What the server said is wrong (RFC 9457), or status 0 where it could not be asked. */
export class Problem extends Error {
  /** @param {{status?: number, title?: string, detail?: string, errors?: {field: string, message: string}[]}} body */
  constructor(body) {
    super(body.detail || body.title || "The request failed");
    this.name = "Problem";
    this.status = body.status ?? 0;
    this.title = body.title || "The request failed";
    this.detail = body.detail || "";
    this.errors = Array.isArray(body.errors) ? body.errors : [];
  }
}

/**
 * Asks the server for JSON. Raises Problem, and only that, unless the `signal` was aborted.
 *
 * @param {string | URL} url
 * @param {RequestInit} [init]
 * @returns {Promise<any>}
 */
export async function request(url, init = {}) {
  let response;
  try {
    response = await fetch(new URL(url, BASE), { cache: "no-store", ...init });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Problem({ title: "No answer", detail: "The server cannot be reached, or it ended the connection." });
  }
  const text = await response.text().catch(() => "");
  /** @type {any} */
  let body = null;
  try {
    body = text ? JSON.parse(text) : null;
  } catch {
    body = null; // a proxy's page, not our server's answer
  }
  if (response.ok) return body;
  throw new Problem({ title: response.statusText || `Error ${response.status}`, ...body, status: response.status });
}

/** @param {string} id @returns {Promise<Task>} */
export const fetchTask = (id) => request(`tasks/${encodeURIComponent(id)}`);

/** @returns {Promise<Processor[]>} */
export const fetchProcessors = async () => (await request("processors")).processors;

/**
 * Makes the task, before a byte of its file is sent: its stream can be opened from here on.
 *
 * @param {File | null} file null for a processor that needs none
 * @param {{processor: string, options?: Record<string, unknown>, signal?: AbortSignal}} what
 * @returns {Promise<Task>}
 */
export function announce(file, { processor, options = {}, signal }) {
  const about = file && { filename: file.name, size_bytes: file.size, content_type: contentType(file) };
  return request("tasks", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...about, processor, options }),
    signal,
  });
}

/**
 * Sends the bytes. Their progress is the task's: the server counts them and says so on the stream.
 *
 * @param {Task} task an `uploading` one
 * @param {File} file
 * @param {{signal?: AbortSignal}} [how]
 * @returns {Promise<Task>}
 */
export function send(task, file, { signal } = {}) {
  const headers = { "content-type": contentType(file) };
  return request(/** @type {string} */ (task.links.upload), { method: "PUT", headers, body: file, signal });
}

/**
 * Sends a file and follows it to its end. Resolves with the ended task, failed and cancelled ones included; rejects
 * with Problem where the server refused it.
 *
 * @param {File | null} file
 * @param {{processor: string, options?: Record<string, unknown>, signal?: AbortSignal,
 *   oncreated?: (task: Task) => void, onprogress?: (task: Task) => void, onevent?: (event: NamedEvent) => void,
 *   onconnection?: (connection: Connection) => void}} what
 * @returns {Promise<Task>}
 */
export async function submit(file, { processor, options, signal, oncreated, onprogress, onevent, onconnection }) {
  const task = await announce(file, { processor, options, signal });
  oncreated?.(task);
  onprogress?.(task);
  const onstate = (/** @type {State} */ state) => onprogress?.({ ...task, ...state });
  const watching = watch(/** @type {string} */ (task.links.events), { onstate, onevent, onconnection });
  const ended = new AbortController(); // a task that has ended takes no more bytes
  const stopped = signal ? AbortSignal.any([signal, ended.signal]) : ended.signal;
  const upload = file && task.links.upload ? send(task, file, { signal: stopped }) : Promise.resolve(task);
  const sent = upload.then(
    () => watching.closed,
    async (problem) => {
      // Bytes that are refused because the task has ended are no error of their own: the task says how it ended.
      if (!signal?.aborted && hasEnded(await fetchTask(task.task_id))) return watching.closed;
      throw problem;
    },
  );
  try {
    const end = await Promise.race([watching.closed, sent]);
    ended.abort();
    if (end.problem) throw end.problem;
    return await fetchTask(task.task_id); // the whole result: a state's may be cut to fit an event
  } finally {
    sent.catch(() => {}); // aborted by us
    watching.close();
  }
}

/**
 * Watches one task's stream to its end.
 *
 * @param {string | URL} url the task's `links.events`
 * @param {WatchOptions} [options]
 * @returns {Watch} `close()` ends the watch without an end: `closed` stays pending
 */
export function watch(url, { onstate, onevent, onend, onconnection, lastEventId, state: known, self } = {}) {
  const address = new URL(url, BASE);
  const taskUrl = self ? new URL(self, BASE) : taskUrlOf(address);
  /** @type {EventSource | null} */
  let source = null;
  /** @type {State | null} */
  let latest = known ?? null;
  let lastId = lastEventId === undefined ? "" : String(lastEventId);
  let failures = 0;
  let closed = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  /** @type {(end: End) => void} */
  let resolve;
  /** @type {Promise<End>} */
  const ended = new Promise((done) => (resolve = done));

  function close() {
    closed = true;
    source?.close();
    clearTimeout(timer);
    globalThis.removeEventListener?.("online", hurry);
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
    // A replay may bring what a snapshot has said already. A task Redis came back without starts its versions again.
    const lost = state.error?.type === "lost";
    if (!closed && (!latest || state.version > latest.version || lost)) {
      latest = state;
      onstate?.(state);
      if (hasEnded(state)) finish({ status: /** @type {any} */ (state.status), state, problem: null });
    }
  }

  function open() {
    const from = new URL(address);
    if (lastId !== "") from.searchParams.set("last_event_id", lastId);
    onconnection?.(failures ? "waiting" : "connecting");
    const opened = new EventSource(from);
    source = opened;
    opened.onopen = () => onconnection?.("open");
    opened.onmessage = (event) => {
      failures = 0;
      if (event.lastEventId) lastId = event.lastEventId;
      const state = parse(event.data);
      if (state?.status) take(state);
    };
    for (const type of /** @type {const} */ (["log", "note", "transfer", "gap"])) {
      opened.addEventListener(type, (event) => {
        failures = 0;
        if (event.lastEventId) lastId = event.lastEventId;
        if (!closed) onevent?.({ type, id: event.lastEventId, data: parse(event.data) });
      });
    }
    opened.onerror = () => {
      if (closed || opened !== source) return;
      onconnection?.("waiting");
      if (opened.readyState === EventSource.CLOSED) void recover(); // else it comes back by itself
    };
  }

  /** EventSource has given up for good. Only the task itself can say whether there is more to come. */
  async function recover() {
    try {
      const task = await request(taskUrl);
      take(task);
    } catch (error) {
      const problem = /** @type {Problem} */ (error);
      const { status } = problem;
      if (status === 404 || status === 410) return finish({ status: "gone", state: latest, problem });
      if (status >= 400 && status < 500 && status !== 408 && status !== 429)
        return finish({ status: "refused", state: latest, problem });
    }
    if (closed) return;
    const wait = Math.min(FIRST_WAIT_SECONDS * 2 ** failures++, LONGEST_WAIT_SECONDS);
    timer = setTimeout(open, wait * (0.75 + Math.random() / 2) * 1000); // apart from everybody else's
  }

  /** The network is back: no need to wait any longer. */
  function hurry() {
    if (closed || source?.readyState !== EventSource.CLOSED) return;
    clearTimeout(timer);
    open();
  }

  globalThis.addEventListener?.("online", hurry);
  open();
  return { closed: ended, close };
}

/** @param {File} file */
const contentType = (file) => file.type || "application/octet-stream";

/** `/tasks/ID/events` and `/task-progress/ID` are streams of `/tasks/ID`. @param {URL} stream */
function taskUrlOf(stream) {
  const url = new URL(stream);
  url.search = "";
  url.pathname = url.pathname.replace(/\/events$/, "").replace(/\/task-progress\/([^/]+)$/, "/tasks/$1");
  return url;
}

/** @param {string} text @returns {any} null for what is not JSON: a line for people, not a state */
function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
