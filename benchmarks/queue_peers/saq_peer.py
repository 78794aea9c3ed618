"""SAQ as it comes. `worker` or `client`, see noop.py."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from noop import CONCURRENCY, REDIS_URL, ran, say, serve_client
from saq import Queue, Worker


async def job(ctx: dict[str, Any], *, begun_ns: int) -> None:
    ran(begun_ns)


async def work() -> None:
    async def startup(_: Any) -> None:
        say("ready")

    await Worker(Queue.from_url(REDIS_URL), [job], concurrency=CONCURRENCY, startup=startup).start()


async def ask() -> None:
    queue = Queue.from_url(REDIS_URL)
    await queue.connect()
    await serve_client(lambda begun_ns: queue.enqueue("job", begun_ns=begun_ns))


asyncio.run({"worker": work, "client": ask}[sys.argv[1]]())
