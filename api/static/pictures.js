// @ts-check
/** Result files that are pictures, shown. A download is always an attachment, so the bytes are fetched and shown from memory. */

import { element } from "./dom.js";
import { Problem, call } from "./http.js";
import * as units from "./units.js";

/** @typedef {import("./headway.js").ResultFile} ResultFile */

/** What browsers draw, and nothing that can hold a script. */
const TYPES = new Set(["image/webp", "image/png", "image/jpeg", "image/gif", "image/avif"]);
/** A thumbnail is small; what is not is downloaded by who wants it. */
const LARGEST_BYTES = 5_000_000;
const MOST = 48;

/** @param {ResultFile} file */
export const isPicture = ({ content_type, size_bytes }) => TYPES.has(content_type) && size_bytes <= LARGEST_BYTES;

/** @param {ResultFile[]} files */
export function drawPictures(files) {
  return element("ul", { className: "pictures" }, files.slice(0, MOST).map((file) => {
    const image = element("img", { alt: file.name, decoding: "async" });
    const about = element("span", { className: "quiet", textContent: `${file.name} · ${units.bytes(file.size_bytes)}` });
    void show(image, file, about);
    return element("li", {}, [image, about]);
  }));
}

/** @param {HTMLImageElement} image @param {ResultFile} file @param {HTMLElement} about */
async function show(image, file, about) {
  try {
    const response = await call(file.url);
    const blob = new Blob([await response.arrayBuffer()], { type: file.content_type });
    const url = URL.createObjectURL(blob);
    image.onload = image.onerror = () => URL.revokeObjectURL(url);
    image.src = url;
    await image.decode();
    about.textContent += ` · ${image.naturalWidth} × ${image.naturalHeight}`;
  } catch (error) {
    image.hidden = true;
    about.textContent += ` · ${error instanceof Problem ? error.message : "cannot be shown"}`;
  }
}
