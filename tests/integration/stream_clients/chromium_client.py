"""Chromium's own EventSource, a page for each URL, telling what it was handed as JSON lines, like python_clients.py.

python -m tests.integration.stream_clients.chromium_client URL URL …
"""

from __future__ import annotations

import json
import shutil
import sys
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

from tests.browser.conftest import ARGUMENTS, NAMES

READ_MS = 30_000

#: The page is of the stream's own origin, so that nothing but the stream is asked of it.
WATCH = """([run, url]) => {
  const source = new EventSource(url);
  const handed = (event) => say(JSON.stringify({run, id: event.lastEventId, event: event.type, data: event.data}));
  source.onmessage = handed;
  for (const name of ["log", "note", "transfer", "gap"]) source.addEventListener(name, handed);
  source.onerror = () => {
    if (source.readyState !== EventSource.CLOSED) return;
    say(JSON.stringify({run, ended: true}));
    window.ended = true;
  };
}"""


def main(*urls: str) -> None:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=ARGUMENTS)
        pages = []
        for run, url in enumerate(urls):
            page = browser.new_page()
            page.expose_function("say", lambda line: print(json.dumps(json.loads(line)), flush=True))
            parts = urlsplit(url)
            page.goto(f"{parts.scheme}://{parts.netloc}/healthz")
            page.evaluate(WATCH, [run, url])
            pages.append(page)
        for page in pages:
            page.wait_for_function("window.ended === true", timeout=READ_MS)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
