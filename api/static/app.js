// @ts-check
/**
 * The page: what is shown follows the address. `#` is the form for a new task, `#task=ID` is a task, so that a reload
 * or a link sent to somebody else comes back to it. One stream is open at a time, the shown task's; uploads go on
 * whatever is shown, until this page is left.
 */

import { byId, element } from "./dom.js";
import * as headway from "./headway.js";
import { NewTask } from "./new-task.js";
import { forget, forgetAll, recent, remember } from "./recent.js";
import { TaskView } from "./task-view.js";
import * as units from "./units.js";

/** @typedef {import("./headway.js").Task} Task */
/** @typedef {{file: File, stop: AbortController | null, problem: Error | null}} Sending `stop` is null once it is over */
/**
 * The task on the screen. `settled`: it has ended, and `task` was asked for after that.
 *
 * @typedef {{id: string, task: Task | null, watch: headway.Watch | null, quiet: boolean, settled: boolean, timer: number}} Shown
 */

/** A task that says `uploading` and nothing else for this long, while we send nothing, has nobody who sends. */
const QUIET_SECONDS = 3;

const view = new TaskView();
const form = new NewTask(begin);
const main = byId("task", HTMLElement);
const resendFile = byId("resend-file", HTMLInputElement);

/** @type {Map<string, Sending>} the files this page has sent or is sending, by task */
const sendings = new Map();
/** @type {Shown | null} */
let shown = null;

/**
 * Makes a task and shows it. Raises Problem if the server refuses it.
 *
 * @param {File | null} file @param {string} processor @param {Record<string, unknown>} options
 */
async function begin(file, processor, options) {
  const task = await headway.announce(file, { processor, options });
  remember(task);
  show(task.task_id, task);
  history.pushState(null, "", `#task=${task.task_id}`);
  if (file && task.links.upload) void upload(task, file);
  view.title.focus();
}

/** Sends a task's bytes; what becomes of them is on its stream. @param {Task} task @param {File} file */
async function upload(task, file) {
  /** @type {Sending} */
  const sending = { file, stop: new AbortController(), problem: null };
  sendings.set(task.task_id, sending);
  redraw();
  try {
    await headway.send(task, file, { signal: sending.stop?.signal });
  } catch (error) {
    const now = await headway.fetchTask(task.task_id).catch(() => null);
    if (now?.status === "uploading" || now === null) sending.problem = /** @type {Error} */ (error);
  } finally {
    sending.stop = null;
    redraw();
  }
}

/** Shows a task and watches it. @param {string} id @param {Task | null} [known] */
function show(id, known = null) {
  leave();
  /** @type {Shown} */
  const here = { id, task: known, watch: null, quiet: false, settled: false, timer: 0 };
  shown = here;
  view.reset(known?.filename || recent().find((one) => one.task_id === id)?.filename || "Task");
  main.hidden = false;
  form.room.hidden = true;
  byId("new-link", HTMLElement).hidden = false;
  drawRecent();
  if (known) {
    redraw();
    follow(here);
  } else {
    void load(here);
  }
}

/** Asks for the task itself, then watches it if there is more to come. @param {Shown} here */
async function load(here) {
  for (let wait = 1; shown === here; wait = Math.min(wait * 2, 15)) {
    try {
      here.task = await headway.fetchTask(here.id);
      if (shown !== here) return;
      view.connection.hidden = true;
      here.settled = headway.hasEnded(here.task);
      noteTask(here.task);
      if (!here.settled) follow(here, 0); // from the beginning, for the log
      return;
    } catch (error) {
      const problem = /** @type {headway.Problem} */ (error);
      if (shown !== here) return;
      if (problem.status >= 400 && problem.status < 500) return refuse(here.id, problem);
      view.connection.hidden = false;
      await new Promise((done) => setTimeout(done, wait * 1000));
    }
  }
}

/** @param {Shown} here @param {number} [lastEventId] */
function follow(here, lastEventId) {
  const task = /** @type {Task} */ (here.task);
  here.watch?.close();
  here.watch = headway.watch(task.links.events ?? `tasks/${here.id}/events`, {
    lastEventId,
    state: task,
    onstate(state) {
      here.quiet = false;
      noteTask((here.task = { ...task, ...state }));
      expectBytes(here);
    },
    onevent({ type, data }) {
      if (type === "log" && data) view.addLine(data);
    },
    onconnection(connection) {
      view.connection.hidden = connection !== "waiting";
    },
    onend({ problem }) {
      view.connection.hidden = true;
      sendings.get(here.id)?.stop?.abort(); // a task that has ended takes no more bytes
      if (problem) return refuse(here.id, problem);
      void load(here); // the links that are there now, and the whole result: a state's may be cut to fit an event
    },
  });
  expectBytes(here);
}

