// @ts-check
/**
 * One request to the server, and what it says is wrong. Everything the client asks goes through here, so a refusal has
 * one shape wherever it comes from: Problem.
 */

/** @typedef {string | ((how?: {refused?: boolean}) => string | Promise<string>)} Token what is sent, or who is asked for it each time */
/**
 * `token`: a key or a task's token, sent as `Authorization: Bearer`; `onsent`: told how much of the body has left.
 *
 * @typedef {RequestInit & {token?: Token, onsent?: (bytes: number) => void}} Asking
 */

/** Where the server is: the parent of the folder this module was served from. */
export const BASE = new URL("../", import.meta.url);

/** What the server said is wrong (RFC 9457), or status 0 where it could not be asked. */
export class Problem extends Error {
  /** @param {{status?: number, type?: string, title?: string, detail?: string, errors?: {field: string, message: string}[]}} body */
  constructor(body) {
    super(body.detail || body.title || "The request failed");
    this.name = "Problem";
    this.status = body.status ?? 0;
    /** The last word of the server's problem type, such as `another-file`; empty without one. */
    this.type = body.type?.split(":").pop() ?? "";
    this.title = body.title || "The request failed";
    this.detail = body.detail || "";
    this.errors = Array.isArray(body.errors) ? body.errors : [];
  }

  /** Whether the same request may go through later: nobody answered, or the server is busy or restarting. */
  get passes() {
    return this.status === 0 || this.status === 408 || this.status === 429 || (this.status >= 500 && this.status !== 507);
  }
}

/**
 * @param {Token | undefined} token
 * @param {boolean} [refused] the last one that a function gave is not good any more
 * @returns {Promise<Record<string, string>>}
 */
export async function bearer(token, refused = false) {
  const given = typeof token === "function" ? await token({ refused }) : token;
  return given ? { authorization: `Bearer ${given}` } : {};
}

/**
 * As fetch, which does not say how much of a body it has sent.
 *
 * @param {URL | string} url
 * @param {RequestInit} init
 * @param {(bytes: number) => void} onsent
 * @returns {Promise<Response>}
 */
function sendBody(url, { method = "POST", headers, body, signal }, onsent) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, url);
    for (const [name, value] of Object.entries(/** @type {Record<string, string>} */ (headers ?? {}))) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded }) => onsent(loaded);
    request.onload = () => {
      const answered = new Headers();
      for (const line of request.getAllResponseHeaders().split("\r\n").filter(Boolean)) {
        const colon = line.indexOf(":");
        answered.append(line.slice(0, colon), line.slice(colon + 1).trim());
      }
      const { status, statusText } = request;
      resolve(new Response(status === 204 ? null : request.responseText, { status, statusText, headers: answered }));
    };
    request.onerror = () => reject(new TypeError("The connection was lost"));
    request.onabort = () => reject(signal?.reason);
    if (signal?.aborted) return reject(signal.reason);
    signal?.addEventListener("abort", () => request.abort(), { once: true });
    request.send(/** @type {XMLHttpRequestBodyInit} */ (body));
  });
}

/** As fetch; where the token is a function's and is refused, once more with a fresh one. @param {URL | string} url @param {Asking} init */
export async function fetchAs(url, { token, headers, onsent, ...init }) {
  const ask = async (/** @type {boolean} */ refused) => {
    const sent = { cache: /** @type {RequestCache} */ ("no-store"), ...init, headers: { .../** @type {Record<string, string>} */ (headers), ...(await bearer(token, refused)) } };
    return onsent && globalThis.XMLHttpRequest ? sendBody(url, sent, onsent) : fetch(url, sent);
  };
  const response = await ask(false);
  if (response.status !== 401 || typeof token !== "function" || init.body instanceof ReadableStream) return response;
  await response.body?.cancel();
  return ask(true);
}

/** @param {string} text @returns {any} null for what is not JSON: a line for people, or a proxy's page */
export function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * Asks the server. Raises Problem, and only that, unless the `signal` was aborted.
 *
 * @param {string | URL} url
 * @param {Asking} [init]
 * @returns {Promise<Response>} a good one
 */
export async function call(url, init = {}) {
  let response;
  try {
    response = await fetchAs(new URL(url, BASE), init);
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Problem({ title: "No answer", detail: "The server cannot be reached, or it ended the connection." });
  }
  if (response.ok) return response;
  const body = parse(await response.text().catch(() => ""));
  throw new Problem({ title: response.statusText || `Error ${response.status}`, ...body, status: response.status });
}

/**
 * Asks the server for JSON. Raises as `call`.
 *
 * @param {string | URL} url
 * @param {Asking} [init]
 * @returns {Promise<any>}
 */
export async function request(url, init) {
  const response = await call(url, init);
  return parse(await response.text().catch(() => ""));
}

/**
 * Waits, and less than that once the network is back. Raises where the `signal` is aborted.
 *
 * @param {number} seconds
 * @param {AbortSignal} [signal]
 */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const done = () => {
      clearTimeout(timer);
      globalThis.removeEventListener?.("online", done);
      signal?.removeEventListener("abort", done);
      if (signal?.aborted) reject(signal.reason);
      else resolve(undefined);
    };
    const timer = setTimeout(done, seconds * 1000);
    globalThis.addEventListener?.("online", done);
    signal?.addEventListener("abort", done);
    if (signal?.aborted) done();
  });
}

/** A question that is short has its answer by then, or its connection is dead: the browser opens another one. */
export const soon = () => AbortSignal.timeout(5000);

/** The first wait before another try; it doubles up to the longest. */
const FIRST_WAIT_SECONDS = 0.5;
const LONGEST_WAIT_SECONDS = 15;

/** How long to wait after so many failures, apart from everybody else. @param {number} failures */
export const backoff = (failures) =>
  Math.min(FIRST_WAIT_SECONDS * 2 ** failures, LONGEST_WAIT_SECONDS) * (0.75 + Math.random() / 2);
