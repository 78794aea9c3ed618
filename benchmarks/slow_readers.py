"""What clients that read nothing cost the others: latency of healthy streams with and without a thousand of them.

    .venv/bin/python -m benchmarks.slow_readers [--stalled 1000] [--healthy 100]

Latency is from the time the worker stamped a state (`updated_at`) to its arrival in a client, on one machine and so on
one clock. Both halves run on the same API, one after the other; the stalled readers take 2,304 bytes and then nothing,
and every one must have been dropped at the end, with its stream and its connection.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import statistics
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import httpx

from benchmarks.watchers import Crowd, Seen, allow_many_files
from tests.processes import Platform, RedisServer
from tests.resilience.test_many_streams import connections_of

_UPDATED = re.compile(rb'"updated_at":"([^"]+)"')
STEPS = json.dumps({"steps": 300, "step_seconds": 0.02})


async def latencies(platform: Platform, healthy: int) -> list[float]:
    """Milliseconds of every state of one task at every healthy watcher."""
    found: list[float] = []

    def on_event(_: Seen, block: bytes) -> None:
        if (stamped := _UPDATED.search(block)) is not None:
            found.append((time.time() - datetime.fromisoformat(stamped[1].decode()).timestamp()) * 1000)

    task_id = (await asyncio.to_thread(platform.submit, "rehearsal", options=STEPS))["task_id"]
    crowd = Crowd("127.0.0.1", int(platform.url.rsplit(":", 1)[1]))
    for _ in range(healthy):
        await crowd.add(f"/tasks/{task_id}/events", on_event=on_event)
    await crowd.until("the streams have begun", lambda seen: bool(seen.ids), 30)
    found.clear()
    await crowd.until("the task has ended", lambda seen: seen.closed is not None, 120)
    assert {seen.closed for seen in crowd.seen} == {"whole"}
    return found


async def stall(platform: Platform, count: int, task_id: str, stack: ExitStack) -> None:
    port = int(platform.url.rsplit(":", 1)[1])
    for _ in range(count):
        sock = stack.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        sock.connect(("127.0.0.1", port))
        sock.sendall(f"GET /tasks/{task_id}/events HTTP/1.1\r\nHost: bench\r\n\r\n".encode())


async def feed_the_stalled(platform: Platform, task_id: str) -> None:
    """Notes of 12 KB to them alone, until the server has dropped them all."""
    note = {"author": "bench", "text": "🙂" * 1000}
    async with httpx.AsyncClient(timeout=30) as client:
        while True:
            await client.post(f"{platform.url}/tasks/{task_id}/notes", json=note)
            ready = await client.get(f"{platform.url}/readyz")
            if ready.json()["checks"]["relay"]["streams"] <= 1:
                return
            await asyncio.sleep(0.05)


async def run(stalled: int, healthy: int) -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        RedisServer(Path(name) / "redis", appendfsync="no") as redis,
        Platform(Path(name) / "platform", redis.url, HEADWAY_SEND_TIMEOUT_SECONDS="5") as platform,
    ):
        platform.start_api()
        platform.start_worker()
        port = int(platform.url.rsplit(":", 1)[1])
        idle = connections_of(port)
        without = await latencies(platform, healthy)
        with ExitStack() as stack:
            options = '{"step_seconds": 600}'
            quiet = (await asyncio.to_thread(platform.submit, "rehearsal", options=options))["task_id"]
            await stall(platform, stalled, quiet, stack)
            with_them = await latencies(platform, healthy)
            httpx.post(f"{platform.url}/tasks/{quiet}/notes", json={"author": "x", "text": "x"})
            await asyncio.wait_for(feed_the_stalled(platform, quiet), 240)
            left = connections_of(port) - idle
        again = await latencies(platform, healthy)
    for label, values in (("alone", without), (f"beside {stalled} that read nothing", with_them), ("after", again)):
        cuts = statistics.quantiles(values, n=100)
        print(f"{label}: {len(values)} events, p50 {statistics.median(values):.1f} ms, p99 {cuts[98]:.1f} ms")
    print(f"connections of the stalled left: {left}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stalled", type=int, default=1000)
    parser.add_argument("--healthy", type=int, default=100)
    arguments = parser.parse_args()
    allow_many_files(2 * arguments.stalled + 2000)
    asyncio.run(run(arguments.stalled, arguments.healthy))


if __name__ == "__main__":
    main()
