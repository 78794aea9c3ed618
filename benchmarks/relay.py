"""Our relay beside other servers: what one delivered event costs, as a multiple of a bare C server that sends the same.

    .venv/bin/python -m benchmarks.relay [--rounds 3] [--clients 1000] [--only headway c …] [--write]

One run, one Redis. The server under test has one core to itself; Redis, the publisher and the clients (load.c, compiled
on the spot) share another. In every round each server takes its turn, freshly started, with every measure, so that a
noisy neighbour harms all alike; what is printed is the median of the rounds, with the least and the most. The events
are raw PUBLISHes of the bytes that progress.lua publishes, onto tasks that exist in Redis, made by the real publisher;
a server that has a publishing of its own (Nchan) is given the same data by POST, to a second process on the other core.

    one task     every client watches the same task
    a task each  as many tasks as clients, each event for one client
    backlog      the server is stopped (SIGSTOP), events are published on the one task, and it goes on
    memory       the server's anonymous memory a connection, the first events included: with all clients, less with 20
    connects     new streams a second, 64 at a time, with a snapshot where the server sends one; all to one task

Cost is the CPU time (user and system, as the scheduler counts it) of all the server's processes over the measured
events, a delivered one. Latency is from the PUBLISH to the client's read, at that rate (a slow server gets a lower
one). Lost is what had not come PATIENCE_SECONDS after the last PUBLISH, and what was skipped or doubled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.relay_peers import Peer, found
from benchmarks.relay_table import publish
from headway.api.submission import draft
from headway.shared.redis.client import connect
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, Status
from headway.shared.tasks.progress import Publisher
from tests.processes import RedisServer, free_port
from tests.waiting import wait_for

HERE = Path(__file__).parent
#: Deliveries a second at which the cost is taken: a bare server is at about 15 % of a core, and has time to be idle.
DELIVERIES_PER_SECOND = 20_000
SECONDS = 3
#: A server that is stopped is given this many deliveries at once.
BACKLOG_DELIVERIES = 100_000
#: What is owed and has not come by then does not come.
PATIENCE_SECONDS = 10.0

SERVER_CORE, OTHER_CORE = sorted(os.sched_getaffinity(0))[:1], sorted(os.sched_getaffinity(0))[1:2]


@dataclass(frozen=True)
class Measured:
    """One server, one measure, one round."""

    server: str
    measure: str
    us_per_event: float
    lost: int
    owed: int
    p50_ms: float
    p99_ms: float
    kib_per_connection: float
    connects_per_second: float
    connect_us: float


def pinned(core: list[int]) -> Any:
    return lambda: os.sched_setaffinity(0, core)


def family(pid: int) -> list[int]:
    """A process and what it started."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = {int(child) for thread in threads for child in (thread / "children").read_text().split()}
    except OSError:
        return []
    return [pid, *(one for child in children for one in family(child))]


def cpu_seconds(pid: int) -> float:
    spent = 0
    for one in family(pid):
        for thread in Path(f"/proc/{one}/task").iterdir():
            spent += int((thread / "schedstat").read_text().split()[0])
    return spent / 1e9


