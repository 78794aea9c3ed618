// @ts-check
/**
 * Draws one task: what `draw` is given is what is seen, nothing is kept but the task and its log lines. The bar is the
 * server's `progress` and nothing else.
 */

import { byId, element, setText } from "./dom.js";
import { hasEnded } from "./headway.js";
import { drawFile, drawResult } from "./result.js";
import { STATUS, failureOf, isSettled, isUnsent } from "./task-words.js";
import { ANOTHER_TITLE } from "./uploads.js";
import * as units from "./units.js";

/** @typedef {import("./headway.js").Task} Task */
/**
 * What the task itself does not say: whether this page is `sending` its file, whether nobody seems to (`quiet`), and
 * what ended the sending.
 *
 * @typedef {{sending: boolean, quiet: boolean, problem: Error | null, notice: string, sent: number}} Upload `sent`: bytes that have left this browser
 */

const LONGEST_LOG = 500;

export class TaskView {
  constructor() {
    const part = (/** @type {string} */ id) => byId(id, HTMLElement);
    this.root = part("task");
    this.title = part("task-title");
    this.status = part("task-status");
    this.about = part("task-about");
    this.live = part("task-live");
    this.bar = part("bar");
    this.fill = part("fill");
    this.percent = part("percent");
    this.message = part("task-message");
    this.problem = part("task-problem");
    this.notice = part("task-notice");
    this.resend = part("resend");
    this.resendText = part("resend-text");
    this.cancel = byId("cancel", HTMLButtonElement);
    this.retry = byId("retry", HTMLButtonElement);
    this.delete = byId("delete", HTMLElement);
    this.input = part("input");
    this.result = part("result");
    this.resultRoom = part("result-room");
    this.log = part("log");
    this.lines = part("log-lines");
    this.announcer = part("announcer");
    this.facts = Object.fromEntries(
      ["step", "done", "rate", "left", "took", "attempt", "rate-room", "left-room", "took-room"].map((name) => [name, part(`fact-${name}`)]),
    );
    this.drawn = "";
    this.drawnInput = "";
    this.said = "";
    /** @type {Set<string>} */
    this.seenLines = new Set();
  }

  /** A new task is shown: nothing of the one before it stays. @param {string} title */
  reset(title) {
    setText(this.title, title);
    setText(this.about, "");
    setText(this.status, "");
    delete this.root.dataset.status;
    for (const part of [this.live, this.problem, this.notice, this.resend, this.cancel, this.retry, this.delete, this.input, this.result, this.log])
      part.hidden = true;
    this.lines.replaceChildren();
    this.resultRoom.replaceChildren();
    this.seenLines.clear();
    this.drawn = "";
    this.drawnInput = "";
    this.said = "";
    document.title = "Headway";
  }

  /** @param {Task} task @param {Upload} upload */
  draw(task, upload) {
    const ended = hasEnded(task);
    const name = task.filename || task.options?.title || task.processor;
    this.live.hidden = false;
    this.root.dataset.status = task.status;
    setText(this.title, name);
    setText(this.status, STATUS[task.status] ?? task.status);
    const size = typeof task.size_bytes === "number" && task.filename ? units.bytes(task.size_bytes) : "";
    setText(this.about, [name === task.processor ? "" : task.processor, size, `started ${units.moment(task.created_at)}`].filter(Boolean).join(" · "));
    this.drawBar(task);
    // At the end the badge and the error say it.
    const message = ended && ["Done", STATUS[task.status], task.error?.message].includes(task.message) ? "" : task.message;
    // What the server has is what counts. A proxy may collect a body before it sends it on, and then that stands still.
    const sent = task.status === "uploading" && upload.sent > (task.done ?? 0) ? `this browser has sent ${units.bytes(upload.sent)}` : "";
    setText(this.message, [message, sent].filter(Boolean).join(" · "));
    this.drawFacts(task, ended);
    this.drawEnd(task, upload);
    document.title = ended ? `${STATUS[task.status]} · ${name}` : `${Math.floor(task.progress)} % · ${name}`;
    this.announce(`${name}: ${STATUS[task.status] ?? task.status}${task.error ? `. ${task.error.message}` : ""}`);
  }

  /** @param {Task} task */
  drawBar({ progress, message, status }) {
    const shown = Math.floor(progress); // rounded up, 99.6 would claim to be done
    setText(this.percent, `${shown} %`);
    this.fill.style.width = `${progress}%`;
    this.bar.setAttribute("aria-valuenow", String(shown));
    this.bar.setAttribute("aria-valuetext", `${shown} %, ${message || STATUS[status]}`);
  }

