"""A thousand and more watchers of event streams in one process: what each has seen, with little cost for each.

An asyncio.Protocol a connection; HTTP/1.1 chunks are taken apart, events are split at empty lines, and of each only its
id, its status and when it came are kept. No watcher reconnects by itself: a stream that was cut is counted as cut.
"""

from __future__ import annotations

import asyncio
import re
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_STATUS = re.compile(rb'"status":\s*"([a-z]+)"')
_ID = re.compile(rb"^id: (\d+)$", re.MULTILINE)
_ENDS = (b"completed", b"failed", b"cancelled", b"complete")


@dataclass(slots=True)
class Seen:
    """One watcher's story."""

    ids: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    status: bytes = b""
    ends: int = 0
    end_at: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0
    #: How the connection ended: `whole` with the last chunk, `cut` without it, None: it is open.
    closed: str | None = None
    http_status: int = 0


class Watcher(asyncio.Protocol):
    """One connection. `seen` grows while it is open."""

    def __init__(self, path: str, headers: str, on_event: Callable[[Seen, bytes], None] | None) -> None:
        self.seen = Seen()
        self._request = f"GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n{headers}\r\n".encode()
        self._on_event = on_event
        self._raw = b""
        self._body = b""
        self._head_done = False
        self.done = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._raw += data
        if not self._head_done:
            head, separator, rest = self._raw.partition(b"\r\n\r\n")
            if not separator:
                return
            self._head_done, self._raw = True, rest
            self.seen.http_status = int(head.split(b" ", 2)[1])
        self._unchunk()

    def _unchunk(self) -> None:
        while True:
            size, separator, rest = self._raw.partition(b"\r\n")
            if not separator:
                break
            length = int(size, 16)
            if len(rest) < length + 2:
                break
            if length == 0:
                self.seen.closed = "whole"
                if self.transport is not None:
                    self.transport.close()
                break
            self._body += rest[:length]
            self._raw = rest[length + 2 :]
        *blocks, self._body = self._body.replace(b"\r\n", b"\n").split(b"\n\n")
        for block in blocks:
            self._event(block)

    def _event(self, block: bytes) -> None:
        if b"data:" not in block:
            return
        seen = self.seen
        seen.last_at = time.monotonic()
        seen.first_at = seen.first_at or seen.last_at
        if (found := _ID.search(block)) is not None:
            seen.ids.append(int(found[1]))
        if b"event: gap" in block:
            seen.names.append(b"gap")
        elif b"event: " not in block and (status := _STATUS.search(block)) is not None:
            seen.status = status[1]
            if seen.status in _ENDS:
                seen.ends += 1
                seen.end_at = seen.last_at
        if self._on_event is not None:
            self._on_event(seen, block)

    def connection_lost(self, exc: Exception | None) -> None:
        self.seen.closed = self.seen.closed or "cut"
        if not self.done.done():
            self.done.set_result(None)


class Crowd:
    """Many watchers of the same server."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.watchers: list[Watcher] = []

    @property
    def seen(self) -> list[Seen]:
        return [watcher.seen for watcher in self.watchers]

    async def add(
        self, path: str, headers: str = "", *, on_event: Callable[[Seen, bytes], None] | None = None
    ) -> Watcher:
        loop = asyncio.get_running_loop()
        _, watcher = await loop.create_connection(lambda: Watcher(path, headers, on_event), self._host, self._port)
        self.watchers.append(watcher)
        return watcher

    async def add_all(self, paths: list[str], headers: str = "") -> None:
        """Connects in groups, so that the server's backlog is not the thing measured."""
        for start in range(0, len(paths), 100):
            await asyncio.gather(*(self.add(path, headers) for path in paths[start : start + 100]))

    async def until(self, what: str, condition: Callable[[Seen], bool], seconds: float) -> bool:
        """Waits until the condition holds for every watcher. False after `seconds`."""
        deadline = time.monotonic() + seconds
        while not all(condition(seen) for seen in self.seen):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def close(self) -> None:
        for watcher in self.watchers:
            if watcher.transport is not None:
                watcher.transport.abort()
        await asyncio.sleep(0)


def allow_many_files(count: int) -> None:
    """Raises this process's limit of open files, as far as the machine lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def is_unbroken(seen: Seen) -> bool:
    """Ids rise by one, gaps told apart, and there is one end."""
    holes = any(later != earlier + 1 for earlier, later in zip(seen.ids, seen.ids[1:], strict=False))
    return (not holes or b"gap" in seen.names) and len(set(seen.ids)) == len(seen.ids) and seen.ends == 1
