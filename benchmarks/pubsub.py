"""What one event costs a Redis that many processes have subscribed to, and at how many a second its one thread is full.

    .venv/bin/python -m benchmarks.fleet --only redis

Redis has a core to itself. So many processes have subscribed to the task (raw connections that read and throw away),
and 8 connections publish 10 events at a time as fast as they are answered: a bare PUBLISH and a SPUBLISH of the bytes
of a state, and Headway's script. Full at: a second through what Redis spends on one.
"""

from __future__ import annotations

import asyncio
import secrets
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import hiredis

from benchmarks.publishing import Ways
from benchmarks.relay import SERVER_CORE, pinned
from benchmarks.reporting import thread_seconds
from benchmarks.tables import spread
from headway.shared import keys
from headway.shared.redis.client import connect
from headway.shared.settings import Settings
from tests.processes import RedisServer

SUBSCRIBERS = (0, 1, 2, 4, 8, 16)
PUBLISHERS, AT_ONCE, TURNS = 8, 10, 150


class Crowd:
    """So many subscribed processes, as Redis sees them: one process here that reads and throws away."""

    def __init__(self, port: int, count: int, verb: str, channel: str) -> None:
        command = [sys.executable, "-m", "benchmarks.pubsub", str(port), str(count), verb, channel]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=pinned(SERVER_CORE))
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def packed(command: tuple[Any, ...]) -> bytes:
    data: bytes = hiredis.pack_command(command)
    return data


def sink(port: int, count: int, verb: str, channel: str) -> None:
    links = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for link in links:
        link.sendall(packed((verb, channel)))
        assert link.recv(4096)
    print("ready", flush=True)
    room = bytearray(1 << 20)
    poll = select.epoll()
    by_number = {link.fileno(): link for link in links}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    while True:
        for number, _ in poll.poll():
            by_number[number].recv_into(room)


def published(port: int, commands: Sequence[list[Any]]) -> None:
    """Sends each connection its commands, AT_ONCE in a write, the next when these are answered."""
    links = [socket.create_connection(("127.0.0.1", port)) for _ in commands]
    readers = [hiredis.Reader() for _ in links]
    poll, left = select.epoll(), [len(mine) for mine in commands]
    owed = [0] * len(links)
    places = {link.fileno(): place for place, link in enumerate(links)}

    def send(place: int) -> None:
        start = len(commands[place]) - left[place]
        batch = commands[place][start : start + AT_ONCE]
        left[place] -= len(batch)
        owed[place] = len(batch)
        links[place].sendall(b"".join(batch))

    for place, link in enumerate(links):
        poll.register(link.fileno(), select.EPOLLIN)
        send(place)
    while any(owed):
        for number, _ in poll.poll():
            place = places[number]
            readers[place].feed(links[place].recv(1 << 16))
            while (answer := readers[place].gets()) is not False:
                assert not isinstance(answer, hiredis.ReplyError), answer
                owed[place] -= 1
            if not owed[place] and left[place]:
                send(place)
    for link in links:
        link.close()


@dataclass(frozen=True)
class Full:
    us_per_event: float
    events_a_second: float
    redis_share: float


def in_redis(rounds: int, folder: Path, redis: RedisServer) -> str:
    channel, plain, script = asyncio.run(events_of(redis, folder))
    ways: dict[str, tuple[str, Callable[[], bytes]]] = {
        "PUBLISH": ("SUBSCRIBE", lambda: plain("PUBLISH")),
        "SPUBLISH": ("SSUBSCRIBE", lambda: plain("SPUBLISH")),
        "Headway": ("SUBSCRIBE", script),
    }
    found: dict[tuple[str, int], list[Full]] = {}
    for _ in range(rounds):
        for count in SUBSCRIBERS:
            for way, (verb, command) in ways.items():
                crowd = Crowd(redis.port, count, verb, channel)
                try:
                    published(redis.port, [[command() for _ in range(AT_ONCE)]])
                    commands = [[command() for _ in range(AT_ONCE * TURNS)] for _ in range(PUBLISHERS)]
                    events = AT_ONCE * TURNS * PUBLISHERS
                    spent, began = thread_seconds(redis.pid), time.perf_counter()
                    published(redis.port, commands)
                    spent, seconds = thread_seconds(redis.pid) - spent, time.perf_counter() - began
                finally:
                    crowd.close()
                found.setdefault((way, count), []).append(Full(spent / events * 1e6, events / seconds, spent / seconds))
    lines = [
        f"Rounds: {rounds}, of {AT_ONCE * TURNS * PUBLISHERS:,} events, median (least–most).",
        "",
        "| processes subscribed | "
        + " | ".join(f"{way}, µs of Redis | full at, a second | seen, a second" for way in ways)
        + " |",
        "| --- " * (1 + 3 * len(ways)) + "|",
    ]
    for count in SUBSCRIBERS:
        cells = []
        for way in ways:
            mine = found[way, count]
            cells += [
                spread([one.us_per_event for one in mine], "{:.1f}"),
                f"{1e6 / median(one.us_per_event for one in mine):,.0f}",
                seen(mine),
            ]
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    lines += ["", "Seen is what came through in this run, with the share of its core that Redis had meanwhile."]
    return "\n".join(lines)


def seen(mine: Sequence[Full]) -> str:
    rate, share = (
        median(values) for values in zip(*((one.events_a_second, one.redis_share) for one in mine), strict=True)
    )
    return f"{rate:,.0f} ({100 * share:.0f} %)"


async def events_of(redis: RedisServer, folder: Path) -> tuple[str, Callable[[str], bytes], Callable[[], bytes]]:
    """The channel of a task that runs, and what makes the next command: of its bytes alone, and of the real script."""
    settings = Settings(redis_url=redis.url, data_dir=folder / "data")
    async with connect(settings) as client:
        ways = Ways(client, settings)
        [task_id] = await ways.tasks(1)
        calls: list[tuple[Any, list[str], list[Any]]] = []

        async def keep(script: Any, keys: list[str], args: list[Any]) -> list[bytes]:
            calls.append((script, keys, args))
            return [b"ok", b"1"]

        ways.publisher._calls.call = keep  # type: ignore[method-assign,assignment]
        await ways.headway(task_id)
    [(script, named, args)] = calls
    channel = keys.channel(task_id)

    def headway_event() -> bytes:
        args[2] = secrets.token_hex(8)  # the id of this write: one that comes twice counts once
        return packed(("EVALSHA", script.sha, len(named), *named, *args))

    return channel, lambda verb: packed((verb, channel, ways.message)), headway_event


if __name__ == "__main__":
    sink(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
