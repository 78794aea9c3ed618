"""The server's stop, as a request hears it: a body is not waited for any longer, and whoever is cut off is told why."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from headway.api.access.origin_check import OriginCheck
from headway.api.serving import shutdown
from headway.api.serving.shutdown import Shutdown
from headway.api.uploads.multipart_upload import body_of
from headway.shared.errors import Stopping


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No moment more for a body, once the signal has come."""
    monkeypatch.setattr("headway.api.uploads.multipart_upload.BODY_SECONDS", 0)


def scope_with(stop: Shutdown) -> Scope:
    return {
        "type": "http",
        "method": "PUT",
        "scheme": "http",
        "headers": [],
        "state": {"headway": SimpleNamespace(stop=stop)},
    }


async def read(stop: Shutdown, receive: Receive, patience_seconds: float = 600) -> bytes:
    request = Request(scope_with(stop), receive)
    return b"".join([piece async for piece in body_of(request, patience_seconds=patience_seconds)])


async def test_a_body_that_does_not_come_is_given_up_when_the_server_stops() -> None:
    stop = Shutdown()

    async def receive() -> Message:
        asyncio.get_running_loop().call_soon(stop.begin)
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(Stopping):
        await read(stop, receive)


async def test_a_wait_that_ends_a_moment_before_its_time_is_no_slow_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.api.uploads.multipart_upload.BODY_SECONDS", 600)
    stop = Shutdown()
    stop.begin()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(Stopping):
        await read(stop, receive, patience_seconds=0)


@pytest.mark.parametrize("last", [3, 600])
async def test_a_body_that_never_has_to_be_waited_for_is_given_up_too_unless_it_is_whole(last: int) -> None:
    stop = Shutdown()
    pieces = 0

    async def receive() -> Message:
        nonlocal pieces
        pieces += 1
        if pieces == 3:
            stop.begin()
        return {"type": "http.request", "body": b"x", "more_body": pieces < last}

    if last == 3:
        assert await read(stop, receive) == b"xxx"
        return
    with pytest.raises(Stopping):
        await read(stop, receive)
    assert pieces == 4


async def test_who_waits_after_the_signal_waits_as_long_as_is_left() -> None:
    stop = Shutdown()
    stop.begin()
    with pytest.raises(TimeoutError):
        async with stop.limit(600, at_a_stop=0):
            await asyncio.Event().wait()
    async with stop.limit(600, at_a_stop=shutdown.LOOK_UP_SECONDS):
        pass  # that is later, and nothing took so long


@pytest.mark.parametrize("begun", [False, True])
async def test_a_request_that_uvicorn_cuts_off_is_a_503_unless_its_answer_has_begun(begun: bool) -> None:
    under_way = asyncio.Event()

    async def slow(_: Scope, __: Receive, send: Send) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        under_way.set()
        await asyncio.Event().wait()

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    edge = OriginCheck(slow, (), local_only=False)
    request = asyncio.create_task(edge(scope_with(Shutdown()), receive, send))
    await under_way.wait()
    request.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await request
    assert request.cancelled() is begun
    assert [message["status"] for message in sent if "status" in message] == [200 if begun else 503]
