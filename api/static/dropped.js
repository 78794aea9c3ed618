// @ts-check
/** The files of a drop, folders' own included; and of each, where the browser has one, the handle to find it again. */

import { holdPath } from "./begun-uploads.js";
import { holdHandle } from "./kept-files.js";

/** Deeper than this is a mistake, or a link to itself. */
const DEEPEST = 20;
/** A folder is not read further than anybody would send. */
const MOST = 5000;

/** Everything is taken from `data` before the first wait: a drop is readable in its own moment only. @param {DataTransfer} data @returns {Promise<File[]>} */
export async function droppedFiles(data) {
  const items = [...data.items].filter(({ kind }) => kind === "file");
  const taken = items.map((item) => ({
    entry: item.webkitGetAsEntry(),
    file: item.getAsFile(),
    handle: /** @type {any} */ (item).getAsFileSystemHandle?.(),
  }));
  /** @type {File[]} */
  const files = [];
  for (const { entry, file, handle } of taken) {
    if (entry?.isDirectory) await readFolder(/** @type {FileSystemDirectoryEntry} */ (entry), files, 0);
    else if (file) {
      files.push(file);
      holdHandle(file, await handle?.catch?.(() => null));
    }
  }
  return files;
}

/** @param {FileSystemDirectoryEntry} folder @param {File[]} into @param {number} depth */
async function readFolder(folder, into, depth) {
  if (depth > DEEPEST) return;
  const reader = folder.createReader();
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const entries = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (!entries.length) return; // it gives a hundred at a time, and none at the end
    for (const entry of entries) {
      if (into.length >= MOST) return;
      if (entry.isDirectory) await readFolder(/** @type {FileSystemDirectoryEntry} */ (entry), into, depth + 1);
      else if (!entry.name.startsWith(".")) {
        const file = await new Promise((resolve) => /** @type {FileSystemFileEntry} */ (entry).file(resolve, () => resolve(null)));
        if (file) {
          holdPath(file, entry.fullPath.replace(/^\//, ""));
          into.push(file);
        }
      }
    }
  }
}
