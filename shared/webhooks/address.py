"""Where webhooks go: URLs that are taken, and the places that HEADWAY_WEBHOOK_ALLOW names.

Pure: what is behind a name is looked at when a connection is made (worker/public_network.py).
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import httpx

from headway.shared.tasks.models import Webhook

URL_CHARACTERS: Final = 2000
#: What can be told of.
ENDS: Final = ("completed", "failed", "cancelled")
PORTS: Final = {"http": 80, "https": 443}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def clean_url(value: str) -> str:
    """Raises ValueError. A name is not looked up here: it may be another address when it is used."""
    if len(value) > URL_CHARACTERS:
        raise ValueError(f"is longer than {URL_CHARACTERS} characters")
    if not re.match(r"https?://", value, re.IGNORECASE) or re.search(r"[\x00-\x20\x7f\\]", value):
        raise ValueError("is not an http:// or https:// address")
    try:
        url = httpx.URL(value)
        host, port = url.raw_host.decode("ascii"), url.port
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise ValueError("is not a URL") from None
    if not host or port == 0:
        raise ValueError("names no host, or a port that is none")
    if url.userinfo:
        raise ValueError("has a password in it; the signature tells the receiver who sends")
    return str(url.copy_with(fragment=None))


def webhook_to(url: str, events: Iterable[str] = ENDS) -> Webhook:
    """`url` is clean."""
    parts = httpx.URL(url)
    origin = f"{parts.scheme}://{parts.raw_host.decode('ascii')}:{parts.port or PORTS[parts.scheme]}"
    return Webhook(to=f"{_digest(origin)}.{_digest(url)}", events=list(dict.fromkeys(events)), url=url)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Place:
    """One that webhooks may go to though it is not public: a network, or a host's name; with a port, that one alone."""

    network: Network | None
    name: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Place:
        """`10.0.0.0/8`, `10.0.0.7:8080`, `[fd00::1]:8080`, `fd00::/8`, `hooks.internal`. Raises ValueError."""
        wrong = f"{text!r} is not an address, a network or the name of a host, with or without a port"
        host, port = text, None
        if (found := re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::(\d{1,5}))?|([^:]+):(\d{1,5})", text)) is not None:
            host = found[1] or found[3]
            port = int(found[2] or found[4] or 0) or None
            if port is not None and port > 65_535:
                raise ValueError(wrong)
        try:
            return cls(ipaddress.ip_network(host, strict=False), "", port)
        except ValueError:
            if not re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*\.?", host) or host.isdigit():
                raise ValueError(wrong) from None
            return cls(None, host.rstrip(".").lower(), port)
