"""Which methods each path takes, and those that every path takes: OPTIONS, and HEAD where there is a GET.

Load balancers and uptime monitors ask by HEAD and OPTIONS, and a route of FastAPI answers neither. A HEAD is answered
as the GET without its body, and that is ended as soon as its headers are out: a stream has no end of its own. `Allow`
names the methods of all routes of a path, where the framework names those of the first.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Final

from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headway.api.problems import wrong_method
from headway.api.root_path import route_path
from headway.shared.cancellation import cancel

#: Of what is no route but a folder of files.
_FILES: Final = frozenset({"GET", "HEAD"})


class Methods:
    """Of an application's routes: each its methods (None: files) and itself."""

    def __init__(self, routes: Iterable[tuple[frozenset[str] | None, BaseRoute]]) -> None:
        self._routes: list[tuple[re.Pattern[str], frozenset[str]]] = [
            (route.path_regex, _FILES if methods is None else methods)  # type: ignore[attr-defined]
            for methods, route in routes
        ]

    def takes(self, method: str, path: str) -> bool:
        """Whether a route of this path names the method."""
        return any(method in methods and pattern.match(path) for pattern, methods in self._routes)

    def stated(self, path: str) -> frozenset[str]:
        """Those that routes of this path name; none: there is no such path."""
        found = [methods for pattern, methods in self._routes if pattern.match(path)]
        return frozenset().union(*found)

    def taken(self, path: str) -> frozenset[str]:
        """All that it takes."""
        stated = self.stated(path)
        return stated | {"OPTIONS"} | ({"HEAD"} if "GET" in stated else frozenset()) if stated else stated

    def routed(self, method: str, path: str) -> str:
        """The method of the route that answers: GET for a HEAD that has no route of its own."""
        if method != "HEAD":
            return method
        stated = self.stated(path)
        return "GET" if "GET" in stated and "HEAD" not in stated else method

    def allow(self, scope: Scope) -> str | None:
        """The value of `Allow`; None: there is no such path."""
        return ", ".join(sorted(self.taken(route_path(scope) or "/"))) or None


class MethodLayer:
    """The innermost layer, plain ASGI. Who asks has been let in."""

    def __init__(self, app: ASGIApp, methods: Methods) -> None:
        self._app = app
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "GET":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], route_path(scope) or "/"
        if self._methods.takes(method, path):
            await self._app(scope, receive, send)
            return
        stated, allow = self._methods.stated(path), self._methods.allow(scope)
        if allow is None:
            await self._app(scope, receive, send)
        elif method == "OPTIONS":
            await Response(status_code=204, headers={"Allow": allow})(scope, receive, send)
        elif method == "HEAD" and "GET" in stated:
            await self._without_body({**scope, "method": "GET"}, receive, send)
        else:
            await wrong_method(allow)(scope, receive, send)

    async def _without_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                begun.set()

        answering = asyncio.ensure_future(self._app(scope, receive, send_head))
        leaving = asyncio.ensure_future(begun.wait())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            await asyncio.shield(cancel(answering, leaving))
