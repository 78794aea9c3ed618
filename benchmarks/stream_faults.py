"""The same faults under Headway and under plain arq + FastAPI + sse-starlette: what a watcher sees of each.

    .venv/bin/python -m benchmarks.stream_faults [--streams 1000] [--tasks 20] [--json FILE]

Each row is a run of its own: real Redis (append-only, fsync always), a real API and worker, and the streams of a second
process's worth of clients (benchmarks/watchers.py). No client reconnects: a stream that is cut, silent or wrong counts
as that. The peer's packages are installed into a throw-away venv with the versions of this lock file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from benchmarks.watchers import Crowd, allow_many_files, is_unbroken
from tests.processes import HeadwayProcess, Platform, RedisServer, free_port
from tests.waiting import wait_for

STEPS, STEP_SECONDS = 100, 0.1
#: What is not at the truth so long after the fault is over never will be.
PATIENCE_SECONDS = 60.0


@dataclass
class Row:
    fault: str
    stack: str
    streams: int
    #: Streams that ended whole with the true end (for `stop`: ended whole at all).
    true: int
    #: Of those, without a hole, a double or a second end.
    unbroken: int
    cut: int
    silent: int
    #: From the end of the fault to the last stream's truth; None if some never came to it.
    seconds: float | None
    note: str = ""


class Stack:
    """One of the two, running. `start_api` and `start_worker` give processes with a pid to be killed."""

    name: str
    api: HeadwayProcess | subprocess.Popen[bytes]

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        self.folder, self.redis = folder, redis
        self.port = free_port()

    def submit(self) -> str:
        raise NotImplementedError

    def worker_code(self) -> int | None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError


class Headway(Stack):
    name = "headway"

    def __init__(self, folder: Path, redis: RedisServer, tasks: int) -> None:
        super().__init__(folder, redis)
        self.platform = Platform(folder / "headway", redis.url, HEADWAY_WORKER_CONCURRENCY=str(tasks))
        self.api = self.platform.start_api(port=self.port)
        self.platform.start_worker()

    def submit(self) -> str:
        options = json.dumps({"steps": STEPS, "step_seconds": STEP_SECONDS})
        return str(self.platform.submit("rehearsal", options=options)["task_id"])

    def worker_code(self) -> int | None:
        return self.platform.workers[0].code

    def stop(self) -> None:
        self.platform.__exit__(None, None, None)


class Plain(Stack):
    name = "arq + FastAPI + sse-starlette"

    def __init__(self, folder: Path, redis: RedisServer, python: Path) -> None:
        super().__init__(folder, redis)
        env = os.environ | {"PLAIN_REDIS_URL": redis.url}
        cwd = Path(__file__).parent / "plain_stack"
        self.api = subprocess.Popen(
            [python, "-m", "uvicorn", "app:app", "--port", str(self.port), "--no-access-log"],
            cwd=cwd,
            env=env,
            stderr=subprocess.DEVNULL,
        )
        self.worker = subprocess.Popen(
            [python, "-m", "arq", "app.WorkerSettings"], cwd=cwd, env=env, stderr=subprocess.DEVNULL
        )
        wait_for("the plain API answers", self._answers, seconds=30)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/docs").is_success
        except httpx.HTTPError:
            return False

    def submit(self) -> str:
        query = {"steps": STEPS, "step_seconds": STEP_SECONDS}
        return str(httpx.post(f"http://127.0.0.1:{self.port}/tasks", params=query).json()["task_id"])

    def worker_code(self) -> int | None:
        code: int | None = self.worker.poll()
        return code

    def stop(self) -> None:
        for process in (self.api, self.worker):
            assert isinstance(process, subprocess.Popen)
            process.kill()
            process.wait()


async def watched(stack: Stack, streams: int, tasks: int) -> Crowd:
    ids = [await asyncio.to_thread(stack.submit) for _ in range(tasks)]
    crowd = Crowd("127.0.0.1", stack.port)
    await crowd.add_all([f"/tasks/{ids[number % tasks]}/events" for number in range(streams)])
    await crowd.until("each has an event", lambda seen: bool(seen.ids), 60)
    return crowd


def judged(fault: str, stack: Stack, crowd: Crowd, since: float, *, wanted: tuple[bytes, ...]) -> Row:
    true = [seen for seen in crowd.seen if seen.closed == "whole" and (not wanted or seen.status in wanted)]
    last = max((seen.last_at for seen in true), default=since)
    code = stack.worker_code()
    return Row(
        fault,
        stack.name,
        len(crowd.seen),
        len(true),
        sum(is_unbroken(seen) for seen in true) if wanted else len(true),
        sum(seen.closed == "cut" for seen in crowd.seen),
        sum(seen.closed is None for seen in crowd.seen),
        round(last - since, 1) if len(true) == len(crowd.seen) else None,
        "" if code is None else f"the worker exited with {code}",
    )


async def redis_killed(stack: Stack, crowd: Crowd, *, down_seconds: float = 5, forget: bool = False) -> Row:
    """SIGKILL; back on the same port after a while, with its data or, `forget`, without."""
    stack.redis.kill()
    if forget:
        stack.redis.forget()
    await asyncio.sleep(down_seconds)
    await asyncio.to_thread(stack.redis.start)
    back = time.monotonic()
    await crowd.until("all ended", lambda seen: seen.closed is not None, PATIENCE_SECONDS)
    name = "Redis comes back empty" if forget else f"Redis killed for {down_seconds:g} s"
    return judged(name, stack, crowd, back, wanted=(b"failed",) if forget else (b"completed",))


async def redis_empty(stack: Stack, crowd: Crowd) -> Row:
    return await redis_killed(stack, crowd, down_seconds=0, forget=True)


async def subscriptions_killed(stack: Stack, crowd: Crowd) -> Row:
    """CLIENT KILL TYPE pubsub, ten times, while tasks run."""
    import redis

    with redis.Redis(port=stack.redis.port) as client:
        for _ in range(10):
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.sleep(0.3)
    over = time.monotonic()
    await crowd.until("all ended", lambda seen: seen.closed is not None, PATIENCE_SECONDS)
    return judged("subscriptions killed 10 times", stack, crowd, over, wanted=(b"completed",))


async def api_stopped(stack: Stack, crowd: Crowd) -> Row:
    """SIGTERM; how many streams end whole, and when the process is gone."""
    since = time.monotonic()
    os.kill(stack.api.pid, signal.SIGTERM)
    try:
        await asyncio.to_thread(stack.api.wait, 20)
        gone = f"the process was gone after {time.monotonic() - since:.1f} s"
    except subprocess.TimeoutExpired:
        gone = "the process was there after 20 s"
    await crowd.until("all closed", lambda seen: seen.closed is not None, 1)
    row = judged("API SIGTERM", stack, crowd, since, wanted=())
    row.note = gone
    return row


Fault = Callable[[Stack, Crowd], Awaitable[Row]]
FAULTS: tuple[Fault, ...] = (redis_killed, redis_empty, subscriptions_killed, api_stopped)


def plain_python(folder: Path) -> Path:
    """A venv with the peer's packages, at the versions that are installed here."""
    from importlib.metadata import version

    venv = folder / "venv"
    uv = Path(sys.executable).with_name("uv")
    pins = [
        f"{name}=={version(name)}" for name in ("arq", "fastapi", "uvicorn", "redis", "hiredis", "uvloop", "httptools")
    ]
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, venv], check=True)
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", venv / "bin/python", *pins, "sse-starlette"], check=True
    )
    return venv / "bin" / "python"


async def run(streams: int, tasks: int) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        python = plain_python(Path(name))
        for fault in FAULTS:
            for stack_number in range(2):
                folder = Path(name) / f"{fault.__name__}-{stack_number}"
                with RedisServer(folder / "redis") as redis:
                    stack = Headway(folder, redis, tasks) if stack_number == 0 else Plain(folder, redis, python)
                    crowd = await watched(stack, streams, tasks)
                    try:
                        rows.append(await fault(stack, crowd))
                        print(rows[-1], flush=True)
                    finally:
                        await crowd.close()
                        stack.stop()
    return rows


def table(rows: list[Row]) -> str:
    lines = [
        "| fault | stack | streams | at the truth | of these unbroken | cut | silent for ever | seconds after | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        seconds = "–" if row.seconds is None else row.seconds
        lines.append(
            f"| {row.fault} | {row.stack} | {row.streams} | {row.true} | {row.unbroken} | {row.cut} | {row.silent} "
            f"| {seconds} | {row.note} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    allow_many_files(3 * arguments.streams + 1000)
    rows = asyncio.run(run(arguments.streams, arguments.tasks))
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
