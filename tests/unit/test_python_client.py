"""The Python client on the wire: streams that break, end, wait and refuse. The server here is a script.
The client without an event loop is the same code (test_client_twins.py)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from headway import AsyncClient, Client, Damaged, Declined, Unreachable, WrongUse
from headway.client.following import LONGEST_SPREAD_SECONDS, LONGEST_TOLD_SECONDS, Following
from headway.client.wire import ResultFile

TASK = "6f1c"
STREAM = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\nretry: 1\n\n"
NO_CONTENT = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


FILE: ResultFile = {
    "name": "a.txt", "size_bytes": 5, "content_type": "text/plain", "sha256": hashlib.sha256(b"hello").hexdigest(),
    "url": "/tasks/6f1c/files/a.txt",
}  # fmt: skip


def state(version: int, status: str = "processing") -> str:
    return f'id: {version}\ndata: {{"version":{version},"status":"{status}"}}\n\n'


def problem(status: int, detail: str) -> str:
    body = json.dumps({"detail": detail})
    return (
        f"HTTP/1.1 {status} No\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n"
        f"Connection: close\r\n\r\n{body}"
    )


@asynccontextmanager
async def scripted(*answers: str, **options: Any) -> AsyncIterator[tuple[AsyncClient, list[str]]]:
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
    async with server, AsyncClient(f"http://127.0.0.1:{port}/", "a-key", **options) as client:
        yield client, heads
    assert not left, "some answers were never asked for"


async def versions(client: AsyncClient) -> list[int]:
    return [event.data["version"] async for event in client.watch(TASK, patient=False)]


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
    async with scripted(STREAM + log + state(3, "cancelled")) as (client, _), aclosing(client.watch(TASK)) as events:
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
async def test_who_is_not_headway_is_told_so(answer: str, ask: Callable[[AsyncClient], asyncio.Future[object]]) -> None:
    async with scripted(answer) as (client, _):
        with pytest.raises(Unreachable, match="not as Headway does"):
            await ask(client)


async def test_a_platform_that_is_not_there_is_told_at_once() -> None:
    async with scripted() as (client, _):
        pass
    async with AsyncClient(client.url) as later:
        for ask in (versions(later), later.task(TASK)):
            with pytest.raises(Unreachable, match="headway up"):
                await ask


async def test_a_stream_that_never_comes_back_is_given_up() -> None:
    away = problem(503, "Redis is away.")
    async with scripted(STREAM + state(1), away, patience_seconds=-1) as (client, _):
        with pytest.raises(Declined, match=r"Redis is away\."):
            await versions(client)


async def test_the_key_goes_to_no_other_place(tmp_path: Path) -> None:
    async with scripted() as (client, _):
        with pytest.raises(Unreachable, match="points elsewhere"):
            await client.fetch_file({**FILE, "url": "http://127.0.0.2/evil"}, tmp_path)


@pytest.mark.parametrize("url", ["", "nowhere", "ftp://h", "http://", "http://[::1", "http://h:port"])
def test_what_is_no_url_is_wrong_use(url: str) -> None:
    with pytest.raises(WrongUse, match="http://127"):
        Client(url)


def test_a_key_that_no_header_can_carry_is_wrong_use() -> None:
    with pytest.raises(WrongUse, match="HEADWAY_API_KEY"):
        Client("http://127.0.0.1:8000", "two\nlines")


@pytest.mark.parametrize("name", ["../a.txt", ".hidden", "a/b", "", "a\nb"])
async def test_a_name_that_is_no_plain_name_is_not_written_to(tmp_path: Path, name: str) -> None:
    async with scripted() as (client, _):
        with pytest.raises(Damaged, match="plain name"):
            await client.fetch_file({**FILE, "name": name}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("body", "error"), [("hellO", Damaged), ("hel", Unreachable)], ids=["another content", "cut"])
async def test_a_file_that_does_not_arrive_as_it_was_made_is_not_kept(
    tmp_path: Path, body: str, error: type[Exception]
) -> None:
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n{body}"
    async with scripted(answer) as (client, _):
        with pytest.raises(error):
            await client.fetch_file(FILE, tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_a_stream_of_something_else_is_no_traceback() -> None:
    async with scripted(STREAM + "data: hello\n\n") as (client, _):
        with pytest.raises(Unreachable, match="no event of Headway"):
            await versions(client)


async def test_a_redirect_is_told_and_the_key_is_not_sent_after_it() -> None:
    moved = (
        "HTTP/1.1 301 Moved\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    async with scripted(moved) as (client, _):
        with pytest.raises(Unreachable, match="elsewhere"):
            await client.task(TASK)


async def test_an_answer_that_cannot_be_decoded_is_no_traceback() -> None:
    answer = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    async with scripted(answer) as (client, _):
        with pytest.raises(Unreachable):
            await client.task(TASK)


def test_a_proxy_of_the_environment_that_is_none_is_wrong_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://h")
    with pytest.raises(WrongUse, match="ALL_PROXY"):
        Client("http://headway.example")


def waits(stream: str, *, ends: int = 1, clients: int = 200) -> list[float]:
    """How long each of many clients waits when it was sent `stream`, and cut `ends` times."""
    found = []
    for _ in range(clients):
        following = Following(lambda _: False, patience_seconds=60)
        for line in stream.splitlines():
            following.line(line)
        found.append([following.pause_seconds(None) for _ in range(ends)][-1])
    return found


def test_a_server_that_says_goodbye_is_asked_again_when_it_says_and_not_by_all_at_once() -> None:
    goodbye = "retry: 6500\n: the server is restarting, come back\n"  # its frame is not ended
    found = waits("retry: 1000\n: open\n" + state(1) + goodbye)
    assert min(found) >= 6.5
    assert max(found) - min(found) > 2


def test_clients_that_were_cut_at_once_come_back_one_by_one_and_ever_more_slowly() -> None:
    first, fourth = waits("retry: 1000\n" + state(1)), waits("retry: 1000\n" + state(1), ends=4)
    assert min(first) >= 1.0
    assert max(first) - min(first) > 0.5
    assert max(first) <= 2.0 < max(fourth) <= 1.0 + LONGEST_SPREAD_SECONDS


@pytest.mark.parametrize("told", ["retry: 99999999999999999999\n", "retry: -5\n", "retry: soon\n", "retry:\n"])
def test_what_a_server_may_tell_to_wait_has_bounds(told: str) -> None:
    assert 0 < min(waits(told)) <= max(waits(told)) <= LONGEST_TOLD_SECONDS + LONGEST_SPREAD_SECONDS


async def test_a_goodbye_is_heeded_on_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def wait(seconds: float) -> None:
        waited.append(seconds)

    goodbye = "retry: 7000\n: the server is restarting, come back\n"
    async with scripted(STREAM + state(1) + goodbye, STREAM + state(2, "completed")) as (client, _):
        with monkeypatch.context() as patch:
            patch.setattr("headway.client.aio.asyncio.sleep", wait)
            assert await versions(client) == [1, 2]
    assert len(waited) == 1
    assert waited[0] >= 7.0
