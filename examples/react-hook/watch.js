// Shows a task in a terminal with the hook, React and no browser: node watch.js URL ID
// Each render is a line of JSON. In a browser EventSource is there already.

import { createElement } from "react";
import { create } from "react-test-renderer";
import { EventSource } from "eventsource";
import { useTask } from "./use-task.js";

globalThis.EventSource = EventSource;
globalThis.IS_REACT_ACT_ENVIRONMENT = false;

const [url, id] = process.argv.slice(2);
const warn = console.error;
console.error = (text, ...rest) => String(text).includes("react-test-renderer is deprecated") || warn(text, ...rest);

function Task() {
  const { task, log, error } = useTask(id, { url });
  const text = JSON.stringify({ task, log: log.length, error: error?.message ?? null });
  return createElement("p", null, text);
}

const drawn = create(createElement(Task));
let last = "";
const timer = setInterval(() => {
  const text = drawn.toJSON()?.children[0];
  if (!text || text === last) return;
  last = text;
  console.log(text);
  const { task, error } = JSON.parse(text);
  if (error || ["completed", "failed", "cancelled"].includes(task?.status)) {
    clearInterval(timer);
    drawn.unmount();
  }
}, 20);
