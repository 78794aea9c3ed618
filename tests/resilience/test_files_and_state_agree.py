"""Wherever an attempt is broken off, the task's state and its files agree.

A real runner runs a real child on a real Redis and disk. At one of the points where it waits, for Redis or for the
disk, while what it waits for is under way or after it, something goes wrong; every point gets every fault. Then a
second worker does what is left. In the end a completed task has its results, whole, and no other task has any.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from arq import Retry
from redis.commands.core import AsyncScript

from headway.shared import keys
from headway.shared.errors import RedisAway
from headway.shared.files.directory import DirectoryStorage
from headway.shared.redis.client import RedisClient
from headway.shared.redis.script_pipeline import ScriptPipeline
from headway.shared.settings import Settings
from headway.shared.tasks.models import Status, Task, TaskId
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from headway.shared.tasks.registry import load_registry
from headway.worker.jobs import Outcome, Runner
from headway.worker.orphaned_files import UNNAMED_SECONDS, OrphanedFiles
from headway.worker.sandbox import Sandbox
from headway.worker.worker_metrics import WorkerMetrics
from tests.contract.test_progress_channel import a_task

FAULTS = (
    *("lost answer", "time-out", "worker stops", "job is cancelled", "task is cancelled", "task is noted"),
    "claim is lost",
)


@dataclass
class Points:
    """Counts what is waited for; at point `at` the fault happens."""

    at: int = -1
    fault: Callable[[str], Awaitable[None]] | None = None
    #: What was waited for, in order.
    passed: list[str] = field(default_factory=list)

    async def at_point(self, name: str) -> None:
        self.passed.append(name)
        if len(self.passed) - 1 == self.at and self.fault is not None:
            await self.fault(name)


class WatchedCalls(ScriptPipeline):
    def __init__(self, redis: RedisClient, points: Points) -> None:
        super().__init__(redis)
        self._points = points

    async def call(self, script: AsyncScript, keys: Sequence[str], args: Sequence[Any]) -> Any:
        await self._points.at_point("before a write")
        answer = await super().call(script, keys, args)
        await self._points.at_point("after a write")
        return answer


class WatchedStorage(DirectoryStorage):
    def __init__(self, data_dir: Path, points: Points) -> None:
        super().__init__(data_dir)
        self._points = points

    async def scratch(self, task_id: TaskId, attempt: int) -> Path:
        await self._points.at_point("before scratch")
        return await super().scratch(task_id, attempt)

    async def keep_results(self, *args: Any) -> Any:
        await self._points.at_point("before results")
        kept = await super().keep_results(*args)
        await self._points.at_point("after results")
        return kept

    async def discard_results(self, task_id: TaskId, folder: str) -> None:
        await self._points.at_point("before results are removed")
        await super().discard_results(task_id, folder)


@pytest.fixture
async def sandbox(settings: Settings) -> AsyncIterator[Sandbox]:
    async with Sandbox(settings.processors, lambda *_: None) as started:
        yield started


class Stage:
    def __init__(self, redis: RedisClient, settings: Settings, sandbox: Sandbox) -> None:
        self._redis, self._settings, self._sandbox = redis, settings, sandbox
        self.reader = Reader(redis)
        self.others = Publisher(redis, settings)

    def runner(self, points: Points) -> Runner:
        publisher = Publisher(self._redis, self._settings, patient=True)
        publisher._calls = WatchedCalls(self._redis, points)
        registry = load_registry(self._settings.processors)
        return Runner(
            self._settings,
            publisher=publisher,
            reader=self.reader,
            storage=WatchedStorage(self._settings.data_dir, points),
            registry=registry,
            sandbox=self._sandbox,
            metrics=WorkerMetrics(registry.processors, Outcome, unless_told=Outcome.LOST),
        )

    async def submitted(self) -> Task:
        storage = DirectoryStorage(self._settings.data_dir)
        storage.prepare()
        task = a_task(processor="compress", filename="a.txt", options={"format": "gzip"})
        upload = storage.upload(task.task_id)
        await upload.write(b"hello " * 1000)
        stored = await upload.commit()
        task = task.model_copy(update={"input_name": stored.name, "size_bytes": stored.size_bytes})
        await self.others.create(task)
        return task

    async def run(self, task: Task, points: Points, fault: str) -> None:
        runner = self.runner(points)
        before = await self._redis.hgetall(keys.state(task.task_id))  # type: ignore[misc]
        running = asyncio.create_task(runner.run(task.task_id))

        async def happens(point: str) -> None:
            match fault:
                case "lost answer":
                    if point == "after a write":
                        raise RedisAway("the answer was lost")
                case "time-out":
                    if point.endswith("a write"):
                        raise RedisAway("it does not answer")
                case "worker stops":
                    runner.give_back_all()
                case "job is cancelled":
                    running.cancel()
                case "task is cancelled":
                    with suppress(Exception):
                        await self.others.cancel(task)
                    runner.stop(task.task_id, "it was cancelled", Outcome.CANCELLED)
                case "task is noted":
                    await self.others.emit(task.task_id, "note", {"text": "x"})
                    if point == "after a write":
                        raise RedisAway("the answer was lost")
                case "claim is lost":  # at a promotion; and another worker's attempt of the same number completes
                    await self._redis.hset(keys.state(task.task_id), mapping=before)  # type: ignore[misc]
                    await self._redis.hdel(keys.state(task.task_id), "claim", "ended_version")  # type: ignore[misc]
                    await self.runner(Points()).run(task.task_id)
                    for output in (self._settings.data_dir / "partial").glob(f"{task.task_id}-*/*"):
                        output.write_bytes(b"what the first one made")

        points.fault = happens
        with suppress(asyncio.CancelledError, Retry):
            await running

    async def sweep(self, task: Task) -> None:
        """When nothing has been put beside the task's files for long."""
        storage = DirectoryStorage(self._settings.data_dir)
        folder = self._settings.data_dir / "tasks" / task.task_id
        os.utime(folder, times=(time.time() - 2 * UNNAMED_SECONDS,) * 2)
        await OrphanedFiles(self._redis, self._settings, storage).remove_unknown()

    async def check(self, task: Task, why: str) -> None:
        found = await self.reader.task(task.task_id)
        folder = self._settings.data_dir / "tasks" / task.task_id
        files = {path for path in folder.rglob("*") if path.is_file()}
        wanted = {folder / str(task.input_name)}
        if found.status is Status.COMPLETED:
            assert found.result is not None
            for file in found.result.files:
                path = folder / str(found.results_name) / file.name
                assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256, why
                wanted.add(path)
            assert len(wanted) == 2, why
        assert files == wanted, f"{why}: {found.status}"
        assert list((self._settings.data_dir / "partial").iterdir()) == [], why


@pytest.mark.parametrize("fault", FAULTS)
async def test_wherever_an_attempt_is_broken_off_state_and_files_agree(
    redis_client: RedisClient, settings: Settings, sandbox: Sandbox, fault: str
) -> None:
    stage = Stage(redis_client, settings, sandbox)
    for at in count():
        task = await stage.submitted()
        points = Points(at)
        await stage.run(task, points, fault)
        if at >= len(points.passed):
            break  # the one before was the last
        why = f"{fault} at {at}, {points.passed[at]}"
        if (await stage.reader.task(task.task_id)).status in (Status.QUEUED, Status.PROCESSING):
            await stage.runner(Points()).run(task.task_id)
        ended = await stage.reader.task(task.task_id)
        assert ended.status is (Status.CANCELLED if fault == "task is cancelled" else Status.COMPLETED) or (
            fault == "task is cancelled" and ended.status is Status.COMPLETED
        ), why
        if fault == "claim is lost":  # with the end, if that was lost too: who wrote it never learns of it
            await stage.sweep(task)
        await stage.check(task, why)
    assert at > 8
