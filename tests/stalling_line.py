"""A TCP line that can fall silent: what is open then passes no more bytes, and nobody is told. New connections pass. It
lives as long as its block."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit


class StallingLine:
    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._connections: set[asyncio.Task[None]] = set()
        #: Connections passed on from here on; those of an earlier number have fallen silent.
        self._round = 0
        #: Pieces of uploads are collected until this is set, as by a proxy that buffers requests.
        self.passes_uploads = asyncio.Event()
        self.passes_uploads.set()

    async def __aenter__(self) -> StallingLine:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def fall_silent(self) -> None:
        self._round += 1

    async def _collected(self, data: bytes, source: asyncio.StreamReader) -> bytes:
        while not self.passes_uploads.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    data += await source.read(65_536)
        return data

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        number = self._round
        upstream_reader, upstream = await asyncio.open_connection(*self._target)

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65_536):
                if data.startswith(b"PATCH "):
                    data = await self._collected(data, source)
                if number == self._round:
                    sink.write(data)
                    await sink.drain()
            if number == self._round:
                sink.close()

        with suppress(OSError, asyncio.CancelledError):
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(pass_on(reader, upstream))
                    group.create_task(pass_on(upstream_reader, writer))
            except* OSError:
                pass
            finally:
                upstream.close()
                writer.close()
        self._connections.discard(connection)
