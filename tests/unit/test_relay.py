"""The relay and its listeners on a real Redis: what is lost, doubled or late on the way is made good by the truth."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from structlog.testing import capture_logs

import headway.api.streams.relay
from headway.api.serving.tally import Tally
from headway.api.streams.last_events import LastEvents
from headway.api.streams.listeners import QUEUE_EVENTS, Listener
from headway.api.streams.relay import Relay
from headway.api.streams.sse import Comment
from headway.api.submission import draft
from headway.shared import keys
from headway.shared.redis.client import RedisClient, channel_on
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, ErrorType, Event, OwnerId, Status, Task, TaskId
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader, Snapshot, decode_message
from tests.waiting import PATIENCE_SECONDS, wait_until


class FaultyRelay(Relay):
    """A relay whose channel can lose messages and send them twice. Counts what arrived."""

    def __init__(self, reader: Reader, settings: Settings) -> None:
        super().__init__(reader, settings)
        self.loses: set[int] = set()
        self.doubles = False
        self.arrived = 0

    def _on_message(self, channel: str, message: bytes) -> None:
        version = decode_message(message).version
        if version not in self.loses:
            super()._on_message(channel, message)
            if self.doubles:
                super()._on_message(channel, message)
        self.arrived = max(self.arrived, version)


class CountingFeed(Reader):
    reads = 0

    async def snapshot(self, task_id: TaskId, owner: OwnerId | None = None, after: int | None = None) -> Snapshot:
        self.reads += 1
        return await super().snapshot(task_id, owner, after)


class Stage:
    """A task at work, a relay, and listeners that are closed at the end."""

    def __init__(self, publisher: Publisher, reader: CountingFeed, relay: FaultyRelay, stack: AsyncExitStack) -> None:
        self.publisher = publisher
        self.reader = reader
        self.relay = relay
        self.task: Task = draft("rehearsal", owner=ANYONE, status=Status.QUEUED, options={})
        self._stack = stack

    async def begin(self) -> None:
        await self.publisher.create(self.task)
        assert await self.publisher.claim(self.task.task_id, self.reader) is not None

    async def step(self, done: int) -> int:
        return await self.publisher.change(self.task.task_id, {"done": done}, allowed=(Status.PROCESSING,), attempt=1)

    async def note(self, text: str) -> int:
        return await self.publisher.emit(self.task.task_id, "note", {"text": text})

    async def end(self) -> int:
        return await self.publisher.fail(self.task.task_id, ErrorType.TIMEOUT, "too long", attempt=1)

    async def listen(self, after: int | None = None) -> Listener:
        return await self._stack.enter_async_context(self.relay.listen(self.task.task_id, ANYONE, after))

    async def arrived(self, version: int) -> None:
        await wait_until(f"version {version} went over the channel", lambda: self.relay.arrived >= version)


@pytest.fixture
async def stage(redis_client: RedisClient, settings: Settings) -> AsyncIterator[Stage]:
    reader = CountingFeed(redis_client)
    relay = FaultyRelay(reader, settings)
    async with relay, AsyncExitStack() as stack:
        stage = Stage(Publisher(redis_client, settings), reader, relay, stack)
        await stage.begin()  # versions 1, queued, and 2, processing
        yield stage


def events_of(items: list[Any] | None) -> list[Event]:
    assert items is not None
    return [item[0] for item in items if not isinstance(item, Comment)]


async def read(listener: Listener) -> list[Event]:
    async with asyncio.timeout(10):
        return events_of(await listener.next())


async def read_until(listener: Listener, version: int) -> list[Event]:
    seen: list[Event] = []
    while not seen or seen[-1].version < version:
        seen += await read(listener)
    return seen


def versions(events: list[Event]) -> list[int]:
    return [event.version for event in events]


async def test_a_watcher_gets_the_snapshot_and_then_each_event(stage: Stage) -> None:
    listener = await stage.listen()
    [snapshot] = await read(listener)
    assert (snapshot.version, json.loads(snapshot.data)["status"]) == (2, "processing")
    for done in (1, 2, 3):
        await stage.step(done)
    assert versions(await read_until(listener, 5)) == [3, 4, 5]


async def test_a_late_subscriber_sees_history_then_live_in_order(stage: Stage) -> None:
    await stage.step(1)
    listener = await stage.listen(after=0)
    seen = await read_until(listener, 3)
    await stage.step(2)
    await stage.note("hello")
    seen += await read_until(listener, 5)
    assert versions(seen) == [1, 2, 3, 4, 5]
    assert [event.name for event in seen] == ["", "", "", "", "note"]


async def test_what_happens_while_the_truth_is_read_is_told_once(stage: Stage) -> None:
    listener = await stage.listen(after=0)
    await wait_until("the channel is live", lambda: stage.relay.is_live(keys.channel(stage.task.task_id)))
    for done in range(5):  # in the listener's queue, and in the history that it has not read yet
        await stage.step(done)
    await stage.arrived(7)
    assert versions(await read_until(listener, 7)) == [1, 2, 3, 4, 5, 6, 7]
    await stage.step(9)
    assert versions(await read(listener)) == [8]


async def test_a_message_that_redis_lost_is_read_from_the_truth(stage: Stage) -> None:
    listener = await stage.listen()
    await read(listener)
    stage.relay.loses = {3, 5, 6}
    for done in range(6):
        await stage.step(done)
    await stage.arrived(8)
    assert versions(await read_until(listener, 8)) == [3, 4, 5, 6, 7, 8]


async def test_a_lost_terminal_event_is_found_when_the_silence_is_distrusted(stage: Stage) -> None:
    listener = await stage.listen()
    await read(listener)
    stage.relay.loses = {3}
    await stage.end()
    await stage.arrived(3)
    listener.mark_stale()
    [end] = await read(listener)
    assert end.is_terminal
    assert await listener.next() is None


async def test_a_message_that_comes_twice_is_told_once(stage: Stage) -> None:
    stage.relay.doubles = True
    listener = await stage.listen()
    await read(listener)
    reads = stage.reader.reads
    for done in range(5):
        await stage.step(done)
    await stage.arrived(7)
    assert versions(await read_until(listener, 7)) == [3, 4, 5, 6, 7]
    assert stage.reader.reads == reads  # and is no hole that would have to be read


async def test_nothing_follows_the_terminal_event(stage: Stage) -> None:
    listener = await stage.listen()
    await read(listener)
    await stage.end()
    await stage.note("too late for this stream")
    await stage.arrived(4)
    [end] = await read(listener)
    assert end.is_terminal
    assert await listener.next() is None
    assert not listener.drained


async def test_a_slow_reader_gets_the_newest_state_and_is_told_the_gap(stage: Stage) -> None:
    slow, quick = await stage.listen(), await stage.listen()
    await read(slow)
    seen = await read(quick)
    for done in range(QUEUE_EVENTS + 50):
        await stage.step(done)
        seen += await read_until(quick, done + 3)
    last = QUEUE_EVENTS + 52
    assert versions(seen) == list(range(2, last + 1))  # the quick one pays nothing for the slow one
    told = await read_until(slow, last)
    assert len(told) < QUEUE_EVENTS
    gap = told[0]
    assert (gap.name, json.loads(gap.data)["from"], json.loads(gap.data)["to"]) == ("gap", 3, gap.version)
    assert versions(told[1:]) == list(range(gap.version + 1, last + 1))
    assert json.loads(told[-1].data)["done"] == QUEUE_EVENTS + 49
    tally = stage.relay.tally
    assert (tally.gaps, tally.coalesced, tally.events) == (1, gap.version - 2, len(seen) + 1 + len(told))


async def test_a_slow_reader_never_loses_the_terminal_event(stage: Stage) -> None:
    listener = await stage.listen()
    await read(listener)
    for done in range(20):
        await stage.step(done)
    end = await stage.end()
    for number in range(QUEUE_EVENTS + 50):  # notes go on after the end, and push everything else out
        await stage.note(str(number))
    await stage.arrived(end + QUEUE_EVENTS + 50)
    seen = await read_until(listener, end)
    assert seen[-1].is_terminal
    assert seen[-1].version == end
    assert await listener.next() is None


async def test_a_reader_that_is_not_there_keeps_a_bounded_queue(stage: Stage) -> None:
    listener = await stage.listen()
    await read(listener)
    for number in range(QUEUE_EVENTS * 2):
        await (stage.note(str(number)) if number % 2 else stage.step(number))
    await stage.arrived(QUEUE_EVENTS * 2 + 2)
    assert len(listener._pending) <= QUEUE_EVENTS


async def test_an_id_from_the_future_gets_the_truth(stage: Stage) -> None:
    listener = await stage.listen(after=1_000_000)
    assert versions(await read(listener)) == [2]
    await stage.step(1)
    assert versions(await read(listener)) == [3]


async def test_everybody_who_asks_for_the_same_is_served_by_one_read(stage: Stage) -> None:
    await read(await stage.listen())
    before = stage.reader.reads
    listeners = [await stage.listen(after=0) for _ in range(50)]
    told = await asyncio.gather(*(read(listener) for listener in listeners))
    assert [versions(events) for events in told] == [[1, 2]] * 50
    assert stage.reader.reads == before + 1


async def test_a_wait_that_was_given_up_for_a_heartbeat_loses_nothing(stage: Stage) -> None:
    listener = await stage.listen(after=0)
    seen: list[Event] = []
    for _ in range(20):
        waiting = asyncio.create_task(listener.next())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        if not waiting.cancelled():  # what there was to read had just come
            seen += events_of(waiting.result())
            break
    assert versions(seen or await read_until(listener, 2)) == [1, 2]


async def test_a_task_that_redis_no_longer_has_ends_as_lost(stage: Stage, redis_client: RedisClient) -> None:
    listener = await stage.listen()
    await read(listener)
    await redis_client.delete(keys.state(stage.task.task_id), keys.events(stage.task.task_id))
    listener.mark_stale()
    [end] = await read(listener)
    assert end.version == 3
    assert (json.loads(end.data)["status"], json.loads(end.data)["error"]["type"]) == ("failed", "lost")
    assert await listener.next() is None
    assert reason_of(listener) == "lost"


async def test_how_a_stream_ended_is_counted_by_its_reason(stage: Stage) -> None:
    gone, drained, expired, done, slow = [await stage.listen() for _ in range(5)]
    drained.drain()
    expired.end()
    for listener in (done, slow):
        await read(listener)
    await stage.end()
    for listener in (done, slow):
        await read_until(listener, 3)
    done.end()  # too late: it had ended by itself
    slow.why = "slow"
    reasons = [reason_of(listener) for listener in (gone, drained, expired, done, slow)]
    assert reasons == ["gone", "drained", "expired", "done", "slow"]


def reason_of(listener: Listener) -> str:
    tally = Tally()
    tally.stream_opened(listener)
    tally.stream_ended(listener)
    assert tally.streams == {"task": 0}
    [(kind, reason)] = tally.ended
    assert kind == "task"
    return reason


async def test_progress_does_not_fall_where_a_task_is_lost(stage: Stage, redis_client: RedisClient) -> None:
    await stage.publisher.change(stage.task.task_id, {"progress": 40}, allowed=(Status.PROCESSING,), attempt=1)
    listener = await stage.listen()
    [snapshot] = await read(listener)
    await redis_client.delete(keys.state(stage.task.task_id), keys.events(stage.task.task_id))
    listener.mark_stale()
    [end] = await read(listener)
    assert json.loads(end.data)["progress"] == json.loads(snapshot.data)["progress"] == 40


async def test_a_stop_ends_every_stream_and_those_that_come_after(stage: Stage) -> None:
    listener = await stage.listen()
    await read(listener)
    waiting = asyncio.create_task(listener.next())
    await asyncio.sleep(0)
    stage.relay.drain()
    late = await stage.listen()
    async with asyncio.timeout(10):
        assert (await waiting, await late.next()) == (None, None)
    assert listener.drained
    assert late.drained


async def subscribers(redis: RedisClient, task_id: TaskId) -> int:
    [(_, count)] = await redis.pubsub_numsub(channel_on(redis, keys.channel(task_id)))
    return int(count)


async def test_a_reload_finds_the_channel_still_subscribed(
    stage: Stage, redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headway.api.streams.relay, "LINGER_SECONDS", 600)
    async with stage.relay.listen(stage.task.task_id, ANYONE, None) as listener:
        await read(listener)
    assert stage.relay.listener_count == 0
    assert await subscribers(redis_client, stage.task.task_id) == 1
    assert stage.relay.is_live(keys.channel(stage.task.task_id))
    again = await stage.listen(after=2)
    await stage.step(1)
    assert versions(await read(again)) == [3]


async def test_a_channel_nobody_comes_back_to_is_given_up(
    stage: Stage, redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headway.api.streams.relay, "LINGER_SECONDS", 0.01)
    async with stage.relay.listen(stage.task.task_id, ANYONE, None) as listener:
        await read(listener)

    await wait_until("the topic is closed", lambda: not stage.relay.is_live(keys.channel(stage.task.task_id)))
    while await subscribers(redis_client, stage.task.task_id):  # the test's deadline is the end of this
        pass
    again = await stage.listen()  # and is there again for the next one
    assert versions(await read(again)) == [2]


async def test_one_who_leaves_takes_nothing_from_the_others(
    stage: Stage, redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headway.api.streams.relay, "LINGER_SECONDS", 0)
    stays = await stage.listen()
    await read(stays)
    async with stage.relay.listen(stage.task.task_id, ANYONE, None) as leaves:
        await read(leaves)
    await stage.step(1)
    assert versions(await read(stays)) == [3]
    assert await subscribers(redis_client, stage.task.task_id) == 1


async def look_into_silence(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as it takes to have looked once at what was silent."""
    looked = asyncio.Event()
    compare = Relay._compare

    async def compared(self: Relay, silent: dict[str, Any]) -> None:
        await compare(self, silent)
        if silent:
            looked.set()

    monkeypatch.setattr(Relay, "_compare", compared)
    monkeypatch.setattr(headway.api.streams.relay, "SILENCE_SECONDS", 0.02)
    looking = asyncio.create_task(stage.relay._look_into_silence())
    await asyncio.wait_for(looked.wait(), PATIENCE_SECONDS)
    looking.cancel()
    await asyncio.wait([looking])


