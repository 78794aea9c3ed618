"""What was deleted is gone from wherever its owner could see it; what has ended is kept for as long as said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headway.shared import keys
from headway.shared.errors import Refused
from headway.shared.redis.client import RedisClient, channel_on
from headway.shared.settings import Settings
from headway.shared.tasks.lost import lost_event
from headway.shared.tasks.models import ANYONE, FeedEvent, Result, Status, Task
from headway.shared.tasks.owner_feed import Scope, decode_feed_message
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from tests.contract.test_progress_channel import a_task, claimed
from tests.feeds import feed_truth

DAY_MS = 86_400_000


@pytest.fixture
def publisher(any_redis: RedisClient, any_settings: Settings) -> Publisher:
    return Publisher(any_redis, any_settings)


@pytest.fixture
def reader(any_redis: RedisClient) -> Reader:
    return Reader(any_redis)


async def ended(publisher: Publisher, reader: Reader, **changes: Any) -> Task:
    task = a_task(**changes)
    attempt = await claimed(publisher, reader, task)
    await publisher.emit(task.task_id, "note", {"text": "a secret"})
    await publisher.complete(task.task_id, Result(summary={"a": "secret"}, files=[]), attempt=attempt)
    return await reader.task(task.task_id)


async def test_nothing_that_a_deleted_task_said_is_left_in_redis(
    publisher: Publisher, reader: Reader, any_redis: RedisClient
) -> None:
    other = await ended(publisher, reader, batch_id="b")
    task = await ended(publisher, reader, batch_id="b", filename="secret.txt")
    seen = (await feed_truth(any_redis, after=0)).number
    await publisher.delete(task)
    entries = await any_redis.xrange(keys.OWNER_EVENTS % ANYONE)
    assert [values[b"n"] for _, values in entries if values[b"t"] == task.task_id.encode()] == [b"deleted"]
    assert sum(values[b"t"] == other.task_id.encode() for _, values in entries) == 4
    for index in (keys.OWNER_CHANGED, keys.OWNER_TASKS):
        assert await any_redis.zscore(index % ANYONE, task.task_id) is None
    assert await any_redis.zscore(keys.BATCH_TASKS % keys.of_batch(ANYONE, "b"), task.task_id) is None
    told = (await feed_truth(any_redis, after=seen)).history
    assert [(event.name, event.task_id, event.batch_id) for event in told] == [("deleted", task.task_id, "b")]
    assert set(json.loads(told[0].data)) == {"task_id", "batch_id", "at"}
    again = await feed_truth(any_redis, after=seen - 1)
    assert [event.name for event in again.history] == ["deleted"], "also to who had not seen its end"
    assert again.missed_from is None, "nothing was trimmed"


async def test_a_deleted_task_leaves_its_batch(publisher: Publisher, reader: Reader) -> None:
    tasks = [await ended(publisher, reader, batch_id="b") for _ in range(2)]
    await publisher.create(a_task(batch_id="b"))
    await publisher.delete(tasks[0])
    shown = await reader.batch(ANYONE, "b")
    rollup = json.loads(shown.data)
    assert (rollup["total"], rollup["counts"]["completed"], rollup["progress"]) == (2, 1, 50.0)
    assert rollup["version"] == shown.version
    await publisher.delete(tasks[1])
    assert json.loads((await reader.batch(ANYONE, "b")).data)["total"] == 1


async def test_a_batch_whose_last_task_is_deleted_has_none(publisher: Publisher, reader: Reader) -> None:
    await publisher.delete(await ended(publisher, reader, batch_id="b"))
    rollup = json.loads((await reader.batch(ANYONE, "b")).data)
    assert (rollup["total"], rollup["status"]) == (0, "ended")


async def test_what_is_said_of_an_ended_task_does_not_keep_it_longer(
    publisher: Publisher, reader: Reader, any_redis: RedisClient
) -> None:
    task = await ended(publisher, reader)
    for name in (keys.state(task.task_id), keys.events(task.task_id)):
        await any_redis.pexpire(name, 1000_000)
    await publisher.emit(task.task_id, "note", {"text": "x"})
    await publisher.tell(task, "transfer", {"sent": 1})
    for name in (keys.state(task.task_id), keys.events(task.task_id)):
        assert 0 < await any_redis.pttl(name) <= 1000_000
    assert await any_redis.pttl(keys.OWNER_EVENTS % ANYONE) > 29 * DAY_MS


async def test_what_expired_is_in_none_of_its_owners_lists_nor_on_the_feed(
    publisher: Publisher, reader: Reader, any_redis: RedisClient
) -> None:
    kept, expired = await ended(publisher, reader, size_bytes=10), await ended(publisher, reader, input_name="input-1")
    await any_redis.delete(keys.state(expired.task_id), keys.events(expired.task_id))
    await publisher.let_go(ANYONE, [kept.task_id, expired.task_id])
    assert await any_redis.zrange(keys.OWNER_TASKS % ANYONE, 0, -1) == [kept.task_id.encode()]
    assert await any_redis.zrange(keys.OWNER_CHANGED % ANYONE, 0, -1) == [kept.task_id.encode()]
    assert await reader.stored_bytes(ANYONE) == 0
    history = [(values[b"t"], values[b"n"]) for _, values in await any_redis.xrange(keys.OWNER_EVENTS % ANYONE)]
    assert history[:4] == [(kept.task_id.encode(), name) for name in (b"", b"", b"note", b"")]
    assert history[4:] == [(expired.task_id.encode(), b"deleted")]


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_who_watches_is_told_once_of_what_redis_no_longer_knows(
    publisher: Publisher, reader: Reader, any_redis: RedisClient, batch_id: str | None
) -> None:
    expired, lost, kept = await ended(publisher, reader, batch_id=batch_id), a_task(batch_id=batch_id), a_task()
    await claimed(publisher, reader, lost)
    await publisher.change(lost.task_id, {"progress": 40.5}, allowed=(Status.PROCESSING,), attempt=1)
    await publisher.emit(lost.task_id, "note", {"text": '"progress":99'})
    await publisher.create(kept)
    seen = (await feed_truth(any_redis)).number
    gone = [expired.task_id, lost.task_id]
    for task_id in gone:
        await any_redis.delete(keys.state(task_id), keys.events(task_id))
    async with any_redis.pubsub() as watching:
        await watching.subscribe(channel_on(any_redis, keys.OWNER_LIVE % ANYONE))
        for _ in range(3):  # a page that was read before, an id named twice: no second word
            await publisher.let_go(ANYONE, [*gone, *gone, kept.task_id])
        await publisher.emit(kept.task_id, "note", {"text": "the last"})
        heard: list[FeedEvent] = []
        while not heard or heard[-1].name != "note":
            message = await watching.get_message(ignore_subscribe_messages=True, timeout=10)
            heard += [decode_feed_message(message["data"])] if message else []
    deleted, end, _ = heard
    assert [event.version for event in heard] == [seen + 1, seen + 2, seen + 3]
    assert (deleted.name, deleted.task_id, deleted.batch_id) == ("deleted", expired.task_id, batch_id or "")
    assert set(found := json.loads(deleted.data)) == {"task_id", "batch_id", "at"}
    assert (found["task_id"], found["batch_id"]) == (expired.task_id, batch_id)
    assert (end.name, end.task_id, end.task_version, end.is_terminal) == ("", lost.task_id, 5, True)
    state = json.loads(end.data)
    assert list(state) == list(json.loads(lost_event(lost.task_id, 5).data))
    assert (state["task_id"], state["version"], state["progress"], state["attempt"]) == (lost.task_id, 5, 40.5, 1)
    assert state["error"]["type"] == "lost"
    assert (await feed_truth(any_redis, after=seen)).history == heard, "also to who was away"
    for key in await any_redis.keys("headway:owner:*"):
        assert await any_redis.pttl(key) > 0, key


async def test_nobody_is_told_anything_of_an_owner_who_has_no_feed_any_more(
    publisher: Publisher, any_redis: RedisClient
) -> None:
    task = a_task()
    await publisher.create(task)
    await any_redis.delete(keys.state(task.task_id), keys.OWNER_VERSION % ANYONE, keys.OWNER_EVENTS % ANYONE)
    await publisher.let_go(ANYONE, [task.task_id])
    assert not await any_redis.exists(keys.OWNER_VERSION % ANYONE, keys.OWNER_EVENTS % ANYONE)
    assert await any_redis.zcard(keys.OWNER_TASKS % ANYONE) == 0


async def test_two_batches_whose_names_meet_are_two_batches(
    publisher: Publisher, reader: Reader, any_redis: RedisClient
) -> None:
    names = ("run1", "run1:tasks", "run1:tasks:tasks", "run1:live", ":tasks")
    tasks = [a_task(batch_id=name) for name in names]
    for task in tasks:
        await claimed(publisher, reader, task)
    for task, name in zip(tasks, names, strict=True):
        assert [found.task_id for found, _ in await reader.tasks(ANYONE, limit=9, batch_id=name)] == [task.task_id]
        assert json.loads((await reader.batch(ANYONE, name)).data)["batch_id"] == name
        truth = await feed_truth(any_redis, Scope(batch_id=name))
        assert [event.task_id for event in truth.states] == [task.task_id]


async def test_nothing_is_written_of_a_deleted_task(publisher: Publisher, reader: Reader) -> None:
    task = await ended(publisher, reader)
    await publisher.delete(task)
    with pytest.raises(Refused) as refused:
        await publisher.emit(task.task_id, "note", {"text": "x"}, allowed=tuple(Status))
    assert refused.value.reason == "unknown"
