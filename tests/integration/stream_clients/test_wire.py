"""The bytes themselves, read from a socket: what the server must not get wrong, whichever client reads it.

After the WPT's eventsource suite: no BOM, LF only, ASCII, one data line, an id never without data, whole events in a
write, and an end that can be told from a cut.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from headway.shared.json_text import text_of
from tests.integration.stream_clients.processors import HARD_TEXT, telling_platform
from tests.processes import SERVERS, Platform, RedisServer
from tests.streams import assert_true_story, parse_block, watch

LAST_CHUNK = b"0\r\n\r\n"


@pytest.fixture(scope="module", params=SERVERS)
def telling(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    url = redis_server.fresh_url()
    with telling_platform(tmp_path_factory.mktemp("telling"), url, request.param) as platform:
        yield platform


@pytest.fixture
def task_id(telling: Platform) -> str:
    """A task that lasts longer than its streams have nothing to say: comments come between its events."""
    return str(telling.submit("telling", options='{"step_seconds": 0.3}')["task_id"])


def ask(url: str, task_id: str, *headers: str, version: str = "1.1") -> tuple[bytes, bytes]:
    """Head and body of an answer, as they were on the wire up to the end of the connection."""
    parts = urlsplit(url)
    lines = (f"GET /tasks/{task_id}/events?last_event_id=0 HTTP/{version}", "Host: localhost", *headers)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall("\r\n".join((*lines, "", "")).encode())
        received = b""
        while data := connection.recv(65536):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


def chunks(body: bytes) -> list[bytes]:
    """What each write of the server was; the body ends with the last chunk, and nothing behind it."""
    found = []
    while body != LAST_CHUNK:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        assert length > 0
        assert rest[length : length + 2] == b"\r\n"
        found.append(rest[:length])
        body = rest[length + 2 :]
    return found


def test_each_write_is_of_whole_events_and_the_last_chunk_ends_the_answer(telling: Platform, task_id: str) -> None:
    head, body = ask(telling.url, task_id, "Connection: close")
    assert b"transfer-encoding: chunked" in head.lower().split(b"\r\n")
    written = chunks(body)
    assert written[0].startswith(b"retry: 1000\nid: 1\ndata: {")
    assert any(chunk.startswith(b":") for chunk in written), "no comment came in between"
    for chunk in written:
        assert chunk.endswith(b"\n\n") if b"data: " in chunk else chunk.startswith((b":", b"retry: "))


def test_every_byte_of_the_body_is_what_the_contract_says(telling: Platform, task_id: str) -> None:
    _, body = ask(telling.url, task_id, "Connection: close")
    text = b"".join(chunks(body))
    assert text.isascii()
    assert not {0x00, 0x0D} & set(text)
    lines = [line for line in text.decode().split("\n") if not line.startswith(":")]
    assert lines[0] == "retry: 1000"
    # An empty line behind a comment is none behind an event.
    blocks = [block.strip("\n") for block in "\n".join(lines[1:]).split("\n\n")]
    blocks = [block for block in blocks if block]
    story = [frame for frame in (parse_block(block.encode()) for block in blocks) if frame is not None]
    assert_true_story(story, first=1)
    for block, frame in zip(blocks, story, strict=True):
        event = [f"event: {frame.name}"] if frame.name else []
        assert sorted(block.split("\n")) == sorted((f"id: {frame.id}", *event, f"data: {text_of(frame.data)}"))
    assert story[-1].data["result"]["summary"] == {"text": HARD_TEXT}


def test_the_type_is_one_that_every_client_takes(telling: Platform, task_id: str) -> None:
    head, _ = ask(telling.url, task_id, "Connection: close", "Accept: text/event-stream")
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"http/1.1 200 ok"
    assert [line for line in lines if line.startswith(b"content-type:")] == [
        b"content-type: text/event-stream; charset=utf-8"
    ]
    assert not any(line.startswith(b"content-length:") for line in lines)


def test_a_proxy_that_asks_in_the_old_way_gets_the_same_events_and_a_whole_end(telling: Platform, task_id: str) -> None:
    """nginx asks in HTTP/1.0, unless told otherwise. uvicorn answers in chunks all the same, and nginx reads them."""
    head, body = ask(telling.url, task_id, version="1.0")
    assert b"connection: close" in head.lower().split(b"\r\n")
    lines = b"".join(chunks(body)).decode().split("\n")
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data == [text_of(frame.data) for frame in watch(telling.url, task_id, last_event_id=0)]


def test_a_connection_can_be_used_again_after_a_stream_has_ended(telling: Platform, task_id: str) -> None:
    telling.wait(task_id)
    parts = urlsplit(telling.url)
    request = f"GET /tasks/{task_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        for _ in range(2):
            connection.sendall(request)
            received = b""
            while not received.endswith(LAST_CHUNK):
                data = connection.recv(65536)
                assert data, received
                received += data
            assert received.startswith(b"HTTP/1.1 200 OK\r\n")
            [only] = chunks(received.partition(b"\r\n\r\n")[2])
            assert only.count(b"\ndata: ") == 1
