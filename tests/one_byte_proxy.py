"""A TCP proxy that passes the server's answer on in single bytes, and cuts it where a test says.

The hardest network a stream's client can have: each byte may be a read of its own, and a connection may end anywhere,
inside an id, inside an escape, before the empty line. A connection carries one request (`Connection: close` is asked
of the server), so what was asked and what was answered can be told one by one in `exchanges`. It lives as long as its
block; leaving it ends every connection.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

#: Where an answer is cut: after so many bytes behind its head, or right behind the first of these bytes in there.
Cut = int | bytes

HEAD_BYTES = 64 * 1024


@dataclass
class Exchange:
    """One request, and what was passed on of its answer."""

    path: str
    last_event_id: str | None
    at: float = field(default_factory=time.monotonic)
    head: bytes = b""
    body: bytearray = field(default_factory=bytearray)
    was_cut: bool = False
    ended: bool = False

    @property
    def is_stream(self) -> bool:
        return self.path.partition("?")[0].endswith("/events")

    @property
    def status(self) -> int | None:
        return int(self.head.split()[1]) if self.head else None


class OneByteProxy:
    """In front of `target` (`http://host:port`). The first requests for a stream are cut, one for each of `cuts` (which
    may have no end); the others are passed on whole. `piece_bytes` may be more where single bytes take too long."""

    def __init__(
        self, target: str, *, cuts: Iterable[Cut] = (), piece_bytes: int = 1, delay_seconds: float = 0
    ) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._cuts = iter(cuts)
        self._piece_bytes = piece_bytes
        self._delay_seconds = delay_seconds
        self._connections: set[asyncio.Task[None]] = set()
        self.exchanges: list[Exchange] = []

    async def __aenter__(self) -> OneByteProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=HEAD_BYTES)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    @property
    def streams(self) -> list[Exchange]:
        """The requests for a stream of events."""
        return [exchange for exchange in self.exchanges if exchange.is_stream]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._exchange(reader, writer)
        except asyncio.CancelledError:
            pass  # the proxy is left; asyncio's server would log it as an error
        finally:
            self._connections.discard(connection)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        exchange = _read_head(head)
        self.exchanges.append(exchange)
        cut = next(self._cuts, None) if exchange.is_stream else None
        from_server, to_server = await asyncio.open_connection(*self._target)
        try:
            to_server.write(
                re.sub(rb"(?im)^(connection|keep-alive):.*\r\n", b"", head[:-2]) + b"Connection: close\r\n\r\n"
            )
            passing = asyncio.create_task(self._pass_on(from_server, writer, exchange, cut))
            leaving = asyncio.create_task(_left(reader))
            try:
                await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                passing.cancel()
                leaving.cancel()
                await asyncio.gather(passing, leaving, return_exceptions=True)
        finally:
            to_server.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: Exchange, cut: Cut | None
    ) -> None:
        exchange.head = await reader.readuntil(b"\r\n\r\n")
        writer.write(exchange.head)
        while data := await reader.read(HEAD_BYTES):
            before = len(exchange.body)
            exchange.body += data
            if (end := _cut_at(exchange.body, cut)) is not None:
                del exchange.body[end:]
                data = bytes(exchange.body[before:])
                exchange.was_cut = True
            for start in range(0, len(data), self._piece_bytes):
                writer.write(data[start : start + self._piece_bytes])
                await writer.drain()
                # The reader gets its turn: what is written without a pause arrives as one.
                await asyncio.sleep(self._delay_seconds)
            if exchange.was_cut:
                return
        exchange.ended = True


def _cut_at(body: bytes | bytearray, cut: Cut | None) -> int | None:
    if isinstance(cut, int):
        return cut if len(body) >= cut else None
    if cut is None or (found := body.find(cut)) < 0:
        return None
    return found + len(cut)


def _read_head(head: bytes) -> Exchange:
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return Exchange(lines[0].split(" ")[1], headers.get("last-event-id"))


async def _left(reader: asyncio.StreamReader) -> None:
    """Returns when the client has gone."""
    with suppress(ConnectionError):
        while await reader.read(HEAD_BYTES):
            pass
