"""headway.js alone: what other pages can do with it, on this origin and on another, and that its types say so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import Page, Route, expect

from tests.processes import Platform, free_port

STATIC = Path(__file__).parents[2] / "api" / "static"


def test_the_types_name_every_export_and_no_other() -> None:
    module = (STATIC / "headway.js").read_text(encoding="utf-8")
    types = (STATIC / "headway.d.ts").read_text(encoding="utf-8")
    exported = set(re.findall(r"^export (?:async )?(?:function|const|class) (\w+)", module, re.MULTILINE))
    for names in re.findall(r"^export \{([^}]+)\}", module, re.MULTILINE):
        exported |= {name.strip() for name in names.split(",")}
    declared = set(re.findall(r"^export (?:function|const|class) (\w+)", types, re.MULTILINE))
    assert len(exported) > 10
    assert declared == exported


@pytest.mark.browser
async def test_an_element_draws_a_task_in_three_lines(page: Page, platform: Platform) -> None:
    task = platform.submit("rehearsal", options='{"steps": 3, "step_seconds": 0.3}')
    address = f"{platform.url}/a-page-of-somebody"
    html = f'<script type="module" src="/static/headway.js"></script><task-progress href="/tasks/{task["task_id"]}">'
    await page.route(address, lambda route: route.fulfill(content_type="text/html", body=html))
    await page.goto(address)
    bar = page.get_by_role("progressbar", name="rehearsal")
    await expect(bar).to_have_attribute("aria-valuenow", "100")
    await expect(page.locator("task-progress")).to_have_attribute("status", "completed")


@pytest.mark.browser
async def test_another_origin_submits_and_watches_with_a_key(page: Page, own_platform: Platform) -> None:
    origin = f"http://127.0.0.1:{free_port()}"
    own_platform.start_worker()
    own_platform.start_api(HEADWAY_API_KEYS='{"ada": "a-key-of-sixteen-or-more"}', HEADWAY_CORS_ORIGINS=origin)
    own_platform.start_api(port=int(origin.rpartition(":")[2]))
    await page.goto(f"{origin}/healthz")  # a page of somebody's, as far as the other is concerned
    task = await page.evaluate(
        """async (url) => {
          const { submit, watchAll } = await import(`${url}/static/headway.js`);
          const token = "a-key-of-sixteen-or-more";
          const all = new Set();
          const watching = watchAll({ token, onstate: ({ status }) => all.add(status) });
          const task = await submit(new File(["hello"], "a.txt"), { processor: "checksum", token });
          watching.close();
          return { status: task.status, name: task.filename, all: all.has("completed") };
        }""",
        own_platform.url,
    )
    assert task == {"status": "completed", "name": "a.txt", "all": True}


@pytest.mark.browser
async def test_a_stream_by_fetch_is_read_as_eventsource_reads_it(page: Page, base_url: str) -> None:
    asked: list[str | None] = []
    body = (
        "\ufeffretry: 1\r\n: a comment\r\n\r\nid: 1\r\ndata: one\rdata:two\r\r"
        "event: log\nid: 2\ndata: three\n\nid: 3\n\ndata: cut off"
    )

    async def answer(route: Route) -> None:
        asked.append(await route.request.header_value("last-event-id"))
        if len(asked) == 1:
            await route.fulfill(content_type="text/event-stream", body=body)
        else:
            await route.fulfill(status=204)

    await page.goto(base_url)
    await page.route("**/a-stream", answer)
    seen = await page.evaluate(
        """async () => {
          const { FetchSource } = await import("/static/fetch-source.js");
          const source = new FetchSource("/a-stream", { token: "t" });
          const seen = [];
          for (const type of ["message", "log"])
            source.addEventListener(type, ({ data, lastEventId }) => seen.push([type, data, lastEventId]));
          await new Promise((done) => (source.onerror = () => source.readyState === 2 && done()));
          return seen;
        }"""
    )
    assert seen == [["message", "one\ntwo", "1"], ["log", "three", "2"]]
    assert asked == [None, "3"]


@pytest.mark.browser
async def test_the_client_alone_takes_three_lines(page: Page, base_url: str) -> None:
    await page.goto(base_url)
    task = await page.evaluate(
        """async () => {
          const { submit } = await import("/static/headway.js");
          const seen = [];
          const onprogress = (task) => seen.push(task.progress);
          const task = await submit(new File(["hello"], "a.txt"), { processor: "checksum", onprogress });
          return { status: task.status, size: task.result.summary.size_bytes, last: seen.at(-1) };
        }"""
    )
    assert task == {"status": "completed", "size": 5, "last": 100}
