"""arq as it comes, or with the `poll_delay` of PEER_POLL_DELAY. `worker` or `client`, see noop.py."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from arq.connections import RedisSettings, create_pool
from arq.worker import Worker
from noop import CONCURRENCY, REDIS_URL, ran, say, serve_client


async def job(ctx: dict[str, Any], begun_ns: int) -> None:
    ran(begun_ns)


async def work() -> None:
    given: dict[str, Any] = {"poll_delay": float(delay)} if (delay := os.environ.get("PEER_POLL_DELAY")) else {}
    settings = RedisSettings.from_dsn(REDIS_URL)

    async def on_startup(ctx: dict[Any, Any]) -> None:
        say("ready")

    worker = Worker([job], redis_settings=settings, max_jobs=CONCURRENCY, on_startup=on_startup, **given)
    await worker.async_run()


async def ask() -> None:
    redis = await create_pool(RedisSettings.from_dsn(REDIS_URL))
    await serve_client(lambda begun_ns: redis.enqueue_job("job", begun_ns))


asyncio.run({"worker": work, "client": ask}[sys.argv[1]]())
