"""An owner's feed and a batch's roll-up, on a real Redis and on fakeredis alike."""

from __future__ import annotations

import json
from typing import Any

import pytest

import headway.shared.tasks.owner_feed
from headway.shared.errors import UnknownTask
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, ErrorType, OwnerId, Result, Status, TaskId
from headway.shared.tasks.owner_feed import Named, OwnerFeed, Scope
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from tests.contract.test_progress_channel import a_task, claimed
from tests.feeds import feed_truth

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


async def test_every_event_of_every_task_is_on_its_owners_feed_in_order(
    publisher: Publisher, any_redis: RedisClient
) -> None:
    first, second, strangers = a_task(), a_task(batch_id="b"), a_task(owner=OwnerId("bob"))
    for task in (first, second, strangers):
        await publisher.create(task)
    await publisher.emit(first.task_id, "note", {"text": "x"})
    await publisher.cancel(second)
    truth = await feed_truth(any_redis, after=0)
    assert [event.version for event in truth.history] == [1, 2, 3, 4]
    assert [event.task_id for event in truth.history] == [
        first.task_id, second.task_id, first.task_id, second.task_id
    ]  # fmt: skip
    assert [event.task_version for event in truth.history] == [1, 1, 2, 2]
    assert [event.name for event in truth.history] == ["", "", "note", ""]
    assert truth.history[-1].is_terminal
    of_batch = await feed_truth(any_redis, Scope(batch_id="b"), after=0)
    assert {event.task_id for event in of_batch.history} == {second.task_id}


async def test_a_first_look_shows_what_has_not_ended_and_what_changed_last(
    publisher: Publisher, any_redis: RedisClient
) -> None:
    ended, active = a_task(), a_task()
    for task in (ended, active):
        await publisher.create(task)
    await publisher.cancel(ended)
    truth = await feed_truth(any_redis)
    assert {event.task_id: event.is_terminal for event in truth.states} == {ended.task_id: True, active.task_id: False}
    assert [event.task_id for event in truth.states] == [active.task_id, ended.task_id], "in the order of their changes"
    assert [event.version for event in truth.states] == [2, 3]


async def test_a_state_is_never_newer_than_the_number_it_is_shown_under(
    publisher: Publisher, any_redis: RedisClient
) -> None:
    task, owners = a_task(), OwnerFeed(any_redis)
    await publisher.create(task)
    look = await owners.first_look(ANYONE, ALL)
    await publisher.cancel(task)
    assert await owners.states(ANYONE, look, 0) == (), "it follows"
    [follows] = (await owners.page(ANYONE, look.number)).events
    assert (follows.version, follows.task_version, follows.is_terminal) == (2, 2, True)


async def test_a_task_that_comes_while_the_others_are_read_follows_them(
    publisher: Publisher, any_redis: RedisClient
) -> None:
    first, second, owners = a_task(), a_task(), OwnerFeed(any_redis)
    await publisher.create(first)
    look = await owners.first_look(ANYONE, ALL)
    await publisher.create(second)
    assert [state.task_id for state in await owners.states(ANYONE, look, 0)] == [first.task_id]
    assert [event.task_id for event in (await owners.page(ANYONE, look.number)).events] == [second.task_id]


async def test_a_task_of_which_only_something_is_said_meanwhile_is_shown_all_the_same(
    publisher: Publisher, any_redis: RedisClient
) -> None:
    task, other, owners = a_task(), a_task(), OwnerFeed(any_redis)
    for one in (task, other):
        await publisher.create(one)
    look = await owners.first_look(ANYONE, ALL)
    await publisher.emit(task.task_id, "note", {"text": "x"})
    states = await owners.states(ANYONE, look, 0)
    assert [(state.task_id, state.version) for state in states] == [(task.task_id, 1), (other.task_id, 2)]
    assert [state.task_version for state in states] == [1, 1], "as it was then: the note is told after it"
    follows = (await owners.page(ANYONE, look.number)).events
    assert [(event.name, event.task_version) for event in follows] == [("note", 2)]


async def test_what_was_said_before_a_state_is_shown_is_not_told_after_it(
    publisher: Publisher, any_redis: RedisClient
) -> None:
    task, other, owners = a_task(), a_task(), OwnerFeed(any_redis)
    for one in (task, other):
        await publisher.create(one)
    await publisher.emit(task.task_id, "note", {"text": "x"})
    await publisher.cancel(other)
    look = await owners.first_look(ANYONE, ALL)
    shown = next(state for state in await owners.states(ANYONE, look, 0) if state.task_id == task.task_id)
    assert shown.task_version == 2
    later = (await owners.page(ANYONE, shown.version)).events
    assert task.task_id not in {event.task_id for event in later}


