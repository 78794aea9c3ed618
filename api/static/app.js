// @ts-check
/**
 * The page: what is shown follows the address. `#` is the form for new tasks over the list of all; `#task=ID` is one
 * task, so that a reload or a link sent to somebody else comes back to it. All of it is drawn from one store of tasks,
 * which the feed keeps true; uploads go on whatever is shown, until this page is left.
 */

import { byId } from "./dom.js";
import { Feed } from "./feed.js";
import * as headway from "./headway.js";
import { backoff, pause } from "./http.js";
import { keptFile } from "./kept-files.js";
import { NewTask } from "./new-task.js";
import { ShownTask } from "./shown-task.js";
import { SignIn } from "./sign-in.js";
import { SystemLine } from "./system-line.js";
import { TaskList } from "./task-list.js";
import { confirmButton } from "./task-row.js";
import { fillComplaint } from "./task-view.js";
import { Tasks } from "./tasks.js";
import { ANOTHER_FILE, isBeingSent } from "./tus.js";
import { ANOTHER_TITLE, Uploads, another } from "./uploads.js";
import * as units from "./units.js";

/** @typedef {import("./headway.js").Task} Task */
/** @typedef {import("./headway.js").Problem} Problem */
/** @typedef {import("./task-row.js").Action} Action */

const connection = byId("connection", HTMLElement);
const listProblem = byId("list-problem", HTMLElement);
const listNotice = byId("list-notice", HTMLElement);
const announcer = byId("announcer", HTMLElement);
const resendFile = byId("resend-file", HTMLInputElement);

const tasks = new Tasks(changed);
const uploads = new Uploads((task) => tasks.put(task), changed);
const list = new TaskList(tasks, uploads, (action, id, button) => void act(action, id, button), cancelAll);
const shown = new ShownTask(tasks, uploads);
const { view } = shown;
const form = new NewTask(begin);
const system = new SystemLine(byId("system", HTMLElement), tasks);
const signIn = new SignIn(() => {
  feed.tellTabs({ type: "signed" });
  restart();
});
const feed = new Feed({
  onstate: (state) => tasks.take(state),
  onevent: (event) => shown.take(event),
  onconnection: showConnection,
  ondeleted: (id) => shown.gone(id),
  onrefused: restart,
  onsigned: restart,
});

/** What is known of the line to the server, where it is not as it should be. @param {import("./headway.js").Connection} state */
function showConnection(state) {
  const lost = state === "waiting";
  connection.hidden = !lost && state !== "asking";
  connection.textContent = lost
    ? "The connection was lost. Waiting for it to come back; the tasks go on without it."
    : "Events do not arrive here, so the server is asked every few seconds. A proxy may hold them back: headway doctor says which line to change.";
}

/** Counts the starts: what an earlier one waits for is of no interest any more. */
let round = 0;

/** Asks who is here, then shows what the address says. A file may be dropped meanwhile. */
async function start() {
  const mine = ++round;
  if (!taskInAddress()) form.root.hidden = list.root.hidden = false;
  const ready = await patiently(mine, () => signIn.check());
  if (!ready) return;
  feed.start();
  route();
  system.touch();
  if (await patiently(mine, () => list.load())) void resumeAll();
}

/** Somebody else may be signed in now, or nobody. */
function restart() {
  feed.stop();
  feed.lastId = ""; // another owner's feed has numbers of its own
  shown.leave();
  tasks.clear();
  list.clear();
  void start();
}

/** Does it until it is done; asks for a sign-in where one is needed. @param {number} mine @param {() => Promise<void>} ask @returns {Promise<boolean>} */
async function patiently(mine, ask) {
  for (let failures = 0; mine === round; failures++) {
    try {
      await ask();
      if (failures) connection.hidden = true;
      return mine === round;
    } catch (error) {
      const problem = /** @type {Problem} */ (error);
      if (problem.status === 401) {
        askForKey();
        return false;
      }
      showConnection("waiting");
      await pause(backoff(failures));
    }
  }
  return false;
}

/** Nothing of anybody's tasks stays. */
function askForKey() {
  feed.stop();
  shown.leave();
  view.reset("Task");
  form.root.hidden = list.root.hidden = true;
  announcer.textContent = "";
  signIn.ask();
}

/**
 * Makes the tasks. Raises Problem if the server refuses the first: what is wrong with it is wrong with all.
 *
 * @param {File[]} files none for a processor that needs none @param {string} processor @param {Record<string, unknown>} options @param {string} [notice]
 */
async function begin(files, processor, options, notice = "") {
  const [first, ...rest] = files;
  const batchId = rest.length ? newBatchId() : undefined;
  let others = 0;
  const onanother = () => void others++;
  const task = await uploads.begin(first ?? null, { processor, options, batchId, onanother }, notice);
  listProblem.hidden = listNotice.hidden = true;
  if (!rest.length) {
    history.pushState(null, "", `#task=${task.task_id}`);
    show(task.task_id);
    return view.title.focus();
  }
  announcer.textContent = `${units.number(files.length)} files are being sent`;
  byId("tasks-title", HTMLElement).scrollIntoView({ block: "start" });
  void uploads.beginAll(rest, { processor, options, batchId, onanother }).then((refused) => {
    if (others) fillComplaint(listNotice, ANOTHER_TITLE, another(others, files.length));
    const errors = refused.slice(0, 10).map(({ file, problem }) => ({ field: file.name, message: problem.message }));
    if (refused.length) fillComplaint(listProblem, "Not taken", `${units.number(refused.length)} of ${units.number(files.length)} files`, errors);
  });
}

