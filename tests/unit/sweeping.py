"""What the sweeper's tests work with: a sweeper whose clock they move, tasks in every state, and files made old."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from headway.shared import keys
from headway.shared.files.directory import DirectoryStorage
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.line import script_with_line
from headway.shared.tasks.models import Status, Task, TaskId
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from headway.worker.sweeper import Sweeper
from tests.contract.test_progress_channel import a_task

#: Takes a job out of the line, wherever it is.
FORGET = script_with_line("LINE.forget(ARGV[1])", (), ("job",), None)


class Bench:
    """A sweeper with a clock of its own and what it works on."""

    def __init__(self, redis: RedisClient, settings: Settings) -> None:
        self.now = 1000.0
        self.redis = redis
        self.settings = settings
        self.publisher = Publisher(redis, settings)
        self.reader = Reader(redis)
        self.storage = DirectoryStorage(settings.data_dir)
        self.storage.prepare()
        self.sweeper = self.another("first")

    def another(self, worker_id: str) -> Sweeper:
        services: Any = {"publisher": self.publisher, "storage": self.storage}
        return Sweeper(self.redis, self.settings, worker_id=worker_id, clock=lambda: self.now, **services)

    async def sweep(self, *, after: float = 0.0) -> None:
        self.now += after
        await self.sweeper.sweep()

    async def task(self, task: Task) -> Task:
        return await self.reader.task(task.task_id)

    async def created(self, **changes: Any) -> Task:
        task = a_task(**changes)
        await self.publisher.create(task)
        return task

    async def uploading(self, *, begun: bool = True, **changes: Any) -> Task:
        task = await self.created(status=Status.UPLOADING, **changes)
        if begun:
            await self.publisher.change(task.task_id, {"done": 1}, allowed=(Status.UPLOADING,))
        return task

    async def queue(self) -> list[str]:
        return [job.decode() for job in await self.redis.zrange(keys.LINE_WAITING, 0, -1)]

    async def taken_off_the_queue(self, task: Task) -> None:
        job = keys.job_id(task.task_id, 1)
        await self.redis.eval(FORGET, 0, job)  # type: ignore[misc]
        await self.redis.delete(keys.job(job))

    def folder(self, task_id: TaskId, age_seconds: float) -> Path:
        """A task's folder with its input in it."""
        folder = self.settings.data_dir / "tasks" / task_id
        folder.mkdir()
        (folder / "input-1").write_bytes(b"x")
        return aged(folder, age_seconds)

    async def redis_has_been_there(self, seconds: float) -> None:
        await self.redis.set(keys.SINCE, int((time.time() - seconds) * 1000))


def aged(path: Path, seconds: float) -> Path:
    os.utime(path, (time.time() - seconds, time.time() - seconds))
    return path
