"""Our worker's loop (worker/arq_worker.py) with a no-op in the place of `process_file`; arq's own way to enqueue, our
JSON, our wake-up. `worker` or `client`, see noop.py."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[2]))

from arq.worker import func
from noop import CONCURRENCY, REDIS_URL, ran, say, serve_client

from headway.shared import keys
from headway.shared.redis.client import connect
from headway.shared.redis.subscription import Subscription
from headway.shared.settings import Settings
from headway.shared.tasks.queue import PROCESS_FILE, WAKE, serialize
from headway.worker.arq_worker import LeasedWorker
from headway.worker.leases import Leases


async def process_file(ctx: dict[str, Any], begun_ns: int) -> None:
    ran(begun_ns)


async def work(settings: Settings) -> None:
    async with connect(settings, retries=3) as redis:
        worker = LeasedWorker(
            func(process_file, name=PROCESS_FILE),
            redis=redis,
            queue_name=keys.QUEUE,
            leases=Leases(redis, "benchmark", settings.lease_seconds),
            lease_seconds=settings.lease_seconds,
            max_jobs=CONCURRENCY,
            job_timeout_seconds=settings.task_timeout_seconds,
            on_lost=lambda _: None,
            ctx={},
        )

        def on_subscribed(_: str) -> None:
            worker.wake()
            say("ready")

        subscription = Subscription(settings, on_message=lambda *_: worker.wake(), on_subscribed=on_subscribed)
        subscription.subscribe(keys.CONTROL)
        async with asyncio.TaskGroup() as group:
            group.create_task(subscription.run())
            group.create_task(worker.main())


async def ask(settings: Settings) -> None:
    async with connect(settings) as redis:
        redis.job_serializer = serialize

        async def enqueue(begun_ns: int) -> None:
            await redis.enqueue_job(PROCESS_FILE, begun_ns, _queue_name=keys.QUEUE)
            await redis.publish(keys.CONTROL, WAKE)

        await serve_client(enqueue)


asyncio.run({"worker": work, "client": ask}[sys.argv[1]](Settings(redis_url=REDIS_URL)))
