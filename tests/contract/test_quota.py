"""What an owner's files hold: counted in the step that changes a task, on a real Redis and on fakeredis alike."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headway.shared import keys
from headway.shared.errors import QuotaFull, TooMany, WordsFull
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, Checkpoint, ErrorType, OwnerId, Result, ResultFile, Status, Task
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from headway.shared.tasks.reserved_bytes import Reservation
from tests.contract.test_progress_channel import a_task
from tests.waiting import PATIENCE_SECONDS, POLL_SECONDS

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


def reservation(redis: RedisClient, task: Task, life_seconds: float = 60) -> Reservation:
    return Reservation(redis, ANYONE, task.task_id, quota_bytes=100, life_seconds=life_seconds)


async def test_what_is_reserved_is_nobody_elses_and_becomes_the_tasks(
    publisher: Publisher, reader: Reader, any_redis: RedisClient
) -> None:
    first, second = stored(70), stored(30)
    mine, others = reservation(any_redis, first), reservation(any_redis, second)
    await mine.cover(60, 90)
    assert await reader.stored_bytes(ANYONE) == 90
    with pytest.raises(QuotaFull, match="hold 90 of 100 bytes"):
        await others.cover(11)
    with pytest.raises(QuotaFull):
        await publisher.create(second)
    await publisher.create(first)
    assert await reader.stored_bytes(ANYONE) == 70, "the true size, in the step that made the task"
    await mine.settle()
    assert await reader.stored_bytes(ANYONE) == 70
    await others.cover(30)
    with pytest.raises(QuotaFull):
        await others.cover(31)
    await others.settle()
    await others.settle()
    assert await reader.stored_bytes(ANYONE) == 70, "of a file that came to nothing nothing is held"


async def test_an_upload_of_unknown_size_that_ends_early_lets_go_of_what_came(
    publisher: Publisher, reader: Reader, any_redis: RedisClient
) -> None:
    task, sized = announced(None), announced(20)
    for one, needed in ((task, 50), (sized, 30)):
        await publisher.create(one)
        place = reservation(any_redis, one)
        await place.cover(needed, needed)
        await place.settle()
    assert await reader.stored_bytes(ANYONE) == 20


async def test_of_a_hundred_at_once_as_many_are_covered_as_fit(reader: Reader, any_redis: RedisClient) -> None:
    places = [reservation(any_redis, stored(7)) for _ in range(100)]
    answers = await asyncio.gather(*(place.cover(7, 7) for place in places), return_exceptions=True)
    assert sum(answer is None for answer in answers) == 14
    assert await reader.stored_bytes(ANYONE) == 98


async def test_a_reservation_that_nobody_renews_is_let_go_and_a_live_one_is_not(
    publisher: Publisher, reader: Reader, any_redis: RedisClient
) -> None:
    """Nobody is told: there never was such a task."""
    dead, alive = stored(60), stored(30)
    await publisher.create(stored(5))
    told = await any_redis.xrange(keys.OWNER_EVENTS % ANYONE)
    await reservation(any_redis, dead, life_seconds=0.001).cover(60, 60)
    await reservation(any_redis, alive).cover(30, 30)

    async def is_free() -> bool:
        await publisher.let_go(ANYONE, [dead.task_id, alive.task_id])
        return await reader.stored_bytes(ANYONE) == 35

    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await is_free():
            await asyncio.sleep(POLL_SECONDS)
    assert await any_redis.xrange(keys.OWNER_EVENTS % ANYONE) == told
    assert await any_redis.zcard(keys.OWNER_RESERVED % ANYONE) == 1


async def test_of_a_hundred_tasks_at_once_as_many_are_made_as_may_be_unfinished(
    any_redis: RedisClient, any_settings: Settings, reader: Reader
) -> None:
    publisher = Publisher(any_redis, any_settings.model_copy(update={"max_unfinished_tasks": 5}))
    tasks = [announced(1) for _ in range(100)]
    answers = await asyncio.gather(*(publisher.create(task) for task in tasks), return_exceptions=True)
    made = [task for task, answer in zip(tasks, answers, strict=True) if answer == 1]
    assert len(made) == 5
    assert {str(answer) for answer in answers if answer != 1} == {
        "5 tasks have not ended; at most 5 may wait or run at once."
    }
    assert len(await reader.tasks(ANYONE, limit=50)) == 5
    await publisher.cancel(made[0])
    await publisher.create(announced(1))
    with pytest.raises(TooMany):  # a retry is one task more as well
        await publisher.retry(await reader.task(made[0].task_id))
    assert (await reader.task(made[0].task_id)).status is Status.CANCELLED
    await publisher.fail(made[1].task_id, ErrorType.BAD_INPUT, "It ends.")
    await publisher.retry(await reader.task(made[0].task_id))


async def test_words_in_redis_have_a_share_and_are_let_go_with_their_task(
    any_redis: RedisClient, any_settings: Settings, reader: Reader
) -> None:
    publisher = Publisher(any_redis, any_settings, most_words=lambda: 1000)
    task, other = announced(1), announced(1)
    await publisher.create(task)
    await publisher.create(other)
    answers = await asyncio.gather(
        *(publisher.emit(task.task_id, "note", {"text": "x" * 150}) for _ in range(100)), return_exceptions=True
    )
    said = [answer for answer in answers if isinstance(answer, int)]
    assert {type(answer) for answer in answers if not isinstance(answer, int)} == {WordsFull}
    assert 1 <= len(said) <= 1000 // 150
    assert len(await reader.named(task.task_id, "note")) == len(said)
    with pytest.raises(WordsFull):
        await publisher.create(a_task(size_bytes=None, filename=None, options={"text": "x" * 900}))
    await publisher.create(announced(1).model_copy(update={"owner": BOB}))
    with pytest.raises(WordsFull):
        await publisher.emit(task.task_id, "log", {"message": "x" * 500})
    await publisher.emit(task.task_id, "log", {"message": "x" * 500}, must_fit=False)
    await publisher.cancel(task)
    await publisher.delete(await reader.task(task.task_id))
    assert await words(any_redis) < 100, "the other's options"
    await any_redis.delete(f"headway:task:{other.task_id}")
    await publisher.let_go(ANYONE, [other.task_id])
    assert await words(any_redis) == 0


async def test_a_checkpoint_counts_in_place_of_the_one_before(any_redis: RedisClient, any_settings: Settings) -> None:
    publisher = Publisher(any_redis, any_settings, most_words=lambda: 1000)
    task = announced(None)
    await publisher.create(task)
    await publisher.enqueue(task, {})
    claim = await publisher.claim(task.task_id, Reader(any_redis))
    assert claim is not None

    async def keep(size: int) -> None:
        checkpoint = Checkpoint(state="x" * size, progress=1)
        await publisher.checkpoint(task.task_id, checkpoint, owner=task.owner, **claim.fence)

    for size in (700, 800, 300, 850):
        await keep(size)
        assert size < await words(any_redis) < size + 100
    with pytest.raises(WordsFull):
        await keep(1000)
    kept = await Reader(any_redis).task(task.task_id)
    assert kept.checkpoint is not None
    assert len(kept.checkpoint.state) == 850, "the one before stands"
    await publisher.fail(task.task_id, ErrorType.PROCESSOR_ERROR, "no", **claim.fence)
    assert await words(any_redis) < 100, "it goes with the end"


async def words(redis: RedisClient) -> int:
    return int(await redis.hget(keys.OWNER_WORDS % ANYONE, "total") or 0)  # type: ignore[misc]
