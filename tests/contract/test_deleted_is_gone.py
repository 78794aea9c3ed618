"""What was deleted is gone from wherever its owner could see it; what has ended is kept for as long as said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared import keys
from shared.errors import Refused
from shared.feed import Feed, Scope
from shared.models import ANYONE, Result, Status, Task
from shared.progress import Publisher
from shared.redis import RedisClient
from shared.settings import Settings
from tests.contract.test_progress_channel import a_task, claimed

ALL = Scope()
DAY_MS = 86_400_000


@pytest.fixture
def publisher(any_redis: RedisClient, any_settings: Settings) -> Publisher:
    return Publisher(any_redis, any_settings)


@pytest.fixture
def feed(any_redis: RedisClient) -> Feed:
    return Feed(any_redis)


async def ended(publisher: Publisher, feed: Feed, **changes: Any) -> Task:
    task = a_task(**changes)
    attempt = await claimed(publisher, feed, task)
    await publisher.emit(task.task_id, "note", {"text": "a secret"})
    await publisher.complete(task.task_id, Result(summary={"a": "secret"}, files=[]), attempt=attempt)
    return await feed.task(task.task_id)


async def test_nothing_that_a_deleted_task_said_is_left_in_redis(
    publisher: Publisher, feed: Feed, any_redis: RedisClient
) -> None:
    other = await ended(publisher, feed, batch_id="b")
    task = await ended(publisher, feed, batch_id="b", filename="secret.txt")
    seen = (await feed.owner(ANYONE, ALL, after=0)).number
    await publisher.delete(task)
    entries = await any_redis.xrange(keys.OWNER_EVENTS % ANYONE)
    assert [values[b"n"] for _, values in entries if values[b"t"] == task.task_id.encode()] == [b"deleted"]
    assert sum(values[b"t"] == other.task_id.encode() for _, values in entries) == 4
    for index in (keys.OWNER_CHANGED, keys.OWNER_TASKS):
        assert await any_redis.zscore(index % ANYONE, task.task_id) is None
    assert await any_redis.zscore(keys.BATCH_TASKS % keys.of_batch(ANYONE, "b"), task.task_id) is None
    told = (await feed.owner(ANYONE, ALL, after=seen)).history
    assert [(event.name, event.task_id, event.batch_id) for event in told] == [("deleted", task.task_id, "b")]
    assert set(json.loads(told[0].data)) == {"task_id", "batch_id", "at"}
    again = await feed.owner(ANYONE, ALL, after=seen - 1)
    assert [event.name for event in again.states] == ["deleted"], "also to who had not seen its end"
    assert (again.missed_from, again.history) == (seen, ())


async def test_a_deleted_task_leaves_its_batch(publisher: Publisher, feed: Feed) -> None:
    tasks = [await ended(publisher, feed, batch_id="b") for _ in range(2)]
    await publisher.create(a_task(batch_id="b"))
    await publisher.delete(tasks[0])
    shown = await feed.batch(ANYONE, "b")
    rollup = json.loads(shown.data)
    assert (rollup["total"], rollup["counts"]["completed"], rollup["progress"]) == (2, 1, 50.0)
    assert rollup["version"] == shown.version
    await publisher.delete(tasks[1])
    assert json.loads((await feed.batch(ANYONE, "b")).data)["total"] == 1


async def test_a_batch_whose_last_task_is_deleted_has_none(publisher: Publisher, feed: Feed) -> None:
    await publisher.delete(await ended(publisher, feed, batch_id="b"))
    rollup = json.loads((await feed.batch(ANYONE, "b")).data)
    assert (rollup["total"], rollup["status"]) == (0, "ended")


async def test_what_is_said_of_an_ended_task_does_not_keep_it_longer(
    publisher: Publisher, feed: Feed, any_redis: RedisClient
) -> None:
    task = await ended(publisher, feed)
    for name in (keys.state(task.task_id), keys.events(task.task_id)):
        await any_redis.pexpire(name, 1000_000)
    await publisher.emit(task.task_id, "note", {"text": "x"})
    await publisher.tell(task, "transfer", {"sent": 1})
    for name in (keys.state(task.task_id), keys.events(task.task_id)):
        assert 0 < await any_redis.pttl(name) <= 1000_000
    assert await any_redis.pttl(keys.OWNER_EVENTS % ANYONE) > 29 * DAY_MS


async def test_what_expired_is_in_none_of_its_owners_lists_nor_on_the_feed(
    publisher: Publisher, feed: Feed, any_redis: RedisClient
) -> None:
    kept, expired = await ended(publisher, feed, size_bytes=10), await ended(publisher, feed, input_name="input-1")
    await any_redis.delete(keys.state(expired.task_id), keys.events(expired.task_id))
    await publisher.let_go(ANYONE, [kept.task_id, expired.task_id])
    assert await any_redis.zrange(keys.OWNER_TASKS % ANYONE, 0, -1) == [kept.task_id.encode()]
    assert await any_redis.zrange(keys.OWNER_CHANGED % ANYONE, 0, -1) == [kept.task_id.encode()]
    assert await feed.stored_bytes(ANYONE) == 0
    history = [values[b"t"] for _, values in await any_redis.xrange(keys.OWNER_EVENTS % ANYONE)]
    assert history == [kept.task_id.encode()] * 4


async def test_two_batches_whose_names_meet_are_two_batches(publisher: Publisher, feed: Feed) -> None:
    names = ("run1", "run1:tasks", "run1:tasks:tasks", "run1:live", ":tasks")
    tasks = [a_task(batch_id=name) for name in names]
    for task in tasks:
        await claimed(publisher, feed, task)
    for task, name in zip(tasks, names, strict=True):
        assert [found.task_id for found, _ in await feed.tasks(ANYONE, limit=9, batch_id=name)] == [task.task_id]
        assert json.loads((await feed.batch(ANYONE, name)).data)["batch_id"] == name
        truth = await feed.owner(ANYONE, Scope(batch_id=name))
        assert [event.task_id for event in truth.states] == [task.task_id]


async def test_nothing_is_written_of_a_deleted_task(publisher: Publisher, feed: Feed) -> None:
    task = await ended(publisher, feed)
    await publisher.delete(task)
    with pytest.raises(Refused) as refused:
        await publisher.emit(task.task_id, "note", {"text": "x"}, allowed=tuple(Status))
    assert refused.value.reason == "unknown"
