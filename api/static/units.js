// @ts-check
/** Numbers as people read them. Pure: nothing here touches the page. The page speaks English, so its numbers do too. */

const SIZES = ["bytes", "kB", "MB", "GB", "TB", "PB"];
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 6 });
const plain = new Intl.NumberFormat("en", { maximumSignificantDigits: 6, useGrouping: false });
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const calendar = new Intl.DateTimeFormat("en", { day: "numeric", month: "short" });

/** @param {number} value */
export const number = (value) => (Number.isInteger(value) ? whole : short).format(value);

/** A value out of somebody's data, where 2019 may be a year. @param {number} value */
export const datum = (value) => (Number.isInteger(value) ? String(value) : plain.format(value));

/** Which size to speak in: so that "44.6 of 104.9 MB" has one unit, and nothing is "1000.0 kB". @param {number} value */
const sizeOf = (value) => Math.min(Math.max(Math.floor(Math.log10(Math.max(value < 1000 ? value : value * 1.00005, 1)) / 3), 0), SIZES.length - 1);

/** @param {number} value @param {number} size */
const inSize = (value, size) => (size === 0 || value === 0 ? whole.format(value) : (value / 1000 ** size).toFixed(1));

/** @param {number} value @param {number} [of] */
export function bytes(value, of) {
  const size = sizeOf(of ?? value);
  return of === undefined
    ? `${inSize(value, size)} ${value === 1 ? "byte" : SIZES[size]}`
    : `${inSize(value, size)} of ${inSize(of, size)} ${SIZES[size]}`;
}

/** "44.6 of 104.9 MB", "12 of 100 rows", "12 rows". @param {number} done @param {number | null} total @param {string | null} unit */
export function count(done, total, unit) {
  if (unit === "bytes") return bytes(done, total === null || total === done ? undefined : total);
  return `${number(done)}${total === null ? "" : ` of ${number(total)}`}${unit ? ` ${unit}` : ""}`;
}

/** @param {number} rate @param {string | null} unit */
export function perSecond(rate, unit) {
  if (unit === "bytes") return `${bytes(Math.round(rate))}/s`;
  return `${rate >= 100 ? whole.format(rate) : Number(rate.toPrecision(2))} ${unit ?? ""}/s`.replace(" /", "/");
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  const rounded = Math.round(seconds);
  if (rounded < 60) return `${rounded} s`;
  if (rounded < 3600) return `${Math.floor(rounded / 60)} min ${rounded % 60} s`;
  return `${whole.format(Math.floor(rounded / 3600))} h ${Math.floor((rounded % 3600) / 60)} min`;
}

/** Time left: whole seconds, because a tenth would be a promise nobody can keep. @param {number} seconds */
export const timeLeft = (seconds) => (seconds < 1 ? "under 1 s" : duration(Math.ceil(seconds)));

/** The time today, the date before. @param {string} at */
export function moment(at) {
  const date = new Date(at);
  return (date.toDateString() === new Date().toDateString() ? clock : calendar).format(date);
}

/** `max_width` → "Max width". @param {string} name */
export function label(name) {
  const words = name.replaceAll(/[_-]+/g, " ").trim() || name;
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** As `label`, where the value says its unit itself: `size_bytes` → "Size". @param {string} name */
export const unitlessLabel = (name) => label(name.replace(/_(bytes|seconds)$/, ""));

/** What a task does now, in one line: "Profiling columns · step 2 of 3 · 44.6 of 104.9 MB · 73.4 MB/s · 1 s left". @param {import("./headway.js").Task} task */
export function phase({ message, status, step, total_steps, done, total, unit, rate, eta_seconds, attempt, ...more }) {
  const active = status === "uploading" || status === "processing";
  const { queue_position: place, starts_in_seconds: starts } = more;
  return [
    message,
    place ? `number ${place} in the line` : "",
    starts !== null && starts !== undefined ? `starts in about ${timeLeft(starts)}` : "",
    active && total_steps > 1 && step && !message.includes(` ${step} of `) ? `step ${step} of ${total_steps}` : "",
    active && unit && (done || total) ? count(done, total, unit) : "",
    active && rate !== null && rate !== undefined ? perSecond(rate, unit) : "",
    active && eta_seconds !== null && eta_seconds !== undefined ? `${timeLeft(eta_seconds)} left` : "",
    attempt > 1 ? `attempt ${attempt}` : "",
  ].filter(Boolean).join(" · ");
}
