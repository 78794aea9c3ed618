"""Our worker's loop beside other queues: how soon a job starts, no-ops a second, what an idle worker asks of Redis.

    .venv/bin/python -m benchmarks.queues [--rounds 5] [--jobs 3000] [--picks 200] [--idle 10] [--only QUEUE …]

One run, one Redis; in every round each queue takes its turn with every measure, so that a noisy neighbour harms all
alike, and what is printed is the median of the rounds with the least and the most. The peers (queue_peers/) are
installed into a cache folder under the machine's temporary one; one that cannot be is named and left out.

    pick-up      from before the enqueue call to the job's first line, one job at a time, at concurrency 10
    no-op/s      jobs enqueued before the worker is started; from the first one's begin to the last one's
    idle         every command Redis counted (INFO commandstats), those inside of scripts too, with a worker that has
                 had its first job
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from tests.processes import Platform, RedisServer

PEERS = Path(__file__).parent / "queue_peers"
CACHE = Path(tempfile.gettempdir()) / "headway-queue-peers"
#: A peer that has not answered by then never will.
PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Peer:
    name: str
    worker: list[str]
    client: list[str]
    folder: Path = PEERS
    env: dict[str, str] = field(default_factory=dict)


def installed(names: list[str]) -> Iterator[Peer]:
    """Every peer that is wanted and can be had."""

    def ours(program: str, name: str, **env: str) -> Peer:
        command = [sys.executable, program]
        return Peer(name, [*command, "worker"], [*command, "client"], env=env)

    def own_venv(name: str, *packages: str) -> Path:
        uv, venv = Path(sys.executable).with_name("uv"), CACHE / name
        if not (venv / "installed").exists():
            quietly(uv, "venv", "--clear", "--python", sys.executable, venv)
            quietly(uv, "pip", "install", "--python", venv / "bin/python", *packages)
            (venv / "installed").touch()
        return venv / "bin"

    def saq() -> Peer:
        python = str(own_venv("saq", "saq[redis]==0.26.4", "hiredis==3.5.0", "typing_extensions==4.16.0") / "python")
        return Peer("SAQ", [python, "saq_peer.py", "worker"], [python, "saq_peer.py", "client"])

    def taskiq() -> Peer:
        found = own_venv("taskiq", "taskiq==0.13.0", "taskiq-redis==1.2.4", "hiredis==3.5.0")
        command = [str(found / "taskiq"), "worker", "taskiq_peer:broker", "--workers", "1", "--max-async-tasks"]
        return Peer("taskiq", command, [str(found / "python"), "taskiq_peer.py"])

    def bullmq() -> Peer:
        folder = CACHE / "bullmq"
        shutil.copytree(PEERS, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        quietly("npm", "install", "--no-audit", "--no-fund", cwd=folder)
        node = ["node", "bullmq_peer.mjs"]
        return Peer("BullMQ", [*node, "worker"], [*node, "client"], folder=folder)

    ways: dict[str, Any] = {
        "headway": lambda: ours("headway_peer.py", "Headway"),
        "arq": lambda: ours("arq_peer.py", "arq, as it comes"),
        "arq-fast": lambda: ours("arq_peer.py", "arq, poll_delay=0.01", PEER_POLL_DELAY="0.01"),
        "saq": saq,
        "taskiq": taskiq,
        "bullmq": bullmq,
    }
    for name in names or list(ways):
        try:
            yield ways[name]()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"left out: {name} could not be installed ({error})", flush=True)


def quietly(*command: Any, cwd: Path | None = None) -> None:
    subprocess.run(list(map(str, command)), cwd=cwd, check=True, capture_output=True)


class Program:
    """One process of a peer. Its output is read line by line, with a deadline for all of it."""

    def __init__(self, peer: Peer, role: str, redis_url: str, concurrency: int, jobs: int = 0) -> None:
        command = peer.client if role == "client" else peer.worker
        if command[-1] == "--max-async-tasks":
            command = [*command, str(concurrency)]
        numbers = {"PEER_REDIS_URL": redis_url, "PEER_CONCURRENCY": str(concurrency), "PEER_JOBS": str(jobs)}
        self._process = subprocess.Popen(
            command,
            cwd=peer.folder,
            env=os.environ | peer.env | numbers,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._name = f"{peer.name}'s {role}"

    def tell(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def hear(self, word: str) -> int:
        """The number after the next line that begins with `word`."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            first, _, number = line.strip().partition(" ")
            if first == word:
                return int(number or 0)
        raise RuntimeError(f"{self._name} ended without {word!r}")

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def running(*started: Program) -> Iterator[None]:
    """The programs, ended at the end; a deadline for the whole of it, so that a peer that hangs is an error."""

    def late(*_: Any) -> None:
        raise TimeoutError("a peer hangs")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(int(PATIENCE_SECONDS))
    try:
        yield
    finally:
        signal.alarm(0)
        for program in started:
            program.stop()


