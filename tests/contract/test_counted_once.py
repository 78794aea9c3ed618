"""A write that is sent again, because its answer was lost, counts once: also where others wrote in between.

The answer is lost for real: Redis has done the write, and the publisher hears of a broken connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from redis.commands.core import AsyncScript

from headway.shared import keys
from headway.shared.errors import Conflict, RedisAway, Refused
from headway.shared.redis.client import RedisClient
from headway.shared.redis.script_pipeline import ScriptPipeline
from headway.shared.settings import Settings
from headway.shared.tasks.models import ErrorType, Result, Status, Task
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from headway.worker.leases import Leases
from tests.contract.test_progress_channel import a_task
from tests.feeds import feed_truth


class LosesAnswers(ScriptPipeline):
    """Once armed, loses the next answer, and does something before the call is sent again."""

    meanwhile: Callable[[], Awaitable[Any]] | None = None

    async def call(self, script: AsyncScript, keys: Sequence[str], args: Sequence[Any]) -> Any:
        answer = await super().call(script, keys, args)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
            raise RedisAway("the answer was lost")
        return answer


@pytest.fixture
def reader(any_redis: RedisClient) -> Reader:
    return Reader(any_redis)


@pytest.fixture
def others(any_redis: RedisClient, any_settings: Settings) -> Publisher:
    return Publisher(any_redis, any_settings)


@pytest.fixture
def calls(any_redis: RedisClient) -> LosesAnswers:
    return LosesAnswers(any_redis)


@pytest.fixture
def publisher(any_redis: RedisClient, any_settings: Settings, calls: LosesAnswers) -> Publisher:
    patient = Publisher(any_redis, any_settings, patient=True)
    patient._calls = calls
    return patient


async def versions(reader: Reader, task: Task) -> list[str]:
    return [event.name or "state" for event in (await reader.snapshot(task.task_id, after=0)).history]


async def test_whatever_ends_a_task_or_queues_it_counts_once_though_others_wrote_in_between(
    publisher: Publisher, others: Publisher, calls: LosesAnswers, reader: Reader
) -> None:
    task = a_task(status=Status.UPLOADING)

    async def noted() -> None:
        for number in range(12):
            await others.emit(task.task_id, "note", {"text": f"{number}"})

    async def losing(write: Awaitable[Any]) -> Any:
        calls.meanwhile = noted
        return await write

    states = 0

    async def check(status: Status) -> None:
        nonlocal states
        states += 1
        assert (await reader.task(task.task_id)).status is status
        assert (await versions(reader, task)).count("state") == states

    await losing(publisher.create(task))
    await check(Status.UPLOADING)
    await losing(publisher.enqueue(task, {"input_name": "input-1"}))
    await check(Status.QUEUED)
    claim = await losing(publisher.claim(task.task_id, reader))
    await check(Status.PROCESSING)
    await losing(publisher.give_back(claim, "x"))
    await check(Status.QUEUED)
    claim = await publisher.claim(task.task_id, reader)
    assert claim is not None
    await check(Status.PROCESSING)
    await losing(publisher.fail(task.task_id, ErrorType.TIMEOUT, "x", **claim.fence))
    await check(Status.FAILED)
    await losing(publisher.retry(await reader.task(task.task_id)))
    await check(Status.QUEUED)
    await losing(publisher.cancel(await reader.task(task.task_id)))
    await check(Status.CANCELLED)
    await publisher.retry(await reader.task(task.task_id))
    await check(Status.QUEUED)
    claim = await publisher.claim(task.task_id, reader)
    assert claim is not None
    await check(Status.PROCESSING)
    await losing(publisher.complete(task.task_id, Result(summary={}, files=[]), **claim.fence))
    await check(Status.COMPLETED)


async def test_a_job_that_was_taken_and_ended_before_the_answer_came_is_not_queued_again(
    publisher: Publisher, others: Publisher, calls: LosesAnswers, reader: Reader, any_redis: RedisClient
) -> None:
    task = a_task(status=Status.UPLOADING)
    await publisher.create(task)

    async def run_by_a_worker() -> None:
        claim = await others.claim(task.task_id, reader)
        assert claim is not None
        await others.complete(task.task_id, Result(summary={}, files=[]), **claim.fence)
        [job] = (await Leases(any_redis, "others", 30).turn(1)).taken
        await Leases(any_redis, "others", 30).turn(ended=[job])

    calls.meanwhile = run_by_a_worker
    await publisher.enqueue(task, {"input_name": "input-1"})
    assert (await reader.task(task.task_id)).status is Status.COMPLETED
    assert not await any_redis.exists(keys.LINE_JOBS)


async def test_a_note_counts_once_and_is_answered_with_its_own_version(
    publisher: Publisher, others: Publisher, calls: LosesAnswers, reader: Reader
) -> None:
    task = a_task()
    await publisher.create(task)
    calls.meanwhile = lambda: others.emit(task.task_id, "note", {"text": "another's"})
    assert await publisher.emit(task.task_id, "note", {"text": "ours"}) == 2
    assert await versions(reader, task) == ["state", "note", "note"]


async def test_a_deletion_counts_once(
    publisher: Publisher, calls: LosesAnswers, reader: Reader, any_redis: RedisClient
) -> None:
    task = a_task()
    await publisher.create(task)
    await publisher.cancel(task)
    ended = await reader.task(task.task_id)
    calls.meanwhile = lambda: asyncio.sleep(0)
    await publisher.delete(ended)
    truth = await feed_truth(any_redis, after=0)
    assert [(event.version, event.name) for event in truth.states] == [(3, "deleted")]


async def test_a_task_that_was_retried_before_its_deletion_came_is_not_deleted(
    publisher: Publisher, others: Publisher, reader: Reader
) -> None:
    task = a_task()
    await publisher.create(task)
    await publisher.cancel(task)
    ended = await reader.task(task.task_id)
    await others.retry(ended)
    with pytest.raises(Conflict):
        await publisher.delete(ended)
    assert (await reader.task(task.task_id)).status is Status.QUEUED


async def test_a_worker_whose_claim_redis_lost_writes_nothing_under_anothers_of_the_same_number(
    publisher: Publisher, others: Publisher, reader: Reader, any_redis: RedisClient
) -> None:
    task = a_task()
    await publisher.create(task)
    before = await any_redis.hgetall(keys.state(task.task_id))  # type: ignore[misc]
    lost = await publisher.claim(task.task_id, reader)
    await any_redis.delete(keys.state(task.task_id))
    await any_redis.hset(keys.state(task.task_id), mapping=before)  # type: ignore[misc] # a replica that had not heard of it
    kept = await others.claim(task.task_id, reader)
    assert lost is not None
    assert kept is not None
    assert (lost.attempt, kept.attempt) == (1, 1)
    writes: list[Awaitable[Any]] = [
        publisher.change(task.task_id, {"progress": 9}, allowed=(Status.PROCESSING,), **lost.fence),
        publisher.emit(task.task_id, "log", {}, **lost.fence),
        publisher.checkpoint(task.task_id, None, owner=task.owner, **lost.fence),
        publisher.give_back(lost, "x"),
        publisher.fail(task.task_id, ErrorType.TIMEOUT, "x", **lost.fence),
        publisher.complete(task.task_id, Result(summary={}, files=[]), **lost.fence),
    ]
    for write in writes:
        with pytest.raises(Refused) as refused:
            await write
        assert refused.value.reason == "stale"
    await others.complete(task.task_id, Result(summary={}, files=[]), **kept.fence)
    assert (await reader.task(task.task_id)).status is Status.COMPLETED


async def test_a_task_that_an_older_worker_claimed_is_its_own(publisher: Publisher, reader: Reader) -> None:
    """Which knows of no token: a newer one's of the attempt before may stand there."""
    task = a_task()
    await publisher.create(task)
    before = await publisher.claim(task.task_id, reader)
    assert before is not None
    start = {"status": Status.PROCESSING, "attempt": 2}
    await publisher.change(task.task_id, start, allowed=(Status.PROCESSING,), attempt=1)
    await publisher.change(task.task_id, {"progress": 9}, allowed=(Status.PROCESSING,), attempt=2)
    with pytest.raises(Refused):
        await publisher.complete(task.task_id, Result(summary={}, files=[]), **before.fence)
    await publisher.complete(task.task_id, Result(summary={}, files=[]), attempt=2)
