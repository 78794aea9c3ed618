"""Redis rolls nothing back: each step of a task's life is done whole, or finds everything as it was.

Each key that a step touches is made another type, taken away, or left on a server that is full; what Redis holds
afterwards is compared byte by byte with what it held before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from redis.exceptions import ResponseError

from headway.shared import keys
from headway.shared.errors import RedisAway, Refused, UnknownTask
from headway.shared.redis.client import RedisClient, connect
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, Checkpoint, ErrorType, Result, ResultFile, Status, Task
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from headway.worker.leases import Leases
from tests.contract.test_progress_channel import a_task
from tests.processes import RedisServer

Step = Callable[[Publisher, Reader, Task], Awaitable[Any]]
FILE = ResultFile(name="a", size_bytes=3, content_type="text/plain", sha256="", url="")
PROCESSING: dict[str, Any] = {"allowed": (Status.PROCESSING,), "attempt": 1}

#: From which status, and what is done then.
STEPS: dict[str, tuple[Status | None, Step]] = {
    "create": (None, lambda publisher, reader, task: publisher.create(task)),
    "enqueue": (Status.UPLOADING, lambda publisher, reader, task: publisher.enqueue(task, {"input_name": "input-1"})),
    "claim": (Status.QUEUED, lambda publisher, reader, task: publisher.claim(task.task_id, reader)),
    "change": (
        Status.PROCESSING,
        lambda publisher, reader, task: publisher.change(task.task_id, {"progress": 40}, **PROCESSING),
    ),
    "note": (Status.PROCESSING, lambda publisher, reader, task: publisher.emit(task.task_id, "note", {"text": "x"})),
    "complete": (
        Status.PROCESSING,
        lambda publisher, reader, task: publisher.complete(task.task_id, Result(summary={}, files=[FILE]), attempt=1),
    ),
    "fail": (
        Status.PROCESSING,
        lambda publisher, reader, task: publisher.fail(task.task_id, ErrorType.TIMEOUT, "x", attempt=1),
    ),
    "cancel": (Status.QUEUED, lambda publisher, reader, task: publisher.cancel(task)),
    "retry": (Status.CANCELLED, lambda publisher, reader, task: publisher.retry(task)),
    "delete": (Status.CANCELLED, lambda publisher, reader, task: publisher.delete(task)),
}


def keys_of(task: Task) -> list[str]:
    """Every key that a step may touch."""
    owned = [
        *(keys.OWNER_VERSION, keys.OWNER_EVENTS, keys.OWNER_CHANGED),
        *(keys.OWNER_ACTIVE, keys.OWNER_TASKS, keys.OWNER_STORED),
    ]
    of_batch = [pattern % keys.of_batch(ANYONE, str(task.batch_id)) for pattern in (keys.BATCH_STATE, keys.BATCH_TASKS)]
    line = [
        *(keys.LINE_CLOCK, keys.LINE_JOBS, keys.LINE_WAITING, keys.LINE_LATER, keys.LINE_RUNNING, keys.LINE_TURNS),
        *(keys.LINE_COUNTS, keys.LINE_FULL, keys.LINE_PROCESSORS, keys.LINE_OWNERS % task.processor),
        *(keys.LINE_GROUPS % (task.processor, ANYONE), keys.LINE_GROUP % (task.processor, ANYONE, 5, task.batch_id)),
        *(keys.LINE_HELD_OWNER % ANYONE, keys.LINE_HELD_PROCESSOR % task.processor),
    ]
    shared = [*line, keys.QUEUE, keys.COUNTS, keys.EPOCH, keys.job(keys.job_id(task.task_id, 1)), keys.DELETED]
    own = [keys.state(task.task_id), keys.events(task.task_id)]
    return [*own, *(pattern % ANYONE for pattern in owned), *of_batch, *shared]


async def everything(redis: RedisClient) -> dict[bytes, Any]:
    """All that Redis holds. Not by DUMP, whose bytes differ with the way that the same was made."""
    held: dict[bytes, Any] = {}
    for key in await redis.keys("*"):
        kind = await redis.type(key)
        match kind:
            case b"hash":
                held[key] = await redis.hgetall(key)  # type: ignore[misc]
            case b"stream":
                held[key] = await redis.xrange(key)
            case b"zset":
                held[key] = await redis.zrange(key, 0, -1, withscores=True)
            case b"set":
                held[key] = await redis.smembers(key)  # type: ignore[misc]
            case b"list":
                held[key] = await redis.lrange(key, 0, -1)  # type: ignore[misc]
            case _:
                held[key] = await redis.get(key)
    return held


async def a_task_that_is(status: Status | None, publisher: Publisher, reader: Reader) -> Task:
    """In a batch with another one, so that all keys are there."""
    await publisher.create(a_task(batch_id="b"))
    task = a_task(batch_id="b", status=Status.UPLOADING if status is Status.UPLOADING else Status.QUEUED)
    if status is None:
        return task
    await publisher.create(task)
    if status is Status.PROCESSING:
        await publisher.claim(task.task_id, reader)
    if status is Status.CANCELLED:
        await publisher.cancel(task)
    return await reader.task(task.task_id)


@pytest.fixture
def publisher(any_redis: RedisClient, any_settings: Settings) -> Publisher:
    return Publisher(any_redis, any_settings)


@pytest.mark.parametrize("step", STEPS)
async def test_a_key_of_another_type_leaves_all_as_it_was(
    publisher: Publisher, any_redis: RedisClient, step: str
) -> None:
    status, act = STEPS[step]
    reader = Reader(any_redis)
    for place in range(len(keys_of(a_task(batch_id="b")))):
        await any_redis.flushdb()
        task = await a_task_that_is(status, publisher, reader)
        key = keys_of(task)[place]
        await any_redis.delete(key)
        await any_redis.rpush(key, "of another type")  # type: ignore[misc]
        before = await everything(any_redis)
        try:
            await act(publisher, reader, task)
        except (ResponseError, Refused):
            assert await everything(any_redis) == before, f"{step} with {key} of another type"


@pytest.mark.parametrize("step", STEPS)
async def test_a_key_that_is_gone_is_no_reason_to_stop_half_way(
    publisher: Publisher, any_redis: RedisClient, step: str
) -> None:
    status, act = STEPS[step]
    reader = Reader(any_redis)
    for place in range(len(keys_of(a_task(batch_id="b")))):
        await any_redis.flushdb()
        task = await a_task_that_is(status, publisher, reader)
        key = keys_of(task)[place]
        await any_redis.delete(key)
        if key == keys.state(task.task_id) and status is not None:
            before = await everything(any_redis)
            with suppress(Refused, UnknownTask):  # the claim and the deletion of what is unknown are nothing
                await act(publisher, reader, task)
            assert await everything(any_redis) == before
            continue
        await act(publisher, reader, task)
        for left in await any_redis.keys("*"):
            if left.decode() != key and not left.startswith(b"headway:line:"):
                assert await any_redis.pttl(left) > 0, f"{left.decode()} has no expiry after {step} without {key}"


async def test_a_full_redis_takes_a_step_whole_or_not_at_all_and_lets_go_of_what_is_deleted(
    own_redis: RedisServer, settings: Settings
) -> None:
    async with connect(settings.model_copy(update={"redis_url": own_redis.url})) as redis:
        publisher, reader = Publisher(redis, settings), Reader(redis)
        for step, (status, act) in STEPS.items():
            task = await a_task_that_is(status, publisher, reader)
            await redis.config_set("maxmemory", 1)
            before = await everything(redis)
            if step == "delete":
                await act(publisher, reader, task)
                assert not await redis.exists(keys.state(task.task_id))
            else:
                with pytest.raises(RedisAway, match="full"):
                    await act(publisher, reader, task)
                assert await everything(redis) == before, step
            await redis.config_set("maxmemory", 0)


async def test_the_other_scripts_of_a_task_change_nothing_where_a_key_has_another_type(
    publisher: Publisher, any_redis: RedisClient
) -> None:
    reader = Reader(any_redis)
    indexes = (keys.OWNER_STORED, keys.OWNER_EVENTS, keys.OWNER_CHANGED, keys.OWNER_TASKS, keys.OWNER_ACTIVE)
    for key in (*indexes, keys.OWNER_VERSION):
        await any_redis.flushdb()
        task = await a_task_that_is(Status.PROCESSING, publisher, reader)
        await any_redis.delete(keys.state(task.task_id), key % ANYONE)
        await any_redis.rpush(key % ANYONE, "of another type")  # type: ignore[misc]
        before = await everything(any_redis)
        with pytest.raises(ResponseError):
            await publisher.let_go(ANYONE, [task.task_id])
        assert await everything(any_redis) == before
    await any_redis.delete(keys.state(task.task_id))
    await any_redis.rpush(keys.state(task.task_id), "of another type")  # type: ignore[misc]
    before = await everything(any_redis)
    with pytest.raises(ResponseError):
        await publisher.checkpoint(task.task_id, Checkpoint(state={}, progress=1), owner=task.owner, attempt=1)
    assert await everything(any_redis) == before


async def test_a_worker_lets_go_of_jobs_and_renews_them_together_or_not_at_all(any_redis: RedisClient) -> None:
    leases = Leases(any_redis, "ours", 30)
    line = [
        *(keys.LINE_CLOCK, keys.LINE_JOBS, keys.LINE_WAITING, keys.LINE_LATER, keys.LINE_RUNNING, keys.LINE_TURNS),
        *(keys.LINE_COUNTS, keys.LINE_FULL, keys.LINE_PROCESSORS, keys.LINE_PAUSED, keys.LINE_OWNERS % ""),
        *(keys.LINE_GROUPS % ("", ANYONE), keys.LINE_GROUP % ("", ANYONE, 5, "")),
        *(keys.LINE_HELD_OWNER % ANYONE, keys.LINE_HELD_PROCESSOR % ""),
    ]
    for key in (keys.QUEUE, keys.WORKERS, keys.job_lease("b"), *line):
        for step in ("turn", "renew"):
            await any_redis.flushdb()
            await any_redis.zadd(keys.QUEUE, {"a": 1, "b": 2, "c": 3})
            await leases.turn(2)
            await any_redis.delete(key, keys.job_lease("a"))
            await any_redis.rpush(key, "of another type")  # type: ignore[misc]
            before = await everything(any_redis)
            try:
                await (leases.turn(1, ended=["a"], given_back=["b"]) if step == "turn" else leases.renew("ab"))
            except ResponseError:
                assert await everything(any_redis) == before, f"{step} with {key} of another type"


async def test_a_payload_of_another_type_is_handed_over_as_one_that_has_expired(any_redis: RedisClient) -> None:
    await any_redis.zadd(keys.QUEUE, {"a": 1})
    await any_redis.rpush(keys.job("a"), "of another type")  # type: ignore[misc]
    assert (await Leases(any_redis, "ours", 30).turn(1)).taken == {"a": b""}
