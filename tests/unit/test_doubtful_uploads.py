"""A file whose queueing was answered by nobody: it stays exactly where its task was queued, whatever broke and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, ResponseError

from headway.api.lifespan import State
from headway.api.submission import draft
from headway.api.uploads import doubtful_uploads
from headway.api.uploads.doubtful_uploads import Doubtful
from headway.api.uploads.receiving import abort_unless_queued
from headway.shared.errors import QuotaFull, RedisAway, Refused, TooMany, UnknownTask
from headway.shared.files.directory import DirectoryStorage
from headway.shared.files.storage import StoredFile, Upload
from headway.shared.redis.faults import as_ours
from headway.shared.tasks.models import ANYONE, Status, Task, TaskId
from headway.shared.tasks.reader import Reader
from tests.waiting import wait_until


class Asked:
    """What the task says when it is asked: itself, or an error."""

    def __init__(self, *answers: Task | Exception) -> None:
        self.doubtful = Doubtful(cast(Reader, self))
        self._answers = list(answers)

    async def task(self, _: TaskId) -> Task:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def committed(storage: DirectoryStorage, task: Task) -> tuple[Upload, StoredFile]:
    upload = storage.upload(task.task_id)
    await upload.write(b"hello")
    return upload, await upload.commit()


async def kept(tmp_path: Path, error: BaseException, answer: Callable[[Task], Task | Exception]) -> bool:
    storage = DirectoryStorage(tmp_path)
    storage.prepare()
    task = draft("checksum", owner=ANYONE, status=Status.UPLOADING, options={}, filename="a")
    upload, stored = await committed(storage, task)
    queued = task.model_copy(update={"status": Status.QUEUED, "input_name": stored.name})
    state = cast(State, Asked(answer(queued)))
    await abort_unless_queued(state, task.task_id, upload, stored, error)
    return (tmp_path / "tasks" / task.task_id / stored.name).exists()


LOST: list[BaseException] = [
    as_ours(RedisConnectionError("the answer was lost")),
    TimeoutError(),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_it_stays_where_the_task_was_queued_or_nobody_can_say(tmp_path: Path, error: BaseException) -> None:
    assert await kept(tmp_path, error, lambda queued: queued)
    assert await kept(tmp_path, error, lambda _: RedisAway())
    assert await kept(tmp_path, error, lambda _: ResponseError("MASTERDOWN"))


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_it_goes_where_the_task_was_not_queued(tmp_path: Path, error: BaseException) -> None:
    assert not await kept(tmp_path, error, lambda queued: queued.model_copy(update={"input_name": None}))
    assert not await kept(tmp_path, error, lambda queued: queued.model_copy(update={"input_name": "input-another"}))
    assert not await kept(tmp_path, error, lambda _: UnknownTask())


CERTAIN: list[BaseException] = [Refused("status", "cancelled"), QuotaFull(), TooMany()]
CERTAIN += [as_ours(OutOfMemoryError("full")), as_ours(ReadOnlyError("a replica"))]
CERTAIN += [NoPermissionError("no"), ResponseError("BUSY")]


@pytest.mark.parametrize("error", CERTAIN, ids=lambda error: type(error).__name__)
async def test_it_goes_where_it_was_refused_for_certain(tmp_path: Path, error: BaseException) -> None:
    assert not await kept(tmp_path, error, lambda queued: queued)


async def test_what_nobody_could_say_is_asked_again_until_somebody_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubtful_uploads, "ASK_SECONDS", 0.01)
    storage = DirectoryStorage(tmp_path)
    storage.prepare()
    tasks = [draft("checksum", owner=ANYONE, status=Status.UPLOADING, options={}, filename="a") for _ in range(2)]
    (gone, gone_file), (there, there_file) = [await committed(storage, task) for task in tasks]
    away = RedisAway()
    queued = tasks[1].model_copy(update={"input_name": there_file.name})
    paths = [tmp_path / "tasks" / task.task_id for task in tasks]
    asked = Asked(away, away, away, away, UnknownTask(), queued)
    async with asked.doubtful as doubts:
        await doubts.ask(tasks[0].task_id, gone_file, gone)
        await doubts.ask(tasks[1].task_id, there_file, there)
        assert all(path.exists() for path in paths)
        await wait_until("the one that is nobody's is gone", lambda: not paths[0].exists())
        await wait_until("all has been said", lambda: len(asked._answers) == 1)
    assert (paths[1] / there_file.name).exists()
