"""Beyond one process: several API processes on one Redis, who gets the connections, and where Redis' pub/sub is full.

    .venv/bin/python -m benchmarks.fleet [--rounds 2] [--only processes spread redis] [--write]

Every round takes each variant in turn. Costs are CPU time (user and system, as the scheduler counts it); what is
printed is the median of the rounds with the least and the most.

    processes   1,000 clients (load.c, compiled on the spot) of `headway api` with one process, with `--workers 2`, and
                of two APIs with half of the clients each; 20,000 deliveries a second, then as many as Redis may keep
                for a subscriber at once. Nothing is pinned: servers, Redis, publisher and clients have the machine's
                cores together. A task of all: each process with a watcher is sent each event. A task each: only the
                process of its watcher is.
    spread      1,000 connections to `--workers 2` and `--workers 4`, 64 at a time and one after the other: how many
                each process has got.
    redis       what one event costs a Redis that many processes have subscribed to: benchmarks/pubsub.py
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pubsub import in_redis
from benchmarks.relay import (
    OTHER_CORE,
    PATIENCE_SECONDS,
    SERVER_CORE,
    Load,
    all_subscribed,
    compiled,
    cpu_seconds,
    family,
    make_tasks,
    serving,
)
from benchmarks.relay_peers import Peer, headway
from benchmarks.tables import machine, publish, spread
from tests.processes import RedisServer
from tests.waiting import wait_for

CLIENTS = 1000
DELIVERIES_PER_SECOND = 20_000
SECONDS = 3
#: Events of each task; Redis drops a subscriber that 32 MB wait for.
AT_ONCE = 20
COLUMNS = (*("servers", "watched", "CPU of all processes, µs a delivery", "p99, ms", "all at once, a second", "lost"),)
EVERY_CORE = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Carried:
    """One variant, one measure, one round."""

    variant: str
    measure: str
    us_per_delivery: float
    p99_ms: float
    lost: int
    owed: int
    at_once_a_second: float


def with_workers(count: int) -> Peer:
    ours = headway()

    def start(port: int, redis: int, folder: Path) -> tuple[list[str], dict[str, str]]:
        command, env = ours.start(port, redis, folder)
        return [*command, "--workers", str(count)], env

    return Peer(f"headway-{count}", f"`headway api --workers {count}`", start)


def of_each(drivers: Sequence[Load], *words: object) -> list[dict[str, Any]]:
    """Asks all of them at once: one that is not asked reads nothing."""
    told: list[dict[str, Any]] = [{}] * len(drivers)

    def ask(place: int) -> None:
        told[place] = drivers[place].ask(*words)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(drivers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def carried(peers: Sequence[Peer], title: str, measure: str, load: Path, folder: Path, redis: RedisServer) -> Carried:
    """Several servers have a driver each, with its part of the clients and tasks of its own."""
    clients = CLIENTS // len(peers)
    tasks = clients if measure == "a task each" else 1
    lines = (folder / "tasks").read_text().splitlines(keepends=True)
    with ExitStack() as stack:
        pids, drivers = [], []
        for number, peer in enumerate(peers):
            pid, port = stack.enter_context(serving(peer, folder, redis, EVERY_CORE))
            mine = folder / f"tasks-{number}"
            mine.write_text("".join(lines[number * tasks :][:tasks]))
            driver = Load(load, "127.0.0.1", port, redis.port, mine, folder / "template")
            stack.callback(driver.close)
            for core in family(driver._process.pid):
                os.sched_setaffinity(core, EVERY_CORE)
            pids.append(pid)
            drivers.append(driver)
        of_each(drivers, "connect", clients, tasks, 64)
        all_subscribed(redis)
        rate = DELIVERIES_PER_SECOND / CLIENTS * tasks
        of_each(drivers, "run", rate, max(tasks, 10), PATIENCE_SECONDS)
        spent = sum(map(cpu_seconds, pids))
        told = of_each(drivers, "run", rate, int(rate * SECONDS), PATIENCE_SECONDS)
        spent = sum(map(cpu_seconds, pids)) - spent
        fast = of_each(drivers, "run", 0, AT_ONCE * tasks if tasks > 1 else AT_ONCE * 5, PATIENCE_SECONDS)
    delivered = sum(one["delivered"] for one in told)
    return Carried(
        *(title, measure, spent / delivered * 1e6),
        max(one["p99_ms"] for one in told),
        sum(one["owed"] - one["delivered"] + one["doubled"] for one in told + fast),
        sum(one["owed"] for one in told + fast),
        sum(one["delivered"] for one in fast) / max(one["seconds"] for one in fast),
    )


def of_processes(rounds: int, load: Path, folder: Path, redis: RedisServer) -> str:
    one, two = with_workers(1), with_workers(2)
    variants: list[tuple[str, list[Peer], tuple[str, ...]]] = [
        ("one process", [one], ("one task", "a task each")),
        ("`--workers 2`", [two], ("one task", "a task each")),
        ("two APIs, half of the clients each", [one, one], ("a task each",)),
    ]
    found: list[Carried] = []
    for _ in range(rounds):
        for title, peers, measures in variants:
            for measure in measures:
                found.append(carried(peers, title, measure, load, folder, redis))
                print(found[-1], file=sys.stderr, flush=True)
    lines = [
        f"{CLIENTS:,} clients, {DELIVERIES_PER_SECOND:,} deliveries a second; rounds: {rounds}, median (least–most).",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for title, _, measures in variants:
        for measure in measures:
            mine = [one for one in found if (one.variant, one.measure) == (title, measure)]
            cells = [
                spread([one.us_per_delivery for one in mine], "{:.1f}"),
                spread([one.p99_ms for one in mine], "{:.0f}"),
                spread([one.at_once_a_second for one in mine], "{:,.0f}"),
                f"{sum(one.lost for one in mine):,} of {sum(one.owed for one in mine):,}",
            ]
            lines.append(f"| {title} | {measure} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def connections(pid: int, port: int) -> list[int]:
    """How many connections of that port each of the serving processes holds."""
    local, inodes = f":{port:04X}", set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(local) and fields[3] == "01":
            inodes.add(f"socket:[{fields[9]}]")
    held = []
    for one in family(pid):
        links = []
        for link in Path(f"/proc/{one}/fd").iterdir():
            try:
                links.append(str(link.readlink()))
            except FileNotFoundError:
                continue
        held.append(sum(link in inodes for link in links))
    return sorted((count for count in held if count), reverse=True)


def shares(rounds: int, load: Path, folder: Path, redis: RedisServer) -> str:
    """The supervisor holds none, so it does not show."""
    lines = [
        f"{CLIENTS:,} connections; each round from a fresh start.",
        "",
        "| | opened | connections of each process, round by round |",
        "| --- | --- | --- |",
    ]
    for workers in (2, 4):
        for in_flight, opened in ((64, "64 at a time"), (1, "one after the other")):
            rows = [" + ".join(map(str, share(workers, in_flight, load, folder, redis))) for _ in range(rounds)]
            lines.append(f"| `--workers {workers}` | {opened} | {'; '.join(rows)} |")
    return "\n".join(lines)


def share(workers: int, in_flight: int, load: Path, folder: Path, redis: RedisServer) -> list[int]:
    with ExitStack() as stack:
        pid, port = stack.enter_context(serving(with_workers(workers), folder, redis, EVERY_CORE))
        driver = Load(load, "127.0.0.1", port, redis.port, folder / "tasks", folder / "template")
        stack.callback(driver.close)
        everybody = f"{workers} processes take connections"
        wait_for(everybody, lambda: sum(accepting(one, port) for one in family(pid)) >= workers, seconds=60)
        driver.ask("connect", CLIENTS, 1, in_flight)
        return connections(pid, port)


def accepting(pid: int, port: int) -> bool:
    """The listening socket is among what this process waits for."""
    local = f":{port:04X}"
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    inodes = [f"ino:{int(fields[9]):x} " for fields in lines if fields[1].endswith(local) and fields[3] == "0A"]
    try:
        polled = [path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir()]
    except OSError:
        return False
    return any(inode in text for inode in inodes for text in polled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=["processes", "spread", "redis"])
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    arguments = parser.parse_args()
    if not OTHER_CORE:
        sys.exit("skipped: needs two cores")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parts = []
    with tempfile.TemporaryDirectory(prefix="headway-fleet-") as name, RedisServer(Path(name) / "redis") as redis:
        folder = Path(name)
        try:
            load = compiled(folder)
        except (OSError, subprocess.CalledProcessError):
            sys.exit("skipped: needs a C compiler (cc)")
        asyncio.run(make_tasks(redis.url, CLIENTS, folder))
        if "processes" in arguments.only:
            parts.append(of_processes(arguments.rounds, load, folder, redis))
        if "spread" in arguments.only:
            parts.append(shares(arguments.rounds, load, folder, redis))
    if "redis" in arguments.only:
        with (
            tempfile.TemporaryDirectory(prefix="headway-fleet-") as name,
            RedisServer(Path(name) / "redis", appendfsync="everysec") as redis,
        ):
            os.sched_setaffinity(redis.pid, OTHER_CORE)
            os.sched_setaffinity(0, SERVER_CORE)
            parts.append(in_redis(arguments.rounds, Path(name), redis))
    publish("fleet", "\n\n".join([*parts, machine()]), write=arguments.write)


if __name__ == "__main__":
    main()