async def test_who_is_cut_off_among_the_states_resumes_with_the_others(
    publisher: Publisher, any_redis: RedisClient
) -> None:
    first, second, third = a_task(), a_task(), a_task()
    for task in (first, second, third):
        await publisher.create(task)
    await publisher.cancel(first)
    await publisher.emit(third.task_id, "note", {"text": "x"})
    truth = await feed_truth(any_redis)
    seen = truth.states[0]
    assert seen.task_id == second.task_id
    rest = await feed_truth(any_redis, after=seen.version)
    assert [(event.task_id, event.name, event.is_terminal) for event in rest.history] == [
        (third.task_id, "", False), (first.task_id, "", True), (third.task_id, "note", False)
    ]  # fmt: skip


@pytest.mark.parametrize("scope", [ALL, Scope(batch_id="b")])
async def test_whatever_there_is_to_tell_comes_in_pages(
    publisher: Publisher, any_redis: RedisClient, monkeypatch: pytest.MonkeyPatch, scope: Scope
) -> None:
    monkeypatch.setattr(headway.shared.tasks.owner_feed, "PAGE", 4)
    monkeypatch.setattr(headway.shared.tasks.owner_feed, "NAMES", 3)
    tasks = [a_task(batch_id="b") for _ in range(18)]
    for task in tasks:
        await publisher.create(task)
    everyone = [task.task_id for task in tasks]
    first = await feed_truth(any_redis, scope)
    assert [state.task_id for state in first.states] == everyone
    assert [state.version for state in first.states] == [*range(1, 19)]
    replayed = await feed_truth(any_redis, scope, after=2)
    assert [event.task_id for event in replayed.history] == everyone[2:]
    assert (replayed.missed_from, replayed.pages, first.pages) == (None, 4, 5)

    for _ in range(10):  # the history holds 20 events, so it is 9 to 28 that can be replayed
        await publisher.emit(tasks[0].task_id, "note", {"text": "x"})
    trimmed = await feed_truth(any_redis, scope, after=2)
    assert [state.task_id for state in trimmed.states] == everyone[2:10], "until what comes next can be replayed"
    assert [event.task_id for event in trimmed.history] == [*everyone[10:], *everyone[:1] * 10]


async def test_a_deletion_leaves_a_hole_that_nothing_was_trimmed_from(
    publisher: Publisher, any_redis: RedisClient, reader: Reader
) -> None:
    first, deleted, last = a_task(), a_task(), a_task()
    for task in (first, deleted, last):
        await publisher.create(task)
    await publisher.cancel(deleted)
    await publisher.delete(await reader.task(deleted.task_id))
    for after, rest in ((0, 3), (1, 2), (2, 2), (3, 1), (4, 1), (5, 0)):
        truth = await feed_truth(any_redis, after=after)
        assert (truth.missed_from, truth.states, len(truth.history)) == (None, [], rest)


async def test_where_history_was_trimmed_the_tasks_that_changed_are_shown(
    publisher: Publisher, any_redis: RedisClient
) -> None:
    quiet, busy = a_task(), a_task()
    await publisher.create(quiet)
    attempt = await claimed(publisher, Reader(any_redis), busy)
    for done in range(30):
        await publisher.change(busy.task_id, {"done": done}, allowed=(Status.PROCESSING,), attempt=attempt)
    truth = await feed_truth(any_redis, after=1)
    assert truth.missed_from == 2
    assert [event.task_id for event in truth.states] == [busy.task_id]
    assert truth.history == []


async def test_of_named_tasks_those_that_are_unknown_and_those_that_have_ended_are_said(
    publisher: Publisher, any_redis: RedisClient
) -> None:
    mine, ended, bobs, never = a_task(), a_task(), a_task(owner=OwnerId("bob")), TaskId("0" * 32)
    for task in (mine, ended, bobs):
        await publisher.create(task)
    await publisher.cancel(ended)
    await publisher.emit(mine.task_id, "note", {"text": "x"})
    owners = OwnerFeed(any_redis)
    found = await owners.named(ANYONE, [mine.task_id, ended.task_id, bobs.task_id, never])
    assert found == Named(frozenset({bobs.task_id, never}), frozenset({ended.task_id}), changed_at=4, number=4)
    known = [mine.task_id, ended.task_id]
    assert await owners.gone(known) == set()
    assert await owners.gone([*known, never]) == {never}


async def test_of_named_tasks_what_was_missed_is_their_states_alone(
    publisher: Publisher, any_redis: RedisClient
) -> None:
    tasks = [a_task() for _ in range(30)]
    for task in tasks:
        await publisher.create(task)
    scope = Scope(frozenset({tasks[1].task_id, tasks[5].task_id, tasks[29].task_id}))
    truth = await feed_truth(any_redis, scope, after=3)
    assert [(state.task_id, state.version) for state in truth.states] == [
        (tasks[5].task_id, 6),
        (tasks[29].task_id, 30),
    ]
    assert (truth.missed_from, truth.history, truth.number) == (4, [], 30)


async def test_a_number_from_the_future_gets_the_whole_state(publisher: Publisher, any_redis: RedisClient) -> None:
    task = a_task()
    await publisher.create(task)
    truth = await feed_truth(any_redis, after=1000)
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
        if not key.startswith(b"headway:line:"):
            assert await any_redis.pttl(key) > 0, key
