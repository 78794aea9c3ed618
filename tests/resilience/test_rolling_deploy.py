"""APIs and workers replaced one after another behind a real proxy, while many watch and send: nobody misses anything.

The trial of 2,000 watchers is benchmarks/rolling_deploy.py; this is the same with fewer.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import threading
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import pytest

from benchmarks.audience import Audience, Plan
from benchmarks.rolling_deploy import replaced
from benchmarks.senders import WAYS, Senders
from tests.integration.test_tus import answer_on, offset_of, send
from tests.processes import START_SECONDS, Platform
from tests.proxies import Kind, balancing, missing
from tests.resilience.test_resumed_uploads import request_of
from tests.streams import assert_true_story, watch
from tests.waiting import wait_for, wait_until

PLAN: Final = Plan(watchers=60, shared=4, alone=6, of_two=4, of_all=2, steps=12, step_seconds=0.25)
KINDS: Final[tuple[Kind, ...]] = ("caddy", "nginx")


@pytest.mark.timeout(240)
async def test_a_rolling_deploy_under_load_loses_nothing_and_tells_nothing_twice(
    own_platform: Platform, tmp_path: Path
) -> None:
    kind = next((kind for kind in KINDS if not missing(kind)), None)
    if kind is None:
        pytest.skip("there is neither Caddy nor nginx here")
    for _ in range(2):
        own_platform.start_api(wait=False)
    start_worker = partial(own_platform.start_worker, HEADWAY_WORKER_CONCURRENCY="20")
    await asyncio.gather(*(asyncio.to_thread(start_worker) for _ in range(2)))
    for url in own_platform.urls:
        await wait_until("the API answers", lambda url=url: _answers(url), seconds=START_SECONDS)  # type: ignore[misc]
    with ExitStack() as stack:
        url = stack.enter_context(balancing(kind, tmp_path / "proxy", own_platform.urls))
        ready, over = threading.Event(), threading.Event()
        audience, senders = Audience(url, PLAN), Senders(url, 1, pause_seconds=0.05)
        watching = asyncio.create_task(audience.run(ready, over))
        senders.start()
        try:
            await asyncio.to_thread(ready.wait, 30)
            steps = await asyncio.gather(
                *(asyncio.to_thread(_both_replaced, own_platform, kind_of) for kind_of in ("API", "worker"))
            )
        finally:
            await asyncio.to_thread(senders.stop)
            over.set()
        await watching
        lost = await asyncio.to_thread(senders.lost)
    report = audience.report()
    assert [code for pair in steps for code in pair] == [0] * 4
    # Each version once and one end, on each of the streams; and none was given up by its EventSource before its end.
    totals = report.totals
    assert (totals["missed"], totals["doubled"], totals["gaps"], totals["feed_gaps"]) == (0, 0, 0, 0)
    assert totals["whole"] == totals["ends"] == totals["stories"] > PLAN.watchers
    assert report.unfinished == 0
    assert set(report.ends) <= {"whole", "whole by a drain", "answered", ""}, "a stream was cut"
    assert report.ends["whole by a drain"] >= PLAN.watchers / 2
    # Who is sent away is told when to come back, each another time, and on coming back what holds from then on.
    delays = [visit.retry_seconds for visit in report.returns]
    assert all(1 <= delay <= 7 for delay in delays)
    assert max(delays) - min(delays) > 3
    assert len(set(delays)) > len(delays) / 2
    assert {visit.told_first_seconds for visit in report.returns if visit.status == 200 and not visit.drained} == {1.0}
    assert lost == []
    assert {one.way for one in senders.sent} == set(WAYS)
    assert [what for one in senders.sent for what in one.refused if what == "500"] == []


def _both_replaced(platform: Platform, kind: str) -> list[int]:
    return [replaced(platform, number, kind).code for number in range(2)]


def test_uploads_that_a_stop_cuts_off_are_told_so_and_go_on_at_the_other_api(own_platform: Platform) -> None:
    stopped = own_platform.start_api(wait=False)
    own_platform.start_worker(wait=False)
    own_platform.start_api()
    wait_for("the first one is there too", lambda: _answers(own_platform.url), seconds=START_SECONDS)
    other = own_platform.urls[1]
    content = os.urandom(300_000)
    heads = {way: request_of(own_platform, way, len(content)) for way in WAYS}
    with ExitStack() as stack:
        lines = {}
        for way, (head, _) in heads.items():
            address = urlsplit(own_platform.url)
            line = socket.create_connection((str(address.hostname), int(address.port or 80)), timeout=20)
            lines[way] = stack.enter_context(line)
            line.sendall(head + content[:100_000])
        for way in ("PUT", "tus"):  # the form has no task yet, and came before them
            arrived = heads[way][1]
            wait_for("a part is there", lambda it=arrived: own_platform.task(it)["done"] == 100_000, seconds=20)  # type: ignore[misc]
        stopped.signal(signal.SIGTERM)
        for way, line in lines.items():
            status, answer = answer_on(line)
            assert (way, status) == (way, 503)
            assert b"retry-after: " in answer.lower()
    assert stopped.wait() == 0
    own_platform.urls.reverse()
    task_ids = {way: task_id for way, (_, task_id) in heads.items()}
    place = f"{other}/uploads/{task_ids['tus']}"
    assert offset_of(place) == 100_000
    assert send(place, 100_000, content[100_000:]).status_code == 204
    assert httpx.put(f"{other}/tasks/{task_ids['PUT']}/upload", content=content).status_code == 200
    task_ids["multipart"] = own_platform.submit("checksum", content)["task_id"]
    for task_id in task_ids.values():
        task = own_platform.wait(task_id)
        assert task["result"]["summary"]["sha256"] == hashlib.sha256(content).hexdigest()
        assert_true_story(watch(other, task_id, last_event_id=0), first=1)
    listed = httpx.get(f"{other}/tasks").json()["tasks"]
    assert {task["task_id"] for task in listed} == set(task_ids.values()), "a form that was cut off left a task"


def _answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
    return False
