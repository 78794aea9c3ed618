"""Progress of work that is not Headway's: a plain script (a cron job, a Celery task) that shows its own on the page.

    HEADWAY_REDIS_URL=redis://127.0.0.1:6379/0 python nightly_report.py

It makes a task, changes it while it works, and completes it; no worker of Headway's runs anything. Whoever watches
`/tasks/{id}/events`, the page or `headway watch` sees it like any other, and who cancels it stops it here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headway.shared import keys
from headway.shared.errors import Refused
from headway.shared.redis.client import RedisClient, connect
from headway.shared.settings import Settings, load_settings
from headway.shared.tasks.models import ErrorType, Result, Status, Task, TaskId, new_task_id, utc_now
from headway.shared.tasks.progress import Publisher

CHAPTERS = ("Orders", "Returns", "Stock", "Forecast")
#: The script is the first and only one to try.
ATTEMPT = 1


def new_task(processor: str, steps: int) -> Task:
    now = utc_now()
    return Task(
        task_id=new_task_id(), processor=processor, filename=None, size_bytes=None, content_type=None, options={},
        batch_id=None, status=Status.PROCESSING, progress=0, step=0, total_steps=steps, message="Starting",
        done=0, total=None, unit=None, rate=None, eta_seconds=None, attempt=ATTEMPT, version=1,
        created_at=now, started_at=now, updated_at=now, finished_at=None, result=None, error=None,
    )  # fmt: skip


@asynccontextmanager
async def alive(redis: RedisClient, settings: Settings, task_id: TaskId) -> AsyncIterator[None]:
    """Holds the task's lease. Without it Headway's workers, if there are any, would think its worker dead: they would
    take the task, find that they have no such processor, and fail it. Which is what happens if this script dies."""
    lease = keys.job_lease(keys.job_id(task_id, ATTEMPT))

    async def renew() -> None:
        while True:
            await redis.set(lease, "nightly_report.py", px=int(settings.lease_seconds * 1000))
            await asyncio.sleep(settings.lease_seconds / 3)

    await redis.set(lease, "nightly_report.py", px=int(settings.lease_seconds * 1000))
    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.wait({renewing})
        await redis.delete(lease)


async def write_chapter(chapter: str) -> int:
    """The work itself: here it is only time."""
    await asyncio.sleep(0.2)
    return len(chapter) * 100


async def report(publisher: Publisher, task_id: TaskId) -> None:
    words = 0
    for step, chapter in enumerate(CHAPTERS, start=1):
        progress = 100 * (step - 1) / len(CHAPTERS)
        state = {"step": step, "message": f"Writing {chapter}", "progress": progress}
        await publisher.change(task_id, state, allowed=(Status.PROCESSING,), attempt=ATTEMPT)
        words += await write_chapter(chapter)
        data = {"level": "info", "message": f"{chapter} is done", "at": utc_now().isoformat()}
        await publisher.emit(task_id, "log", data, allowed=(Status.PROCESSING,), attempt=ATTEMPT)
    await publisher.complete(task_id, Result(summary={"words": words}, files=[]), attempt=ATTEMPT)


async def main() -> None:
    settings = load_settings()
    async with connect(settings) as redis:
        publisher, task = Publisher(redis, settings), new_task("nightly-report", len(CHAPTERS))
        async with alive(redis, settings, task.task_id):
            await publisher.create(task)
            print(task.task_id, flush=True)
            try:
                await report(publisher, task.task_id)
            except Refused:
                print("cancelled")  # no write of ours is taken any more
            except Exception as error:
                await publisher.fail(task.task_id, ErrorType.PROCESSOR_ERROR, str(error), attempt=ATTEMPT)
                raise


if __name__ == "__main__":
    asyncio.run(main())
