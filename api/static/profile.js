// @ts-check
/**
 * The columns of a `table-profile`, each as a card: its type, how much of it is empty, its range, and its most frequent
 * values as bars, against all rows, so that a long bar means what it seems to.
 */

import { element } from "./dom.js";
import * as units from "./units.js";

/** @typedef {{name: string, type: string, nulls: number, distinct: number, min: any, max: any, mean: number | null, top: {value: any, count: number}[], distinct_estimated?: boolean}} Column */

/** Longer ones are thumbnails of texts, no help to anybody. */
const SHOWN_COLUMNS = 200;

/** @param {Record<string, unknown>[]} rows @returns {rows is Column[]} */
export const isProfile = (rows) => rows.every((row) => "name" in row && "type" in row && "nulls" in row && Array.isArray(row.top));

/** @param {Column[]} columns @param {number} rows */
export function drawProfile(columns, rows) {
  const cards = columns.slice(0, SHOWN_COLUMNS).map((column) => drawColumn(column, rows));
  const left = columns.length - cards.length;
  const title = element("h4", { textContent: `Columns (${units.number(columns.length)})` });
  const note = left > 0 ? [element("p", { className: "quiet", textContent: `${units.number(left)} more are in profile.json` })] : [];
  return element("div", { className: "profile" }, [title, element("ul", { className: "columns" }, cards), ...note]);
}

/** @param {Column} column @param {number} rows */
function drawColumn({ name, type, nulls, distinct, distinct_estimated: estimated, min, max, mean, top }, rows) {
  const head = element("div", { className: "column-head" }, [
    element("h5", { textContent: name || "(no name)" }),
    element("span", { className: "kind", textContent: type }),
  ]);
  const filled = rows > 0 ? 1 - nulls / rows : 0;
  const facts = [
    ["Distinct", `${estimated ? "about " : ""}${units.number(distinct)}`],
    ["Empty", nulls ? `${units.number(nulls)} (${share(nulls, rows)})` : "none"],
    ...(min === null || min === undefined ? [] : [["Range", min === max ? datum(min) : `${datum(min)} – ${datum(max)}`]]),
    ...(typeof mean === "number" ? [["Mean", units.datum(mean)]] : []),
  ];
  const list = element("dl", {}, facts.map(([what, value]) => element("div", {}, [element("dt", { textContent: what }), element("dd", { textContent: value, title: value })])));
  const bars = top.map(({ value, count }) => drawBar(datum(value), count, rows));
  const rest = rows - nulls - top.reduce((sum, { count }) => sum + count, 0);
  if (top.length && rest > 0) bars.push(drawBar("others", rest, rows, "rest"));
  if (top.length && nulls) bars.push(drawBar("empty", nulls, rows, "rest"));
  const chart = bars.length ? [element("ul", { className: "bars", ariaLabel: `Most frequent values of ${name}` }, bars)] : [];
  if (!chart.length && filled) chart.push(element("ul", { className: "bars" }, [element("li", { className: "quiet", textContent: "Every value is different, or nearly so." })]));
  return element("li", { className: "column" }, [head, list, ...chart]);
}

/** @param {string} text @param {number} count @param {number} rows @param {string} [className] */
function drawBar(text, count, rows, className = "") {
  const fill = element("span", { className: "share" });
  fill.style.width = `${rows > 0 ? (100 * count) / rows : 0}%`;
  const words = [element("span", { className: "value", textContent: text, title: text }), element("span", { className: "times", textContent: share(count, rows), title: units.number(count) })];
  return element("li", { className }, [fill, ...words]);
}

/** @param {number} part @param {number} whole */
function share(part, whole) {
  const percent = whole > 0 ? (100 * part) / whole : 0;
  return percent > 0 && percent < 0.1 ? "< 0.1 %" : `${percent >= 99.95 && part < whole ? "99.9" : Number(percent.toFixed(1))} %`;
}

/** @param {unknown} value */
const datum = (value) => (value === "" ? "(empty text)" : typeof value === "number" ? units.datum(value) : typeof value === "boolean" ? (value ? "true" : "false") : String(value));
