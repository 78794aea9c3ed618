"""What an owner's files hold: counted in the step that changes a task, on a real Redis and on fakeredis alike."""

from __future__ import annotations

from typing import Any

import pytest

from headway.shared.errors import QuotaFull
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, ErrorType, OwnerId, Result, ResultFile, Status, Task
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from tests.contract.test_progress_channel import a_task

BOB = OwnerId("bob")


@pytest.fixture
def publisher(any_redis: RedisClient, any_settings: Settings) -> Publisher:
    return Publisher(any_redis, any_settings.model_copy(update={"owner_quota_bytes": 100}))


@pytest.fixture
def reader(any_redis: RedisClient) -> Reader:
    return Reader(any_redis)


def stored(size_bytes: int, **changes: Any) -> Task:
    return a_task(size_bytes=size_bytes, input_name="input-1", **changes)


def announced(size_bytes: int | None) -> Task:
    return a_task(size_bytes=size_bytes, status=Status.UPLOADING)


def result_of(size_bytes: int) -> Result:
    file = ResultFile(name="a", size_bytes=size_bytes, content_type="x/y", sha256="", url="")
    return Result(summary={}, files=[file])


async def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(publisher: Publisher, reader: Reader) -> None:
    await publisher.create(stored(60))
    with pytest.raises(QuotaFull, match="hold 60 of 100 bytes"):
        await publisher.create(stored(41))
    assert await reader.stored_bytes(ANYONE) == 60
    assert len(await reader.tasks(ANYONE, limit=10)) == 1
    await publisher.create(stored(40))
    assert await reader.stored_bytes(ANYONE) == 100
    await publisher.create(stored(100, owner=BOB))  # each owner's own


async def test_an_announced_file_holds_its_place_until_it_fails(publisher: Publisher, reader: Reader) -> None:
    task = announced(80)
    await publisher.create(task)
    with pytest.raises(QuotaFull):
        await publisher.create(stored(30))
    await publisher.fail(task.task_id, ErrorType.BAD_INPUT, "It never came.")
    assert await reader.stored_bytes(ANYONE) == 0
    await publisher.create(stored(30))


async def test_a_file_of_unknown_size_counts_when_it_is_there(publisher: Publisher, reader: Reader) -> None:
    small, large = announced(None), announced(None)
    await publisher.create(small)
    await publisher.create(large)
    await publisher.enqueue(small, {"size_bytes": 70, "input_name": "input-2"})
    assert await reader.stored_bytes(ANYONE) == 70
    with pytest.raises(QuotaFull):
        await publisher.enqueue(large, {"size_bytes": 31, "input_name": "input-3"})
    assert (await reader.task(large.task_id)).status is Status.UPLOADING


async def test_a_result_counts_and_is_never_refused(publisher: Publisher, reader: Reader) -> None:
    task = stored(60)
    await publisher.create(task)
    claim = await publisher.claim(task.task_id, reader)
    assert claim is not None
    await publisher.complete(task.task_id, result_of(90), attempt=claim.attempt)
    assert await reader.stored_bytes(ANYONE) == 150
    with pytest.raises(QuotaFull):
        await publisher.create(stored(1))
    await publisher.create(a_task(size_bytes=None, filename=None))  # a task without a file holds nothing


async def test_a_cancelled_task_keeps_what_it_has_and_a_deleted_one_lets_go(
    publisher: Publisher, reader: Reader
) -> None:
    task = stored(60)
    await publisher.create(task)
    await publisher.cancel(task)
    assert await reader.stored_bytes(ANYONE) == 60
    await publisher.retry(await reader.task(task.task_id))
    assert await reader.stored_bytes(ANYONE) == 60
    await publisher.cancel(await reader.task(task.task_id))
    await publisher.delete(await reader.task(task.task_id))
    assert await reader.stored_bytes(ANYONE) == 0


async def test_what_redis_forgot_is_let_go_and_what_it_knows_is_not(
    publisher: Publisher, reader: Reader, any_redis: RedisClient
) -> None:
    gone, there = stored(60), stored(30)
    await publisher.create(gone)
    await publisher.create(there)
    await any_redis.delete(f"headway:task:{gone.task_id}")
    for _ in range(2):
        await publisher.let_go(ANYONE, [gone.task_id, there.task_id])
    assert await reader.stored_bytes(ANYONE) == 30


async def test_without_a_quota_everything_is_counted_and_nothing_refused(
    any_redis: RedisClient, any_settings: Settings, reader: Reader
) -> None:
    open_ended = Publisher(any_redis, any_settings)
    await open_ended.create(stored(2**45))
    assert await reader.stored_bytes(ANYONE) == 2**45
