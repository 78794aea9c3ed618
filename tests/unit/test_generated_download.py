"""A download that is made while it is sent: who asked for gzip, and every way in which it ends. No network."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from headway.api.downloads.generated_download import GeneratedDownload, accepts_gzip
from headway.shared.errors import ExportCut
from tests.unit.test_sse import Server
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        ("", False),
        ("identity", False),
        ("br, zstd", False),
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("deflate, gzip;q=0.5, br", True),
        ("gzip; Q=0.001", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("*", True),
        ("*;q=0", False),
        ("identity, *;q=0.1", True),
        ("gzip;q=nonsense", True),
        ("gzip;q=1.2.3", False),
        (",;,", False),
    ],
)
def test_gzip_is_sent_to_who_asks_for_it(header: str, asked: bool) -> None:
    assert accepts_gzip(header) is asked


class Pages:
    """Pages that remember how they were left."""

    def __init__(self, *pages: bytes, error: Exception | None = None, endless: bool = False) -> None:
        self.pages, self.error, self.endless = pages, error, endless
        self.made = 0
        self.closings = 0

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        try:
            for page in self.pages:
                self.made += 1
                yield page
            while self.endless:
                self.made += 1
                yield b"more"
            if self.error is not None:
                raise self.error
        finally:
            self.closings += 1


def start(
    server: Server, pages: Pages, method: str = "GET", accept_encoding: bytes = b"", timeout_seconds: float = 600
) -> asyncio.Task[None]:
    headers = [(b"accept-encoding", accept_encoding)]
    scope: dict[str, Any] = {"type": "http", "method": method, "path": "/x", "headers": headers}
    scope["headway.send"] = server.send
    response = GeneratedDownload(pages(), filename="x.csv", media_type="text/csv", send_timeout_seconds=timeout_seconds)
    return asyncio.create_task(response(scope, server.receive, server.send))


async def test_each_page_is_a_write_and_the_end_is_said_once() -> None:
    server, pages = Server(), Pages(b"a\n", b"b\n")
    await start(server, pages)
    headers = dict(server.sent[0]["headers"])
    assert headers[b"content-disposition"] == b'attachment; filename="x.csv"'
    assert (headers[b"cache-control"], headers[b"vary"]) == (b"no-store", b"Accept-Encoding")
    assert headers.keys().isdisjoint({b"content-length", b"content-encoding"})
    assert server.bodies == [b"a\n", b"b\n", b""]
    assert [message["more_body"] for message in server.sent[1:]] == [True, True, False]
    assert (pages.closings, server.transport.aborted) == (1, False)


async def test_a_compressed_page_can_be_read_before_the_next_is_made() -> None:
    server, pages = Server(), Pages(b"first\n" * 10, b"second\n")
    await start(server, pages, accept_encoding=b"gzip")
    assert dict(server.sent[0]["headers"])[b"content-encoding"] == b"gzip"
    reader = zlib.decompressobj(16 + zlib.MAX_WBITS)
    assert [reader.decompress(body) for body in server.bodies] == [b"first\n" * 10, b"second\n", b""]
    assert reader.eof


async def test_head_gets_the_headers_of_the_body_it_did_not_ask_for() -> None:
    server, pages = Server(), Pages(endless=True)
    await start(server, pages, method="HEAD", accept_encoding=b"gzip")
    assert dict(server.sent[0]["headers"])[b"content-encoding"] == b"gzip"
    assert (server.bodies, pages.made) == ([b""], 0)


async def test_where_the_rest_cannot_be_had_the_connection_is_cut() -> None:
    server, pages = Server(), Pages(b"a\n", error=ExportCut())
    await start(server, pages)
    assert all(message["more_body"] for message in server.sent[1:])
    assert server.transport.aborted


async def test_an_error_nobody_thought_of_cuts_the_connection_too_and_is_not_hidden() -> None:
    server, pages = Server(), Pages(b"a\n", error=RuntimeError("the pages broke"))
    with pytest.raises(RuntimeError, match="the pages broke"):
        await start(server, pages)
    assert server.transport.aborted


async def test_a_client_that_takes_nothing_is_cut_off() -> None:
    server, pages = Server(), Pages(endless=True)
    server.client_takes.clear()
    await start(server, pages, timeout_seconds=0.05)
    assert (pages.made, pages.closings, server.transport.aborted) == (1, 1, True)


async def test_a_client_that_leaves_ends_the_making() -> None:
    server, pages = Server(), Pages(endless=True)
    running = start(server, pages)
    await wait_until("it runs", lambda: len(server.bodies) > 3)
    server.client_left.set()
    await running
    assert (pages.closings, server.transport.aborted) == (1, False)


async def test_a_server_that_stops_the_request_leaves_no_body_that_seems_whole() -> None:
    server, pages = Server(), Pages(endless=True)
    running = start(server, pages)
    await wait_until("it runs", lambda: server.bodies)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (pages.closings, server.transport.aborted) == (1, True)


async def test_others_get_their_turn_between_two_pages() -> None:
    """Nothing in this response waits: neither its pages nor its client do."""
    server, pages = Server(), Pages(endless=True)
    running = start(server, pages)
    turns = 0
    while len(server.bodies) < 50:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 50
    server.client_left.set()
    await running
