// @ts-check
/**
 * `<task-progress href="/tasks/ID">`: one task's bar, live to its end, in a style of its own. It works alone:
 *
 *     <script type="module" src="/static/headway.js"></script>
 *     <task-progress href="/tasks/6f1c…"></task-progress>
 *
 * It says each state by a `state` event and the end by an `end` event (`detail` is the task), holds the last one as
 * `task`, and takes `token` as a property. Colours: `--task-progress-color`, `--task-progress-track`.
 */

import { BASE, request } from "./http.js";
import * as units from "./units.js";
import { hasEnded, watch } from "./watch.js";

/** @typedef {import("./headway.js").Task} Task */

const STYLE = `
:host { display: block; font: inherit; line-height: 1.4; }
:host([hidden]) { display: none; }
.head { display: flex; justify-content: space-between; gap: 1em; }
.name { font-weight: 600; overflow-wrap: anywhere; min-width: 0; }
.percent { font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { height: 0.6em; margin: 0.3em 0; border-radius: 1em; overflow: hidden; background: var(--task-progress-track, #8884); }
.fill { height: 100%; width: 0; border-radius: inherit; background: var(--task-progress-color, #1f5fd0); transition: width 0.2s linear; }
:host([status="completed"]) .fill { background: var(--task-progress-color, #177245); }
:host([status="failed"]) .fill { background: #b3261e; }
.now { font-size: 0.875em; overflow-wrap: anywhere; }
@media (prefers-reduced-motion: reduce) { .fill { transition: none; } }
`;

/** Who only looks elsewhere for a moment loses nothing. */
const HIDDEN_MS = 10_000;

/** Where there is no page (a worker, Node), the rest of the client still loads. */
const Element = globalThis.HTMLElement ?? /** @type {typeof HTMLElement} */ (/** @type {unknown} */ (class {}));

export class TaskProgress extends Element {
  static observedAttributes = ["href"];

  /** @type {Task | null} */
  task = null;
  /** @type {import("./http.js").Token | undefined} */
  token;
  /** @type {import("./headway.js").Watch | null} */
  #watching = null;
  #made = false;
  #away = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #hidden = undefined;
  #round = 0;
  /** @type {Record<string, HTMLElement>} */
  #parts = {};

  connectedCallback() {
    this.#make();
    document.addEventListener("visibilitychange", this.#seen);
    void this.#follow();
  }

  disconnectedCallback() {
    document.removeEventListener("visibilitychange", this.#seen);
    clearTimeout(this.#hidden);
    this.#round++;
    this.#watching?.close();
  }

  /** While nobody looks at its tab it holds no stream: a browser has six connections for all tabs. */
  #seen = () => {
    clearTimeout(this.#hidden);
    if (document.hidden) {
      this.#hidden = setTimeout(() => {
        this.#away = !this.task || !hasEnded(this.task);
        if (this.#away) this.#watching?.close();
      }, HIDDEN_MS);
    } else if (this.#away) {
      this.#away = false;
      void this.#follow(this.task);
    }
  };

  attributeChangedCallback() {
    if (this.isConnected && this.#made) void this.#follow();
  }

  get href() {
    return this.getAttribute("href") ?? "";
  }

  set href(value) {
    this.setAttribute("href", value);
  }

  #make() {
    if (this.#made) return;
    this.#made = true;
    const root = this.attachShadow({ mode: "open" });
    const sheet = new CSSStyleSheet(); // not a style element: a strict policy forbids those
    sheet.replaceSync(STYLE);
    root.adoptedStyleSheets = [sheet];
    const part = (/** @type {string} */ name, /** @type {Node[]} */ ...children) => {
      const made = document.createElement("div");
      made.className = name;
      made.setAttribute("part", name);
      made.append(...children);
      return (this.#parts[name] = made);
    };
    root.append(part("head", part("name"), part("percent")), part("bar", part("fill")), part("now"));
    const { bar } = this.#parts;
    for (const [name, value] of [["role", "progressbar"], ["aria-valuemin", "0"], ["aria-valuemax", "100"], ["aria-label", "Task"]])
      bar.setAttribute(name, value);
  }

  /** @param {Task | null} [known] what is shown until more is heard */
  async #follow(known = null) {
    const round = ++this.#round;
    this.#watching?.close();
    this.task = known;
    if (!this.href) return;
    const self = new URL(this.href, BASE);
    const { token } = this;
    /** @type {Partial<Task>} what a state does not say: the file's name, the links */
    let rest = {};
    const take = (/** @type {import("./headway.js").State} */ state) => {
      if (round !== this.#round) return;
      this.task = /** @type {Task} */ ({ ...rest, ...this.task, ...state });
      this.#draw();
      this.dispatchEvent(new CustomEvent("state", { detail: this.task }));
    };
    this.#watching = watch(`${self.href.replace(/\/$/, "")}/events`, {
      token,
      self: self.href,
      state: known ?? undefined,
      onstate: take,
      onconnection: (connection) => {
        this.toggleAttribute("waiting", connection === "waiting");
        this.toggleAttribute("asking", connection === "asking");
      },
      onend: ({ problem }) => {
        if (round !== this.#round) return;
        if (problem) this.#parts.now.textContent = problem.detail || problem.title;
        this.dispatchEvent(new CustomEvent("end", { detail: this.task }));
      },
    });
    rest = await request(self, { token }).catch(() => ({}));
    if (round !== this.#round) return;
    if (this.task) this.task = { .../** @type {Task} */ (rest), .../** @type {Task} */ (this.task) };
    else if (rest.status) this.task = /** @type {Task} */ (rest);
    this.#draw();
  }

  #draw() {
    const { task } = this;
    if (!task) return;
    const { name, percent, bar, fill, now } = this.#parts;
    const shown = Math.floor(task.progress);
    this.setAttribute("status", task.status);
    name.textContent = task.filename || task.options?.title || task.processor || "Task";
    percent.textContent = `${shown} %`;
    fill.style.width = `${task.progress}%`;
    now.textContent = task.error ? task.error.message : units.phase(task);
    bar.setAttribute("aria-label", name.textContent);
    bar.setAttribute("aria-valuenow", String(shown));
    bar.setAttribute("aria-valuetext", `${shown} %, ${hasEnded(task) ? task.status : task.message}`);
  }
}

if (globalThis.customElements && !customElements.get("task-progress")) customElements.define("task-progress", TaskProgress);
