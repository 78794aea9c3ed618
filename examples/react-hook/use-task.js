// A task's live state in a React component: const { task, log, error } = useTask(id, { url });
//
// `task` is the whole state, null until the first one; `log` the lines that the processor has logged; `error` is set when
// the task is unknown. EventSource reconnects and resumes by itself after a cut; it gives up for good on a 502 or 503, as
// a proxy answers during a deploy, so this opens it again, after the last event seen.

import { useEffect, useState } from "react";

const ENDED = ["completed", "failed", "cancelled"];
const AGAIN_MS = 2000;

export function useTask(id, { url = "" } = {}) {
  const [task, setTask] = useState(null);
  const [log, setLog] = useState([]);
  const [error, setError] = useState(null);

  useEffect(() => {
    let source = null;
    let timer = null;
    let lastId = "";
    let left = false;

    setTask(null);
    setLog([]);
    setError(null);

    function open() {
      const after = lastId && `?last_event_id=${encodeURIComponent(lastId)}`;
      source = new EventSource(`${url}/tasks/${encodeURIComponent(id)}/events${after}`);
      source.onmessage = (event) => {
        lastId = event.lastEventId;
        const state = JSON.parse(event.data);
        setTask(state);
        if (ENDED.includes(state.status)) leave();
      };
      source.addEventListener("log", (event) => {
        lastId = event.lastEventId;
        const line = JSON.parse(event.data);
        setLog((lines) => [...lines, line]);
      });
      source.onerror = () => {
        if (source.readyState === EventSource.CLOSED) again();
      };
    }

    // EventSource does not say why it gave up: the task's own address does.
    async function again() {
      const answer = await fetch(`${url}/tasks/${encodeURIComponent(id)}`).catch(() => null);
      if (left) return;
      if (answer?.status === 404) setError(new Error("There is no such task."));
      else timer = setTimeout(open, AGAIN_MS);
    }

    function leave() {
      left = true;
      source?.close();
      clearTimeout(timer);
    }

    open();
    return leave;
  }, [id, url]);

  return { task, log, error };
}
