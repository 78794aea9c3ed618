// @ts-check
/**
 * What was in an archive, as the folder it makes. A file that is a result by itself is a download; of those that were put
 * into one result together each has its name and its own size, and the result stands where results do.
 */

import { element } from "./dom.js";
import * as units from "./units.js";

/** @typedef {import("./headway.js").ResultFile} ResultFile */
/** @typedef {{name: string, size_bytes: number, file: string}} Entry */
/** @typedef {{folders: Map<string, Folder>, files: {name: string, entry: Entry}[], size: number, count: number}} Folder */

/** @param {string} name @param {Record<string, unknown>[]} rows @returns {rows is Entry[]} */
export const isFolder = (name, rows) => name === "listing" && rows.every((row) => "name" in row && "size_bytes" in row && "file" in row);

/** The results that are one file of the archive each. @param {Entry[]} entries @returns {Set<string>} */
export function ownResults(entries) {
  const once = new Set();
  const more = new Set();
  for (const { file } of entries) (once.has(file) ? more : once).add(file);
  return new Set([...once].filter((file) => !more.has(file)));
}

/**
 * @param {Entry[]} entries @param {number} total how many there are, of which these may be the first
 * @param {ResultFile[]} files the results that are one of them each
 * @param {(file: ResultFile, shown?: string) => HTMLElement[]} drawFile
 */
export function drawFolder(entries, total, files, drawFile) {
  const results = new Map(files.map((file) => [file.name, file]));
  const root = folder();
  for (const entry of entries) {
    const parts = entry.name.split("/").filter(Boolean);
    const name = parts.pop() ?? entry.name;
    let here = root;
    count(here, entry);
    for (const part of parts) {
      const inside = here.folders.get(part) ?? folder();
      here.folders.set(part, inside);
      count((here = inside), entry);
    }
    here.files.push({ name, entry });
  }
  const shown = total > entries.length ? `the first ${units.number(entries.length)} of ${units.number(total)}` : units.number(entries.length);
  const together = [...new Set(entries.map(({ file }) => file))].filter((name) => !results.has(name));
  const title = `Files (${shown})${together.length ? ` in ${together.join(", ")}` : ""}`;
  return element("div", { className: "folder" }, [element("h4", { textContent: title }), draw(root, 0)]);

  /** @param {Folder} one @param {number} depth @returns {HTMLElement} */
  function draw(one, depth) {
    const folders = [...one.folders].map(([name, inside]) => {
      const about = element("span", { className: "quiet", textContent: `${units.number(inside.count)} file${inside.count === 1 ? "" : "s"} · ${units.bytes(inside.size)}` });
      const summary = element("summary", {}, [`${name}/ `, about]);
      return element("li", {}, [element("details", { open: depth === 0 && one.folders.size === 1 }, [summary, draw(inside, depth + 1)])]);
    });
    const leaves = one.files.map(({ name, entry }) => {
      const result = results.get(entry.file);
      const parts = result ? drawFile(result, name) : [element("span", { textContent: name }), element("span", { className: "quiet", textContent: units.bytes(entry.size_bytes) })];
      return element("li", { className: "leaf" }, parts);
    });
    return element("ul", {}, [...folders, ...leaves]);
  }
}

/** @returns {Folder} */
const folder = () => ({ folders: new Map(), files: [], size: 0, count: 0 });

/** @param {Folder} into @param {Entry} entry */
function count(into, { size_bytes }) {
  into.size += size_bytes;
  into.count++;
}
