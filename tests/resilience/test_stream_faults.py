"""Streams while Redis and the API are killed: nobody reconnects who need not, everybody sees the truth, one end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import httpx
import pytest

from tests.processes import SERVERS, Platform, RedisServer, Server
from tests.streams import Frame, assert_true_story, frames, opened, watch
from tests.waiting import wait_for, wait_until

LONG = '{"steps": 40, "step_seconds": 0.1}'


class Watchers:
    """Streams on one event loop, each with its story so far."""

    def __init__(self, count: int, url: str, **headers: str) -> None:
        self.stories: list[list[Frame]] = [[] for _ in range(count)]
        self._url = url
        self._headers = headers

    async def __aenter__(self) -> Watchers:
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(limits=limits)
        self._tasks = [asyncio.create_task(self._watch(story)) for story in self.stories]
        await wait_until("all watch", lambda: all(self.stories), seconds=30)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    async def _watch(self, story: list[Frame]) -> None:
        async for frame in frames(self._client, self._url, **self._headers):
            story.append(frame)  # noqa: PERF401 - it is looked at while it grows

    async def ended(self, seconds: float = 30) -> None:
        """Waits until every stream was ended by the server, cleanly."""
        done, pending = await asyncio.wait(self._tasks, timeout=seconds)
        assert not pending, f"{len(pending)} streams did not end"
        for task in done:
            task.result()


@pytest.mark.parametrize("server", SERVERS)
async def test_a_killed_redis_is_waited_for_and_every_stream_reaches_the_truth(
    own_platform: Platform, own_redis: RedisServer, server: Server
) -> None:
    own_platform.start_api(server=server)
    own_platform.start_worker()
    task_id = own_platform.submit("rehearsal", options=LONG)["task_id"]
    async with Watchers(100, f"{own_platform.url}/tasks/{task_id}/events?last_event_id=0") as watchers:
        await wait_until("it runs", lambda: any(story[-1].data["step"] > 3 for story in watchers.stories))
        own_redis.kill()
        with pytest.raises(httpx.HTTPStatusError) as refused:
            await asyncio.to_thread(own_platform.task, task_id)
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["retry-after"]
        assert refused.value.response.headers["content-type"] == "application/problem+json"
        await asyncio.to_thread(own_redis.start)
        await watchers.ended()
    for story in watchers.stories:
        assert_true_story(story, first=1)
        assert story[-1].status == "completed"


@pytest.mark.parametrize("server", SERVERS)
async def test_a_redis_that_comes_back_empty_ends_every_stream_as_lost(
    own_platform: Platform, own_redis: RedisServer, server: Server
) -> None:
    own_platform.start_api(server=server)
    task_id = own_platform.submit("rehearsal", options=LONG)["task_id"]
    async with Watchers(50, f"{own_platform.url}/tasks/{task_id}/events") as watchers:
        own_redis.kill()
        own_redis.forget()
        await asyncio.to_thread(own_redis.start)
        await watchers.ended(10)
    for story in watchers.stories:
        assert_true_story(story)
        assert (story[-1].status, story[-1].data["error"]["type"]) == ("failed", "lost")
    with opened(f"{own_platform.url}/tasks/{task_id}/events", **{"Last-Event-ID": str(story[-1].id)}) as answer:
        assert answer.status_code == 404


async def test_a_redis_that_is_stopped_for_a_while_causes_no_double_and_no_false_end(
    own_platform: Platform, own_redis: RedisServer
) -> None:
    own_platform.start_api()
    own_platform.start_worker(HEADWAY_LEASE_SECONDS="1")
    task_id = own_platform.submit("rehearsal", options='{"steps": 30, "step_seconds": 0.1}')["task_id"]
    async with Watchers(20, f"{own_platform.url}/tasks/{task_id}/events?last_event_id=0") as watchers:
        await wait_until("it runs", lambda: watchers.stories[0][-1].data["step"] > 3)
        own_redis.signal(signal.SIGSTOP)
        try:
            answer = await asyncio.to_thread(httpx.get, f"{own_platform.url}/readyz", timeout=30)
            assert (answer.status_code, answer.json()["checks"]["redis"]["ok"]) == (503, False)
        finally:
            own_redis.signal(signal.SIGCONT)
        await watchers.ended()
    for story in watchers.stories:
        assert_true_story(story, first=1)
        assert story[-1].status == "completed"


def test_a_stream_asked_for_while_redis_is_away_waits_and_is_told_the_truth(
    own_platform: Platform, own_redis: RedisServer
) -> None:
    own_platform.start_api()
    own_platform.start_worker()
    task_id = own_platform.submit("checksum", b"x")["task_id"]
    own_platform.wait(task_id)
    own_redis.kill()
    with opened(f"{own_platform.url}/tasks/{task_id}/events") as answer:
        assert answer.status_code == 200
        received = answer.iter_raw()
        first = next(received)
        assert first.startswith(b"retry: 1000\n:")
        own_redis.start()
        rest = first + b"".join(received)
    assert b'"status":"completed"' in rest


def test_the_api_ends_its_streams_whole_and_exits(own_platform: Platform) -> None:
    api = own_platform.start_api()
    own_platform.start_api()
    own_platform.start_worker()
    task_id = own_platform.submit("rehearsal", options=LONG)["task_id"]
    with opened(f"{own_platform.url}/tasks/{task_id}/events?last_event_id=0") as answer:
        received = b""
        for chunk in answer.iter_raw():  # raises where the ending is not clean
            if b'"step":3' in chunk:
                api.signal(signal.SIGTERM)
            received += chunk
    assert api.wait(2) == 0
    *events, goodbye = received.split(b"\n\n")
    retry, comment, rest = goodbye.split(b"\n")
    assert rest == b""
    assert 1000 <= int(retry.removeprefix(b"retry: ")) <= 7000
    assert comment.startswith(b":")
    last = int(events[-1].split(b"id: ")[1].split(b"\n")[0])
    whole = watch(own_platform.urls[1], task_id, last_event_id=0)
    assert watch(own_platform.urls[1], task_id, last_event_id=last) == whole[last:]
    assert_true_story(whole, first=1)


@pytest.mark.parametrize("processes", [1, 2])
def test_plain_uvicorn_drains_too(own_platform: Platform, processes: int) -> None:
    import os
    import subprocess
    import sys

    from tests.processes import free_port

    own_platform.start_api()
    port = free_port()
    task_id = own_platform.submit("rehearsal", options=LONG)["task_id"]
    command = [sys.executable, "-m", "uvicorn", "api.main:app", "--port", str(port), "--workers", str(processes)]
    env = os.environ | {
        "HEADWAY_REDIS_URL": own_platform.redis_url,
        "HEADWAY_DATA_DIR": str(own_platform.data_dir),
    }
    server = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    try:
        wait_for("uvicorn answers", lambda: _answers(lambda: httpx.get(f"http://127.0.0.1:{port}/healthz")), seconds=30)
        with opened(f"http://127.0.0.1:{port}/tasks/{task_id}/events") as answer:
            received = answer.iter_raw()
            first = next(received)
            server.terminate()
            rest = b"".join(received)
        assert b"data: " in first
        assert rest.startswith(b"retry: ")
        server.wait(5)
    finally:
        server.kill()
        server.wait()


def _answers(ask: Callable[[], httpx.Response]) -> bool:
    try:
        return ask().is_success
    except httpx.HTTPError:
        return False
