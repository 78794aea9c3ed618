"""What one progress event costs where it is published: in Redis, in the client, in a whole worker, and in the work.

    .venv/bin/python -m benchmarks.publishing [--rounds 5] [--events 3000] [--only redis worker work] [--write]

Redis and the publisher have a core each. In every round each way takes its turn with every number of tasks at once, so
that a noisy neighbour harms all alike; costs are CPU time (user and system, as the scheduler counts it), which a busy
machine moves less than it moves the clock. What is printed is the median of the rounds with the least and the most.

    redis     so many tasks, each publishing its next event when the last one's answer is there, on one client:
                  PUBLISH    nothing but the live message, the bytes that Headway sends
                  MULTI      state, history, message and expiry: HSET, XADD, PUBLISH, PEXPIRE, EXEC
                  Headway    shared/tasks/progress.py: one script for the fence, the state, the version, the history,
                  the
                             message, the owner's feed, and the expiry of all
              Nobody watches, so that what is measured is the publishing. Commands are those that Redis counts within
              a script, too.
    worker    a `headway worker` with so many `rehearsal`s at once that change their step every millisecond: events a
              second, and what the worker's own process, without its children, and Redis spend on one.
    work      what a processor pays that says `job.advance(1)` a million times a second: benchmarks/reporting.py
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis as sync_redis

from benchmarks.relay import OTHER_CORE, SERVER_CORE
from benchmarks.reporting import in_the_work, thread_seconds
from benchmarks.tables import machine, publish, spread
from headway.api.submission import draft
from headway.shared import keys
from headway.shared.json_text import text_of
from headway.shared.redis.client import POOL_SIZE, RedisClient, connect
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, Status, TaskId
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from tests.processes import Platform, RedisServer
from tests.waiting import wait_for

AT_ONCE = (1, 10, 100)
REHEARSALS = (1, 10, 50)
STEPS = 300
COLUMNS = (
    *("way", "tasks at once", "Redis CPU, µs an event", "beside PUBLISH", "client CPU, µs an event"),
    *("events a second", "commands in Redis"),
)
WAYS = ("PUBLISH", "MULTI", "Headway")
#: What a worker writes for a count (shared/tasks/meter.py).
FIELDS = {
    "progress": 42.5, "step": 2, "total_steps": 3, "message": "Profiling columns", "done": 44564480,
    "total": 104857600, "unit": "bytes", "rate": 73400320.0, "eta_seconds": 0.8,
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    way: str
    at_once: int
    redis_us: float
    client_us: float
    events_a_second: float
    commands: float


class Ways:
    """Three ways to publish an event of a task that runs."""

    def __init__(self, redis: RedisClient, settings: Settings) -> None:
        self._redis = redis
        self.publisher = Publisher(redis, settings)
        self._feed = Reader(redis)
        self._history_length = settings.history_length
        self._version = 0
        self.message = b""
        #: A pool gives its connections to whoever comes, and whoever waits too long gets an error.
        self._room = asyncio.Semaphore(POOL_SIZE)

    async def tasks(self, count: int) -> list[TaskId]:
        made = []
        for _ in range(count):
            task = draft("rehearsal", owner=ANYONE, status=Status.QUEUED, options={"steps": 3, "step_seconds": 2})
            await self.publisher.create(task)
            assert await self.publisher.claim(task.task_id, self._feed)
            made.append(task.task_id)
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(keys.channel(made[0]))
            await self.headway(made[0])
            while not self.message:
                told = await pubsub.get_message(timeout=5)
                self.message = told["data"] if told and told["type"] == "message" else b""
        return made

    async def publish(self, task_id: TaskId) -> None:
        async with self._room:
            await self._redis.publish(keys.channel(task_id), self.message)

    async def multi(self, task_id: TaskId) -> None:
        """Without a fence: a version that somebody else took would not be seen."""
        self._version += 1
        state, events = f"plain:{task_id}", f"plain:{task_id}:events"
        async with self._room, self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(state, mapping={name: text_of(value) for name, value in FIELDS.items()})
            entry: dict[Any, Any] = {"n": "", "d": self.message}
            pipe.xadd(events, entry, id=f"{self._version}-0", maxlen=self._history_length, approximate=False)
            pipe.publish(keys.channel(task_id), self.message)
            pipe.pexpire(state, 2_592_000_000)
            pipe.pexpire(events, 2_592_000_000)
            await pipe.execute()

    async def headway(self, task_id: TaskId) -> None:
        await self.publisher.change(task_id, FIELDS, allowed=(Status.PROCESSING,), attempt=1)


async def one_way(
    way: str, call: Callable[[TaskId], Awaitable[None]], tasks: list[TaskId], events: int, server: RedisServer
) -> Cost:
    async def publishing(task_id: TaskId, count: int) -> None:
        for _ in range(count):
            await call(task_id)

    each = max(1, events // len(tasks))
    await asyncio.gather(*(publishing(task_id, 2) for task_id in tasks))  # connections, the script, the caches
    with sync_redis.Redis(port=server.port) as client:
        client.config_resetstat()
        spent, own, began = thread_seconds(server.pid), time.process_time(), time.perf_counter()
        await asyncio.gather(*(publishing(task_id, each) for task_id in tasks))
        seconds = time.perf_counter() - began
        spent, own = thread_seconds(server.pid) - spent, time.process_time() - own
        stats: dict[str, Any] = client.info("commandstats")
    done = each * len(tasks)
    calls = sum(one["calls"] for name, one in stats.items() if name not in ("cmdstat_config|resetstat", "cmdstat_info"))
    return Cost(way, len(tasks), spent / done * 1e6, own / done * 1e6, done / seconds, calls / done)


async def in_redis(rounds: int, events: int, server: RedisServer, folder: Path) -> str:
    settings = Settings(redis_url=server.url, data_dir=folder / "data")
    costs: list[Cost] = []
    async with connect(settings) as redis:
        ways = Ways(redis, settings)
        calls = dict(zip(WAYS, (ways.publish, ways.multi, ways.headway), strict=True))
        tasks = await ways.tasks(max(AT_ONCE))
        size = len(ways.message)
        for _ in range(rounds):
            for at_once in AT_ONCE:
                for way, call in calls.items():
                    costs.append(await one_way(way, call, tasks[:at_once], events, server))
    lines = [
        f"A message is {size} bytes; rounds: {rounds}, of {events:,} events, median (least–most).",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for at_once in AT_ONCE:
        bare = [one.redis_us for one in costs if (one.way, one.at_once) == ("PUBLISH", at_once)]
        for way in WAYS:
            mine = [one for one in costs if (one.way, one.at_once) == (way, at_once)]
            beside = [one.redis_us / alone for one, alone in zip(mine, bare, strict=True)]
            cells = [
                spread([one.redis_us for one in mine], "{:.0f}"),
                spread(beside, "{:.1f}"),
                spread([one.client_us for one in mine], "{:.0f}"),
                spread([one.events_a_second for one in mine], "{:,.0f}"),
                spread([one.commands for one in mine], "{:.0f}"),
            ]
            lines.append(f"| {way} | {at_once} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def in_a_worker(rounds: int, server: RedisServer, folder: Path) -> str:
    """The children share the worker's core, so events a second are what one core gives for the work and its telling."""
    found: dict[int, list[tuple[float, float, float]]] = {count: [] for count in REHEARSALS}
    settings = Settings(redis_url=server.url, data_dir=folder / "platform" / "data")
    env = {"HEADWAY_WORKER_CONCURRENCY": str(max(REHEARSALS))}
    with Platform(folder / "platform", server.url, **env) as platform, sync_redis.Redis(port=server.port) as client:
        platform.start_worker()
        pid = platform.workers[0].pid
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), SERVER_CORE)
        asyncio.run(rehearsed(settings, client, 5))
        for _ in range(rounds):
            for count in REHEARSALS:
                spent, own, began = thread_seconds(server.pid), thread_seconds(pid), time.perf_counter()
                events = asyncio.run(rehearsed(settings, client, count))
                seconds = time.perf_counter() - began
                spent, own = thread_seconds(server.pid) - spent, thread_seconds(pid) - own
                found[count].append((events / seconds, own / events * 1e6, spent / events * 1e6))
    lines = [
        f"{STEPS} steps of 1 ms a task; rounds: {rounds}, median (least–most).",
        "",
        "| tasks at once | events a second | the worker's process, µs an event | Redis, µs an event |",
        "| --- | --- | --- | --- |",
    ]
    for count, rows in found.items():
        rates, workers, servers = (list(column) for column in zip(*rows, strict=True))
        cells = [spread(rates, "{:,.0f}"), spread(workers, "{:.0f}"), spread(servers, "{:.0f}")]
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


