"""Feeds of an owner's tasks on a real Redis: what they cost it, and what they tell, whatever goes wrong on the way.

Costs are the commands that Redis counts, those inside of scripts too, never a time.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

import headway.api.streams.listeners
import headway.api.streams.owner_listener
import headway.api.streams.relay
import headway.shared.tasks.owner_feed
from headway.api.streams.listeners import Listener
from headway.api.streams.owner_listener import OwnerListener
from headway.api.streams.owner_reader import OwnerReader
from headway.api.streams.relay import Relay
from headway.api.streams.sse import NDJSON, SSE, Comment
from headway.api.submission import draft
from headway.shared import keys
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, Event, FeedEvent, OwnerId, Status, Task, TaskId
from headway.shared.tasks.owner_feed import Scope, decode_feed_message
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from tests.processes import RedisServer
from tests.unit.test_relay import read
from tests.waiting import wait_until

ALL = Scope()
CHANNEL = keys.OWNER_LIVE % ANYONE
#: What a connection and the tests themselves ask.
NOT_COUNTED = {"info", "config|resetstat", "ping", "hello", "select", "client|setname", "client|setinfo", "time"}


class LosingRelay(Relay):
    """A relay whose channel can lose messages, by their numbers."""

    def __init__(self, reader: Reader, settings: Settings) -> None:
        super().__init__(reader, settings)
        self.loses: set[int] = set()
        self.arrived = 0

    def _on_message(self, channel: str, message: bytes) -> None:
        number = decode_feed_message(message).version
        if number not in self.loses:
            super()._on_message(channel, message)
        self.arrived = max(self.arrived, number)


class Stage:
    def __init__(self, redis: RedisClient, settings: Settings, relay: LosingRelay, stack: AsyncExitStack) -> None:
        self.redis = redis
        self.publisher = Publisher(redis, settings)
        self.relay = relay
        self._stack = stack

    async def tasks(self, count: int, batch_id: str | None = None, owner: OwnerId = ANYONE) -> list[Task]:
        tasks = [
            draft("rehearsal", owner=owner, status=Status.QUEUED, options={}, batch_id=batch_id) for _ in range(count)
        ]
        for task in tasks:
            await self.publisher.create(task)
        return tasks

    async def listen(self, scope: Scope = ALL, after: int | None = None) -> Listener:
        return await self._stack.enter_async_context(self.relay.listen_to_owner(ANYONE, scope, after))

    async def arrived(self, number: int) -> None:
        await wait_until(f"number {number} went over the channel", lambda: self.relay.arrived >= number)

    async def counted(self) -> Counter[str]:
        """Commands since the last time."""
        stats = await self.redis.info("commandstats")
        await self.redis.config_resetstat()
        calls = {name.removeprefix("cmdstat_"): about["calls"] for name, about in stats.items()}
        return Counter({name: count for name, count in calls.items() if name not in NOT_COUNTED})


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One that nobody else uses: the shared platform's own commands would count too."""
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture
async def stage(redis_client: RedisClient, settings: Settings) -> AsyncIterator[Stage]:
    settings = settings.model_copy(update={"history_length": 50})
    relay = LosingRelay(Reader(redis_client), settings)
    async with relay, AsyncExitStack() as stack:
        yield Stage(redis_client, settings, relay, stack)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headway.shared.tasks.owner_feed, "PAGE", 4)


async def told(listener: Listener) -> list[FeedEvent]:
    """All that there is to tell now."""
    seen: list[Event] = []
    async with asyncio.timeout(60):
        while not listener.ended and (listener.stale or listener._pending):
            if listener.stale:
                seen += [item[0] for item in await listener.catch_up() if not isinstance(item, Comment)]
            else:
                seen += [item[0] for item in listener.take() if not isinstance(item, Comment)]
    return seen  # type: ignore[return-value]


def numbers(events: list[FeedEvent]) -> list[int]:
    return [event.version for event in events]


# What it costs.


