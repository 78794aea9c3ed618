"""The outermost layer of the API, plain ASGI: what holds for every request, whatever its route.

Requests that change something and come from another site are refused (Fetch Metadata, with Origin where a browser does
not send it); answers carry headers that keep a browser from guessing or framing; and the server's own `send` is kept in
the scope, so that a stream whose client takes nothing can be cut (api/sse.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import PROBLEMS, problem_response
from shared.errors import Forbidden

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Edge:
    def __init__(self, app: ASGIApp, allowed_origins: Iterable[str]) -> None:
        self._app = app
        self._allowed_origins = frozenset(allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] not in _SAFE_METHODS and self._is_cross_site(Headers(scope=scope)):
            problem = problem_response(PROBLEMS[Forbidden], str(Forbidden()))
            await problem(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                message = {**message, "headers": headers.raw}
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _is_cross_site(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is not None and origin in self._allowed_origins:
            return False
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site not in ("same-origin", "none")
        return origin is not None and urlsplit(origin).netloc != headers.get("host")
