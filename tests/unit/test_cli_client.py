"""The client on the wire: what it makes of streams that break, end, wait and refuse. The server here is a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, cast

import pytest

from cli.client import Client
from cli.exits import Declined, Unreachable, WrongUse

if TYPE_CHECKING:
    from shared.models import TaskId

TASK = cast("TaskId", "6f1c")
STREAM = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\nretry: 1\n\n"
NO_CONTENT = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


def state(version: int, status: str = "processing") -> str:
    return f'id: {version}\ndata: {{"version":{version},"status":"{status}"}}\n\n'


def problem(status: int, detail: str) -> str:
    body = json.dumps({"detail": detail})
    return (
        f"HTTP/1.1 {status} No\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\n\r\n{body}"
    )


@asynccontextmanager
async def scripted(*answers: str) -> AsyncIterator[tuple[Client, list[str]]]:
    """Gives each connection the next answer, then cuts it. Yields a client, and the requests' heads in lower case."""
    heads: list[str] = []
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        writer.write(left.pop(0).encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    async with server, Client(f"http://127.0.0.1:{port}/", "a-key") as client:
        yield client, heads
    assert not left, "some answers were never asked for"


async def versions(client: Client) -> list[int]:
    return [event.data["version"] async for event in client.events(TASK)]


async def test_a_stream_that_breaks_is_resumed_after_the_last_whole_event() -> None:
    async with scripted(
        STREAM + state(1) + state(2) + 'id: 3\ndata: {"version":3,',
        STREAM + ": waiting\n\n",
        STREAM + state(3) + state(4, "completed"),
    ) as (client, heads):
        assert await versions(client) == [1, 2, 3, 4]
    assert ["last-event-id" in head for head in heads] == [False, True, True]
    assert all("last-event-id: 2\r\n" in head for head in heads[1:])
    assert all("authorization: bearer a-key\r\n" in head for head in heads)


async def test_nothing_is_asked_for_after_the_terminal_event() -> None:
    async with scripted(STREAM + state(1, "failed") + state(2)) as (client, _):
        assert await versions(client) == [1]


async def test_a_204_ends_it() -> None:
    async with scripted(STREAM + state(7), NO_CONTENT) as (client, _):
        assert await versions(client) == [7]


async def test_a_proxy_without_its_server_is_waited_for() -> None:
    async with scripted(STREAM + state(1), "HTTP/1.1 502 Bad\r\n\r\n", STREAM + state(2, "completed")) as (client, _):
        assert await versions(client) == [1, 2]


async def test_named_events_keep_their_names() -> None:
    log = 'event: log\nid: 2\ndata: {"version":2,"message":"hello"}\n\n'
    async with scripted(STREAM + log + state(3, "cancelled")) as (client, _), aclosing(client.events(TASK)) as events:
        assert [event.name async for event in events] == ["log", ""]


async def test_an_unknown_task_is_told_as_the_platform_tells_it() -> None:
    async with scripted(problem(404, "There is no such task.")) as (client, _):
        with pytest.raises(Declined, match=r"There is no such task\."):
            await versions(client)


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<p>hello",
        "HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<p>hello",
    ],
)
@pytest.mark.parametrize("ask", [versions, lambda client: client.task(TASK)], ids=["events", "task"])
async def test_who_is_not_headway_is_told_so(answer: str, ask: Callable[[Client], asyncio.Future[object]]) -> None:
    async with scripted(answer) as (client, _):
        with pytest.raises(Unreachable, match="not as Headway does"):
            await ask(client)


async def test_a_platform_that_is_not_there_is_told_at_once() -> None:
    async with scripted() as (client, _):
        pass
    async with Client(client.url) as later:
        for ask in (versions(later), later.task(TASK)):
            with pytest.raises(Unreachable, match="headway up"):
                await ask


async def test_a_stream_that_never_comes_back_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.client.GIVE_UP_SECONDS", -60.0)
    async with scripted(STREAM + state(1), problem(503, "Redis is away.")) as (client, _):
        with pytest.raises(Declined, match=r"Redis is away\."):
            await versions(client)


async def test_the_key_goes_to_no_other_place() -> None:
    async with scripted() as (client, _):
        with pytest.raises(Unreachable, match="points elsewhere"):
            async with client.download("http://127.0.0.2/evil"):
                pass


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://h", "http://", "http://[::1", "http://h:port"])
def test_what_is_no_url_is_wrong_use(url: str) -> None:
    with pytest.raises(WrongUse, match="http://127"):
        Client(url)


def test_a_key_that_no_header_can_carry_is_wrong_use() -> None:
    with pytest.raises(WrongUse, match="HEADWAY_API_KEY"):
        Client("http://127.0.0.1:8000", "two\nlines")
