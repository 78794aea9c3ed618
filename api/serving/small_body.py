"""The route class of those that take a few words of JSON: FastAPI itself would read whatever is sent into memory."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message

from headway.api.dependencies import get_state
from headway.api.uploads.multipart_upload import body_of
from headway.shared.errors import TooLarge

#: A note of which every character is escaped, and room around it.
BODY_BYTES: Final = 64 * 1024


class SmallBody(APIRoute):
    """Reads at most BODY_BYTES before the route sees anything. Raises TooLarge over it, and as
    api/uploads/multipart_upload.py."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            body = bytearray()
            async for chunk in body_of(request, patience_seconds=get_state(request).settings.receive_timeout_seconds):
                body += chunk
                if len(body) > BODY_BYTES:
                    raise TooLarge(f"The body is longer than {BODY_BYTES} bytes, the most this route takes.")

            async def receive() -> Message:
                return {"type": "http.request", "body": bytes(body), "more_body": False}

            return await handle(Request(request.scope, receive))

        return read_and_handle
