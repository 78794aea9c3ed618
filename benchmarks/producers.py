"""What a report of an outside producer costs the API, beside the least that anybody would build.

    .venv/bin/python -m benchmarks.producers [--tasks 10000] [--rounds 5] [--reports 4000] [--write]

Both run in one process of uvicorn on one Redis; in every round each way takes its turn, so that a noisy neighbour harms
all alike. What is counted is the CPU time (user and system) of the API's process, for one report:

    bare       a FastAPI route that reads JSON and does one PUBLISH of it
    report     `PATCH /tasks/{id}/progress` of one of the tasks, each with a count that is new: fence, state, version,
               history, live channels, lease
    alive      the same with `attempt` alone: a sign of life
    together   `PATCH /tasks/progress` with one report each of 100 tasks, by report

And what `headway.report` costs the work while the platform is away: `job.advance(1)` beside that of a processor's job,
as the least of many short loops, and the share of a core that the thread of reports takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import redis.asyncio as redis
from fastapi import FastAPI, Request

from benchmarks.reporting import thread_seconds
from benchmarks.tables import machine, publish, spread
from headway import report
from headway.shared.tasks.registry import load_registry
from headway.worker.reporter import Reporter
from tests.processes import Platform, RedisServer, free_port
from tests.waiting import wait_for

CONNECTIONS = 32
TOGETHER = 100
CALLS, LOOPS, AWAY_SECONDS = 10_000, 100, 5

bare = FastAPI()


@bare.patch("/tasks/{task_id}/progress")
async def published(task_id: str, request: Request) -> dict[str, Any]:
    said = await request.json()
    if not hasattr(bare.state, "redis"):
        bare.state.redis = redis.from_url(os.environ["BARE_REDIS_URL"])  # type: ignore[no-untyped-call]
    await bare.state.redis.publish(f"live:{task_id}", json.dumps(said))
    return {"status": "processing", "cancelled": False, "version": 1}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def send(port: int, requests: Iterator[bytes], reports: int) -> None:
    """So many, on kept connections, each waiting for its answer."""
    left = iter(range(reports))

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in left:
            writer.write(next(requests))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
        writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(one())


def request(path: str, said: Any) -> bytes:
    body = json.dumps(said).encode()
    head = f"PATCH {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def made(url: str, tasks: int) -> list[str]:
    with httpx.Client(base_url=url) as http:
        said = {"producer": "bench", "total": 10**9, "lease_seconds": 86400}
        return [http.post("/tasks", json=said).json()["task_id"] for _ in range(tasks)]


def measured(tasks: int, rounds: int, reports: int) -> str:
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder) / "redis", appendfsync="no") as server:
        asked = {"HEADWAY_MAX_REQUESTS_PER_SECOND": "0", "HEADWAY_MAX_UNFINISHED_TASKS": str(tasks + 1)}
        with Platform(Path(folder) / "platform", server.fresh_url(), **asked) as platform:
            api = platform.start_api()
            port = free_port()
            command = ["-m", "uvicorn", "benchmarks.producers:bare", "--port", str(port), "--no-access-log"]
            environment = os.environ | {"BARE_REDIS_URL": server.url}
            with subprocess.Popen([sys.executable, *command, "--log-level", "error"], env=environment) as peer:
                try:
                    wait_for("it answers", lambda: _answers(port))
                    return _rounds(platform, api.pid, port, peer.pid, tasks, rounds, reports)
                finally:
                    peer.kill()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/openapi.json").status_code == 200
    except httpx.TransportError:
        return False


def _rounds(platform: Platform, pid: int, port: int, peer: int, tasks: int, rounds: int, reports: int) -> str:
    ids = made(platform.url, tasks)
    numbers, turn = count(1), cycle(ids)
    here = int(platform.url.rpartition(":")[2])
    ways: dict[str, tuple[int, int, int, Iterator[bytes]]] = {
        "bare": (port, peer, 1, (request(f"/tasks/{next(turn)}/progress", {"attempt": 1, "done": n}) for n in numbers)),
        "report": (
            here,
            pid,
            1,
            (request(f"/tasks/{next(turn)}/progress", {"attempt": 1, "done": n}) for n in numbers),
        ),
        "alive": (here, pid, 1, (request(f"/tasks/{next(turn)}/progress", {"attempt": 1}) for _ in numbers)),
        "together": (
            *(here, pid, TOGETHER),
            (
                request("/tasks/progress", [{"task_id": next(turn), "attempt": 1, "done": n} for _ in range(TOGETHER)])
                for n in numbers
            ),
        ),
    }
    rows: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, (to, process, each, requests) in ways.items():
            before = cpu_seconds(process)
            asyncio.run(send(to, requests, reports // each))
            cost = (cpu_seconds(process) - before) / (reports // each * each) * 1e6
            if number:  # the first round is for warming up
                rows[way].append(cost)
    least = median(rows["bare"])
    lines = ["| way | CPU of the API, µs a report | beside bare |", "| --- | --- | --- |"]
    lines += [f"| {way} | {spread(costs, '{:.0f}')} | {median(costs) / least:.2f} |" for way, costs in rows.items()]
    return "\n".join([f"{tasks:,} tasks; {rounds} rounds of {reports:,} reports.", "", *lines])


def in_the_work() -> str:
    logging.getLogger("headway.report").disabled = True
    sent: list[dict[str, Any]] = []
    rehearsal = load_registry(["headway.worker.processors.rehearsal"]).get("rehearsal")
    reporter = Reporter(
        rehearsal, options=None, input_path=None, output_folder=Path(), filename=None, content_type=None,
        size_bytes=0, memory_bytes=0, attempt=1, restored=None, send=sent.append,
    )  # fmt: skip
    reporter.phase("Units", total=1 << 40)
    url = f"http://127.0.0.1:{free_port()}"
    with report("bench", total=1 << 40, url=url, patience_seconds=0.1) as job:
        costs: dict[str, float] = {}
        for _ in range(LOOPS):
            for way, advance in (("nothing", nothing), ("processor", reporter.advance), ("report", job.advance)):
                began = time.thread_time_ns()
                for _ in range(CALLS):
                    advance(1)
                costs[way] = min(costs.get(way, float("inf")), (time.thread_time_ns() - began) / CALLS)
        [thread] = [one for one in threading.enumerate() if one.name == "headway report"]
        before, until = thread_seconds(os.getpid(), thread.native_id), time.monotonic() + AWAY_SECONDS
        while time.monotonic() < until:
            for _ in range(CALLS):
                job.advance(1)
        share = 100 * (thread_seconds(os.getpid(), thread.native_id) - before) / AWAY_SECONDS
    lines = [f"`advance(1)`: {costs['report']:.0f} ns, of a processor's job {costs['processor']:.0f} ns"]
    lines += [f"(a function that does nothing: {costs['nothing']:.0f} ns)."]
    lines += [f"A platform that is away: the thread of reports takes {share:.2f} % of a core."]
    return " ".join(lines)


def nothing(_: int) -> None:
    """What Python takes for calling anything."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reports", type=int, default=4000)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    table = measured(asked.tasks, asked.rounds, asked.reports)
    publish("producers", f"{machine()}\n\n{table}\n\n{in_the_work()}", write=asked.write)


if __name__ == "__main__":
    main()
