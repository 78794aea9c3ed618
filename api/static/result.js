// @ts-check
/** Draws a task's result: its files as downloads, its summary as a table where it is one, else as names and values. */

import { element, safeHref } from "./dom.js";
import * as units from "./units.js";

/** What is a column's own value, not a count of them. */
const DATA = new Set(["min", "max", "mean", "value"]);

/**
 * @param {import("./headway.js").Result} result
 * @returns {HTMLElement[]}
 */
export function drawResult({ summary, files }) {
  const drawn = [];
  if (files.length) drawn.push(drawFiles(files));
  /** @type {[string, unknown][]} */
  const values = [];
  const tables = [];
  for (const [name, value] of Object.entries(summary)) {
    if (isTable(value)) tables.push(isProfile(value) ? drawProfile(value) : drawTable(units.label(name), value));
    else values.push([name, value]);
  }
  if (values.length) drawn.push(drawValues(values));
  return [...drawn, ...tables];
}

/** @param {unknown} value @returns {value is Record<string, unknown>[]} */
const isTable = (value) => Array.isArray(value) && value.length > 0 && value.every((row) => row && typeof row === "object" && !Array.isArray(row));

/** @param {Record<string, unknown>[]} rows */
const isProfile = (rows) => rows.every((row) => "name" in row && "type" in row && "nulls" in row);

/** @param {import("./headway.js").ResultFile[]} files */
function drawFiles(files) {
  const list = element("ul", { className: "files" });
  for (const { name, size_bytes, url } of files) {
    const link = element("a", { href: safeHref(url), download: name, textContent: name });
    list.append(element("li", {}, [link, element("span", { className: "quiet", textContent: units.bytes(size_bytes) })]));
  }
  return list;
}

/** @param {[string, unknown][]} values */
function drawValues(values) {
  const list = element("dl", { className: "values" });
  for (const [name, value] of values) {
    const text = asText(value, name);
    const long = text.length > 24 && !text.includes(" ");
    list.append(
      element("div", {}, [
        element("dt", { textContent: units.unitlessLabel(name) }),
        element("dd", { textContent: text, className: long || typeof value === "object" ? "code" : "" }),
      ]),
    );
  }
  return list;
}

/** The columns of a `csv-profile`. @param {Record<string, unknown>[]} columns */
function drawProfile(columns) {
  const order = ["name", "type", "nulls", "distinct", "min", "max", "mean", "top"];
  const known = order.filter((key) => columns.some((column) => column[key] !== null && column[key] !== undefined));
  return drawTable(`Columns (${columns.length})`, columns, known);
}

/** @param {string} caption @param {Record<string, unknown>[]} rows @param {string[]} [keys] */
function drawTable(caption, rows, keys = [...new Set(rows.flatMap((row) => Object.keys(row)))]) {
  const right = new Set(keys.filter((key) => rows.every((row) => row[key] == null || typeof row[key] === "number")));
  const heads = keys.map((key) => element("th", { scope: "col", textContent: units.unitlessLabel(key), className: right.has(key) ? "number" : "" }));
  const body = rows.map((row) =>
    element("tr", {}, keys.map((key, index) => {
      const className = right.has(key) ? "number" : key === "top" ? "top" : "";
      if (index === 0) return element("th", { scope: "row", textContent: asText(row[key], key) });
      if (key === "top") return element("td", { className }, drawTop(row[key]));
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

/** The most frequent values, `{value, count}` or `[value, count]` each. @param {unknown} top @returns {Node[]} */
function drawTop(top) {
  if (!Array.isArray(top)) return [];
  return top.slice(0, 3).map((one) => {
    const [value, times] = Array.isArray(one) ? one : one && typeof one === "object" ? [one.value, one.count] : [one, null];
    const words = value === "" ? "(empty)" : asText(value, "value");
    const text = element("span", { className: "value", textContent: words, title: words });
    const count = typeof times === "number" ? [" ", element("span", { className: "quiet", textContent: `×${units.number(times)}` })] : [];
    return element("span", { className: "pair" }, [text, ...count]);
  });
}

/** @param {unknown} value @param {string} [name] @returns {string} */
function asText(value, name = "") {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number" && name.endsWith("_bytes")) return `${units.bytes(value)}${value >= 1000 ? ` (${units.number(value)} bytes)` : ""}`;
  if (typeof value === "number" && name.endsWith("_seconds")) return units.duration(value);
  if (typeof value === "number") return DATA.has(name) ? units.datum(value) : units.number(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
