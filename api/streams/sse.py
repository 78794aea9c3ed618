"""The wire of Server-Sent Events (WHATWG HTML, section 9.2): encoding, heartbeat, send deadline, end. Knows no Redis.

A stream is sent by `EventStreamResponse`, which owns its source of events from the first byte to the last: it closes it
whether the stream ended, the client went, the client stopped reading, or the server drains. On the wire: LF only, no
BOM, one ASCII `data:` line, whole events in a write.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from headway.api.root_path import rooted_event
from headway.api.serving.counted_log import counted_line
from headway.shared.cancellation import cancel
from headway.shared.json_text import text_of
from headway.shared.logging import get_logger
from headway.shared.tasks.models import Event, FeedEvent

log = get_logger(__name__)

#: What EventSource waits before it reconnects, when the server says nothing else.
RETRY_MS: Final = 1000
#: On a drain every client is sent away at once; they come back spread over this long.
DRAIN_RETRY_MS: Final = (1000, 7000)

#: A stream that has nothing to say yet (Redis is away, or there is no task) says so this soon: the first bytes leave
#: at once.
FIRST_COMMENT_SECONDS: Final = 0.3

Format = Literal["text/event-stream", "application/x-ndjson", "text/plain"]


@dataclass(frozen=True, slots=True)
class Comment:
    """A line that keeps the connection alive and that no client delivers."""

    text: str


NOTHING_YET: Final = Comment("connected; nothing to tell yet")
STILL_HERE: Final = Comment("still here")


class Encoder(Protocol):
    """Made for one stream, with the prefix under which its client sees the API."""

    media_type: Format

    def first(self) -> bytes: ...
    def event(self, event: Event, event_id: str | None = None) -> bytes: ...
    def comment(self, text: str) -> bytes: ...
    def heartbeat(self, newest: int | None) -> bytes:
        """A sign of life. `newest`: the newest version that is known, None while the truth has to be read."""

    def goodbye(self) -> bytes: ...


def _data(event: Event, root_path: str) -> bytes:
    """Only an end names addresses, those of its results; every other event is everybody's."""
    return rooted_event(event.data, root_path) if root_path and event.is_terminal else event.data


class SSE:
    """`id`, `event` for a named one, `data`, an empty line.

    With `alive_seconds`, for who asked for it (`?alive=1`), signs of life are events, `alive`, which a browser sees
    as it sees no comment: at the start, and so often.
    """

    media_type: Format = "text/event-stream"

    def __init__(self, root_path: str = "", alive_seconds: float | None = None) -> None:
        self._root_path = root_path
        self._alive_seconds = alive_seconds

    @staticmethod
    def chunk(version: bytes, name: bytes, data: bytes) -> bytes:
        """`event`, made once for everybody who watches over HTTP/1.1: already a chunk of the answer."""
        if name:
            size = len(version) + len(name) + len(data) + 21
            return b"%x\r\nid: %b\nevent: %b\ndata: %b\n\n\r\n" % (size, version, name, data)
        return b"%x\r\nid: %b\ndata: %b\n\n\r\n" % (len(version) + len(data) + 13, version, data)

    @staticmethod
    def passing_chunk(name: bytes, data: bytes) -> bytes:
        """The same of an event that has no version: without an id, so that a client's stays what it was."""
        return b"%x\r\nevent: %b\ndata: %b\n\n\r\n" % (len(name) + len(data) + 16, name, data)

    def first(self) -> bytes:
        retry = b"retry: %d\n" % RETRY_MS
        return retry if self._alive_seconds is None else retry + self.heartbeat(None)

    def heartbeat(self, newest: int | None) -> bytes:
        if self._alive_seconds is None:
            return self.comment(STILL_HERE.text)
        data = text_of({"version": newest, "heartbeat_seconds": self._alive_seconds})
        return b"event: alive\ndata: %b\n\n" % data.encode()

    def event(self, event: Event, event_id: str | None = None) -> bytes:
        name = b"event: %s\n" % event.name.encode() if event.name else b""
        number = event_id or (str(event.version) if event.version or event.is_state else "")
        head = b"id: %s\n" % number.encode() if number else b""
        return b"%s%sdata: %s\n\n" % (head, name, _data(event, self._root_path))

    def comment(self, text: str) -> bytes:
        # One line, no empty line: there httpx-sse and fetch-event-source would hand over a message without data.
        return b": %s\n" % text.encode()

    def goodbye(self) -> bytes:
        return b"retry: %d\n: the server is restarting, come back\n" % random.randint(*DRAIN_RETRY_MS)  # noqa: S311


