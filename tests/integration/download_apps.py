"""The API as servers of test_downloads.py run it: on uvicorn's own `send`, and behind one that is not."""

from __future__ import annotations

import os
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from headway.api.main import app
from headway.shared.logging import configure

configure("json")
sent_bytes = 0
_sendfile = os.sendfile


def _counted(*arguments: Any) -> int:
    global sent_bytes
    size = _sendfile(*arguments)
    sent_bytes += size
    return size


setattr(os, "sendfile", _counted)  # noqa: B010


async def direct(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers `/sent-by-the-kernel` too."""
    if scope.get("path") == "/sent-by-the-kernel":
        await PlainTextResponse(str(sent_bytes))(scope, receive, send)
    else:
        await app(scope, receive, send)


async def behind_another(scope: Scope, receive: Receive, send: Send) -> None:
    """As another server would call it: nothing is known of the connection."""

    async def passed_on(message: Message) -> None:
        await send(message)

    await direct(scope, receive, passed_on)
