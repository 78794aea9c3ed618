"""The wire, and the response that sends it: a fake source, a fake server, no network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Message

from headway.api.streams.sse import NDJSON, RETRY_MS, SSE, Comment, Encoder, EventStreamResponse, Text, choose_encoder
from headway.shared.tasks.models import Event
from tests.streams import parse_block
from tests.waiting import wait_until

STATE = Event(
    17,
    "",
    b'{"task_id":"t","version":17,"status":"processing","progress":42.5,"step":2,"total_steps":3,'
    b'"message":"Profiling","updated_at":"2026-11-22T13:40:25.123Z","error":null}',
)
FAILED = Event(
    18,
    "",
    b'{"task_id":"t","version":18,"status":"failed","progress":42.5,"step":2,"total_steps":3,'
    b'"message":"No luck","updated_at":"2026-11-22T13:40:26.123Z","error":{"type":"timeout"}}',
)
LOG = Event(19, "log", b'{"task_id":"t","level":"info","message":"hello","at":"2026-11-22T13:40:27.123Z"}')
GAP = Event(20, "gap", b'{"task_id":"t","from":3,"to":20}')


def test_a_state_has_an_id_and_no_name_so_that_onmessage_gets_it() -> None:
    assert SSE().event(STATE) == b"id: 17\ndata: " + STATE.data + b"\n\n"


def test_a_named_event_has_its_name() -> None:
    assert SSE().event(LOG) == b"id: 19\nevent: log\ndata: " + LOG.data + b"\n\n"


def test_a_stream_of_many_tasks_has_ids_of_its_own() -> None:
    assert SSE().event(STATE, "opaque-7").startswith(b"id: opaque-7\n")


def test_what_is_no_event_is_none_to_a_client() -> None:
    encoder = SSE()
    for block in (encoder.comment("still here"), encoder.first() + b"\n", encoder.goodbye()):
        assert parse_block(block.removesuffix(b"\n\n").rstrip(b"\n")) is None


def test_clients_that_are_sent_away_come_back_spread_over_seconds() -> None:
    retries = {int(SSE().goodbye().split(b"\n")[0].removeprefix(b"retry: ")) for _ in range(200)}
    assert min(retries) >= RETRY_MS
    assert len(retries) > 100


def test_ndjson_is_one_object_a_line_and_names_what_is_no_state() -> None:
    encoder = NDJSON()
    lines = encoder.first() + encoder.event(STATE) + encoder.comment("x") + encoder.event(LOG) + encoder.goodbye()
    state, log = (json.loads(line) for line in lines.splitlines() if line)
    assert state == json.loads(STATE.data)
    assert log == {"event": "log", "version": 19} | json.loads(LOG.data)


def test_text_is_a_line_an_event_for_people() -> None:
    encoder = Text()
    assert encoder.event(STATE) == b"13:40:25  42.5 %  processing  Profiling (2/3)\n"
    assert encoder.event(FAILED) == b"13:40:26  42.5 %  failed      No luck [timeout]\n"
    assert encoder.event(LOG) == b"13:40:27 log: hello\n"
    assert b"events 3 to 20 can no longer be replayed" in encoder.event(GAP)


def test_text_has_a_line_for_a_batch_and_for_an_event_that_it_does_not_know() -> None:
    rollup = {"version": 3, "status": "active", "progress": 12.5, "total": 4, "counts": {"queued": 3, "completed": 1}}
    told = Text().event(Event(3, "", json.dumps(rollup).encode()))
    assert told == b"          12.5 %  active      3 queued, 1 completed of 4\n"
    assert Text().event(Event(4, "deleted", b'{"task_id":"x"}')) == b'         deleted: {"task_id":"x"}\n'


def test_what_a_stranger_wrote_cannot_steer_a_terminal() -> None:
    told = Text().event(Event(1, "note", json.dumps({"text": "\x1b[2J\n\r\u2028\u202eboo", "at": ""}).encode()))
    assert told.count(b"\n") == 1
    assert told.decode().removesuffix("\n").isprintable()
    assert "boo" in told.decode()


@pytest.mark.parametrize(
    ("accept", "encoder"),
    [
        ("", SSE),
        ("*/*", SSE),
        ("text/event-stream", SSE),
        ("application/x-ndjson", NDJSON),
        ("text/plain", Text),
        ("text/plain; q=0.5, application/json", Text),
        ("TEXT/PLAIN", Text),
        ("text/plain, text/event-stream", SSE),
        ("text/html", SSE),
    ],
)
def test_the_format_is_sse_unless_another_is_asked_for_by_name(accept: str, encoder: type[Encoder]) -> None:
    assert type(choose_encoder(accept)) is encoder


class Source:
    """Gives what is put into it; `None` ends it. Remembers how it was left."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[list[tuple[Event, str | None] | Comment] | None] = asyncio.Queue()
        self.drained = False
        self.closings = 0
        self.newest: int | None = 17

    async def next(self) -> list[tuple[Event, str | None] | Comment] | None:
        return await self.items.get()

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[Source]:
        try:
            yield self
        finally:
            self.closings += 1