  /** @param {Task} task @param {boolean} ended */
  drawFacts(task, ended) {
    const { step, done, rate, left, took, attempt } = this.facts;
    setText(step, task.step ? `${task.step} of ${task.total_steps}` : "–");
    setText(done, task.done || task.total ? units.count(task.done, task.total, task.unit) : "–");
    setText(rate, task.rate === null ? "–" : units.perSecond(task.rate, task.unit));
    setText(left, task.eta_seconds === null ? "–" : units.timeLeft(task.eta_seconds));
    setText(attempt, String(task.attempt));
    this.facts["rate-room"].hidden = ended;
    this.facts["left-room"].hidden = ended;
    const from = task.attempt > 1 ? task.started_at : task.created_at;
    this.facts["took-room"].hidden = !ended || !from || !task.finished_at;
    if (from && task.finished_at) setText(took, units.duration((Date.parse(task.finished_at) - Date.parse(from)) / 1000));
  }

  /** What can be done now, and what came of it. @param {Task} task @param {Upload} upload */
  drawEnd(task, upload) {
    const ended = hasEnded(task);
    this.cancel.hidden = ended;
    this.delete.hidden = !ended;
    if (task.status === "failed" && task.error) this.complain(failureOf(task.error), task.error.message);
    else if (upload.problem && task.status === "uploading") this.complain("The upload stopped", upload.problem.message);
    else this.problem.hidden = true;
    if (upload.notice) fillComplaint(this.notice, ANOTHER_TITLE, upload.notice);
    else this.notice.hidden = true;

    const stuck = task.status === "uploading" && !upload.sending && (upload.quiet || upload.problem !== null);
    const unsent = isUnsent(task);
    this.retry.hidden = !isSettled(task) || task.status === "completed" || !task.links.retry;
    this.resend.hidden = !stuck && !unsent;
    setText(this.resendText, stuck && !upload.problem
      ? "The server waits for the rest of this file, and this page is not sending it."
      : "The server does not have the whole file.");

    // The same result comes more than once, from the stream and by a GET: drawn anew it would take a link from under a click.
    const result = task.status === "completed" && task.result && !task.result.truncated ? JSON.stringify(task.result) : "";
    if (task.result && result && result !== this.drawn) {
      this.drawn = result;
      this.resultRoom.replaceChildren(...drawResult(task.result));
    }
    this.result.hidden = task.status !== "completed" || !this.drawn;
    this.drawInput(task);
  }

  /** The file as it was sent. @param {Task} task */
  drawInput({ links, filename, size_bytes }) {
    this.input.hidden = !links.input;
    if (!links.input || this.drawnInput === links.input) return;
    this.drawnInput = links.input;
    const name = filename ?? "input";
    const file = { name, size_bytes: size_bytes ?? 0, content_type: "", sha256: "", url: links.input };
    this.input.replaceChildren(element("span", { className: "quiet", textContent: "Input:" }), ...drawFile(file));
  }

  /** A download of one of its files, by whoever it is. @param {{file: string, progress: number}} transfer */
  transfer({ file, progress }) {
    for (const where of this.root.querySelectorAll("[data-transfer]")) {
      if (!(where instanceof HTMLElement) || where.dataset.transfer !== file) continue;
      setText(where, progress >= 100 ? "sent" : `sending, ${Math.floor(progress)} %`);
      where.style.setProperty("--sent", `${progress}%`);
    }
  }

  /**
   * The server's own words. @param {string} title @param {string} text
   * @param {{field: string, message: string}[]} [errors]
   */
  complain(title, text, errors = []) {
    fillComplaint(this.problem, title, text, errors);
  }

  /** @param {string} text */
  gone(text) {
    this.root.dataset.status = "gone";
    this.live.hidden = this.cancel.hidden = this.retry.hidden = this.delete.hidden = this.resend.hidden = true;
    setText(this.status, STATUS.gone);
    this.complain("This task is gone", text);
    this.announce("This task is gone");
    document.title = "Gone · Headway";
  }

  /** @param {{level: string, message: string, at: string}} line */
  addLine({ level, message, at }) {
    const key = `${at} ${message}`;
    if (this.seenLines.has(key)) return; // told by the history and by the feed
    this.seenLines.add(key);
    const time = element("time", { dateTime: at, textContent: new Date(at).toLocaleTimeString("en", { hourCycle: "h23" }) });
    const line = element("li", {}, [time, element("span", { textContent: message })]);
    line.dataset.level = level;
    this.lines.append(line);
    if (this.lines.childElementCount > LONGEST_LOG) this.lines.firstElementChild?.remove();
    this.log.hidden = false;
  }

  /** Changes of status only: a percentage a second is noise to whoever listens. @param {string} text */
  announce(text) {
    if (text === this.said) return;
    this.said = text;
    setText(this.announcer, text);
  }
}

/** @param {HTMLElement} room @param {string} title @param {string} text @param {{field: string, message: string}[]} [errors] */
export function fillComplaint(room, title, text, errors = []) {
  const lines = errors.map(({ field, message }) => element("li", { textContent: field ? `${field}: ${message}` : message }));
  const key = [title, text, ...lines.map((line) => line.textContent)].join("\n");
  if (!room.hidden && room.dataset.key === key) return; // said already: an alert is not said twice
  room.dataset.key = key;
  room.replaceChildren(element("strong", { textContent: title }));
  if (text && text !== title) room.append(element("span", { textContent: text }));
  if (lines.length) room.append(element("ul", {}, lines));
  room.hidden = false;
}