def anonymous_bytes(pid: int) -> int:
    total = 0
    for one in family(pid):
        for line in Path(f"/proc/{one}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total


class Load:
    """load.c as it is running: a command, an answer."""

    def __init__(self, binary: Path, *arguments: object) -> None:
        command = [str(binary), "clients", *map(str, arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=pinned(OTHER_CORE)
        )

    def ask(self, *words: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


async def make_tasks(redis_url: str, count: int, folder: Path) -> Path:
    """Tasks by the real publisher, in state `queued`; the file that load.c reads them from, with a state of one."""
    settings = Settings(redis_url=redis_url, data_dir=folder / "data")
    lines = []
    async with connect(settings) as redis:
        publisher = Publisher(redis, settings)
        for _ in range(count):
            task = draft("rehearsal", owner=ANYONE, status=Status.QUEUED, options={"steps": 10, "step_seconds": 2})
            await publisher.create(task)
            lines.append(f"{task.task_id} 1\n")
        [(_, fields)] = await redis.xrange(f"headway:task:{task.task_id}:events", count=1)
    (folder / "tasks").write_text("".join(lines))
    state = json.loads(fields[b"d"]) | {"task_id": "$I", "version": 0, "status": "processing", "message": "@$T"}
    state |= {"progress": 42.5, "step": 2, "total_steps": 3, "done": 44564480, "total": 104857600, "unit": "bytes"}
    state |= {"rate": 73400320.0, "eta_seconds": 0.8, "size_bytes": 104857600}
    text = json.dumps(state, separators=(",", ":")).replace('"version":0', '"version":$V')
    (folder / "template").write_text(text)
    return folder / "tasks"


@contextmanager
def serving(peer: Peer, folder: Path, redis: RedisServer, core: list[int]) -> Iterator[tuple[int, int]]:
    """The server's pid and its port, as soon as it listens."""
    port = free_port()
    command, env = peer.start(port, redis.port, folder)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
    with (folder / f"{peer.name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=inherited | env, stdout=log, stderr=log, preexec_fn=pinned(core), start_new_session=True
        )
    try:
        wait_for(f"{peer.name} listens", lambda: listens(port), seconds=30)
        yield process.pid, port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def listens(port: int) -> bool:
    needle = f":{port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(fields[1].endswith(needle) and fields[3] == "0A" for fields in lines)


def all_subscribed(redis: RedisServer) -> None:
    """Waits until no more subscriptions come: some servers answer before they have theirs."""
    with Redis(port=redis.port) as client:
        seen, since = -1, time.monotonic()
        while time.monotonic() - since < 0.5:
            channels = client.pubsub_channels("headway:task:*")
            count = sum(number for _, number in client.pubsub_numsub(*channels))
            if count != seen:
                seen, since = count, time.monotonic()
            time.sleep(0.05)


def once(peer: Peer, measure: str, clients: int, load: Path, folder: Path, redis: RedisServer) -> Measured:
    tasks = clients if measure == "a task each" else 1
    per_event = clients // tasks
    with ExitStack() as stack:
        pid, port = stack.enter_context(serving(peer, folder, redis, SERVER_CORE))
        post_port = [stack.enter_context(serving(peer, folder, redis, OTHER_CORE))[1]] if peer.posted else []
        driver = Load(load, "127.0.0.1", port, redis.port, folder / "tasks", folder / "template", *post_port)
        stack.callback(driver.close)
        driver.ask("connect", 20, 1, 20)  # what a server makes once is no connection's
        memory, spent = anonymous_bytes(pid), cpu_seconds(pid)
        connected = driver.ask("connect", clients, tasks, 64)
        connect_us = (cpu_seconds(pid) - spent) / clients * 1e6
        if connected["refused"] or connected["closed"]:
            raise OSError(f"{peer.name} refused {connected['refused'] + connected['closed']} of {clients} streams")
        all_subscribed(redis)
        warm = driver.ask("run", 20_000 * peer.pace / per_event, max(tasks, 10), PATIENCE_SECONDS)
        kib = (anonymous_bytes(pid) - memory) / clients / 1024
        spent = cpu_seconds(pid)
        if measure == "backlog":
            for one in family(pid):
                os.kill(one, signal.SIGSTOP)
            driver.ask("publish", BACKLOG_DELIVERIES // per_event)
            for one in family(pid):
                os.kill(one, signal.SIGCONT)
            told = driver.ask("wait", PATIENCE_SECONDS * 2)
        else:
            rate = DELIVERIES_PER_SECOND * peer.pace / per_event
            told = driver.ask("run", rate, int(rate * SECONDS), PATIENCE_SECONDS)
        cost = (cpu_seconds(pid) - spent) / max(told["delivered"], 1) * 1e6
    lost = told["owed"] - told["delivered"] + told["doubled"] + (warm["lost"] if warm["delivered"] else 0)
    return Measured(
        *(peer.title, measure, cost, lost, told["owed"], told["p50_ms"], told["p99_ms"], kib),
        *(clients / connected["seconds"], connect_us),
    )


def compiled(folder: Path) -> Path:
    binary = folder / "load"
    subprocess.run(["cc", "-O2", "-o", str(binary), str(HERE / "load.c")], check=True)
    return binary


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1000])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--measures", nargs="*", default=["one task", "a task each", "backlog"])
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    arguments = parser.parse_args()
    if not OTHER_CORE:
        sys.exit("skipped: needs two cores, one for the server and one for everything else")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    results: dict[int, list[Measured]] = {}
    with tempfile.TemporaryDirectory(prefix="headway-relay-") as name, RedisServer(Path(name) / "redis") as redis:
        os.sched_setaffinity(redis.pid, OTHER_CORE)
        folder = Path(name)
        try:
            load = compiled(folder)
        except (OSError, subprocess.CalledProcessError):
            sys.exit("skipped: needs a C compiler (cc)")
        asyncio.run(make_tasks(redis.url, max(arguments.clients), folder))
        peers = list(found(arguments.only, load))
        for clients in arguments.clients:
            results[clients] = []
            for round_number in range(arguments.rounds):
                for measure in arguments.measures:
                    for peer in peers:
                        try:
                            measured = once(peer, measure, clients, load, folder, redis)
                        except (OSError, AssertionError, TimeoutError) as error:
                            print(f"failed: {peer.title}, {measure}: {error}", flush=True)
                            continue
                        results[clients].append(measured)
                        print(json.dumps({"clients": clients, "round": round_number, **asdict(measured)}), flush=True)
    publish(results, write=arguments.write)


if __name__ == "__main__":
    main()