class NDJSON:
    """One object a line: the state as it is, a named event with its name in `event`; both with the task's `version`.
    On a feed, whose ids are its own, with `id` as well."""

    media_type: Format = "application/x-ndjson"

    def __init__(self, root_path: str = "") -> None:
        self._root_path = root_path

    def first(self) -> bytes:
        return b""

    def event(self, event: Event, event_id: str | None = None) -> bytes:
        version = event.version
        if isinstance(event, FeedEvent):
            version, event_id = event.task_version, event_id or (str(event.version) if event.version else None)
        tail = b"" if event_id is None else b',"id":"%s"' % event_id.encode()
        if event.is_state:
            return _data(event, self._root_path)[:-1] + tail + b"}\n"
        head = {"event": event.name} | ({"version": version} if version else {})
        return json.dumps(head | json.loads(event.data)).encode()[:-1] + tail + b"}\n"

    def comment(self, text: str) -> bytes:
        return b"\n"  # an empty line is what NDJSON readers skip

    def heartbeat(self, newest: int | None) -> bytes:
        return b"\n"

    def goodbye(self) -> bytes:
        return b""


class Text:
    """Lines for people: `14:03:12  42.5 %  processing  Profiling columns (2/3)`."""

    media_type: Format = "text/plain"

    def __init__(self, root_path: str = "") -> None:
        """It shows no path."""

    def first(self) -> bytes:
        return b""

    def event(self, event: Event, event_id: str | None = None) -> bytes:
        data = json.loads(event.data)
        if event.is_state:
            line = _batch_line(data) if "counts" in data else _task_line(data)
        elif event.name == "gap":
            line = f"          (events {data['from']} to {data['to']} can no longer be replayed)"
        else:
            said = data.get("message", data.get("text")) or event.data.decode()
            line = f"{str(data.get('at', ''))[11:19]:<8} {event.name}: {said}"
        # One event is one line: what a stranger wrote may hold control characters.
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line).encode() + b"\n"

    def comment(self, text: str) -> bytes:
        return b"\n"

    def heartbeat(self, newest: int | None) -> bytes:
        return b"\n"

    def goodbye(self) -> bytes:
        return b"          (the server is restarting)\n"


def _task_line(state: dict[str, Any]) -> str:
    at = str(state["updated_at"])[11:19]
    line = f"{at} {state['progress']:5.1f} %  {state['status']:<10}  {state['message']}"
    if state["status"] == "processing" and state["total_steps"]:
        line += f" ({state['step']}/{state['total_steps']})"
    if state["error"]:
        line += f" [{state['error']['type']}]"
    return line


def _batch_line(state: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in state["counts"].items() if count)
    return f"{'':8} {state['progress']:5.1f} %  {state['status']:<10}  {counts} of {state['total']}"


ENCODERS: Final[dict[str, Callable[[str], Encoder]]] = {e.media_type: e for e in (SSE, NDJSON, Text)}


def choose_encoder(accept: str, root_path: str = "", alive_seconds: float | None = None) -> Encoder:
    """SSE, unless one of the others is asked for by name and SSE is not: `curl` and `EventSource` both get SSE."""
    asked = {part.split(";")[0].strip().lower() for part in accept.split(",")}
    for media_type, encoder in ENCODERS.items():
        if media_type in asked:
            return SSE(root_path, alive_seconds) if encoder is SSE else encoder(root_path)
    return SSE(root_path, alive_seconds)


class Source(Protocol):
    """What a stream is made of: `next` waits for what is there to send, None being the end."""

    async def next(self) -> list[tuple[Event, str | None] | Comment] | None:
        """Everything that is ready, at least one; None: the stream is over. A goodbye is told by `drained`."""

    @property
    def newest(self) -> int | None:
        """The newest version that is known; None while the truth has to be read."""

    @property
    def drained(self) -> bool: ...


HEADERS: Final = {
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}