/** By time, so that people know it again, and by chance, so that there is no other. */
function newBatchId() {
  const at = new Date(Date.now() - new Date().getTimezoneOffset() * 60_000).toISOString().slice(0, 16).replace("T", "-").replace(":", "");
  return `${at}-${Math.random().toString(36).slice(2, 6)}`;
}

/** A task has come, changed or gone. @param {string} id */
function changed(id) {
  list.touch(id);
  system.touch();
  const task = tasks.get(id);
  if (task && headway.hasEnded(task)) uploads.stop(id);
  shown.changed(id);
}

const taskInAddress = () => new URLSearchParams(location.hash.slice(1)).get("task");

/** @param {string} id */
function show(id) {
  form.root.hidden = list.root.hidden = true;
  byId("new-link", HTMLElement).hidden = false;
  shown.show(id);
}

/** Follows the address. */
function route() {
  if (!signIn.root.hidden) return;
  const id = taskInAddress();
  if (id && id === shown.id) return;
  if (id) return show(id);
  shown.leave();
  form.root.hidden = list.root.hidden = false;
  byId("new-link", HTMLElement).hidden = true;
  document.title = "Headway";
  void form.load();
  list.redraw();
}

/** Asks the server for something about a task, and says what it answers. @param {Action} action @param {string} id @param {HTMLButtonElement} button */
async function act(action, id, button) {
  button.disabled = true;
  try {
    if (action === "delete") await headway.request(`tasks/${id}`, { method: "DELETE" });
    else tasks.put(await headway.request(`tasks/${id}/${action}`, { method: "POST" }));
    if (action === "delete") forget(id);
  } catch (error) {
    const problem = /** @type {Problem} */ (error);
    if (problem.status === 404) return forget(id);
    if (problem.status === 409) tasks.put(await headway.fetchTask(id).catch(() => /** @type {Task} */ (tasks.get(id)))); // it is not what we thought: show what it is
    if (problem.status === 409 && action === "cancel") return; // it has ended by itself, which is what is shown now
    if (shown.id === id) view.complain(problem.title, problem.detail, problem.errors);
    else fillComplaint(listProblem, problem.title, problem.detail, problem.errors);
  } finally {
    button.disabled = false;
  }
}

/**
 * Cancels every task of a batch, those that this page has not heard of too: only the server knows them all.
 *
 * @param {string} batchId @param {HTMLButtonElement} button
 * @returns {Promise<string>} what came of it
 */
async function cancelAll(batchId, button) {
  button.disabled = true;
  try {
    await uploads.giveUp(batchId);
    const { tasks, cancelled, ended } = await headway.request(`batches/${encodeURIComponent(batchId)}/cancel`, { method: "POST" });
    const answer = `cancelled ${units.number(cancelled)} of ${units.number(tasks)}${ended ? `, ${units.number(ended)} had ended` : ""}`;
    announcer.textContent = `Batch ${batchId}: ${answer}`;
    return answer;
  } catch (error) {
    const problem = /** @type {Problem} */ (error);
    fillComplaint(listProblem, problem.title, problem.detail, problem.errors);
    return "";
  } finally {
    button.disabled = false;
  }
}

/** It is gone, which other tabs hear from the feed. @param {string} id */
function forget(id) {
  if (shown.id === id) location.hash = "";
  shown.gone(id);
}

/** Uploads of an earlier visit, where the browser still has the way to the file. */
async function resumeAll() {
  for (const task of tasks.all()) {
    if (task.status !== "uploading" || uploads.get(task.task_id) || (await isBeingSent(task.task_id))) continue;
    const file = await keptFile(task, { ask: false });
    if (file) void uploads.add(task, file);
  }
}

/** The file again: for the same task while it waits for it, else for a new one like it. @param {File} file */
async function resend(file) {
  const { task } = shown;
  if (!task) return;
  const same = file.name === task.filename && file.size === task.size_bytes;
  if (task.status === "uploading" && same) {
    await uploads.add(task, file);
    if (uploads.get(task.task_id)?.problem?.type !== ANOTHER_FILE) return;
    uploads.forget(task.task_id); // it goes its own way: who sends for this task again is asked for a file
  }
  try {
    await begin([file], task.processor, task.options, task.status === "uploading" ? another() : "");
  } catch (error) {
    const problem = /** @type {Problem} */ (error);
    view.complain(problem.title, problem.detail, problem.errors);
  }
}

for (const what of /** @type {const} */ (["cancel", "retry"]))
  view[what].addEventListener("click", () => void act(what, shown.id, view[what]));
const remove = confirmButton("Delete", "Delete for good?", (button) => void act("delete", shown.id, button));
remove.className = "";
view.delete.append(remove);
byId("resend-button", HTMLButtonElement).addEventListener("click", async () => {
  const { task } = shown;
  const kept = task && (uploads.get(task.task_id)?.file ?? (await keptFile(task, { ask: true })));
  if (kept) void resend(kept);
  else resendFile.click();
});
resendFile.addEventListener("change", () => {
  const [file] = resendFile.files ?? [];
  resendFile.value = "";
  if (file) void resend(file);
});
window.addEventListener("hashchange", route);
window.addEventListener("popstate", route);
document.addEventListener("visibilitychange", () => system.touch());
// A page in the browser's back-forward cache holds no stream; it begins anew when it is shown again.
window.addEventListener("pagehide", () => feed.stop());
window.addEventListener("pageshow", (event) => event.persisted && restart());
void start();
