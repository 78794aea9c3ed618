"""What a trusted proxy says of the request that it took: the host and the scheme that its client named.

A proxy that puts another name in `Host`, as nginx and Apache do unless told otherwise, may say the right one by
X-Forwarded-Host (with X-Forwarded-Port) or by Forwarded (RFC 7239). Without it a page of ours looks as one of another
site. No page of another site can say it for itself: a browser sends neither header across origins without asking first.
Trusted are the addresses in FORWARDED_ALLOW_IPS, as uvicorn reads it for the other forwarded headers.
"""

from __future__ import annotations

import os
import re
from typing import Final

from starlette.types import Scope
from uvicorn.middleware.proxy_headers import _TrustedHosts

#: A name or an address, with a port or without.
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._~-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")
_PARAMETER: Final = re.compile(r'\s*([A-Za-z]+)\s*=\s*(?:"([^"]*)"|([^\s";,]*))\s*')


class TrustedProxies:
    def __init__(self) -> None:
        self._hosts = _TrustedHosts(os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1"))

    def sent(self, scope: Scope) -> bool:
        """By the other end of the connection. uvicorn has put the client in its place if it is a trusted proxy that
        names one (X-Forwarded-For), mostly without a port, which no real connection is."""
        client = scope.get("client")
        transport = getattr(getattr(scope.get("headway.send"), "__self__", None), "transport", None)
        peer = scope.get("headway.peer") or (transport.get_extra_info("peername") if transport is not None else None)
        if isinstance(peer, (tuple, list)) and peer:
            return peer[0] in self._hosts
        return client is not None and (client[0] in self._hosts or (bool(client[0]) and client[1] == 0))

    def settle(self, scope: Scope) -> None:
        """Leaves the host that a trusted proxy names in the scope, for `forwarded_host`, and its scheme in place of the
        request's. X-Forwarded-Proto is uvicorn's business."""
        given = {name: value.decode("latin-1") for name, value in scope["headers"] if b"forwarded" in name}
        if not given or not self.sent(scope):
            return
        if host := _first(given.get(b"x-forwarded-host", "")):
            port = _first(given.get(b"x-forwarded-port", ""))
            host = f"{host}:{port}" if port and not re.search(r":\d+$", host) else host
        standard = _standard(given.get(b"forwarded", ""))
        host = host or standard.get("host", "")
        if is_host(host):
            scope["headway.host"] = host.lower()
        if (scheme := standard.get("proto", "").lower()) in ("http", "https") and b"x-forwarded-proto" not in given:
            scope["scheme"] = scheme


def forwarded_host(scope: Scope) -> str | None:
    """Lower-case, with its port where it is not the scheme's own."""
    host: str | None = scope.get("headway.host")
    return host


def is_host(text: str) -> bool:
    return _HOST.fullmatch(text) is not None


def _first(value: str) -> str:
    """Of a list, the one that the first proxy said: the name that the browser used."""
    return value.partition(",")[0].strip()


def _standard(value: str) -> dict[str, str]:
    """The parameters of the first element of Forwarded."""
    found: dict[str, str] = {}
    at = 0
    while (parameter := _PARAMETER.match(value, at)) is not None:
        found[parameter[1].lower()] = parameter[2] if parameter[2] is not None else parameter[3]
        if value[parameter.end() : parameter.end() + 1] != ";":
            break
        at = parameter.end() + 1
    return found
