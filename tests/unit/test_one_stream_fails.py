"""An error of one stream, wherever it is raised, cuts that stream and is logged; the others go on without a loss."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from headway.api.streams.last_events import LastEvents
from headway.api.streams.listeners import Listener
from headway.api.streams.relay import Registration
from headway.api.streams.sse import NDJSON, SSE
from headway.api.streams.timer_wheel import TimerWheel
from headway.api.streams.wire import Wire
from headway.shared.tasks.models import Event
from tests.unit.test_wire import CHANNEL, LAST_CHUNK, Client, Stage, ids, staged, state
from tests.waiting import wait_until

LINES = "Accept: application/x-ndjson\r\n"


class InjectedError(Exception):
    pass


def break_for(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, victim: object) -> None:
    """`owner.name` raises for the victim: itself, or what is about it."""
    whole = getattr(owner, name)

    def broken(self: Any, *arguments: Any, **named: Any) -> Any:
        about = (self, getattr(self, "listener", None), getattr(self, "_listener", None), *arguments)
        if any(one is victim for one in about):
            raise InjectedError
        return whole(self, *arguments, **named)

    monkeypatch.setattr(owner, name, broken)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged() as stage:
        yield stage


async def watched(stage: Stage, headers: str = "") -> tuple[Client, Listener]:
    """One more, with what it has in the relay, which has told it the snapshot."""
    before = set(listeners(stage))
    [client] = await stage.watch(1, headers)
    assert stage.reader.state is not None
    await client.until(stage.reader.state.data)
    [listener] = set(listeners(stage)) - before
    return client, listener


def listeners(stage: Stage) -> list[Listener]:
    topic = stage.relay._topics.get(CHANNEL)
    return [] if topic is None else [*topic.listeners, *(wire.listener for wire in topic.wires.values())]


async def others_of(stage: Stage) -> list[tuple[Client, Listener]]:
    return [await watched(stage, headers) for headers in ("", "", LINES)]


def tell_a_story(stage: Stage) -> None:
    """An event, a doubt, an event. What a listener reads meanwhile agrees with it."""
    stage.reader.state = Event(2, "", state(2))
    stage.states(2, 2)
    stage.live()
    stage.states(3, 3)


async def assert_whole(client: Client, listener: Listener) -> None:
    """It is told all, to the end of the task."""
    text = await client.until(LAST_CHUNK)
    told = ids(text) if b"id: " in text else [number for number in range(1, 10) if b'"version":%d,' % number in text]
    assert told[-3:] == [2, 3, 4]
    assert listener.error is None


async def end(stage: Stage) -> None:
    await wait_until("nobody reads", lambda: all(not listener.stale for listener in listeners(stage)))
    stage.send(b"4  " + state(4, "completed"))


PLACES = [
    (Wire, "proceed", ""),
    (Wire, "_send", LINES),
    (Wire, "stepped_out", ""),
    (Listener, "push", LINES),
    (Listener, "mark_stale", ""),
    (Listener, "catch_up", ""),
    (Listener, "take", LINES),
]


@pytest.mark.parametrize(("owner", "name", "headers"), PLACES, ids=[name for _, name, _ in PLACES])
async def test_whatever_the_relay_calls_may_fail_for_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, headers: str
) -> None:
    early = await others_of(stage)
    victim, broken = await watched(stage, headers)
    late = await others_of(stage)
    await wait_until("all with SSE are caught up", lambda: stage.caught_up == 4 + (headers == ""))
    break_for(monkeypatch, owner, name, broken)
    with capture_logs() as logs:
        tell_a_story(stage)
        with pytest.raises((ConnectionResetError, AssertionError)):
            assert (await victim.end()).endswith(LAST_CHUNK)
        await wait_until("it is forgotten", lambda: broken not in listeners(stage))
        await end(stage)
        for client, listener in early + late:
            await assert_whole(client, listener)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["stream failed"]
    assert isinstance(next(line for line in logs if line["log_level"] == "error")["exc_info"], InjectedError)
    _, again = await watched(stage)  # and the relay goes on
    assert again.error is None


@pytest.mark.parametrize("name", ["push", "mark_stale", "take", "next"])
async def test_the_same_without_a_connection_of_our_own(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    async with staged(carried=False) as stage:
        early = await others_of(stage)
        victim, broken = await watched(stage)
        late = await others_of(stage)
        break_for(monkeypatch, Listener, name, broken)
        tell_a_story(stage)
        assert not (await victim.end()).endswith(LAST_CHUNK)
        await end(stage)
        for client, listener in early + late:
            await assert_whole(client, listener)


@pytest.mark.parametrize("encoder", [SSE, NDJSON])
async def test_an_event_that_cannot_be_encoded_for_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, encoder: type
) -> None:
    others = await others_of(stage)
    victim, broken = await watched(stage, LINES if encoder is NDJSON else "")
    assert isinstance(broken.wire, Wire)
    broken.wire._encoder = encoder()
    break_for(monkeypatch, encoder, "event", broken.wire._encoder)
    stage.relay._topics[CHANNEL].out(broken.wire._fd)  # out of step, so that it is encoded for it alone
    tell_a_story(stage)
    assert not (await victim.end()).endswith(LAST_CHUNK)
    await end(stage)
    for client, listener in others:
        await assert_whole(client, listener)


@pytest.mark.parametrize(("owner", "name"), [(Registration, "__aexit__"), (LastEvents, "left")])
async def test_a_stream_that_cannot_be_closed_ends_nobody_else(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    others = await others_of(stage)
    leaves, broken = await watched(stage)
    break_for(monkeypatch, owner, name, broken)
    with capture_logs() as logs:
        leaves.writer.transport.abort()
        await wait_until("it is logged", lambda: [line for line in logs if line["log_level"] == "error"])
    assert broken not in listeners(stage)
    tell_a_story(stage)
    await end(stage)
    for client, listener in others:
        await assert_whole(client, listener)


async def test_a_heartbeat_that_fails_cuts_its_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(heartbeat_seconds=1) as stage:
        others = await others_of(stage)
        victim, broken = await watched(stage)
        break_for(monkeypatch, Wire, "look", broken)
        with pytest.raises((ConnectionResetError, AssertionError)):
            assert (await victim.end()).endswith(LAST_CHUNK)
        for client, _ in others:
            await client.until(b"\n\r\n")  # a heartbeat in either format
        tell_a_story(stage)
        await end(stage)
        for client, listener in others:
            await assert_whole(client, listener)


async def test_one_who_cannot_be_told_of_the_stop_keeps_nobody(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    early = await others_of(stage)
    victim, broken = await watched(stage)
    late = await others_of(stage)
    break_for(monkeypatch, Listener, "drain", broken)
    stage.relay.drain()
    for client, listener in early + late:
        await client.until(LAST_CHUNK)
        assert listener.drained
    assert not (await victim.end()).endswith(LAST_CHUNK)


async def test_a_rest_that_cannot_be_written_is_one_streams_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    [slow] = await stage.watch(buffer_bytes=2304)
    await wait_until("it is caught up", lambda: stage.caught_up == 1)
    [broken] = listeners(stage)
    quick, listener = await watched(stage)
    await wait_until("both are caught up", lambda: stage.caught_up == 2)
    break_for(monkeypatch, Wire, "fell_short", broken)
    version = 1
    while broken in listeners(stage):  # until the kernel's buffers are full
        version += 1
        stage.states(version, version, padding=12_000)
        await asyncio.sleep(0)
    stage.states(version + 1, version + 1)
    assert ids(await quick.until(b"id: %d\n" % (version + 1))) == list(range(2, version + 2))
    assert listener.error is None
    assert slow.writer is not None


async def test_a_message_that_nobody_understands_is_read_over(stage: Stage) -> None:
    others = await others_of(stage)
    await wait_until("all with SSE are caught up", lambda: stage.caught_up == 2)
    stage.reader.state = Event(2, "", state(2))
    with capture_logs() as logs:
        stage.send(b"2  " + state(2), b"nonsense", b"3  " + state(3))
        await end(stage)
        for client, listener in others:
            await assert_whole(client, listener)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["message not understood"]


async def test_the_clock_outlives_what_it_looks_at() -> None:
    class Broken:
        slot = -1

        def __init__(self) -> None:
            self.errors: list[Exception] = []

        def look(self, now: float) -> float | None:
            raise InjectedError

        def fail(self, error: Exception) -> None:
            self.errors.append(error)

    timer_wheel, first, second = TimerWheel(0.01), Broken(), Broken()
    running = asyncio.create_task(timer_wheel.run())
    await asyncio.sleep(0)  # it begins
    for broken in (first, second):
        timer_wheel.set(broken, asyncio.get_running_loop().time())
    await wait_until("both were looked at", lambda: first.errors and second.errors)
    running.cancel()
