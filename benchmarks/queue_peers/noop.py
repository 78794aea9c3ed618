"""The job that every Python peer runs, and what its client reads from standard input.

Nothing but the standard library: it is imported into venvs that hold one peer each. The clock is CLOCK_MONOTONIC, which
all processes of a Linux machine share, Node's `process.hrtime` too.

    worker's output   `ready` where it knows; `picked NS` for a job that says when it was enqueued; `first NS` and
                      `last NS` when the first and the JOBS-th no-op began
    client's input    `fill N`: N no-ops, answered by `filled`; `one`: a job with the time before the call
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable

REDIS_URL = os.environ["PEER_REDIS_URL"]
CONCURRENCY = int(os.environ.get("PEER_CONCURRENCY", "10"))
JOBS = int(os.environ.get("PEER_JOBS", "0"))

_count = 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def ran(begun_ns: int) -> None:
    """The job's first and only line."""
    global _count
    now = time.monotonic_ns()
    if begun_ns:
        say(f"picked {now - begun_ns}")
        return
    _count += 1
    if _count == 1:
        say(f"first {now}")
    if _count == JOBS:
        say(f"last {now}")


async def serve_client(enqueue: Callable[[int], Awaitable[object]]) -> None:
    """`enqueue(begun_ns)` puts one job on the queue. Returns at the end of standard input."""
    say("ready")
    while line := await asyncio.to_thread(sys.stdin.readline):
        verb, _, count = line.strip().partition(" ")
        if verb == "one":
            await enqueue(time.monotonic_ns())
        else:
            for start in range(0, int(count), 50):
                await asyncio.gather(*(enqueue(0) for _ in range(min(50, int(count) - start))))
            say("filled")
