"""A line that breaks: a TCP proxy that cuts its connections after a number of bytes that a seed says, by FIN or RST."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress
from urllib.parse import urlsplit

PIECE_BYTES = 64 * 1024
#: The head of a request is not cut: not every client tries again where it has not heard of its upload yet.
HEAD_BYTES = 4096


class CuttingProxy:
    """Cuts `cuts` connections, each after at most `most_bytes` that its client sent, then no more."""

    def __init__(self, target: str, *, cuts: int, most_bytes: int, seed: int) -> None:
        url = urlsplit(target)
        self._target = (url.hostname, url.port)
        self._random = random.Random(seed)
        self._left = cuts
        self._most_bytes = most_bytes
        self._connections: set[asyncio.Task[None]] = set()
        self.cuts = 0

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        from_server, to_server = await asyncio.open_connection(*self._target)
        answering = asyncio.create_task(_answer(from_server, writer))
        try:
            with suppress(ConnectionError):
                await self._pass_on(reader, to_server)
                await answering
        except _Cut:
            reset = self._random.random() < 0.5
            for side in (to_server, writer):
                _break(side, reset=reset)
        except asyncio.CancelledError:
            pass  # the proxy is left; asyncio's server would log it as an error
        finally:
            self._connections.discard(connection)
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            to_server.close()
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        passed = 0
        left = self._random.randrange(HEAD_BYTES, self._most_bytes)
        while data := await reader.read(PIECE_BYTES):
            cut = self._left > 0 and passed + len(data) >= left
            to_server.write(data[: left - passed] if cut else data)
            await to_server.drain()
            passed += len(data)
            if cut:
                self._left -= 1
                self.cuts += 1
                raise _Cut
        if to_server.can_write_eof():
            to_server.write_eof()


class _Cut(Exception):
    pass


async def _answer(from_server: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await from_server.read(PIECE_BYTES):
            writer.write(data)
            await writer.drain()
        writer.close()


def _break(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if reset:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