async def idle_minute(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Two looks into the silence: the first learns what was heard."""
    looks = 0
    compare = Relay._compare

    async def counted(self: Relay, silent: dict[str, object]) -> None:
        nonlocal looks
        await compare(self, silent)  # type: ignore[arg-type]
        looks += bool(silent)

    monkeypatch.setattr(Relay, "_compare", counted)
    monkeypatch.setattr(headway.api.streams.relay, "SILENCE_SECONDS", 0.05)
    stage.relay._services[1].cancel()
    await stage.counted()
    looking = asyncio.create_task(stage.relay._look_into_silence())
    await wait_until("silence was looked into", lambda: looks >= 1)
    looking.cancel()
    await asyncio.wait([looking])
    found = await stage.counted()
    return Counter({name: round(count / looks) for name, count in found.items()})


@pytest.mark.parametrize("feeds", [1, 30])
async def test_an_idle_minute_costs_one_command_an_owner(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, feeds: int
) -> None:
    await stage.tasks(120)
    listeners = [await stage.listen() for _ in range(feeds)]
    for listener in listeners:
        assert len(await told(listener)) == 120
    assert await idle_minute(stage, monkeypatch) == {"get": 1}
    assert not any(listener.stale for listener in listeners)


@pytest.mark.parametrize("feeds", [1, 30])
async def test_a_doubt_costs_the_same_for_one_feed_and_for_thirty(stage: Stage, feeds: int) -> None:
    await stage.tasks(120)
    listeners = [await stage.listen() for _ in range(feeds)]
    await asyncio.gather(*map(told, listeners))
    await stage.counted()
    stage.relay._on_subscribed(CHANNEL)
    assert await asyncio.gather(*map(told, listeners)) == [[]] * feeds
    assert await stage.counted() == {"evalsha": 1, "get": 1, "exists": 1}


async def test_many_who_come_at_once_are_shown_all_by_one_reading(stage: Stage) -> None:
    await stage.tasks(120)
    await told(await stage.listen())
    await stage.counted()
    listeners = [await stage.listen() for _ in range(30)]
    shown = await asyncio.gather(*map(told, listeners))
    assert all(numbers(states) == list(range(1, 121)) for states in shown)
    assert (await stage.counted())["hmget"] == 120


async def test_a_long_absence_is_read_in_pages_by_all_who_were_absent(stage: Stage, small_pages: None) -> None:
    tasks = await stage.tasks(103)
    for _ in range(3):
        await stage.publisher.emit(tasks[0].task_id, "note", {"text": "x"})
    await told(await stage.listen())
    await stage.counted()
    listeners = [await stage.listen(after=1) for _ in range(30)]
    async with asyncio.timeout(30):
        await wait_until("it is live", lambda: stage.relay.is_live(CHANNEL))
        [first, *others] = await asyncio.gather(*(read(listener) for listener in listeners))
    assert [event.name for event in first] == ["gap", "", "", "", ""]
    assert json.loads(first[0].data) == {"from": 2, "to": 5}
    assert others == [first] * 29
    [story, *same] = await asyncio.gather(*map(told, listeners))
    assert same == [story] * 29
    shown = [event for event in [*first, *story] if event.is_state]
    assert [event.version for event in shown] == list(range(2, 104)), "each task once, in the order of its change"
    assert [event.name for event in story[-3:]] == ["note"] * 3
    found = await stage.counted()
    # 13 pages of states until what follows can be replayed, then 50 events in 13 pages: once for all thirty.
    assert found["evalsha"] <= 40, "and not thirty times so many"
    assert found["hmget"] <= 80


async def test_a_client_that_takes_slowly_reads_slowly(stage: Stage, small_pages: None) -> None:
    await stage.tasks(20)
    quick, slow = await stage.listen(), await stage.listen(after=0)
    assert len(await read(slow)) == 4
    assert len(await told(quick)) == 20
    await stage.publisher.emit((await stage.tasks(1))[0].task_id, "note", {"text": "x"})
    await stage.arrived(22)
    assert numbers(await told(quick)) == [21, 22], "nobody waits for the slow one"
    assert numbers(await told(slow)) == list(range(5, 23))


# What it tells.


async def test_what_comes_while_pages_are_told_follows_them_once(stage: Stage, small_pages: None) -> None:
    tasks = await stage.tasks(10)
    listener = await stage.listen()
    shown = await read(listener)
    await stage.publisher.cancel(tasks[9])  # 11: it was to be shown last
    await stage.publisher.cancel(tasks[0])  # 12: it was shown
    await stage.publisher.emit(tasks[8].task_id, "note", {"text": "x"})  # 13: it was to be shown
    await stage.arrived(13)
    story = [*shown, *await told(listener)]
    assert [event.version for event in story] == [*range(1, 9), 10, 11, 12, 13]
    assert {event.task_id for event in story if isinstance(event, FeedEvent)} == {task.task_id for task in tasks}


async def test_more_than_a_queue_holds_meanwhile_is_read_and_nothing_is_left_out(
    stage: Stage, small_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headway.api.streams.listeners, "QUEUE_EVENTS", 5)
    tasks = await stage.tasks(10)
    listener = await stage.listen()
    story = await read(listener)
    for number in range(30):
        await stage.publisher.emit(tasks[0].task_id, "note", {"text": str(number)})
    await stage.arrived(40)
    assert len(listener._pending) <= 5
    story += await told(listener)
    assert [event.version for event in story] == list(range(1, 41))


async def test_a_hole_in_the_numbers_is_read(stage: Stage) -> None:
    [task] = await stage.tasks(1)
    listener = await stage.listen()
    await told(listener)
    stage.relay.loses = {2, 3}
    for _ in range(4):
        await stage.publisher.emit(task.task_id, "note", {"text": "x"})
    await stage.arrived(5)
    assert numbers(await told(listener)) == [2, 3, 4, 5]


async def test_a_last_word_that_was_lost_is_found_by_its_number(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    [task] = await stage.tasks(1)
    listener = await stage.listen()
    await told(listener)
    stage.relay.loses = {2}
    await stage.publisher.cancel(task)
    await stage.arrived(2)
    with capture_logs() as logs:
        await idle_minute(stage, monkeypatch)
    assert [line["cause"] for line in logs if line["event"] == "the truth is read again"] == ["behind"]
    [end] = await told(listener)
    assert end.is_terminal


async def test_a_channel_that_cannot_be_asked_about_is_the_trouble_of_those_who_watch_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.tasks(1)
    reader = await stage.listen()
    await told(reader)
    async with stage.relay.listen_to_owner(OwnerId("bob"), ALL, None) as bobs:
        await wait_until("bob's is live", lambda: stage.relay.is_live(bobs.channel))
        await told(bobs)
        await stage.redis.delete(keys.OWNER_VERSION % ANYONE)
        await stage.redis.rpush(keys.OWNER_VERSION % ANYONE, "of another type")  # type: ignore[misc]
        await idle_minute(stage, monkeypatch)
        assert (reader.stale, bobs.stale, stage.relay.broken) == (True, False, None)
        with pytest.raises(ResponseError):
            await told(reader)


async def test_a_doubt_finds_tasks_that_redis_lost(stage: Stage) -> None:
    lost, kept = await stage.tasks(2)
    listeners = [await stage.listen(), await stage.listen(Scope(frozenset({lost.task_id})))]
    await asyncio.gather(*map(told, listeners))
    await stage.redis.delete(keys.state(lost.task_id))
    stage.relay._on_subscribed(CHANNEL)
    for [end] in await asyncio.gather(*map(told, listeners)):
        assert (end.task_id, json.loads(end.data)["error"]["type"], end.task_version) == (lost.task_id, "lost", 2)
    assert [listener.ended for listener in listeners] == [False, True]
    assert kept.task_id in listeners[0]._alive  # type: ignore[attr-defined]


async def test_a_task_that_redis_lost_ends_once_whoever_found_it_first(stage: Stage) -> None:
    [lost] = await stage.tasks(1)
    listener = await stage.listen()
    await told(listener)
    await stage.redis.delete(keys.state(lost.task_id))
    stage.relay._on_subscribed(CHANNEL)
    assert [event.is_terminal for event in await told(listener)] == [True]
    await stage.publisher.let_go(ANYONE, [lost.task_id])
    await stage.arrived(2)
    [kept] = await stage.tasks(1)
    await stage.arrived(3)
    assert [event.task_id for event in await told(listener)] == [kept.task_id]


async def test_what_was_told_as_lost_is_not_remembered_for_ever(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says it again where Redis came back empty, and a stream may live through that any number of times."""
    monkeypatch.setattr(headway.api.streams.owner_listener, "TOLD_LOST", 2)
    tasks = await stage.tasks(5)
    listener = await stage.listen()
    await told(listener)
    await stage.redis.delete(*(keys.state(task.task_id) for task in tasks))
    stage.relay._on_subscribed(CHANNEL)
    assert [event.is_terminal for event in await told(listener)] == [True] * 5
    assert isinstance(listener, OwnerListener)
    assert len(listener._told_lost) == 2


async def test_a_lost_task_that_comes_back_is_told_with_its_true_end(stage: Stage) -> None:
    """As from a backup of Redis: what was told as lost must not hide what is true."""
    [task] = await stage.tasks(1)
    listener = await stage.listen()
    await told(listener)
    kept = await stage.redis.dump(keys.state(task.task_id))
    await stage.redis.delete(keys.state(task.task_id))
    stage.relay._on_subscribed(CHANNEL)
    assert [event.is_terminal for event in await told(listener)] == [True]
    await stage.redis.restore(keys.state(task.task_id), 0, kept)
    await stage.publisher.cancel(task)
    await stage.arrived(2)
    [end] = await told(listener)
    assert json.loads(end.data)["status"] == "cancelled"


async def test_a_doubt_while_pages_are_read_is_read_again(stage: Stage, small_pages: None) -> None:
    tasks = await stage.tasks(6)
    listener = await stage.listen()
    story = await read(listener)
    await stage.redis.delete(keys.state(tasks[0].task_id))
    listener.mark_stale()
    story += await told(listener)
    assert [event.version for event in story] == [1, 2, 3, 4, 5, 6, 6]
    assert json.loads(story[-1].data)["error"]["type"] == "lost"


async def test_a_wait_that_was_given_up_between_two_pages_loses_nothing(stage: Stage, small_pages: None) -> None:
    await stage.tasks(30)
    listener = await stage.listen()
    seen: list[Event] = []
    while not seen or seen[-1].version < 30:
        waiting = asyncio.create_task(listener.next())
        for _ in range(len(seen) % 7):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        seen += [item[0] for item in ([] if waiting.cancelled() else waiting.result() or [])]  # type: ignore[index]
        seen += await read(listener)
    assert [event.version for event in seen] == list(range(1, 31))


async def test_named_tasks_that_had_ended_before_are_not_waited_for(stage: Stage) -> None:
    before, now = await stage.tasks(2)
    await stage.publisher.cancel(before)
    scope = Scope(frozenset({before.task_id, now.task_id}))
    listener = await stage.listen(scope, after=3)
    assert await told(listener) == []
    await stage.publisher.emit(before.task_id, "note", {"text": "x"})
    await stage.publisher.cancel(now)
    await stage.arrived(5)
    assert numbers(await told(listener)) == [4, 5]
    assert listener.ended


@pytest.mark.parametrize("kind", ["named", "batch"])
async def test_what_is_read_does_not_open_again_what_has_expired(stage: Stage, kind: str) -> None:
    ended, runs = await stage.tasks(2, "b")
    await stage.publisher.cancel(ended)
    relay, scope = stage.relay, Scope(frozenset({ended.task_id, runs.task_id}))
    watched = (
        relay.listen_to_owner(ANYONE, scope, None) if kind == "named" else relay.listen_to_batch(ANYONE, "b", None)
    )
    async with watched as listener:
        await wait_until("it is live", lambda: relay.is_live(listener.channel))
        reading = asyncio.create_task(listener.catch_up())
        await asyncio.sleep(0)  # it has begun
        listener.end()
        await reading
        assert (listener.ended, listener.why) == (True, "expired")


async def test_what_was_missed_of_others_is_told_as_one_gap(stage: Stage, small_pages: None) -> None:
    [mine] = await stage.tasks(1, "b")
    for _ in range(5):
        await stage.tasks(30)
    listener = await stage.listen(Scope(batch_id="b"), after=1)
    [gap] = await told(listener)
    span = json.loads(gap.data)
    assert (gap.name, span["from"], gap.version) == ("gap", 2, span["to"])
    assert listener.version == 151
    await stage.publisher.cancel(mine)
    await stage.arrived(152)
    assert numbers(await told(listener)) == [152]


async def test_redis_back_from_an_older_time_is_shown_as_it_is(stage: Stage) -> None:
    tasks = await stage.tasks(3)
    listener = await stage.listen(after=1000)
    assert numbers(await told(listener)) == [1, 2, 3]
    await stage.redis.flushdb()
    stage.relay._on_subscribed(CHANNEL)
    ends = await told(listener)
    assert {end.task_id for end in ends} == {task.task_id for task in tasks}
    assert {json.loads(end.data)["error"]["type"] for end in ends} == {"lost"}


async def test_lines_carry_the_id_to_resume_from_and_the_version_of_the_task(stage: Stage, small_pages: None) -> None:
    tasks = await stage.tasks(60)
    await stage.publisher.emit(tasks[-1].task_id, "note", {"text": "x"})
    listener = await stage.listen(after=1)
    async with asyncio.timeout(30):
        items = list(await listener.next() or [])
        while listener.stale:
            items += await listener.catch_up()
    for item in items:
        event, event_id = item  # type: ignore[misc]
        assert isinstance(event, Event)
        line = json.loads(NDJSON().event(event, event_id))
        assert SSE().event(event, event_id).startswith(b"id: %b\n" % line["id"].encode())
        if isinstance(event, FeedEvent):
            assert line["version"] == event.task_version
    assert {event.name for event, _ in items} == {"", "gap", "note"}  # type: ignore[misc]


async def test_who_leaves_while_others_are_served_is_not_read_for(stage: Stage) -> None:
    asked: list[str] = []

    class Slow:
        async def page(self, owner: OwnerId, after: int, task_ids: frozenset[TaskId] | None) -> str:
            asked.append(str(after))
            await first.wait()
            return f"page {after}"

    first = asyncio.Event()
    reader = OwnerReader(Slow(), ANYONE, spawn=stage.relay.spawn, room=asyncio.Semaphore(1))  # type: ignore[arg-type]
    one, gone, joins = (asyncio.create_task(reader.page(after, ALL)) for after in (1, 2, 3))
    await wait_until("the first is read", lambda: asked)
    late = asyncio.create_task(reader.page(1, ALL))  # what is under way may be older than this one
    too = asyncio.create_task(reader.page(3, ALL))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    first.set()
    answers: Any = list(await asyncio.gather(one, joins, too, late))
    assert answers == ["page 1", "page 3", "page 3", "page 1"]
    assert asked == ["1", "3", "1"]


async def test_an_error_of_a_reading_is_told_to_all_who_asked_and_the_next_one_is_read(stage: Stage) -> None:
    class Broken:
        async def page(self, owner: OwnerId, after: int, task_ids: frozenset[TaskId] | None) -> str:
            if after == 1:
                raise ValueError("no such page")
            return "a page"

    reader = OwnerReader(Broken(), ANYONE, spawn=stage.relay.spawn, room=asyncio.Semaphore(1))  # type: ignore[arg-type]
    asked = [reader.page(1, ALL), reader.page(1, ALL), reader.page(2, ALL)]
    first, second, third = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(first, ValueError)
    assert isinstance(second, ValueError)
    assert third == "a page"  # type: ignore[comparison-overlap]
