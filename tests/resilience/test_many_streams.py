"""Hundreds of streams at once under a fault: each reaches the truth, and what a bad client held is freed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from benchmarks.watchers import Crowd, allow_many_files, is_unbroken
from tests.processes import Platform, RedisServer
from tests.waiting import wait_until

COUNT = 300
TASKS = 10
LONG = '{"steps": 50, "step_seconds": 0.1}'


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


@pytest.fixture
def busy(own_platform: Platform) -> Platform:
    """A platform with running tasks."""
    allow_many_files(4096)
    own_platform.start_api()
    own_platform.start_worker(HEADWAY_WORKER_CONCURRENCY=str(TASKS))
    return own_platform


async def watched(platform: Platform) -> tuple[Crowd, list[str]]:
    """COUNT streams on TASKS running tasks, each from its first event; and the tasks."""
    ids = [platform.submit("rehearsal", options=LONG)["task_id"] for _ in range(TASKS)]
    crowd = Crowd(*address(platform.url))
    await crowd.add_all([f"/tasks/{ids[number % TASKS]}/events?last_event_id=0" for number in range(COUNT)])
    assert await crowd.until("every stream has an event", lambda seen: bool(seen.ids), 60)
    return crowd, ids


def assert_all_true(crowd: Crowd) -> None:
    assert {seen.closed for seen in crowd.seen} == {"whole"}
    assert {seen.status for seen in crowd.seen} == {b"completed"}
    assert all(is_unbroken(seen) for seen in crowd.seen)


async def test_redis_killed_under_hundreds_of_streams(busy: Platform, own_redis: RedisServer) -> None:
    crowd, _ = await watched(busy)
    own_redis.kill()
    await asyncio.to_thread(own_redis.start)
    assert await crowd.until("every stream has ended", lambda seen: seen.closed is not None, 60)
    assert_all_true(crowd)


async def test_every_connection_to_redis_killed_under_hundreds_of_streams(
    busy: Platform, own_redis: RedisServer
) -> None:
    crowd, _ = await watched(busy)
    with redis.Redis(port=own_redis.port) as client:
        for kind in ("pubsub", "normal", "pubsub"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind)
    assert await crowd.until("every stream has ended", lambda seen: seen.closed is not None, 60)
    assert_all_true(crowd)


def subscribers(client: redis.Redis) -> list[object]:
    found: Any = client.client_list(_type="pubsub")
    return list(found)


def overflow(client: redis.Redis, channel: str) -> None:
    """Publishes until a subscriber that reads nothing is dropped. In small messages: of one of 16 KiB or more Valkey 9
    and Redis 8 keep one copy for all subscribers, and count it to none of them."""
    there = len(subscribers(client))
    for _ in range(200):  # MiB; the kernel's own buffers take the first few
        with client.pipeline(transaction=False) as many:
            for _ in range(256):
                many.publish(channel, b"1  " + b"x" * 4093)
            many.execute()
        if len(subscribers(client)) < there:
            return


async def test_an_overflow_of_redis_output_buffer_is_noticed_and_mended(busy: Platform, own_redis: RedisServer) -> None:
    api = busy.apis[0]
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("client-output-buffer-limit", "pubsub 1mb 1mb 1")
        crowd, ids = await watched(busy)
        api.signal(signal.SIGSTOP)  # it reads nothing, so what it is sent piles up inside Redis
        try:
            overflow(client, f"headway:task:{ids[0]}:live")
            await wait_until("Redis has dropped the subscriber", lambda: len(subscribers(client)) == 1)
        finally:
            api.signal(signal.SIGCONT)
        assert await crowd.until("every stream has ended", lambda seen: seen.closed is not None, 60)
    assert_all_true(crowd)


async def test_a_stop_signal_ends_hundreds_of_streams_whole(busy: Platform) -> None:
    """How soon is measured by benchmarks/stream_faults.py: a time depends on what else the machine does."""
    crowd, _ = await watched(busy)
    busy.apis[0].signal(signal.SIGTERM)
    assert await asyncio.to_thread(busy.apis[0].wait, 30) == 0
    assert await crowd.until("every stream has ended", lambda seen: seen.closed is not None, 60)
    assert {seen.closed for seen in crowd.seen} == {"whole"}


def connections_of(port: int) -> int:
    """The kernel's connections on a local port, orphans that nobody holds a descriptor of included."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening, time_wait = "0A", "06"
    return sum(int(fields[1].split(":")[1], 16) == port and fields[3] not in (listening, time_wait) for fields in lines)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="counts connections in /proc")
async def test_clients_that_read_nothing_are_dropped_and_all_they_held_is_freed(own_platform: Platform) -> None:
    allow_many_files(4096)
    own_platform.start_api(HEADWAY_SEND_TIMEOUT_SECONDS="1", HEADWAY_HEARTBEAT_SECONDS="1")
    task_id = own_platform.submit("rehearsal")["task_id"]  # no worker: it waits
    url = f"{own_platform.url}/tasks/{task_id}"
    stack = contextlib.ExitStack()
    for _ in range(100):
        sock = stack.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        sock.connect(address(own_platform.url))
        sock.sendall(f"GET /tasks/{task_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    reader = Crowd(*address(own_platform.url))
    healthy = await reader.add(f"/tasks/{task_id}/events")

    def streams() -> int:
        count: int = httpx.get(f"{own_platform.url}/readyz").json()["checks"]["relay"]["streams"]
        return count

    await wait_until("all watch", lambda: streams() == 101)
    note = {"author": "x", "text": "🙂" * 1000}
    async with httpx.AsyncClient() as client:
        for _ in range(400):  # 12 KB each: the kernel's buffers fill up, then the server's own
            answer = await client.post(f"{url}/notes", json=note)
            assert answer.status_code == 201
            if streams() == 1:
                break
    await wait_until("the stalled are dropped", lambda: streams() == 1, seconds=20)
    port = address(own_platform.url)[1]
    await wait_until("their connections are gone from the kernel", lambda: connections_of(port) <= 3, seconds=20)
    assert healthy.seen.closed is None
    version = httpx.get(url).json()["version"]
    assert await reader.until("the healthy one has it all", lambda seen: seen.ids[-1] == version, 60)
    assert healthy.seen.ids == list(range(healthy.seen.ids[0], version + 1))
    await reader.close()
    stack.close()
