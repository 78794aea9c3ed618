"""Streams on the bare transport: a real uvicorn with our connection class, real sockets, a relay fed by hand."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from headway.api.serving.protocol import StreamProtocol
from headway.api.streams.listeners import QUEUE_EVENTS
from headway.api.streams.relay import Relay
from headway.api.streams.sse import SSE, EventStreamResponse, choose_encoder
from headway.api.streams.topic import is_end
from headway.shared import keys
from headway.shared.errors import UnknownTask
from headway.shared.settings import Settings
from headway.shared.tasks.models import TERMINAL, Event, OwnerId, Status, TaskId
from headway.shared.tasks.reader import Snapshot
from tests.waiting import wait_until

TASK = TaskId("0" * 32)
CHANNEL = keys.channel(TASK)
LAST_CHUNK = b"0\r\n\r\n"


def state(version: int, status: str = "processing", padding: int = 0) -> bytes:
    data = {"task_id": TASK, "version": version, "status": status, "progress": 1, "message": "x" * padding}
    return json.dumps(data, separators=(",", ":")).encode()


class Reader:
    """The truth, as far as a listener asks for it."""

    def __init__(self) -> None:
        self.state: Event | None = Event(1, "", state(1))
        self.reads = 0

    async def snapshot(self, task_id: TaskId, owner: OwnerId | None = None, after: int | None = None) -> Snapshot:
        self.reads += 1
        if self.state is None:
            raise UnknownTask
        missing = after is not None and after < self.state.version
        return Snapshot({}, self.state, (), after + 1 if missing and after is not None else None)


class HandFedRelay(Relay):
    async def _receive(self) -> None:
        await asyncio.Event().wait()


class Stage:
    """A server of event streams. `send` is what Redis sends, all of it with one read."""

    def __init__(self, relay: Relay, reader: Reader, port: int) -> None:
        self.relay = relay
        self.reader = reader
        self.port = port
        self.clients: list[Client] = []

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self.relay._on_message(CHANNEL, message)
        self.relay._on_read()

    def states(self, first: int, last: int, padding: int = 0) -> None:
        for version in range(first, last + 1):
            self.send(b"%d  %b" % (version, state(version, padding=padding)))

    def live(self) -> None:
        self.relay._subscription.broken = None
        self.relay._on_subscribed(CHANNEL)

    @property
    def caught_up(self) -> int:
        topic = self.relay._topics.get(CHANNEL)
        return len(topic.wires) if topic is not None else 0

    async def watch(self, count: int = 1, headers: str = "", buffer_bytes: int = 0) -> list[Client]:
        before = self.caught_up
        clients = [await self.open(headers, buffer_bytes) for _ in range(count)]
        await wait_until("they are asked for", lambda: self.relay.listener_count >= before + count)
        self.live()
        return clients

    async def open(self, headers: str = "", buffer_bytes: int = 0) -> Client:
        self.clients.append(await Client.open(self.port, headers, buffer_bytes))
        return self.clients[-1]


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.seen = b""

    @classmethod
    async def open(cls, port: int, headers: str, buffer_bytes: int) -> Client:
        sock = socket.socket()
        if buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**12 if buffer_bytes else 2**24)
        client = cls(reader, writer)
        client.ask(headers)
        return client

    def ask(self, headers: str = "", version: str = "1.1") -> None:
        self.writer.write(f"GET /x HTTP/{version}\r\nHost: x\r\n{headers}\r\n".encode())

    async def until(self, what: bytes) -> bytes:
        while what not in self.seen:
            async with asyncio.timeout(20):
                data = await self.reader.read(65536)
            assert data, self.seen[-500:]
            self.seen += data
        found, _, self.seen = self.seen.partition(what)
        return found + what

    async def end(self) -> bytes:
        async with asyncio.timeout(20):
            return self.seen + await self.reader.read(-1)


def ids(text: bytes) -> list[int]:
    return [int(line[4:]) for line in text.split(b"\n") if line.startswith(b"id: ")]


@asynccontextmanager
async def staged(*, carried: bool = True, **seconds: float) -> AsyncIterator[Stage]:
    """`carried`: as under `headway api`, else as under any other server."""
    settings = Settings(redis_url="redis://127.0.0.1:1/0", **seconds)  # type: ignore[arg-type]
    reader: Any = Reader()
    relay = HandFedRelay(reader, settings)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["headway.send"] = send
        response = EventStreamResponse(
            relay.listen(TASK, None, None),
            choose_encoder(Request(scope).headers.get("accept", "")),
            heartbeat_seconds=settings.heartbeat_seconds,
            send_timeout_seconds=settings.send_timeout_seconds,
            carry=relay.carry if carried else None,
        )
        await response(scope, receive, send)

    config = uvicorn.Config(
        app, port=0, http=StreamProtocol, loop="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    async with relay:
        serving = asyncio.create_task(server._serve())
        await wait_until("it listens", lambda: server.started)
        stage = Stage(relay, reader, server.servers[0].sockets[0].getsockname()[1])
        yield stage
        for client in stage.clients:
            client.writer.transport.abort()
            with suppress(OSError):
                await client.writer.wait_closed()
        relay.drain()
        server.should_exit = True
        await serving


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged() as stage:
        yield stage


async def test_what_one_read_brought_is_written_to_all_and_no_task_is_woken_for_it(stage: Stage) -> None:
    clients = await stage.watch(20)
    await wait_until("all are caught up", lambda: stage.caught_up == 20)
    tasks = asyncio.all_tasks()
    stage.send(*(b"%d  %b" % (version, state(version)) for version in range(2, 12)))
    assert asyncio.all_tasks() == tasks
    for client in clients:
        assert ids(await client.until(state(11) + b"\n\n\r\n")) == list(range(1, 12))
    assert stage.reader.reads == 1


async def test_an_event_made_once_for_all_is_the_event_that_is_made_for_one(stage: Stage) -> None:
    [client] = await stage.watch()
    await wait_until("it is caught up", lambda: stage.caught_up == 1)
    stage.send(b"2  " + state(2), b'3 log {"message":"hello"}')
    text = await client.until(b"hello" + b'"}\n\n\r\n')
    events = [Event(2, "", state(2)), Event(3, "log", b'{"message":"hello"}')]
    for event in events:
        body = SSE().event(event)
        assert b"%x\r\n%b\r\n" % (len(body), body) in text


async def test_a_hole_is_read_from_the_truth_and_then_it_is_in_step_again(stage: Stage) -> None:
    [client] = await stage.watch()
    await wait_until("it is caught up", lambda: stage.caught_up == 1)
    stage.send(b"2  " + state(2))
    stage.reader.state = Event(5, "", state(5))
    stage.send(b"5  " + state(5))
    text = await client.until(state(5) + b"\n\n")
    assert ids(text) == [1, 2, 4, 5]  # 3 and 4 are told as a gap
    assert b"event: gap" in text
    await wait_until("it is caught up", lambda: stage.caught_up == 1)
    stage.send(b"6  " + state(6))
    await client.until(state(6) + b"\n\n")


async def test_a_message_that_comes_twice_is_told_once(stage: Stage) -> None:
    [client] = await stage.watch()
    await wait_until("it is caught up", lambda: stage.caught_up == 1)
    stage.send(b"2  " + state(2), b"2  " + state(2), b"1  " + state(1), b"3  " + state(3))
    assert ids(await client.until(state(3) + b"\n\n")) == [1, 2, 3]


async def test_the_end_of_a_task_ends_the_answer_and_the_connection_can_be_used_again(stage: Stage) -> None:
    [client] = await stage.watch()
    for _ in range(2):
        await wait_until("it is caught up", lambda: stage.caught_up == 1)
        stage.send(b"2  " + state(2), b"3  " + state(3, "completed"))
        text = await client.until(LAST_CHUNK)
        assert text.startswith(b"HTTP/1.1 200 OK\r\n")
        assert ids(text) == [1, 2, 3]
        assert client.seen == b""
        client.ask()
        await wait_until("it is asked for", lambda: stage.relay.listener_count == 1)
        stage.live()


async def test_a_request_that_comes_while_a_stream_is_open_is_answered_after_it(stage: Stage) -> None:
    [client] = await stage.watch()
    await wait_until("it is caught up", lambda: stage.caught_up == 1)
    client.ask("Accept: application/x-ndjson\r\nConnection: close\r\n")
    stage.send(b"2  " + state(2, "completed"))
    assert ids(await client.until(LAST_CHUNK)) == [1, 2]
    await wait_until("the second is asked for", lambda: stage.relay.listener_count == 1)
    stage.live()
    await client.until(state(1))
    stage.send(b"2  " + state(2, "completed"))
    second = await client.end()
    assert second.endswith(LAST_CHUNK)


async def test_a_client_that_leaves_is_forgotten(stage: Stage) -> None:
    stays, leaves = await stage.watch(2)
    await wait_until("both are caught up", lambda: stage.caught_up == 2)
    leaves.writer.transport.abort()
    await wait_until("one is left", lambda: stage.relay.listener_count == 1)
    stage.send(b"2  " + state(2))
    assert ids(await stays.until(state(2) + b"\n\n")) == [1, 2]


async def test_one_who_takes_less_than_there_is_gets_the_newest_and_is_told_the_gap(stage: Stage) -> None:
    [slow] = await stage.watch(buffer_bytes=2304)
    [quick] = await stage.watch()
    await wait_until("both are caught up", lambda: stage.caught_up == 2)
    version, padding = 1, 12_000
    while stage.caught_up == 2:  # until the kernel's buffers are full
        version += 1
        stage.send(b"%d  %b" % (version, state(version, padding=padding)))
        await asyncio.sleep(0)
    last = version + QUEUE_EVENTS + 50
    for number in range(version + 1, last + 1):
        stage.send(b"%d  %b" % (number, state(number, padding=padding)))
        await quick.until(b"id: %d\n" % number)
    text = await slow.until(state(last, padding=padding) + b"\n\n")
    told = ids(text)
    assert told == sorted(set(told))
    gap = json.loads(text.split(b"event: gap\ndata: ")[1].split(b"\n")[0])
    assert (gap["from"] - 1, gap["to"] + 1) == (told[told.index(gap["to"]) - 1], told[told.index(gap["to"]) + 1])
    await wait_until("it is caught up again", lambda: stage.caught_up == 2)


async def test_who_takes_nothing_for_the_send_time_out_is_reset() -> None:
    async with staged(send_timeout_seconds=1, heartbeat_seconds=1) as stage:
        [slow] = await stage.watch(buffer_bytes=2304)
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await wait_until("it is caught up", lambda: stage.caught_up == 1)
        version = 1
        while stage.caught_up == 1:
            version += 1
            stage.send(b"%d  %b" % (version, state(version, padding=12_000)))
            await asyncio.sleep(0)
        await wait_until("it is dropped", lambda: stage.relay.listener_count == 0)
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionResetError):
            await slow.end()


async def test_an_end_that_is_not_taken_is_no_way_to_stay() -> None:
    async with staged(send_timeout_seconds=1, heartbeat_seconds=1) as stage:
        [slow] = await stage.watch(buffer_bytes=2304)
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await wait_until("it is caught up", lambda: stage.caught_up == 1)
        [wire] = stage.relay._topics[CHANNEL].wires.values()
        version = 1
        while stage.caught_up == 1:
            version += 1
            stage.send(b"%d  %b" % (version, state(version, padding=12_000)))
            await asyncio.sleep(0)
        wire.listener.end()  # its token has expired
        await wait_until("it is dropped", lambda: stage.relay.listener_count == 0)
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionResetError):
            await slow.end()


async def test_an_idle_stream_has_a_heartbeat_and_a_busy_one_has_none() -> None:
    async with staged(heartbeat_seconds=1) as stage:
        idle, *_ = await stage.watch()
        await idle.until(b": still here\n\r\n")
        for version in range(2, 40):
            stage.send(b"%d  %b" % (version, state(version)))
            await asyncio.sleep(0.05)
        text = await idle.until(state(39) + b"\n\n")
        assert b"still here" not in text


async def test_a_stop_ends_every_stream_whole_with_a_time_to_come_back(stage: Stage) -> None:
    clients = await stage.watch(5, "Connection: close\r\n")
    await wait_until("all are caught up", lambda: stage.caught_up == 5)
    stage.relay.drain()
    goodbyes = {await client.end() for client in clients}
    assert all(text.endswith(b"come back\n\r\n" + LAST_CHUNK) for text in goodbyes)
    assert len({text.rsplit(b"retry: ", 1)[1] for text in goodbyes}) > 1
    assert stage.relay.listener_count == 0


async def test_a_task_that_is_lost_ends_with_the_progress_that_was_seen(stage: Stage) -> None:
    [client] = await stage.watch(1, "Connection: close\r\n")
    await wait_until("it is caught up", lambda: stage.caught_up == 1)
    stage.send(b"2  " + state(2).replace(b'"progress":1', b'"progress":40'))
    stage.reader.state = None
    stage.live()  # the subscription was made anew
    last = (await client.end()).split(b"data: ")[-1].split(b"\n")[0]
    lost = json.loads(last)
    assert (lost["version"], lost["progress"], lost["error"]["type"]) == (3, 40, "lost")


async def test_a_stream_that_nothing_is_known_for_yet_says_so_at_once(stage: Stage) -> None:
    client = await stage.open()  # and Redis is away
    assert b"retry: 1000\n: connected" in await client.until(b"nothing to tell yet\n")


@pytest.mark.parametrize("version", [1, 12, 123_456])
@pytest.mark.parametrize("status", list(Status))
def test_the_end_is_known_without_making_an_event_of_it(version: int, status: Status) -> None:
    data = state(version, status)
    event = Event(version, "", data)
    assert is_end(b"%d" % version, b"", data) == event.is_terminal == (status in TERMINAL)
    assert not is_end(b"%d" % version, b"log", data)


def test_file_descriptors_are_what_is_written_to() -> None:
    """The relay writes to the connection itself: os.write on a closed one must be told by an error, not by a signal."""
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(BrokenPipeError):
        os.write(ours.fileno(), b"x")