async def rehearsed(settings: Settings, client: sync_redis.Redis, count: int) -> int:
    """Runs so many rehearsals to their end. How many events they had."""
    options = {"steps": STEPS, "step_seconds": 0.001}
    tasks = [draft("rehearsal", owner=ANYONE, status=Status.QUEUED, options=options) for _ in range(count)]
    async with connect(settings) as redis:
        publisher = Publisher(redis, settings)
        for task in tasks:
            await publisher.create(task)
    states = [keys.state(task.task_id) for task in tasks]

    def ended() -> bool:
        with client.pipeline(transaction=False) as pipe:
            for state in states:
                pipe.hget(state, "status")
            return all(status == b'"completed"' for status in pipe.execute())

    wait_for("the rehearsals end", ended, seconds=120)
    return sum(int(client.hget(state, "version") or 0) for state in states)  # type: ignore[arg-type,misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=3000)
    parser.add_argument("--only", nargs="*", default=["redis", "worker", "work"])
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    arguments = parser.parse_args()
    if not OTHER_CORE:
        sys.exit("skipped: needs two cores, one for Redis and one for who publishes")
    os.sched_setaffinity(0, SERVER_CORE)
    parts = []
    with tempfile.TemporaryDirectory(prefix="headway-publishing-") as name:
        folder = Path(name)
        with RedisServer(folder / "redis", appendfsync="everysec") as server:
            os.sched_setaffinity(server.pid, OTHER_CORE)
            if "redis" in arguments.only:
                parts.append(asyncio.run(in_redis(arguments.rounds, arguments.events, server, folder)))
            if "worker" in arguments.only:
                parts.append(in_a_worker(arguments.rounds, server, folder))
    if "work" in arguments.only:
        parts.append(in_the_work(arguments.rounds))
    publish("publishing", "\n\n".join([*parts, machine()]), write=arguments.write)


if __name__ == "__main__":
    main()