def pick_ups(peer: Peer, server: RedisServer, count: int, idle_seconds: float) -> tuple[list[float], float]:
    """Milliseconds of each job, and the idle worker's commands a second."""
    worker = Program(peer, "worker", server.url, 10)
    client = Program(peer, "client", server.url, 10)
    with running(worker, client), redis.Redis(port=server.port) as commands:
        worker.hear("ready")
        client.hear("ready")
        found = []
        for number in range(count + 20):
            client.tell("one")
            taken = worker.hear("picked") / 1e6
            if number >= 20:
                found.append(taken)
            time.sleep(0.005)  # the worker has finished with this one and waits again
        return found, commands_a_second(commands, idle_seconds)


def commands_a_second(commands: redis.Redis, seconds: float) -> float:
    """What Redis executed, those commands included that a script called."""
    time.sleep(1)
    commands.config_resetstat()
    time.sleep(seconds)
    counted: Any = commands.info("commandstats")
    ours = ("cmdstat_config|resetstat", "cmdstat_info")
    calls: int = sum(stat["calls"] for name, stat in counted.items() if name not in ours)
    return calls / seconds


def whole_worker(server: RedisServer, folder: Path, seconds: float) -> float:
    """Commands a second of an idle `headway worker`, with its sweeper and everything."""
    with Platform(folder, server.url) as platform, redis.Redis(port=server.port) as commands:
        commands.flushall()
        platform.start_worker()
        return commands_a_second(commands, seconds)


def no_ops(peer: Peer, server: RedisServer, concurrency: int, jobs: int) -> float:
    """Jobs a second."""
    client = Program(peer, "client", server.url, concurrency)
    with running(client):
        client.hear("ready")
        client.tell(f"fill {jobs}")
        client.hear("filled")
    worker = Program(peer, "worker", server.url, concurrency, jobs)
    with running(worker):
        first = worker.hear("first")
        return (jobs - 1) / ((worker.hear("last") - first) / 1e9)


@dataclass
class Measured:
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    at_10: list[float] = field(default_factory=list)
    at_100: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)


def spread(values: list[float], digits: int) -> str:
    """The median and, of several, the least and the most."""
    if not values:
        return "–"
    shown = f"{statistics.median(values):,.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def table(found: dict[str, Measured]) -> str:
    lines = [
        "| queue | pick-up p50, ms | p99, ms | no-op/s at 10 | no-op/s at 100 | idle commands/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in found.items():
        cells = (
            spread(row.p50, 2),
            spread(row.p99, 2),
            spread(row.at_10, 0),
            spread(row.at_100, 0),
            spread(row.idle, 1),
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--picks", type=int, default=200)
    parser.add_argument("--idle", type=float, default=10)
    parser.add_argument("--only", nargs="*", default=[], metavar="QUEUE")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    peers = list(installed(arguments.only))
    found = {peer.name: Measured() for peer in peers}
    with tempfile.TemporaryDirectory() as name, RedisServer(Path(name) / "redis", appendfsync="no") as server:
        for number in range(arguments.rounds):
            for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
                row = found[peer.name]
                slow = 10 if peer.name == "arq, as it comes" else 1  # a quarter of a second each
                with redis.Redis(port=server.port) as commands:
                    for concurrency, rates in ((10, row.at_10), (100, row.at_100)):
                        commands.flushall()
                        rates.append(no_ops(peer, server, concurrency, arguments.jobs // slow))
                    commands.flushall()
                    taken, idle = pick_ups(peer, server, arguments.picks // slow, arguments.idle)
                    row.p50.append(statistics.median(taken))
                    row.p99.append(statistics.quantiles(taken, n=100, method="inclusive")[98])
                    row.idle.append(idle)
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps({name: vars(row) for name, row in found.items()}, indent=1))
        whole = whole_worker(server, Path(name) / "platform", 3 * arguments.idle)
    print(table(found))
    print(f"An idle `headway worker`, its sweeper included: {whole:.1f} commands/s")


if __name__ == "__main__":
    main()
