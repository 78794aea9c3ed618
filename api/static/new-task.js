// @ts-check
/** The form for new tasks: files, a processor, its options. What to do with them is its caller's. */

import { byId, element, setText } from "./dom.js";
import { droppedFiles } from "./dropped.js";
import { fetchProcessors } from "./headway.js";
import { OptionsForm } from "./options-form.js";
import { fillComplaint } from "./task-view.js";
import * as units from "./units.js";

/** @typedef {import("./headway.js").Processor} Processor */

/** What some systems call these files, or leave unnamed. */
const TYPES = /** @type {Record<string, string>} */ ({
  csv: "text/csv",
  tsv: "text/tab-separated-values",
  json: "application/json",
  jsonl: "application/x-ndjson",
  ndjson: "application/x-ndjson",
  parquet: "application/vnd.apache.parquet",
  xlsx: "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
});

/** So that a mistake, a whole disk, does not become so many tasks. */
const MOST_FILES = 1000;

export class NewTask {
  /** @param {(files: File[], processor: string, options: Record<string, unknown>) => Promise<void>} begin raises Problem */
  constructor(begin) {
    this.begin = begin;
    this.root = byId("new", HTMLElement);
    this.form = byId("new-form", HTMLFormElement);
    this.drop = byId("drop", HTMLElement);
    this.input = byId("file", HTMLInputElement);
    this.name = byId("file-name", HTMLElement);
    this.invitation = [...this.name.childNodes].map((node) => node.cloneNode(true));
    this.hint = byId("file-hint", HTMLElement);
    this.advice = this.hint.textContent ?? "";
    this.select = byId("processor", HTMLSelectElement);
    this.selectHint = byId("processor-hint", HTMLElement);
    this.selectComplaint = byId("processor-complaint", HTMLElement);
    this.fieldset = byId("options", HTMLElement);
    this.options = new OptionsForm(byId("option-fields", HTMLElement));
    this.problem = byId("new-problem", HTMLElement);
    this.start = byId("start", HTMLButtonElement);
    /** @type {Processor[]} */
    this.processors = [];
    /** @type {File[]} */
    this.files = [];
    this.chosenByHand = false;

    this.input.addEventListener("change", () => this.take([...(this.input.files ?? [])]));
    this.select.addEventListener("change", () => {
      this.chosenByHand = true;
      this.drawProcessor();
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.submit();
    });
    // A file dropped beside the area would make the browser leave the page: the whole page takes it.
    window.addEventListener("dragover", (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = this.root.hidden ? "none" : "copy";
      this.drop.classList.add("over");
    });
    window.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) this.drop.classList.remove("over");
    });
    window.addEventListener("drop", (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      this.drop.classList.remove("over");
      if (this.root.hidden) return;
      void droppedFiles(event.dataTransfer).then((files) => this.take(files));
    });
  }

  /** Asks for the processors, once; again if that failed. */
  async load() {
    if (this.processors.length) return;
    try {
      this.processors = await fetchProcessors();
    } catch (error) {
      this.complain(/** @type {import("./headway.js").Problem} */ (error));
      return;
    }
    this.problem.hidden = true;
    const former = element("optgroup", { label: "Former names" });
    this.select.replaceChildren();
    for (const { name, alias_of: today } of this.processors) (today ? former : this.select).append(new Option(name, name));
    if (former.childElementCount) this.select.append(former);
    this.suggest();
    this.drawProcessor();
  }

  /** @param {File[]} files */
  take(files) {
    if (!files.length) return; // the dialogue was left: what was chosen before stays
    this.problem.hidden = true;
    this.files = files.slice(0, MOST_FILES);
    if (files.length > MOST_FILES)
      fillComplaint(this.problem, `${units.number(files.length)} files`, `The first ${units.number(MOST_FILES)} of them are taken; start, then drop the others.`);
    if (!this.chosenByHand || !this.chosen?.needs_file) this.suggest();
    this.drawProcessor();
    this.start.focus();
  }

  get chosen() {
    return this.processors.find(({ name }) => name === this.select.value);
  }

  /** Chooses the processor that names the files' type most exactly: that of the file which it fits least. */
  suggest() {
    const fit = (/** @type {Processor} */ one) => (one.needs_file && !one.alias_of ? this.fitAll(one) : 0);
    const best = this.processors.reduce((found, one) => (fit(one) > fit(found) ? one : found), this.processors[0]);
    if (best) this.select.value = best.name;
  }

  /** @param {Processor} processor */
  fitAll({ accepts }) {
    // What a processor names first it is made for.
    const fit = (/** @type {File | null} */ file) => Math.max(0, ...accepts.map((type, place) => fitOf(type, file) * (1 - place / 1000)));
    return this.files.length ? Math.min(...this.files.map(fit)) : fit(null);
  }

  drawProcessor() {
    const chosen = this.chosen;
    if (!chosen) return;
    const doubtful = this.files.length > 0 && chosen.needs_file && !this.fitAll(chosen);
    const doubt = doubtful ? ` It takes ${chosen.accepts.join(", ")}, and ${this.files.length > 1 ? "some of these look" : "this file looks"} like something else.` : "";
    setText(this.selectHint, `${chosen.description.replace(/\.$/, "")}.${doubt}`);
    this.selectComplaint.hidden = true;
    this.options.draw(chosen.options);
    this.fieldset.hidden = this.options.fields.length === 0;
    this.drawFile(chosen);
  }

  /** @param {Processor} chosen */
  drawFile(chosen) {
    this.drop.classList.toggle("unused", !chosen.needs_file);
    this.drop.classList.toggle("chosen", chosen.needs_file && this.files.length > 0);
    this.input.disabled = !chosen.needs_file;
    if (!chosen.needs_file) {
      setText(this.name, "No file needed");
      setText(this.hint, `${chosen.name} makes its own work.`);
    } else if (this.files.length) {
      const size = this.files.reduce((sum, file) => sum + file.size, 0);
      const many = this.files.length > 1;
      setText(this.name, many ? `${units.number(this.files.length)} files` : this.files[0].name);
      setText(this.hint, `${units.bytes(size)} · choose or drop ${many ? "others to replace them" : "another to replace it"}`);
    } else {
      this.name.replaceChildren(...this.invitation.map((node) => node.cloneNode(true)));
      setText(this.hint, this.advice);
    }
  }

  async submit() {
    const chosen = this.chosen;
    if (!chosen) return;
    if (chosen.needs_file && !this.files.length) {
      fillComplaint(this.problem, "No file yet", `Choose a file for ${chosen.name}, or drop one here.`);
      this.input.focus();
      return;
    }
    this.problem.hidden = true;
    this.selectComplaint.hidden = true;
    this.options.forgive();
    this.start.disabled = true;
    setText(this.start, "Starting…");
    try {
      await this.begin(chosen.needs_file ? this.files : [], chosen.name, this.options.values());
      this.clear();
    } catch (error) {
      this.complain(/** @type {import("./headway.js").Problem} */ (error));
    } finally {
      this.start.disabled = false;
      setText(this.start, "Start");
    }
  }

  /** The next task starts with an empty form. */
  clear() {
    this.form.reset();
    this.files = [];
    this.chosenByHand = false;
    this.suggest();
    this.drawProcessor();
  }

  /** @param {import("./headway.js").Problem} problem */
  complain(problem) {
    const rest = this.options.complain(problem.errors ?? []);
    const about = rest.find(({ field }) => field === "processor");
    if (about) setText(this.selectComplaint, about.message);
    this.selectComplaint.hidden = !about;
    fillComplaint(this.problem, problem.title ?? "It did not work", problem.detail ?? problem.message, rest.filter((one) => one !== about));
    this.form.querySelector("[aria-invalid]")?.scrollIntoView({ block: "nearest" });
  }
}

/** How exactly a media type names the file's: 3, `text/*` 2, any 1, another 0. @param {string} type @param {File | null} file */
function fitOf(type, file) {
  if (!file || type === "*/*") return 1;
  const known = TYPES[file.name.split(".").pop()?.toLowerCase() ?? ""];
  const types = [known, file.type].filter(Boolean);
  if (types.length === 0) return 1; // nobody knows: the server looks into the file
  if (types.includes(type)) return 3;
  return type.endsWith("/*") && types.some((one) => one.startsWith(type.slice(0, -1))) ? 2 : 0;
}
