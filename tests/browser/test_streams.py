"""Many tasks on one page over HTTP/1.1, where a browser has six connections to a server: no upload and no question
waits for a stream to end, and each watch is told what its own stream would tell."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, Request, expect

from tests.processes import Platform
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

KEY = "a-key-of-sixteen-or-more"

#: Watches tasks, `lastEventId` as given for each, and keeps what it is told: `told[i]` is a list of [type, version].
WATCH = """async (watches) => {
  const { watch } = await import("/static/headway.js");
  window.told ??= [];
  window.ends ??= [];
  for (const { task_id, ...options } of watches) {
    const told = [];
    const at = window.told.push(told) - 1;
    window.ends[at] = [];
    watch(`/tasks/${task_id}/events`, {
      ...options,
      onstate: ({ version }) => told.push(["", version]),
      onevent: ({ type, id }) => told.push([type, Number(id)]),
      onend: ({ status }) => window.ends[at].push(status),
    });
  }
}"""
HEARD = "(count) => told.filter((one) => one.length).length >= count"
ENDED = "(count) => ends.filter((one) => one.length).length >= count"

MOVED = "(count) => told.filter((one) => one.filter(([type]) => type === '').length > 10).length >= count"

SUBMIT = """async (count) => {
  const { submit } = await import("/static/headway.js");
  const one = async (number) => {
    const versions = [];
    const file = new File([`file ${number} `.repeat(20_000)], `many-${number}.txt`);
    const onprogress = ({ version }) => versions.push(version);
    const task = await submit(file, { processor: "checksum", onprogress });
    const inOrder = versions.every((version, at) => at === 0 || version >= versions[at - 1]);
    return [task.status, task.filename, task.result.summary.size_bytes, inOrder];
  };
  return Promise.all(Array.from({ length: count }, (_, number) => one(number)));
}"""


def rehearsal(platform: Platform, steps: int, step_seconds: float = 0.1, **headers: str) -> dict[str, Any]:
    body = {"processor": "rehearsal", "options": {"steps": steps, "step_seconds": step_seconds}}
    answer = httpx.post(f"{platform.url}/tasks", json=body, headers=headers)
    assert answer.status_code == 202
    task: dict[str, Any] = answer.json()
    return task


def history(platform: Platform, task_id: str, **headers: str) -> list[list[Any]]:
    """Every event of an ended task, as its own stream tells it: type and version."""
    headers = {"Accept": "application/x-ndjson", **headers}
    text = httpx.get(f"{platform.url}/tasks/{task_id}/events?last_event_id=0", headers=headers).text
    return [[line.get("event", ""), line["version"]] for line in map(json.loads, filter(None, text.splitlines()))]


def note(platform: Platform, task_id: str, text: str, **headers: str) -> None:
    body = {"author": "Ada", "text": text}
    httpx.post(f"{platform.url}/tasks/{task_id}/notes", json=body, headers=headers).raise_for_status()


def cancel(platform: Platform, *task_ids: str, **headers: str) -> None:
    for task_id in task_ids:
        httpx.post(f"{platform.url}/tasks/{task_id}/cancel", headers=headers).raise_for_status()


class Streams:
    """Event streams that the page has asked for and not let go of."""

    def __init__(self, page: Page) -> None:
        self.open: set[Request] = set()
        self.most = 0
        page.on("request", self._begun)
        page.on("requestfinished", lambda request: self.open.discard(request))
        page.on("requestfailed", lambda request: self.open.discard(request))

    def _begun(self, request: Request) -> None:
        if "/events" in request.url:
            self.open.add(request)
            self.most = max(self.most, len(self.open))


@pytest.mark.parametrize("count", [30, 100])
async def test_all_files_that_are_submitted_at_once_end(page: Page, base_url: str, count: int) -> None:
    page.set_default_timeout(200_000)
    await page.goto(f"{base_url}/healthz")
    done = await page.evaluate(SUBMIT, count)
    expected = [["completed", f"many-{n}.txt", len(f"file {n} ") * 20_000, True] for n in range(count)]
    assert done == expected


async def test_eight_elements_leave_connections_for_everything_else(page: Page, platform: Platform) -> None:
    ids = [rehearsal(platform, 100, 1)["task_id"] for _ in range(8)]
    elements = "".join(f'<task-progress href="/tasks/{task_id}"></task-progress>' for task_id in ids)
    html = f'<script type="module" src="/static/headway.js"></script>{elements}'
    address = f"{platform.url}/eight-elements"
    await page.route(address, lambda route: route.fulfill(content_type="text/html", body=html))
    await page.goto(address)
    await expect(page.locator("task-progress[status]")).to_have_count(8)
    answered = "() => Promise.all(Array.from({ length: 4 }, async () => (await fetch('/healthz')).status))"
    assert await page.evaluate(answered) == [200] * 4
    cancel(platform, *ids)
    await expect(page.locator('task-progress[status="cancelled"]')).to_have_count(8)


async def test_who_shares_a_stream_is_told_what_its_own_would_tell(page: Page, platform: Platform) -> None:
    """Watches that begin before, while and after others do, with and without what came before; notes between."""
    await page.goto(f"{platform.url}/healthz")
    streams = Streams(page)
    ids = [rehearsal(platform, 900)["task_id"] for _ in range(6)]
    for task_id in ids:
        note(platform, task_id, "before anybody watches")
    await page.evaluate(WATCH, [{"task_id": ids[0]}])
    await page.wait_for_function(HEARD, arg=1)
    note(platform, ids[0], "while one watches")
    await page.evaluate(WATCH, [{"task_id": ids[1]}, {"task_id": ids[2], "lastEventId": 0}, {"task_id": ids[0]}])
    note(platform, ids[1], "while it is taken in")
    await page.wait_for_function(HEARD, arg=4)
    await page.evaluate(WATCH, [{"task_id": one, "lastEventId": 1} for one in ids[3:]])
    for number in range(5):
        for task_id in ids:
            note(platform, task_id, f"note {number}")
    await page.wait_for_function(MOVED, arg=2)  # those that run: a worker of two cores has two
    cancel(platform, *ids)
    await page.wait_for_function(ENDED, arg=7)
    watched = [ids[0], ids[1], ids[2], ids[0], *ids[3:]]
    known: list[int | None] = [None, None, 0, None, 1, 1, 1]
    told = await page.evaluate("() => told")
    assert await page.evaluate("() => ends") == [["cancelled"]] * 7
    for task_id, after, heard in zip(watched, known, told, strict=True):
        if after is None:  # first the state as it stands, under the number of the last event, which may be a note
            (name, after), *heard = heard
            assert name == ""
        assert heard == [event for event in history(platform, task_id) if event[1] > after], task_id
        assert sum(name == "note" for name, _ in heard) >= 5
    assert streams.most <= 3  # two, and one that is being let go


async def test_more_tasks_than_an_address_can_name_are_watched_together(page: Page, platform: Platform) -> None:
    await page.goto(f"{platform.url}/healthz")
    ids = [rehearsal(platform, 100, 1)["task_id"] for _ in range(130)]
    await page.evaluate(WATCH, [{"task_id": task_id} for task_id in ids])
    await page.wait_for_function(HEARD, arg=130)
    for task_id in ids:
        note(platform, task_id, "to each")
    cancel(platform, *ids)
    await page.wait_for_function(ENDED, arg=130)
    assert await page.evaluate("() => ends.every((one) => one.length === 1 && one[0] === 'cancelled')")
    assert await page.evaluate("() => told.every((one) => one.some(([type]) => type === 'note'))")


async def test_a_shared_stream_goes_on_where_it_was_cut(page: Page, own_platform: Platform) -> None:
    own_platform.start_worker()
    api = own_platform.start_api()
    await page.goto(f"{own_platform.url}/healthz")
    ids = [rehearsal(own_platform, 900)["task_id"] for _ in range(3)]
    await page.evaluate(WATCH, [{"task_id": task_id, "lastEventId": 0} for task_id in ids])
    await page.wait_for_function(HEARD, arg=3)
    note(own_platform, ids[2], "before the cut")
    api.kill()
    own_platform.start_api(port=int(own_platform.url.rpartition(":")[2]))
    note(own_platform, ids[2], "after the cut")
    await page.wait_for_function("() => told[2].filter(([type]) => type === 'note').length === 2")
    cancel(own_platform, *ids)
    await page.wait_for_function(ENDED, arg=3)
    for task_id, heard in zip(ids, await page.evaluate("() => told"), strict=True):
        assert heard == history(own_platform, task_id)


async def test_a_task_that_is_deleted_or_unknown_ends_its_own_watch_alone(page: Page, platform: Platform) -> None:
    await page.goto(f"{platform.url}/healthz")
    [alive, other] = [rehearsal(platform, 100, 1)["task_id"] for _ in range(2)]
    await page.evaluate(WATCH, [{"task_id": one} for one in (alive, "0" * 32, other)])
    await page.wait_for_function("() => ends[1].length && told[0].length && told[2].length")
    note(platform, other, "to who is left")
    await page.wait_for_function("() => told[2].some(([type]) => type === 'note')")
    assert await page.evaluate("() => ends") == [[], ["gone"], []]
    cancel(platform, alive, other)
    await page.wait_for_function(ENDED, arg=3)


async def test_tokens_of_one_task_each_take_turns(page: Page, own_platform: Platform) -> None:
    """They cannot share a stream, so most wait; none misses anything, and a question is answered meanwhile."""
    own_platform.start_worker()
    own_platform.start_api(HEADWAY_API_KEYS=json.dumps({"ada": KEY}))
    key = {"Authorization": f"Bearer {KEY}"}
    tasks = [rehearsal(own_platform, 100, 1, **key) for _ in range(7)]
    tasks.append(tasks[0])  # a second watch with the same token
    await page.goto(f"{own_platform.url}/healthz")
    streams = Streams(page)
    watches = [{"task_id": task["task_id"], "token": task["token"], "lastEventId": 0} for task in tasks]
    await page.evaluate(WATCH, watches)
    await page.wait_for_function(HEARD, arg=8)
    answered = "() => Promise.all(Array.from({ length: 4 }, async () => (await fetch('/healthz')).status))"
    assert await page.evaluate(answered) == [200] * 4
    for task in tasks[:7]:
        note(own_platform, task["task_id"], "to each", **key)
        cancel(own_platform, task["task_id"], **key)
    await page.wait_for_function(ENDED, arg=8)
    for task, heard in zip(tasks, await page.evaluate("() => told"), strict=True):
        assert heard == history(own_platform, task["task_id"], **key)
    assert streams.most <= 4


async def test_one_task_alone_has_its_own_stream_and_lets_go_of_it(page: Page, platform: Platform) -> None:
    await page.goto(f"{platform.url}/healthz")
    streams = Streams(page)
    task_id = rehearsal(platform, 2)["task_id"]
    await page.evaluate(WATCH, [{"task_id": task_id}])
    await page.wait_for_function(ENDED, arg=1)
    await wait_until("its stream is closed", lambda: not streams.open)
    assert streams.most == 1
