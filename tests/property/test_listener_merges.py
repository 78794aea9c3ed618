"""History and live events, merged by version: whatever the network does to the channel, a watcher is told each event
once and in order, or told of the gap, and always the end."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any, Final, Literal

from hypothesis import given, settings
from hypothesis import strategies as st

import headway.api.streams.listeners
from headway.api.serving.tally import Tally
from headway.api.streams.listeners import Listener
from headway.api.streams.sse import Comment
from headway.api.streams.task_listener import TaskListener
from headway.shared.json_text import text_of
from headway.shared.tasks.models import Event, OwnerId, TaskId
from headway.shared.tasks.reader import Reader, Snapshot

Action = Literal["state", "note", "deliver", "lose", "double", "mark_stale", "read", "give up"]
ACTIONS: Final = st.lists(
    st.sampled_from(
        ["state", "state", "note", "deliver", "deliver", "lose", "double", "mark_stale", "read", "give up"]
    ),
    max_size=60,
)
TASK = TaskId("0" * 32)


class Channel:
    """A fake relay: the truth, what is under way on the channel, and a history that may be short."""

    def __init__(self, history_length: int) -> None:
        self.truth: list[Event] = []
        self.state = Event(0, "", b"{}")
        self.under_way: list[Event] = []
        self._history_length = history_length
        self.tally = Tally()
        self.write("state")

    @property
    def reader(self) -> Reader:
        raise NotImplementedError("a listener of one task asks for read_task alone")

    def write(self, kind: str) -> None:
        version = len(self.truth) + 1
        status = {"end": "completed"}.get(kind, "processing")
        data = text_of({"task_id": TASK, "version": version, "status": status}).encode()
        self.state = Event(version, "", data)  # a named event raises the version of the state as well
        event = self.state if kind != "note" else Event(version, "note", b'{"text":"hello"}')
        self.truth.append(event)
        self.under_way.append(event)

    def is_live(self, channel: str) -> bool:
        return True

    async def read_task(self, channel: str, task_id: TaskId, owner: OwnerId | None, after: int | None) -> Snapshot:
        state, kept = self.state, self.truth[-self._history_length :]
        await asyncio.sleep(0)  # the answer is under way, and is older than what comes meanwhile
        await asyncio.sleep(0)
        history = tuple(event for event in kept if after is not None and event.version > after)
        missed_from = None
        if after is not None and after < state.version and (not history or history[0].version > after + 1):
            missed_from = after + 1
        return Snapshot({}, state, history, missed_from)


class Watcher:
    """Reads a listener as a response does: one wait at a time, which may be given up for a heartbeat."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.told: list[Event] = []
        self.ended = False
        self._waiting: asyncio.Task[Any] | None = None

    async def read(self) -> None:
        if self.ended:
            return
        if self._waiting is None:
            self._waiting = asyncio.create_task(self.listener.next())
        await asyncio.sleep(0)
        if self._waiting.done():
            self._take()

    async def give_up(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.wait([self._waiting])
            if self._waiting.cancelled():
                self._waiting = None
            else:
                self._take()

    def _take(self) -> None:
        assert self._waiting is not None
        items, self._waiting = self._waiting.result(), None
        if items is None:
            self.ended = True
        else:
            self.told += [item[0] for item in items if not isinstance(item, Comment)]

    async def read_to_the_end(self) -> None:
        for _ in range(10_000):
            if self.ended:
                return
            await self.read()
        raise AssertionError("the stream never ended")


async def play(actions: list[Action], after: int | None, history_length: int) -> tuple[Channel, list[Event]]:
    channel = Channel(history_length)
    listener = TaskListener(channel, "live", TASK, None, after)
    watcher = Watcher(listener)
    for action in actions:
        match action:
            case "state" | "note":
                channel.write(action)
            case "deliver" | "double" if channel.under_way:
                listener.push(channel.under_way[0])
                if action == "deliver":
                    channel.under_way.pop(0)
            case "lose" if channel.under_way:
                channel.under_way.pop(0)
            case "mark_stale":
                listener.mark_stale()
            case "read":
                await watcher.read()
            case "give up":
                await watcher.give_up()
    channel.write("end")
    for event in channel.under_way:
        listener.push(event)
    await watcher.read_to_the_end()
    return channel, watcher.told


def assert_each_once_in_order(told: list[Event], channel: Channel, seen: int) -> int:
    """Returns how many events were told of as gaps."""
    gaps = 0
    for event in told:
        if event.name == "gap":
            span = json.loads(event.data)
            assert span["from"] == seen + 1
            assert event.version == span["to"] >= span["from"]
            gaps += span["to"] - span["from"] + 1
        else:
            assert event.version == seen + 1
            truth = channel.truth[event.version - 1]
            assert event == truth or (event.is_state and json.loads(event.data)["version"] == event.version)
        seen = event.version
    assert seen == len(channel.truth)
    assert told[-1] == channel.truth[-1]
    assert [event.is_terminal for event in told].count(True) == 1
    return gaps


@settings(max_examples=200)
@given(actions=ACTIONS, after=st.integers(min_value=0, max_value=1))
def test_a_replay_and_what_is_live_are_each_event_once_in_order(actions: list[Action], after: int) -> None:
    channel, told = asyncio.run(play(actions, after, history_length=1000))
    assert assert_each_once_in_order(told, channel, after) == 0
    assert told == channel.truth[after:]


@settings(max_examples=200)
@given(actions=ACTIONS)
def test_a_first_connection_is_the_snapshot_and_each_event_after_it(actions: list[Action]) -> None:
    channel, told = asyncio.run(play(actions, None, history_length=1000))
    assert told[0].is_state
    assert assert_each_once_in_order(told, channel, told[0].version - 1) == 0


@settings(max_examples=200)
@given(actions=ACTIONS, after=st.integers(min_value=0, max_value=1), history_length=st.integers(1, 5))
def test_what_was_trimmed_is_told_as_a_gap_and_a_state_follows(
    actions: list[Action], after: int, history_length: int
) -> None:
    channel, told = asyncio.run(play(actions, after, history_length))
    assert_each_once_in_order(told, channel, after)
    for gap, follows in itertools.pairwise(told):
        assert gap.name != "gap" or follows.is_state


@settings(max_examples=100)
@given(actions=ACTIONS, limit=st.integers(2, 6))
def test_a_queue_that_overflows_ends_with_the_truth_all_the_same(actions: list[Action], limit: int) -> None:
    before = headway.api.streams.listeners.QUEUE_EVENTS, headway.api.streams.listeners.QUEUE_NAMED_EVENTS
    headway.api.streams.listeners.QUEUE_EVENTS, headway.api.streams.listeners.QUEUE_NAMED_EVENTS = limit, limit // 2  # type: ignore[misc]
    try:
        channel, told = asyncio.run(play(actions, 0, history_length=1000))
    finally:
        headway.api.streams.listeners.QUEUE_EVENTS, headway.api.streams.listeners.QUEUE_NAMED_EVENTS = before  # type: ignore[misc]
    assert_each_once_in_order(told, channel, 0)