/** If an upload goes quiet and it is not ours, we offer to send the file. @param {Shown} here */
function expectBytes(here) {
  clearTimeout(here.timer);
  if (here.task?.status !== "uploading") return;
  here.timer = window.setTimeout(() => {
    here.quiet = true;
    redraw();
  }, QUIET_SECONDS * 1000);
}

/** @param {Task} task */
function noteTask(task) {
  const before = recent().find((one) => one.task_id === task.task_id)?.status;
  if (before !== task.status) {
    remember(task);
    drawRecent();
  }
  redraw();
}

function redraw() {
  if (!shown?.task) return;
  const sending = sendings.get(shown.id);
  const { task, quiet, settled } = shown;
  view.draw(task, { sending: Boolean(sending?.stop), quiet, problem: sending?.problem ?? null, settled });
}

/** @param {string} id @param {headway.Problem} problem */
function refuse(id, problem) {
  if (problem.status !== 404 && problem.status !== 410) return view.complain(problem.title, problem.detail, problem.errors);
  view.gone(problem.detail || "The server does not know it, or no longer keeps it.");
  forget(id);
  drawRecent();
}

function leave() {
  shown?.watch?.close();
  clearTimeout(shown?.timer);
  shown = null;
}

/** Follows the address. */
function route() {
  const id = new URLSearchParams(location.hash.slice(1)).get("task");
  if (id && id === shown?.id) return;
  if (id) return show(id);
  leave();
  main.hidden = true;
  form.room.hidden = false;
  byId("new-link", HTMLElement).hidden = true;
  document.title = "Headway";
  void form.load();
  drawRecent();
}

function drawRecent() {
  const list = recent();
  byId("recent", HTMLElement).hidden = list.length === 0;
  byId("recent-list", HTMLElement).replaceChildren(
    ...list.map(({ task_id, filename, processor, status, at }) => {
      const link = element("a", { href: `#task=${encodeURIComponent(task_id)}`, textContent: filename || processor });
      if (task_id === shown?.id) link.setAttribute("aria-current", "page");
      const what = element("span", { className: "quiet what", textContent: `${processor} · ${units.moment(at)}` });
      return element("li", {}, [link, what, element("span", { className: "quiet state", textContent: status })]);
    }),
  );
}

/** Asks the server for something about the shown task, and says what it answers. @param {"cancel" | "retry"} what @param {HTMLButtonElement} button */
async function ask(what, button) {
  const here = shown;
  const link = here?.task?.links[what];
  if (!here || !link) return;
  button.disabled = true;
  try {
    await headway.request(link, { method: "POST" });
    if (what === "retry" && shown === here) show(here.id);
  } catch (error) {
    const problem = /** @type {headway.Problem} */ (error);
    if (shown !== here) return;
    if (problem.status === 409 || problem.status === 404) await load(here); // it is not what we thought: show what it is
    if (problem.status === 409 && what === "cancel") return; // it has ended by itself, which is what is shown now
    if (shown === here && problem.status !== 404) view.complain(problem.title, problem.detail, problem.errors);
  } finally {
    button.disabled = false;
  }
}

/** The file again: for the same task while it waits for it, else for a new one like it. @param {File} file */
async function resend(file) {
  const task = shown?.task;
  if (!task) return;
  const same = file.name === task.filename && file.size === task.size_bytes;
  if (task.status === "uploading" && task.links.upload && same) return upload(task, file);
  try {
    await begin(file, task.processor, task.options);
  } catch (error) {
    const problem = /** @type {headway.Problem} */ (error);
    view.complain(problem.title, problem.detail, problem.errors);
  }
}

view.cancel.addEventListener("click", () => void ask("cancel", view.cancel));
view.retry.addEventListener("click", () => void ask("retry", view.retry));
byId("resend-button", HTMLButtonElement).addEventListener("click", () => {
  const kept = shown && sendings.get(shown.id)?.file;
  if (kept) void resend(kept);
  else resendFile.click();
});
resendFile.addEventListener("change", () => {
  const [file] = resendFile.files ?? [];
  resendFile.value = "";
  if (file) void resend(file);
});
byId("forget", HTMLButtonElement).addEventListener("click", () => {
  forgetAll();
  drawRecent();
});
window.addEventListener("hashchange", route);
window.addEventListener("popstate", route);
window.addEventListener("beforeunload", (event) => {
  if ([...sendings.values()].some((sending) => sending.stop)) event.preventDefault();
});
route();
