"""The outermost layer of the API, plain ASGI: what holds for every request, whatever its route.

Requests that change something and come from another site are refused (Fetch Metadata, with Origin where a browser does
not send it), and in open mode those for a name that somebody else may have given this machine; answers carry headers
that keep a browser from guessing, framing, or running what was not meant to run.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headway.api.access.forwarded import forwarded_host, is_host
from headway.api.problems import answer_to
from headway.shared.errors import Forbidden, ForeignHost, HeadwayError, Stopping

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: Where a route sends one of these itself, that one counts.
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    # Nobody's page embeds what is here; one that may read it asks with CORS, which this does not touch.
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"object-src 'none'; base-uri 'none'; frame-ancestors 'none'"),
)


class OriginCheck:
    """`local_only`: in open mode, which is for this machine alone, also by its name."""

    def __init__(self, app: ASGIApp, allowed_origins: Iterable[str], *, local_only: bool) -> None:
        self._app = app
        self._allowed_origins = frozenset(allowed_origins)
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                names = {name.lower() for name, _ in headers}
                if message["status"] in (307, 308):  # the framework's, which names the host that the client named
                    headers = [(name, _within(value) if name == b"location" else value) for name, value in headers]
                message = {**message, "headers": headers + [pair for pair in _HEADERS if pair[0] not in names]}
            await send(message)

        refused = self._refuse(scope["method"], Headers(scope=scope), scope)
        answer = answer_to(refused) if refused is not None else None
        try:
            await (answer or self._app)(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # uvicorn's, of what is still under way when it has waited long enough
            stopping = answer_to(Stopping("This server is being stopped. Ask again in a moment."))
            if begun or stopping is None:
                raise
            await stopping(scope, receive, send_with_headers)

    def _refuse(self, method: str, headers: Headers, scope: Scope) -> HeadwayError | None:
        # A page of another site can have its own name lead to 127.0.0.1 (DNS rebinding), and is then of our origin.
        if self._local_only and not all(map(_is_local, _hosts(headers, scope))):
            return ForeignHost()
        if method in SAFE_METHODS or headers.get("origin") in self._allowed_origins or is_own_origin(headers, scope):
            return None
        if "sec-fetch-site" in headers:
            return Forbidden()
        return Forbidden(_other_host(headers, scope))


def is_own_origin(headers: Headers, scope: Scope) -> bool:
    """Whether our own page asks, or no page at all. A page of the same site is not our own: `other.example.com` may be
    anybody's."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    try:
        if origin is None:
            return True
        theirs = urlsplit(origin)
        return any((theirs.scheme, theirs.netloc.lower()) == (scope["scheme"], host) for host in _hosts(headers, scope))
    except ValueError:
        return False


def _hosts(headers: Headers, scope: Scope) -> list[str]:
    """The names by which the request was sent: to us, and by a trusted proxy's word to that."""
    told = forwarded_host(scope)
    return [headers.get("host", "").lower(), *([_without_own_port(told, scope["scheme"])] if told else [])]


def _without_own_port(host: str, scheme: str) -> str:
    return host.removesuffix({"http": ":80", "https": ":443"}.get(scheme, ""))


def _other_host(headers: Headers, scope: Scope) -> str:
    """What is told of a page whose name is not ours; a browser may show it to who runs the proxy between."""
    scheme, _, host = headers.get("origin", "").partition("://")
    theirs = f"{scheme}://{host}" if scheme in ("http", "https") and is_host(host) else "no site"
    ours = " and ".join(f"{scope['scheme']}://{host}" for host in _hosts(headers, scope) if is_host(host))
    return (
        f"The page that asks is of {theirs}, and the request came for {ours or 'no name'}. If both are this platform, "
        "its proxy names another host or scheme than the browser did: let it pass `Host` on, or say it by "
        "X-Forwarded-Host and X-Forwarded-Proto from an address in FORWARDED_ALLOW_IPS (docs/proxies.md)."
    )


def _within(location: bytes) -> bytes:
    """The same place on whatever host it was asked for."""
    parts = urlsplit(location.decode("latin-1"))
    return ("/" + parts.path.lstrip("/") + (f"?{parts.query}" if parts.query else "")).encode("latin-1")


def _is_local(host: str) -> bool:
    """Whether nobody else can have given the name: an address, a name without a dot, or one under `localhost`."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if "." not in name or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
