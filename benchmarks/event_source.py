"""The EventSource of browsers (WHATWG HTML, 9.2) for thousands of clients in a process, and what each is to have seen.

`EventSource` keeps the last id, heeds `retry:`, comes back after a clean end, a cut or a refused connection, and stops
for good at a 204 or any other answer that is no stream. A `Story` is one watcher's account of one task: it counts the
versions that did not come, or came twice, and the ends.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_VERSION: Final = re.compile(rb'"version":(\d+)')
_GAP: Final = re.compile(rb'"from":(\d+),"to":(\d+)')
_STATUS: Final = b'"status":"'
_ENDS: Final = (b"comp", b"fail", b"canc")
#: What a browser waits where no server has said anything else.
DEFAULT_RETRY_SECONDS: Final = 3.0
#: In the comment beside a drain's `retry:` (api/streams/sse.py).
GOODBYE: Final = b"the server is restarting"
#: A browser has more patience; whoever waits here for longer is seen in the figures anyway.
CONNECT_SECONDS: Final = 20.0


def is_end(name: bytes, data: bytes) -> bool:
    at = data.find(_STATUS, 0, 160) + len(_STATUS)
    return not name and data[at : at + 4] in _ENDS


@dataclass(slots=True)
class Story:
    """Of a task, from the version that a watcher saw first."""

    last: int = 0
    events: int = 0
    missed: int = 0
    doubled: int = 0
    #: Versions that the server said it could not replay; not `missed`, and wanted to be none all the same.
    gaps: int = 0
    ends: int = 0
    #: On a stream of many a gap is of all of them: what is not there afterwards was told of.
    gap_told: bool = False

    def add(self, name: bytes, data: bytes, version: int | None = None) -> None:
        """`version`: where the id is one; else a state says its own, and a named event is the next."""
        if version is None and not name:
            found = _VERSION.search(data, 0, 160)
            assert found is not None, data
            version = int(found[1])
        if name == b"gap":
            found = _GAP.search(data)
            assert found is not None, data
            self.gaps += int(found[2]) - int(found[1]) + 1
            self.last = int(found[2])
            return
        self.events += 1
        if version is None:
            self.last += 1
        elif self.last and version <= self.last:
            self.doubled += 1
        else:
            skipped = version - self.last - 1 if self.last else 0
            self.gaps += skipped if self.gap_told else 0
            self.missed += 0 if self.gap_told else skipped
            self.last, self.gap_told = version, False
        self.ends += is_end(name, data)

    @property
    def is_whole(self) -> bool:
        """Each version once, and one end."""
        return (self.missed, self.doubled, self.gaps, self.ends) == (0, 0, 0, 1)


@dataclass(slots=True)
class Visit:
    """One connection. Times are time.time()."""

    asked_at: float
    #: When the connection before it was over; 0: it is the first.
    since: float = 0.0
    #: The delay that the server had named for it.
    retry_seconds: float = 0.0
    answered_at: float = 0.0
    status: int = 0
    ended_at: float = 0.0
    #: With the last chunk, and no half event before it. `refused`: it could not be made.
    how: str = ""
    #: The server said that it was stopping.
    drained: bool = False
    #: The first `retry:` that came on it.
    told_first_seconds: float = 0.0


#: (source, id, name, data): as `onmessage` and the named listeners.
OnEvent = Callable[["EventSource", bytes, bytes, bytes], None]


class EventSource(asyncio.Protocol):
    """`closed` is set once it has given up for good; the last visit's status says why."""

    __slots__ = (
        *("address", "closed", "last_id", "on_event", "opened_at", "path", "retry_seconds", "visits"),
        *("_body", "_connecting", "_head", "_id", "_loop", "_raw", "_timer", "_transport"),
    )

    def __init__(self, address: tuple[str, int], path: str, on_event: OnEvent) -> None:
        self.address, self.path, self.on_event = address, path, on_event
        self._loop = asyncio.get_running_loop()
        self.closed = self._loop.create_future()
        self.last_id = b""
        self.retry_seconds = DEFAULT_RETRY_SECONDS
        self.visits: list[Visit] = []
        self.opened_at = 0.0
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._connect()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.closed.done():
            self.closed.set_result(None)
        if self._transport is not None:
            self._transport.abort()

    def _connect(self) -> None:
        before = self.visits[-1] if self.visits else None
        since = before.ended_at if before else 0.0
        retry_seconds = self.retry_seconds if before else 0.0
        self.visits.append(Visit(time.time(), since, retry_seconds))
        self._connecting = self._loop.create_task(self._make_connection())

    async def _make_connection(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._loop.create_connection(lambda: self, *self.address)
        except (OSError, TimeoutError):
            self._over("refused")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._raw = self._body = b""
        self._head: bytes | None = None
        self._id = self.last_id
        resumed = b"Last-Event-ID: %b\r\n" % self.last_id if self.last_id else b""
        transport.write(
            b"GET %b HTTP/1.1\r\nHost: %b:%d\r\nAccept: text/event-stream\r\nCache-Control: no-cache\r\n%b\r\n"
            % (self.path.encode(), self.address[0].encode(), self.address[1], resumed)
        )

    def data_received(self, data: bytes) -> None:
        self._raw += data
        if self._head is None:
            head, separator, rest = self._raw.partition(b"\r\n\r\n")
            if not separator:
                return
            self._head, self._raw = head.lower(), rest
            visit = self.visits[-1]
            visit.answered_at, visit.status = time.time(), int(head[9:12])
            if visit.status != 200 or b"content-type: text/event-stream" not in self._head:
                self._over("answered")
                return
        if b"transfer-encoding: chunked" in self._head:
            self._unchunk()
        else:
            self._body += self._raw
            self._raw = b""
            self._parse()

    def _unchunk(self) -> None:
        whole = False
        while True:
            size, separator, rest = self._raw.partition(b"\r\n")
            if not separator:
                break
            length = int(size, 16)
            if len(rest) < length + 2:
                break
            self._body += rest[:length]
            self._raw = rest[length + 2 :]
            if not length:
                whole = True
                break
        self._parse()
        if whole:
            self._over("whole" if b"data" not in self._body else "half an event")

    def _parse(self) -> None:
        """Every line that is complete; what a block holds is handed over at its empty line."""
        *blocks, rest = self._body.split(b"\n\n")
        for block in blocks:
            name = data = b""
            for line in block.split(b"\n"):
                field, _, value = line.partition(b": ")
                if field == b"data":
                    data = value
                elif field == b"id":
                    self._id = value
                elif field == b"event":
                    name = value
                else:
                    self._line_of_its_own(line)
            self.last_id = self._id
            if data:
                self.on_event(self, self._id, name, data)
        while rest[:1] in (b":", b"r"):  # these hold from the end of their line on, also where no empty line follows
            line, ended, after = rest.partition(b"\n")
            if not ended:
                break
            self._line_of_its_own(line)
            rest = after
        self._body = rest

    def _line_of_its_own(self, line: bytes) -> None:
        if line.startswith(b"retry: "):
            self.retry_seconds = int(line[7:]) / 1000
            visit = self.visits[-1]
            visit.told_first_seconds = visit.told_first_seconds or self.retry_seconds
        elif GOODBYE in line:
            self.visits[-1].drained = True

    def connection_lost(self, exc: Exception | None) -> None:
        chunked = self._head is not None and b"transfer-encoding: chunked" in self._head
        self._over("cut" if chunked or self._head is None or exc else "closed")

    def _over(self, how: str) -> None:
        visit = self.visits[-1]
        if visit.how or self.closed.done():
            return
        visit.how, visit.ended_at = how, time.time()
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        if how == "answered":  # no stream: an EventSource never comes back from that
            self.closed.set_result(None)
        else:
            self._timer = self._loop.call_later(self.retry_seconds, self._connect)
