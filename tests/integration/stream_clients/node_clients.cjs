// The clients of npm, each as its documentation says, telling what it was handed as JSON lines, like python_clients.py.
//
//     NODE_CLIENTS=folder-with-node_modules node node_clients.cjs eventsource URL URL …
"use strict";

const { createRequire } = require("node:module");
const { join } = require("node:path");

const fromCache = createRequire(join(process.env.NODE_CLIENTS, "package.json"));

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

function eventsource(run, url) {
  const { EventSource } = fromCache("eventsource");
  return new Promise((resolve) => {
    const source = new EventSource(url);
    const handed = (event) => say({ run, id: event.lastEventId, event: event.type, data: event.data });
    source.onmessage = handed;
    for (const name of ["log", "note", "transfer", "gap"]) source.addEventListener(name, handed);
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) resolve();
    };
  });
}

// It is made for browsers, and asks a page whether it is hidden. It takes any clean end for the last one, unless
// `onclose` raises, and any status for a stream, unless `onopen` does.
async function fetchEventSource(run, url) {
  globalThis.window ??= globalThis;
  globalThis.document ??= { hidden: false, addEventListener() {}, removeEventListener() {} };
  const client = fromCache("@microsoft/fetch-event-source");
  class NoStream extends Error {}
  let last;
  // It takes an id for seen when its line has come, before the event has: after a cut in between, that event would be
  // lost. So the id of the last event that was handed over is what a reconnect says.
  const truthful = (input, init) => {
    const { "last-event-id": _, ...headers } = init.headers;
    return fetch(input, { ...init, headers: last ? { ...headers, "last-event-id": last } : headers });
  };
  try {
    await client.fetchEventSource(url, {
      fetch: truthful,
      openWhenHidden: true,
      async onopen(answer) {
        if (answer.status !== 200) throw new NoStream(answer.status);
      },
      onmessage(event) {
        say({ run, id: event.id, event: event.event || "message", data: event.data });
        last = event.id || last;
      },
      onclose() {
        throw new Error("the server ended the stream: ask whether there is more");
      },
      onerror(error) {
        if (error instanceof NoStream) throw error;
      },
    });
  } catch (error) {
    if (!(error instanceof NoStream)) throw error;
  }
}

const clients = { eventsource, "@microsoft/fetch-event-source": fetchEventSource };
const [name, ...urls] = process.argv.slice(2);
urls.forEach(async (url, run) => {
  await clients[name](run, url);
  say({ run, ended: true });
});
