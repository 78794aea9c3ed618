"""An owner's feed and a batch's roll-up, on a real Redis and on fakeredis alike."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from headway.shared import keys
from headway.shared.errors import UnknownTask
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, ErrorType, OwnerId, Result, Status, TaskId
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader, Scope
from tests.contract.test_progress_channel import a_task, claimed

ALL = Scope()


@pytest.fixture
def publisher(any_redis: RedisClient, any_settings: Settings) -> Publisher:
    return Publisher(any_redis, any_settings.model_copy(update={"history_length": 20}))


@pytest.fixture
def reader(any_redis: RedisClient) -> Reader:
    return Reader(any_redis)


async def rollup(reader: Reader, batch_id: str = "b") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await reader.batch(ANYONE, batch_id)).data)
    return found


async def test_every_event_of_every_task_is_on_its_owners_feed_in_order(publisher: Publisher, reader: Reader) -> None:
    first, second, strangers = a_task(), a_task(batch_id="b"), a_task(owner=OwnerId("bob"))
    for task in (first, second, strangers):
        await publisher.create(task)
    await publisher.emit(first.task_id, "note", {"text": "x"})
    await publisher.cancel(second)
    truth = await reader.owner(ANYONE, ALL, after=0)
    assert [event.version for event in truth.history] == [1, 2, 3, 4]
    assert [event.task_id for event in truth.history] == [
        first.task_id, second.task_id, first.task_id, second.task_id
    ]  # fmt: skip
    assert [event.task_version for event in truth.history] == [1, 1, 2, 2]
    assert [event.name for event in truth.history] == ["", "", "note", ""]
    assert truth.history[-1].is_terminal
    of_batch = await reader.owner(ANYONE, Scope(batch_id="b"), after=0)
    assert {event.task_id for event in of_batch.history} == {second.task_id}


async def test_a_first_look_shows_what_has_not_ended_and_what_changed_last(
    publisher: Publisher, reader: Reader
) -> None:
    ended, active = a_task(), a_task()
    for task in (ended, active):
        await publisher.create(task)
    await publisher.cancel(ended)
    truth = await reader.owner(ANYONE, ALL)
    assert {event.task_id: event.is_terminal for event in truth.states} == {ended.task_id: True, active.task_id: False}
    assert [event.task_id for event in truth.states] == [active.task_id, ended.task_id], "in the order of their changes"
    assert [event.version for event in truth.states] == [2, 3]


class _Meanwhile(Reader):
    """Does something between the two readings that a truth is made of."""

    def __init__(self, redis: RedisClient, act: Callable[[], Awaitable[object]]) -> None:
        super().__init__(redis)
        self._act: Callable[[], Awaitable[object]] | None = act

    async def _in_scope(self, owner: OwnerId, scope: Scope) -> list[TaskId]:
        found = await super()._in_scope(owner, scope)
        if self._act is not None:
            act, self._act = self._act, None
            await act()
        return found


async def test_a_state_is_never_newer_than_the_number_it_is_shown_under(
    publisher: Publisher, any_redis: RedisClient
) -> None:
    task = a_task()
    await publisher.create(task)
    truth = await _Meanwhile(any_redis, lambda: publisher.cancel(task)).owner(ANYONE, ALL)
    assert [(event.task_version, event.version) for event in truth.states] == [(2, 2)]
    assert (await Reader(any_redis).owner(ANYONE, ALL, after=truth.number)).history == ()


async def test_a_task_that_comes_while_the_others_are_read_is_shown_with_them(
    publisher: Publisher, any_redis: RedisClient
) -> None:
    first, second = a_task(), a_task()
    await publisher.create(first)
    truth = await _Meanwhile(any_redis, lambda: publisher.create(second)).owner(ANYONE, ALL)
    assert [event.task_id for event in truth.states] == [first.task_id, second.task_id]
    assert truth.number == 2


async def test_who_is_cut_off_among_the_states_resumes_with_the_others(publisher: Publisher, reader: Reader) -> None:
    first, second, third = a_task(), a_task(), a_task()
    for task in (first, second, third):
        await publisher.create(task)
    await publisher.cancel(first)
    truth = await reader.owner(ANYONE, ALL)
    seen = truth.states[0]
    assert seen.task_id == second.task_id
    rest = await reader.owner(ANYONE, ALL, after=seen.version)
    assert [(event.task_id, event.is_terminal) for event in rest.history] == [
        (third.task_id, False), (first.task_id, True)
    ]  # fmt: skip


async def test_where_history_was_trimmed_the_tasks_that_changed_are_shown(publisher: Publisher, reader: Reader) -> None:
    quiet, busy = a_task(), a_task()
    await publisher.create(quiet)
    attempt = await claimed(publisher, reader, busy)
    for done in range(30):
        await publisher.change(busy.task_id, {"done": done}, allowed=(Status.PROCESSING,), attempt=attempt)
    truth = await reader.owner(ANYONE, ALL, after=1)
    assert truth.missed_from == 2
    assert [event.task_id for event in truth.states] == [busy.task_id]
    assert truth.history == ()


async def test_tasks_that_redis_does_not_know_are_gone_and_ended_ones_are_said(
    publisher: Publisher, reader: Reader
) -> None:
    mine, ended, bobs, never = a_task(), a_task(), a_task(owner=OwnerId("bob")), TaskId("0" * 32)
    for task in (mine, ended, bobs):
        await publisher.create(task)
    await publisher.cancel(ended)
    truth = await reader.owner(ANYONE, ALL, after=0, known=[mine.task_id, ended.task_id, bobs.task_id, never])
    assert truth.gone == {bobs.task_id, never}
    assert truth.ended == {ended.task_id}


async def test_a_number_from_the_future_gets_the_whole_state(publisher: Publisher, reader: Reader) -> None:
    task = a_task()
    await publisher.create(task)
    truth = await reader.owner(ANYONE, ALL, after=1000)
    assert [event.task_id for event in truth.states] == [task.task_id]


async def test_a_batch_counts_each_task_once_in_its_present_state(publisher: Publisher, reader: Reader) -> None:
    tasks = [a_task(batch_id="b") for _ in range(4)]
    for task in tasks:
        await publisher.create(task)
    assert (await rollup(reader))["counts"]["queued"] == 4
    attempt = (await publisher.claim(tasks[0].task_id, reader)).attempt  # type: ignore[union-attr]
    await publisher.change(tasks[0].task_id, {"progress": 50}, allowed=(Status.PROCESSING,), attempt=attempt)
    assert (await rollup(reader))["progress"] == 12.5
    await publisher.complete(tasks[0].task_id, Result(summary={}, files=[]), attempt=attempt)
    await publisher.cancel(tasks[1])
    attempt = (await publisher.claim(tasks[2].task_id, reader)).attempt  # type: ignore[union-attr]
    await publisher.fail(tasks[2].task_id, ErrorType.TIMEOUT, "slow", attempt=attempt)
    now = await rollup(reader)
    assert now["counts"] == {
        "uploading": 0, "queued": 1, "processing": 0, "completed": 1, "failed": 1, "cancelled": 1
    }  # fmt: skip
    assert (now["total"], now["progress"], now["status"]) == (4, 75, "active")
    await publisher.retry(await reader.task(tasks[1].task_id))
    assert (await rollup(reader))["counts"]["queued"] == 2
    for task_id in (tasks[1].task_id, tasks[3].task_id):
        await publisher.cancel(await reader.task(task_id))
    assert ((await rollup(reader))["progress"], (await rollup(reader))["status"]) == (100, "ended")


async def test_small_steps_do_not_each_make_an_event_of_the_batch(publisher: Publisher, reader: Reader) -> None:
    task = a_task(batch_id="b")
    attempt = await claimed(publisher, reader, task)
    before = (await rollup(reader))["version"]
    for step in range(50):
        fields = {"progress": 10 + step / 1000}
        await publisher.change(task.task_id, fields, allowed=(Status.PROCESSING,), attempt=attempt)
    assert (await rollup(reader))["version"] == before + 1


async def test_a_batch_is_its_owners(publisher: Publisher, reader: Reader) -> None:
    await publisher.create(a_task(batch_id="b", owner=OwnerId("bob")))
    with pytest.raises(UnknownTask):
        await reader.batch(ANYONE, "b")
    assert await reader.tasks(ANYONE, limit=5, batch_id="b") == []
    assert len(await reader.tasks(OwnerId("bob"), limit=5, batch_id="b")) == 1


async def test_every_key_of_the_feeds_has_an_expiry(publisher: Publisher, any_redis: RedisClient) -> None:
    task = a_task(batch_id="b")
    await publisher.create(task)
    await publisher.cancel(task)
    for key in await any_redis.keys("*"):
        if key.decode() != keys.QUEUE:
            assert await any_redis.pttl(key) > 0, key
