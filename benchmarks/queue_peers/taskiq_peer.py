"""taskiq with the list broker of taskiq-redis. The worker is taskiq's own command on `taskiq_peer:broker`, with one
process; run as a program this is the client, see noop.py."""

from __future__ import annotations

import asyncio

from noop import REDIS_URL, ran, say, serve_client
from taskiq import TaskiqEvents, TaskiqState
from taskiq_redis import ListQueueBroker

broker = ListQueueBroker(REDIS_URL)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def startup(_: TaskiqState) -> None:
    say("ready")


@broker.task
async def job(begun_ns: int) -> None:
    ran(begun_ns)


async def ask() -> None:
    await broker.startup()
    await serve_client(job.kiq)


if __name__ == "__main__":
    asyncio.run(ask())
