"""What a trusted proxy says of the host: whose word counts, which forms are understood, what is no host."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.datastructures import Headers

from headway.api.access.forwarded import TrustedProxies, forwarded_host
from headway.api.access.origin_check import OriginCheck, is_own_origin
from headway.shared.errors import Forbidden, ForeignHost

PROXY = ("127.0.0.1", 40_000)
STRANGER = ("192.0.2.7", 40_000)


def scope_of(headers: dict[str, str], *, peer: Any = PROXY, scheme: str = "http") -> dict[str, Any]:
    scope: dict[str, Any] = {
        "type": "http",
        "client": peer,
        "scheme": scheme,
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
    }
    TrustedProxies().settle(scope)
    return scope


@pytest.mark.parametrize(
    ("headers", "host"),
    [
        ({"X-Forwarded-Host": "headway.test"}, "headway.test"),
        ({"X-Forwarded-Host": "Headway.test:8443"}, "headway.test:8443"),
        ({"X-Forwarded-Host": "headway.test, inner:8080"}, "headway.test"),
        ({"X-Forwarded-Host": "headway.test", "X-Forwarded-Port": "8080"}, "headway.test:8080"),
        ({"X-Forwarded-Host": "headway.test:1", "X-Forwarded-Port": "8080"}, "headway.test:1"),
        ({"X-Forwarded-Host": "[::1]:80"}, "[::1]:80"),
        ({"Forwarded": "for=192.0.2.1;host=headway.test;proto=https"}, "headway.test"),
        ({"Forwarded": 'for="[2001:db8::1]";Host="headway.test:8080"'}, "headway.test:8080"),
        ({"Forwarded": "host=headway.test, host=inner"}, "headway.test"),
        ({"Forwarded": "for=_x"}, None),
        ({"Forwarded": ";;host"}, None),
        ({"X-Forwarded-Host": "a b"}, None),
        ({"X-Forwarded-Host": "evil/.test"}, None),
        ({"X-Forwarded-Host": "x" * 300}, None),
        ({"X-Forwarded-Host": ""}, None),
        ({"X-Forwarded-For": "192.0.2.1"}, None),
        ({}, None),
    ],
)
def test_the_name_that_the_browser_used_is_taken_from_either_header(headers: dict[str, str], host: str | None) -> None:
    assert forwarded_host(scope_of(headers)) == host
    assert forwarded_host(scope_of(headers, peer=STRANGER)) is None


def test_the_scheme_of_forwarded_counts_unless_x_forwarded_proto_has_said_it() -> None:
    assert scope_of({"Forwarded": "proto=https"})["scheme"] == "https"
    assert scope_of({"Forwarded": "proto=https", "X-Forwarded-Proto": "http"})["scheme"] == "http"
    assert scope_of({"Forwarded": "proto=gopher"})["scheme"] == "http"
    assert scope_of({"Forwarded": "proto=https"}, peer=STRANGER)["scheme"] == "http"


@pytest.mark.parametrize(
    ("origin", "headers", "own"),
    [
        ("http://headway.test", {"X-Forwarded-Host": "headway.test"}, True),
        ("http://headway.test", {"X-Forwarded-Host": "headway.test:80"}, True),
        ("http://headway.test:8080", {"X-Forwarded-Host": "headway.test", "X-Forwarded-Port": "8080"}, True),
        ("https://headway.test", {"Forwarded": "host=headway.test;proto=https"}, True),
        ("http://127.0.0.1:9", {"X-Forwarded-Host": "headway.test"}, True),  # the host as it came counts as before
        ("http://headway.test:8080", {"X-Forwarded-Host": "headway.test"}, False),
        ("http://evil.test", {"X-Forwarded-Host": "headway.test"}, False),
        ("http://headway.test", {}, False),
    ],
)
def test_a_page_is_our_own_by_the_name_that_its_browser_used(origin: str, headers: dict[str, str], own: bool) -> None:
    headers |= {"Host": "127.0.0.1:9", "Origin": origin}
    assert is_own_origin(Headers(headers), scope_of(headers)) is own


def test_a_refused_page_is_told_both_names_and_where_to_look() -> None:
    headers = {"Host": "127.0.0.1:9", "Origin": "http://headway.test"}
    check = OriginCheck(None, (), local_only=False)  # type: ignore[arg-type]
    refused = check._refuse("POST", Headers(headers), scope_of(headers))
    assert isinstance(refused, Forbidden)
    for said in ("http://headway.test", "http://127.0.0.1:9", "X-Forwarded-Host", "docs/proxies.md"):
        assert said in str(refused)


def test_in_open_mode_a_forwarded_name_opens_nothing_that_the_host_does_not() -> None:
    """A page whose own name leads here (DNS rebinding) may send any header."""
    check = OriginCheck(None, (), local_only=True)  # type: ignore[arg-type]
    for host, told in (("evil.test", "localhost"), ("localhost", "evil.test")):
        headers = {"Host": host, "X-Forwarded-Host": told}
        assert isinstance(check._refuse("GET", Headers(headers), scope_of(headers)), ForeignHost)
