// @ts-check
/**
 * EventSource over fetch, for a stream that needs an `Authorization` header: the same events, the same states. A line
 * that breaks, or ends, is opened again by itself after `retry:`, with `Last-Event-ID`; any answer but 200 ends it.
 */

import { backoff, fetchAs } from "./http.js";

export class FetchSource extends EventTarget {
  /** @param {string | URL} url @param {{token: import("./http.js").Token}} options */
  constructor(url, { token }) {
    super();
    this.url = String(url);
    this.token = token;
    /** @type {0 | 1 | 2} as EventSource's: connecting, open, closed */
    this.readyState = 0;
    this.retryMs = 1000;
    this.lastEventId = "";
    /** Events that were told. */
    this.dispatched = 0;
    /** @type {((event: Event) => void) | null} */
    this.onopen = null;
    /** @type {((event: MessageEvent) => void) | null} */
    this.onmessage = null;
    /** @type {((event: Event) => void) | null} */
    this.onerror = null;
    this.stop = new AbortController();
    this.addEventListener("open", (event) => this.onopen?.(event));
    this.addEventListener("message", (event) => this.onmessage?.(/** @type {MessageEvent} */ (event)));
    this.addEventListener("error", (event) => this.onerror?.(event));
    void this.run();
  }

  close() {
    this.readyState = 2;
    this.stop.abort();
  }

  async run() {
    for (let failures = 0; this.readyState !== 2; failures++) {
      const before = this.dispatched;
      const refused = await this.once().catch(() => false);
      if (this.stop.signal.aborted) return;
      this.readyState = refused ? 2 : 0;
      this.dispatchEvent(new Event("error"));
      if (this.dispatched !== before) failures = 0; // it told something; else each wait is longer
      if (this.readyState === 0) await new Promise((done) => setTimeout(done, Math.max(this.retryMs, backoff(failures) * 1000)));
    }
  }

  /** One connection. Raises where it breaks. @returns {Promise<boolean>} whether the server refused it */
  async once() {
    /** @type {Record<string, string>} */
    const headers = { accept: "text/event-stream" };
    if (this.lastEventId) headers["last-event-id"] = this.lastEventId;
    const response = await fetchAs(this.url, { headers, token: this.token, signal: this.stop.signal });
    const type = response.headers.get("content-type") ?? "";
    if (response.status !== 200 || !response.body || !type.startsWith("text/event-stream")) return true;
    this.readyState = 1;
    this.dispatchEvent(new Event("open"));
    const lines = new Lines((line) => this.take(line));
    this.reset();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let read = await reader.read(); !read.done; read = await reader.read()) lines.push(read.value);
    return false;
  }

  /** What an event that was cut off had said is forgotten with it. */
  reset() {
    this.data = "";
    this.type = "";
    this.id = this.lastEventId;
  }

  /** @param {string} line */
  take(line) {
    if (line === "") return this.dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.data += `${value}\n`;
    else if (field === "event") this.type = value;
    else if (field === "id" && !value.includes("\0")) this.id = value;
    else if (field === "retry" && /^\d+$/.test(value)) this.retryMs = Number(value);
  }

  dispatch() {
    this.lastEventId = this.id ?? "";
    const { data, type } = this;
    this.reset();
    if (!data || this.readyState === 2) return;
    this.dispatched++;
    const init = { data: data.slice(0, -1), lastEventId: this.lastEventId };
    this.dispatchEvent(new MessageEvent(type || "message", init));
  }
}

/** Text in any pieces, line by line; a line ends with CR, LF or both. */
class Lines {
  /** @param {(line: string) => void} take */
  constructor(take) {
    this.take = take;
    this.rest = "";
  }

  /** @param {string} text */
  push(text) {
    this.rest += text;
    const ends = /\r\n|\n|\r(?!$)/g; // a CR that comes last may be half of CR LF
    let from = 0;
    for (let end = ends.exec(this.rest); end; end = ends.exec(this.rest)) {
      this.take(this.rest.slice(from, end.index));
      from = ends.lastIndex;
    }
    this.rest = this.rest.slice(from);
  }
}
