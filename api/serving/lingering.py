"""A refusal that comes before the body has: it is read by its client, and then the line is closed, in time.

A server that closes with bytes unread resets the connection, and the client may never see why; one that leaves it open
waits, without a deadline, for the rest of a body that nobody reads (uvicorn's keep-alive timer ends with the first byte
after the answer). So the answer is sent whole, the body is let pass for LINGER_SECONDS, and the connection is closed.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headway.api.serving.shutdown import LOOK_UP_SECONDS, Shutdown

#: Long enough for a client to look up from sending, short for one that sends nothing.
LINGER_SECONDS: Final = 5.0


class Lingering:
    """The outermost layer, plain ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        unread = True
        closing = False

        async def receive_until_read() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def send_and_linger(message: Message) -> None:
            nonlocal closing
            if message["type"] == "http.response.start" and message["status"] >= 400 and unread:
                closing = True
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                headers["Connection"] = "close"
                message = {**message, "headers": headers.raw}
            if not closing or message["type"] != "http.response.body" or message.get("more_body", False):
                await send(message)
                return
            await send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with Shutdown.of(scope).limit(LINGER_SECONDS, at_a_stop=LOOK_UP_SECONDS):
                    while unread:
                        await receive_until_read()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(scope, receive_until_read, send_and_linger)


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
