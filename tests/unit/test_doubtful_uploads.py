"""A file whose queueing was answered by nobody: it stays exactly where its task was queued, whatever broke and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from redis.exceptions import ResponseError

from headway.api.lifespan import State
from headway.api.routes.tasks import draft
from headway.api.uploads.receiving import abort_unless_queued
from headway.shared.errors import QuotaFull, RedisAway, Refused, UnknownTask
from headway.shared.files.directory import DirectoryStorage
from headway.shared.tasks.models import ANYONE, Status, Task, TaskId


class Asked:
    """What the task says when it is asked: itself, or an error."""

    def __init__(self, answer: Task | Exception) -> None:
        self.reader = self
        self._answer = answer

    async def task(self, _: TaskId) -> Task:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


async def kept(tmp_path: Path, error: BaseException, answer: Callable[[Task], Task | Exception]) -> bool:
    storage = DirectoryStorage(tmp_path)
    storage.prepare()
    task = draft("checksum", owner=ANYONE, status=Status.UPLOADING, options={}, filename="a")
    upload = storage.upload(task.task_id)
    await upload.write(b"hello")
    stored = await upload.commit()
    queued = task.model_copy(update={"status": Status.QUEUED, "input_name": stored.name})
    state = cast(State, Asked(answer(queued)))
    await abort_unless_queued(state, task.task_id, upload, stored, error)
    return (tmp_path / "tasks" / task.task_id / stored.name).exists()


LOST: list[BaseException] = [RedisAway("the answer was lost"), ResponseError("NOPERM"), asyncio.CancelledError()]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_it_stays_where_the_task_was_queued_or_nobody_can_say(tmp_path: Path, error: BaseException) -> None:
    assert await kept(tmp_path, error, lambda queued: queued)
    assert await kept(tmp_path, error, lambda _: RedisAway())
    assert await kept(tmp_path, error, lambda _: ResponseError("NOPERM"))


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_it_goes_where_the_task_was_not_queued(tmp_path: Path, error: BaseException) -> None:
    assert not await kept(tmp_path, error, lambda queued: queued.model_copy(update={"input_name": None}))
    assert not await kept(tmp_path, error, lambda queued: queued.model_copy(update={"input_name": "input-another"}))
    assert not await kept(tmp_path, error, lambda _: UnknownTask())


@pytest.mark.parametrize("error", [Refused("status", "cancelled"), QuotaFull()], ids=["refused", "quota"])
async def test_it_goes_where_it_was_refused_for_certain(tmp_path: Path, error: BaseException) -> None:
    assert not await kept(tmp_path, error, lambda queued: queued)
