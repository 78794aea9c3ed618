"""How many tasks are in each state, kept by the step that changes them: true whatever happens to a task, and moved by
nothing else. On a real Redis and on fakeredis alike."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from headway.shared import keys
from headway.shared.errors import Conflict, QuotaFull, Refused
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import ErrorType, Result, Status, Task
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from tests.contract.test_progress_channel import a_task


class Counts:
    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def now(self, processor: str = "checksum") -> dict[str, int]:
        """By status; those that are 0 left out."""
        found = await self._redis.hgetall(keys.COUNTS)  # type: ignore[misc]
        pairs = {tuple(json.loads(b"[%b]" % name)): int(count) for name, count in found.items()}
        return {status: count for (status, of), count in pairs.items() if of == processor and count}


@pytest.fixture
def publisher(any_redis: RedisClient, any_settings: Settings) -> Publisher:
    return Publisher(any_redis, any_settings.model_copy(update={"max_attempts": 2, "owner_quota_bytes": 100}))


@pytest.fixture
def reader(any_redis: RedisClient) -> Reader:
    return Reader(any_redis)


@pytest.fixture
def counts(any_redis: RedisClient) -> Counts:
    return Counts(any_redis)


async def test_a_task_is_counted_where_it_is_through_all_of_its_life(
    publisher: Publisher, reader: Reader, counts: Counts
) -> None:
    task = a_task(status=Status.UPLOADING)
    await publisher.create(task)
    assert await counts.now() == {"uploading": 1}
    await publisher.enqueue(task, {"input_name": "input-1"})
    assert await counts.now() == {"queued": 1}
    claim = await publisher.claim(task.task_id, reader)
    assert claim is not None
    assert await counts.now() == {"processing": 1}
    await publisher.give_back(claim, "stopped")
    assert await counts.now() == {"queued": 1}
    await publisher.claim(task.task_id, reader)
    taken_over = await publisher.claim(task.task_id, reader)
    assert taken_over is not None
    assert taken_over.took_over
    assert await counts.now() == {"processing": 1}
    assert await publisher.claim(task.task_id, reader) is None  # lost twice, so it has failed
    assert await counts.now() == {"failed": 1}
    await publisher.retry(await reader.task(task.task_id))
    assert await counts.now() == {"queued": 1, "failed": 1}
    await publisher.cancel(await reader.task(task.task_id))
    assert await counts.now() == {"failed": 1, "cancelled": 1}
    await publisher.retry(await reader.task(task.task_id))
    claim = await publisher.claim(task.task_id, reader)
    assert claim is not None
    await publisher.complete(task.task_id, Result(summary={}, files=[]), attempt=claim.attempt)
    ended = {"failed": 1, "cancelled": 1, "completed": 1}
    assert await counts.now() == ended
    await publisher.delete(await reader.task(task.task_id))
    assert await counts.now() == ended


async def test_nothing_but_a_change_of_status_moves_the_counts(
    publisher: Publisher, reader: Reader, counts: Counts, any_redis: RedisClient
) -> None:
    task = a_task()
    await publisher.create(task)
    claim = await publisher.claim(task.task_id, reader)
    assert claim is not None
    before = await any_redis.hgetall(keys.COUNTS)  # type: ignore[misc]
    fence = {"allowed": (Status.PROCESSING,), "attempt": claim.attempt}
    await publisher.change(task.task_id, {"progress": 50}, **fence)  # type: ignore[arg-type]
    await publisher.emit(task.task_id, "note", {"author": "a", "text": "b"})
    stale = {"allowed": (Status.PROCESSING,), "attempt": 99}
    with pytest.raises(Refused):
        await publisher.change(task.task_id, {"status": Status.QUEUED}, **stale)  # type: ignore[arg-type]
    with pytest.raises(Refused):
        await publisher.create(task)
    with pytest.raises(QuotaFull):
        await publisher.create(a_task(size_bytes=101, input_name="input-1"))
    assert await any_redis.hgetall(keys.COUNTS) == before  # type: ignore[misc]
    await publisher.fail(task.task_id, ErrorType.TIMEOUT, "too long", attempt=claim.attempt)
    with pytest.raises(Refused):
        await publisher.fail(task.task_id, ErrorType.TIMEOUT, "too long", attempt=claim.attempt)
    with pytest.raises(Conflict):
        await publisher.cancel(await reader.task(task.task_id))
    assert await counts.now() == {"failed": 1}


async def test_processors_are_counted_apart_and_the_sum_is_that_of_the_tasks(
    publisher: Publisher, reader: Reader, counts: Counts
) -> None:
    names = ("checksum", 'a "name", with \\ everything')
    tasks: list[Task] = [a_task(processor=names[number % 2], size_bytes=0) for number in range(10)]
    for number, task in enumerate(tasks):
        await publisher.create(task)
        if number % 3:
            await publisher.claim(task.task_id, reader)
        if number % 4 == 0:
            await publisher.cancel(await reader.task(task.task_id))
    for name in names:
        true = Counter([(await reader.task(task.task_id)).status for task in tasks if task.processor == name])
        assert await counts.now(name) == {str(status): count for status, count in true.items()}


async def test_a_task_from_before_there_were_counts_takes_none_below_zero(
    publisher: Publisher, reader: Reader, counts: Counts, any_redis: RedisClient
) -> None:
    task = a_task()
    await publisher.create(task)
    await any_redis.delete(keys.COUNTS)
    await publisher.claim(task.task_id, reader)
    found = await any_redis.hgetall(keys.COUNTS)  # type: ignore[misc]
    assert sorted(found.values()) == [b"0", b"1"]
    assert await counts.now() == {"processing": 1}


async def test_the_counts_expire_with_the_tasks(publisher: Publisher, any_redis: RedisClient) -> None:
    await publisher.create(a_task())
    assert await any_redis.pttl(keys.COUNTS) > 0