async def test_silence_that_is_true_is_no_doubt(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = await stage.listen()
    await read(listener)
    reads = stage.reader.reads
    await look_into_silence(stage, monkeypatch)
    assert not listener.stale
    assert stage.reader.reads == reads


async def test_a_lost_terminal_event_is_found_in_the_silence(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = await stage.listen()
    await read(listener)
    stage.relay.loses = {3}
    await stage.end()
    await stage.arrived(3)
    await look_into_silence(stage, monkeypatch)
    [end] = await read(listener)
    assert end.is_terminal


async def test_a_task_that_vanished_without_a_word_is_found_in_the_silence(
    stage: Stage, redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = await stage.listen()
    await read(listener)
    await redis_client.delete(keys.state(stage.task.task_id), keys.events(stage.task.task_id))
    await look_into_silence(stage, monkeypatch)
    [end] = await read(listener)
    assert json.loads(end.data)["error"]["type"] == "lost"


async def test_an_error_of_the_look_into_silence_ends_nothing_and_is_told(
    stage: Stage, redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = await stage.listen()
    await read(listener)
    compare, looks = Relay._compare, 0

    async def broken(self: Relay, silent: dict[str, Any]) -> None:
        nonlocal looks
        looks += 1
        raise ValueError("of a kind that nobody expects")

    monkeypatch.setattr(headway.api.streams.relay, "SILENCE_SECONDS", 0.02)
    monkeypatch.setattr(Relay, "_compare", broken)
    looking = asyncio.create_task(stage.relay._look_into_silence())
    with capture_logs() as logs:
        await wait_until("it went on", lambda: looks > 3)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["silence not looked into"]
    assert stage.relay.broken
    assert stage.relay.is_live(keys.channel(stage.task.task_id)), "streams go on"
    await stage.step(1)
    assert versions(await read(listener)) == [3]
    monkeypatch.setattr(Relay, "_compare", compare)
    await wait_until("all is well", lambda: stage.relay.broken is None)
    looking.cancel()
    await asyncio.wait([looking])


async def test_one_whose_leaving_fails_has_left_all_the_same(
    stage: Stage, redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headway.api.streams.relay, "LINGER_SECONDS", 0)

    def broken(self: LastEvents, listener: Listener) -> None:
        raise ValueError("cannot be traced")

    monkeypatch.setattr(LastEvents, "left", broken)
    leaving = stage.relay.listen(stage.task.task_id, ANYONE, None)
    async with leaving as listener:
        await read(listener)
        with pytest.raises(ValueError, match="cannot be traced"):
            stage.relay.leave(listener)
        assert stage.relay.listener_count == 0
        await wait_until("the topic is closed", lambda: stage.relay.topic_count == 0)
        monkeypatch.undo()


async def test_what_was_coalesced_keeps_its_versions(stage: Stage) -> None:
    """Named events among the states that were left out: each under its own id, and in the gaps what is not told."""
    listener = await stage.listen()
    await read(listener)
    for number in range(QUEUE_EVENTS):
        await (stage.note(str(number)) if number % 5 == 0 else stage.step(number))
    last = await stage.note("the last")
    await stage.arrived(last)
    seen = 2
    for event in await read_until(listener, last):
        data = json.loads(event.data)
        if event.name == "gap":
            assert (data["from"], data["to"]) == (seen + 1, event.version)
        else:
            assert event.version == seen + 1
            assert event.name or data["version"] == event.version
            if event.name == "note" and data["text"] != "the last":
                assert int(data["text"]) == event.version - 3
        seen = event.version
    assert seen == last
