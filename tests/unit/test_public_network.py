"""Where webhooks may go: by the address that is really connected to, in all the forms that an address has."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import httpcore
import pytest

from headway.shared.webhooks.address import Place, clean_url, webhook_to
from headway.worker import public_network
from headway.worker.public_network import NoSuchHost, NotPublic, PublicNetwork, is_own, is_public

REFUSED = (
    *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
    *("169.254.169.254", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
    *("240.0.0.1", "255.255.255.255", "192.88.99.1"),
    *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "2001::1", "3fff::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "100::1", "5f00::1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:c0a8:101::1"),
)
PUBLIC = ("1.1.1.1", "172.15.0.1", "172.32.0.1", "100.63.0.1", "9.9.9.9", "2606:4700::1111", "64:ff9b::101:101")


@pytest.mark.parametrize("address", REFUSED)
def test_a_special_address_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", [*PUBLIC, "::ffff:1.1.1.1"])
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_an_address_of_this_host_is_known_as_its_own() -> None:
    assert is_own(ipaddress.ip_address("127.0.0.1"))
    assert not is_own(ipaddress.ip_address("192.0.2.7"))


@pytest.fixture
def listening() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "::ffff:127.0.0.1", "2130706433"])
async def test_loopback_is_refused_by_every_name(listening: socket.socket, host: str) -> None:
    with pytest.raises(NotPublic):
        await PublicNetwork().connect_tcp(host, listening.getsockname()[1])


@pytest.mark.parametrize("allowed", ["127.0.0.1", "127.0.0.0/8", "localhost", "127.0.0.1:{port}", "localhost:{port}"])
async def test_what_is_named_is_let_through(listening: socket.socket, allowed: str) -> None:
    port = listening.getsockname()[1]
    stream = await PublicNetwork([allowed.format(port=port)]).connect_tcp("127.0.0.1", port)
    await stream.aclose()


@pytest.mark.parametrize("allowed", ["10.0.0.0/8", "127.0.0.1:1", "::1", "localhost:1"])
async def test_what_is_not_named_is_not(listening: socket.socket, allowed: str) -> None:
    with pytest.raises(NotPublic):
        await PublicNetwork([allowed]).connect_tcp("127.0.0.1", listening.getsockname()[1])


async def test_a_name_that_changes_its_address_is_looked_up_once(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the first answer is public, the second is this host."""
    answers = iter(["192.0.2.1", "127.0.0.1", "127.0.0.1"])
    lookups = []

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        lookups.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(public_network, "is_public", lambda address: str(address) == "192.0.2.1")
    with pytest.raises((NotPublic, httpcore.ConnectError, httpcore.ConnectTimeout)):
        await PublicNetwork().connect_tcp("hooks.test", listening.getsockname()[1], timeout=0.1)
    assert lookups == ["hooks.test"]


async def test_a_public_address_among_private_ones_is_the_only_one_that_is_tried(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in ("127.0.0.1", "192.0.2.1")]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(public_network, "is_public", lambda address: str(address) == "192.0.2.1")
    with pytest.raises((httpcore.ConnectError, httpcore.ConnectTimeout)):
        await PublicNetwork().connect_tcp("hooks.test", listening.getsockname()[1], timeout=0.1)


async def test_a_connection_that_ends_at_this_host_is_refused_however_it_looked(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address of this host's own, public or not: here loopback is taken for a public one."""
    monkeypatch.setattr(public_network, "is_public", lambda _: True)
    monkeypatch.setattr(public_network, "is_own", lambda _: False)
    with pytest.raises(NotPublic):
        await PublicNetwork().connect_tcp("127.0.0.1", listening.getsockname()[1])


async def test_a_name_without_an_address_is_said() -> None:
    with pytest.raises(NoSuchHost):
        await PublicNetwork().connect_tcp("nobody.invalid", 80)


@pytest.mark.parametrize(
    ("text", "network", "name", "port"),
    [
        ("10.0.0.0/8", "10.0.0.0/8", "", None),
        ("10.0.0.7", "10.0.0.7/32", "", None),
        ("10.0.0.7:8080", "10.0.0.7/32", "", 8080),
        ("[fd00::1]:8080", "fd00::1/128", "", 8080),
        ("[fd00::1]", "fd00::1/128", "", None),
        ("fd00::/8", "fd00::/8", "", None),
        ("::1", "::1/128", "", None),
        ("Hooks.Internal", None, "hooks.internal", None),
        ("hooks.internal:8443", None, "hooks.internal", 8443),
    ],
)
def test_a_place_is_read(text: str, network: str | None, name: str, port: int | None) -> None:
    place = Place.parse(text)
    assert (str(place.network) if place.network else None, place.name, place.port) == (network, name, port)


@pytest.mark.parametrize("text", ["", "*", "http://a/", "a b", "10.0.0.0/99", "a:99999", "-a", "a/b", "12345"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Place.parse(text)


def test_receivers_are_told_apart_by_address_and_by_host() -> None:
    one, same, path, port, scheme = (
        webhook_to(clean_url(url)).to.split(".")
        for url in (
            "http://A.test/x",
            "http://a.test:80/x#y",
            "http://a.test/y",
            "http://a.test:81/x",
            "https://a.test/x",
        )
    )
    assert one == same
    assert one[0] == path[0]
    assert one[1] != path[1]
    assert len({one[0], port[0], scheme[0]}) == 3
