"""Requests that a client sends ahead: few are parsed before they are answered, and none for a client that has left."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import uvicorn
from uvicorn.server import ServerState

from headway.api.serving.deadlines import PIPELINED, SLICE_BYTES
from headway.api.serving.protocol import StreamProtocol
from tests.waiting import wait_until

ASK: Final = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Served:
    """A server of one application, which answers when `answers` is set. `connections` are its ends."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.asked = 0
        self.bodies: list[int] = []
        self.connections: list[StreamProtocol] = []

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        await self.answers.wait()
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        self.bodies.append(size)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Served, tuple[str, int]]]:
    found = Served()
    config = uvicorn.Config(found.app, http=StreamProtocol, ws="none", interface="asgi3", log_config=None)
    config.load()
    state = ServerState()

    def connection() -> StreamProtocol:
        found.connections.append(StreamProtocol(config=config, server_state=state, app_state={}))
        return found.connections[-1]

    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0)
    async with server:
        yield found, server.sockets[0].getsockname()
        found.answers.set()
        for one in found.connections:
            if one.transport is not None:
                one.transport.abort()


async def test_of_requests_sent_ahead_few_are_parsed_before_they_are_answered_and_all_are_answered() -> None:
    async with served() as (found, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(ASK * 5000)
        await wait_until("the first is asked", lambda: found.asked == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(found.connections[0].pipeline) <= PIPELINED + SLICE_BYTES / len(ASK) + 1
        found.answers.set()
        told = 0
        while told < 5000:
            told += (await asyncio.wait_for(reader.readuntil(b"ok"), 60)).count(b"200 OK")
        writer.close()


async def test_a_body_among_requests_comes_whole() -> None:
    async with served() as (found, address):
        reader, writer = await asyncio.open_connection(*address)
        found.answers.set()
        body = b"x" * 300_000
        writer.write((b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body + ASK) * 3)
        for _ in range(6):
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"ok"), 60)
        assert found.bodies == [300_000, 0] * 3
        writer.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not say it")
async def test_a_client_that_left_by_a_reset_is_known_to_have_left_also_where_nothing_is_read_from_it() -> None:
    async with served() as (found, address):
        sock = socket.create_connection(address)
        sock.sendall(ASK)
        await wait_until("it is asked", lambda: found.asked == 1)
        here = found.connections[0]
        here.transport.pause_reading()
        assert not here.has_left()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        await wait_until("it is known", here.has_left)
        assert here.transport is None or here.transport.is_closing()