class Transport:
    def __init__(self) -> None:
        self.aborted = False

    def get_extra_info(self, name: str) -> None:
        """It has no socket."""

    def abort(self) -> None:
        self.aborted = True


class Server:
    """What uvicorn is to an application: `send`, `receive`, and a transport that can be cut."""

    def __init__(self) -> None:
        self.transport = Transport()
        self.sent: list[Message] = []
        self.client_takes = asyncio.Event()
        self.client_takes.set()
        self.client_left = asyncio.Event()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            await self.client_takes.wait()
        self.sent.append(message)

    async def receive(self) -> Message:
        await self.client_left.wait()
        return {"type": "http.disconnect"}

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:]]

    def start(
        self, source: Source, method: str = "GET", encoder: Encoder | None = None, **given: Any
    ) -> asyncio.Task[None]:
        scope: dict[str, Any] = {"type": "http", "method": method, "path": "/x"}
        scope["headway.send"] = self.send
        deadlines: Any = {"heartbeat_seconds": 600.0, "send_timeout_seconds": 600.0} | given
        response = EventStreamResponse(source.entered(), encoder or SSE(), **deadlines)
        return asyncio.create_task(response(scope, self.receive, self.send))


async def test_the_head_leaves_at_once_and_each_batch_is_one_write_of_whole_events() -> None:
    server, source = Server(), Source()
    running = server.start(source)
    await wait_until("the head is sent", lambda: server.sent)
    headers = dict(server.sent[0]["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-store, no-transform"
    assert headers[b"x-accel-buffering"] == b"no"
    assert b"content-length" not in headers
    source.items.put_nowait([(STATE, None), (LOG, None)])
    source.items.put_nowait([(GAP, None)])
    source.items.put_nowait(None)
    await running
    sse = SSE()
    assert server.bodies == [b"retry: 1000\n" + sse.event(STATE) + sse.event(LOG), sse.event(GAP), b""]
    assert [message["more_body"] for message in server.sent[1:]] == [True, True, False]
    assert source.closings == 1


async def test_an_idle_stream_gets_comments_and_loses_nothing_by_them() -> None:
    server, source = Server(), Source()
    running = server.start(source, heartbeat_seconds=0.01)
    await wait_until("there were comments", lambda: len(server.bodies) > 3)
    source.items.put_nowait([(STATE, None)])
    source.items.put_nowait(None)
    await running
    *comments, state, end = server.bodies
    assert comments[0].startswith(b"retry: 1000\n: ")
    assert set(comments[1:]) == {b": still here\n"}
    assert (state, end) == (SSE().event(STATE), b"")


async def test_a_stream_that_has_nothing_yet_says_so_long_before_its_heartbeat() -> None:
    server, source = Server(), Source()
    running = server.start(source, heartbeat_seconds=600)
    await wait_until("the first bytes left", lambda: server.bodies)
    source.items.put_nowait(None)
    await running
    assert server.bodies[0].startswith(b"retry: 1000\n: ")


async def test_a_client_that_takes_nothing_is_cut_off_and_its_source_closed() -> None:
    server, source = Server(), Source()
    server.client_takes.clear()
    source.items.put_nowait([(STATE, None)])
    dropped: list[int] = []
    await server.start(source, send_timeout_seconds=0.05, on_slow=lambda: dropped.append(source.closings))
    assert server.transport.aborted
    assert source.closings == 1
    assert dropped == [0]  # said while the source is open: what it is counted as depends on it


async def test_a_client_that_takes_what_it_gets_is_not_cut_off() -> None:
    server, source = Server(), Source()
    running = server.start(source, send_timeout_seconds=0.05, heartbeat_seconds=0.01)
    await wait_until("many sends have passed", lambda: len(server.bodies) > 20)
    assert not running.done()
    server.client_left.set()
    await running
    assert not server.transport.aborted


async def test_a_client_that_leaves_closes_the_source_in_the_middle() -> None:
    server, source = Server(), Source()
    running = server.start(source)
    source.items.put_nowait([(STATE, None)])
    await wait_until("it runs", lambda: server.bodies)
    assert source.closings == 0
    server.client_left.set()
    await running
    assert source.closings == 1
    assert len(server.bodies) == 1


async def test_a_client_that_leaves_while_it_takes_nothing_closes_the_source_too() -> None:
    server, source = Server(), Source()
    server.client_takes.clear()
    source.items.put_nowait([(STATE, None)])
    running = server.start(source)
    server.client_left.set()
    await running
    assert source.closings == 1
    assert not server.transport.aborted


async def test_a_drained_stream_says_goodbye_and_ends_whole() -> None:
    server, source = Server(), Source()
    running = server.start(source)
    source.items.put_nowait([(STATE, None)])
    await wait_until("it runs", lambda: server.bodies)
    source.drained = True
    source.items.put_nowait(None)
    await running
    goodbye = server.sent[-1]
    assert goodbye["body"].startswith(b"retry: ")
    assert b"\n: " in goodbye["body"]
    assert goodbye["body"].endswith(b"come back\n")
    assert not goodbye["more_body"]


async def test_a_source_that_breaks_is_closed_and_its_error_not_hidden() -> None:
    class Broken(Source):
        async def next(self) -> list[tuple[Event, str | None] | Comment] | None:
            raise RuntimeError("the source broke")

    server, source = Server(), Broken()
    with pytest.raises(RuntimeError, match="the source broke"):
        await server.start(source)
    assert source.closings == 1


async def test_head_gets_the_headers_and_no_stream() -> None:
    server, source = Server(), Source()
    await server.start(source, method="HEAD")
    assert [message.get("body") for message in server.sent] == [None, b""]
    assert source.closings == 1


async def test_a_server_that_stops_the_request_closes_the_source() -> None:
    server, source = Server(), Source()
    running = server.start(source)
    await wait_until("it runs", lambda: server.sent)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert source.closings == 1


async def test_who_asks_for_it_gets_signs_of_life_as_events() -> None:
    server, source = Server(), Source()
    source.items.put_nowait([(STATE, None)])
    running = server.start(source, encoder=SSE("", 0.05), heartbeat_seconds=0.01)
    await wait_until("there were signs of life", lambda: len(server.bodies) > 3)
    source.items.put_nowait(None)
    await running
    first, *signs, _ = server.bodies
    begins = b'retry: 1000\nevent: alive\ndata: {"version":null,"heartbeat_seconds":0.05}\n\n'
    assert first == begins + SSE().event(STATE)
    assert set(signs) == {b'event: alive\ndata: {"version":17,"heartbeat_seconds":0.05}\n\n'}
