// @ts-check
/**
 * Draws a task's result: its files as downloads, its summary as a table where it is one, else as names and values. Some
 * results have a look of their own: a profile, pictures, a folder.
 */

import { element, safeHref } from "./dom.js";
import { drawFolder, isFolder, ownResults } from "./folder.js";
import { drawPictures, isPicture } from "./pictures.js";
import { drawProfile, isProfile } from "./profile.js";
import * as units from "./units.js";

/** What is a column's own value, not a count of them. */
const DATA = new Set(["min", "max", "mean", "value"]);

/**
 * @param {import("./headway.js").Result} result
 * @returns {HTMLElement[]}
 */
export function drawResult({ summary, files }) {
  /** @type {HTMLElement[]} */
  const drawn = [];
  const pictures = files.filter(isPicture);
  if (pictures.length) drawn.push(drawPictures(pictures));
  /** @type {[string, unknown][]} */
  const values = [];
  const tables = [];
  /** @type {Set<string>} */
  let listed = new Set();
  for (const [name, value] of Object.entries(summary)) {
    if (isNotes(name, value)) drawn.push(...drawNotes(value));
    else if (!isTable(value)) values.push([name, value]);
    else if (isProfile(value)) tables.push(drawProfile(value, Number(summary.rows)));
    else if (isFolder(name, value)) {
      listed = ownResults(value);
      tables.push(drawFolder(value, Number(summary.files ?? value.length), files.filter(({ name }) => listed.has(name)), drawFile));
    } else tables.push(drawTable(units.label(name), value));
  }
  const rest = files.filter(({ name }) => !listed.has(name));
  if (rest.length) drawn.push(element("ul", { className: "files" }, rest.map((file) => element("li", {}, drawFile(file)))));
  if (values.length) drawn.push(drawValues(values));
  return [...drawn, ...tables];
}

/** A download, and room for how far it has come. @param {import("./headway.js").ResultFile} file @param {string} [shown] @returns {HTMLElement[]} */
export function drawFile({ name, size_bytes, url }, shown = name) {
  const link = element("a", { href: safeHref(`${url}?transfer=1`), download: name, textContent: shown });
  const sent = element("span", { className: "quiet transfer" });
  sent.dataset.transfer = name;
  return [link, element("span", { className: "quiet", textContent: units.bytes(size_bytes) }), sent];
}

/** @param {unknown} value @returns {value is Record<string, unknown>[]} */
const isTable = (value) => Array.isArray(value) && value.length > 0 && value.every((row) => row && typeof row === "object" && !Array.isArray(row));

/** What was left out, changed or guessed. @param {string} name @param {unknown} value @returns {value is string[]} */
const isNotes = (name, value) => name === "notes" && Array.isArray(value) && value.every((one) => typeof one === "string");

/** @param {string[]} notes */
const drawNotes = (notes) => (notes.length ? [element("ul", { className: "told" }, notes.map((textContent) => element("li", { textContent })))] : []);

/** @param {[string, unknown][]} values */
function drawValues(values) {
  const list = element("dl", { className: "values" });
  for (const [name, value] of values) {
    const text = asText(value, name);
    const long = text.length > 24 && !text.includes(" ");
    list.append(
      element("div", {}, [
        element("dt", { textContent: units.unitlessLabel(name) }),
        element("dd", { textContent: text, className: long || isNested(value) ? "code" : "" }),
      ]),
    );
  }
  return list;
}

/** @param {string} caption @param {Record<string, unknown>[]} rows */
function drawTable(caption, rows) {
  const keys = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const right = new Set(keys.filter((key) => rows.every((row) => row[key] == null || typeof row[key] === "number")));
  const heads = keys.map((key) => element("th", { scope: "col", textContent: units.unitlessLabel(key), className: right.has(key) ? "number" : "" }));
  const body = rows.map((row) =>
    element("tr", {}, keys.map((key, index) => {
      const className = right.has(key) ? "number" : "";
      if (index === 0) return element("th", { scope: "row", textContent: asText(row[key], key) });
      const text = asText(row[key], key);
      if (typeof row[key] !== "string") return element("td", { className, textContent: text });
      return element("td", { className }, [element("span", { className: "value", textContent: text, title: text })]);
    })),
  );
  const table = element("table", {}, [
    element("caption", { textContent: caption }),
    element("thead", {}, [element("tr", {}, heads)]),
    element("tbody", {}, body),
  ]);
  // A region of its own, so that the keyboard can scroll what does not fit.
  const room = element("div", { className: "scroll", tabIndex: 0 }, [table]);
  room.setAttribute("role", "region");
  room.setAttribute("aria-label", caption);
  return room;
}

/** @param {unknown} value @param {string} [name] @returns {string} */
export function asText(value, name = "") {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number" && name.endsWith("_bytes")) return `${units.bytes(value)}${value >= 1000 ? ` (${units.number(value)} bytes)` : ""}`;
  if (typeof value === "number" && name.endsWith("_seconds")) return units.duration(value);
  if (typeof value === "number") return DATA.has(name) ? units.datum(value) : units.number(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "object") return String(value);
  return isNested(value) ? JSON.stringify(value) : Object.entries(value).map(([one, its]) => `${units.label(one).toLowerCase()} ${its === "\t" ? "tab" : asText(its, one)}`).join(" · ");
}

/** More than names and plain values. @param {unknown} value */
const isNested = (value) => typeof value === "object" && value !== null && (Array.isArray(value) || Object.values(value).some((one) => typeof one === "object" && one !== null));