def encoded(encoder: Encoder, items: Iterable[Any]) -> bytes:
    return b"".join(encoder.comment(item.text) if isinstance(item, Comment) else encoder.event(*item) for item in items)


#: (scope, source, encoder, opened) → whether the rest of the answer is somebody else's business now, leaving included.
Carry = Callable[[Scope, Any, Encoder, AbstractAsyncContextManager[Any]], bool]


class EventStreamResponse(Response):
    """An ASGI application that sends one stream. `enter` opens the source; it is closed before this returns, unless
    `carry` takes the stream over once the headers are out.

    A client that takes nothing for `send_timeout_seconds` is cut off: its connection is aborted, since a polite close
    would wait behind the very bytes that it does not take.
    """

    def __init__(
        self,
        enter: AbstractAsyncContextManager[Source],
        encoder: Encoder,
        *,
        heartbeat_seconds: float,
        send_timeout_seconds: float,
        carry: Carry | None = None,
        on_slow: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(headers=dict(HEADERS), media_type=f"{encoder.media_type}; charset=utf-8")
        del self.headers["content-length"]
        self._enter = enter
        self._encoder = encoder
        self._heartbeat_seconds = heartbeat_seconds
        self._send_timeout_seconds = send_timeout_seconds
        self._carry = carry
        self._on_slow = on_slow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            source = await stack.enter_async_context(self._enter)
            if _may_be_compressed(scope, self._encoder):
                # `no-transform` forbids it, and yet Caddy 2.6 with `encode`, and nginx with `gzip_types *`, compress a
                # stream, the first until nothing arrives at all. So does a GZipMiddleware of an application that this
                # one is mounted in. What is encoded already they leave alone.
                self.headers["Content-Encoding"] = "identity"
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b""})
                return
            if self._carry is not None and self._carry(scope, source, self._encoder, self._enter):
                stack.pop_all()
                return
            sending = asyncio.create_task(self._send_all(source, send), name="stream")
            leaving = asyncio.create_task(gone(receive), name="client gone")
            try:
                await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
            except TimeoutError:
                counted_line(log.info, "slow client dropped", path=scope["path"])
                if self._on_slow is not None:
                    self._on_slow()
                abort(scope)
            finally:
                await asyncio.shield(cancel(sending, leaving))

    async def _send_all(self, source: Source, send: Send) -> None:
        first = self._encoder.first()
        patience = min(FIRST_COMMENT_SECONDS, self._heartbeat_seconds)
        while True:
            try:
                async with asyncio.timeout(patience):
                    items = await source.next()
            except TimeoutError:
                body = self._encoder.comment(NOTHING_YET.text) if first else self._encoder.heartbeat(source.newest)
            else:
                if items is None:
                    goodbye = self._encoder.goodbye() if source.drained else b""
                    await self._send(send, goodbye, more=False)
                    return
                body = encoded(self._encoder, items)
            patience = self._heartbeat_seconds
            body = first + body
            first = b""
            await self._send(send, body, more=True)

    async def _send(self, send: Send, body: bytes, *, more: bool) -> None:
        async with asyncio.timeout(self._send_timeout_seconds):
            await send({"type": "http.response.body", "body": body, "more_body": more})


def _may_be_compressed(scope: Scope, encoder: Encoder) -> bool:
    """Where something stands between that may not know a stream when it sees one."""
    return type(encoder) is not SSE or scope.get("headway.mounted", False) or came_through_a_proxy(scope)


def came_through_a_proxy(scope: Scope) -> bool:
    """By what proxies add to a request: a header, or HTTP/1.0, as nginx asks where nobody told it better."""
    names = {name for name, _ in scope.get("headers", ())}
    return scope.get("http_version") == "1.0" or not names.isdisjoint((b"x-forwarded-for", b"forwarded", b"via"))


async def gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def abort(scope: Scope) -> None:
    """Cuts the connection. The transport is uvicorn's; where another server runs us, its own time-outs have to do."""
    raw_send = scope.get("headway.send")
    transport = getattr(getattr(raw_send, "__self__", None), "transport", None)
    if transport is not None:
        cut(transport)


def cut(transport: Any) -> None:
    if (sock := transport.get_extra_info("socket")) is not None:
        # A reset: else the kernel goes on offering what is buffered to a window that stays shut.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
