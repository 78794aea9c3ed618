"""Connections to the public internet alone, for addresses that somebody else names: webhooks.

A name is looked up here and each of its addresses looked at; the connection is made to the address that was looked at,
never to the name again, so a name that changes its address in between (DNS rebinding) changes nothing. Refused are
loopback, private, link-local and other special networks, this host's own addresses whatever they are, and the same
behind the forms of IPv6 that hold an IPv4 address; unless HEADWAY_WEBHOOK_ALLOW names them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import httpcore

from headway.shared.webhooks.address import Address, Place

#: Everything in the registry of special-purpose addresses (RFC 6890) that is not the public internet, and multicast.
_SPECIAL_V4: Final = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
    )
)
#: What is handed out to networks; all else is special. And what is special in it.
_GLOBAL_V6: Final = ipaddress.IPv6Network("2000::/3")
_SPECIAL_V6: Final = tuple(
    ipaddress.IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20")
)
#: NAT64 (RFC 6052): a gateway turns it into the IPv4 address in its last 32 bits.
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

#: Of one name.
MOST_ADDRESSES: Final = 8


class NotPublic(Exception):
    """All that the name leads to are addresses that webhooks may not go to."""


class NoSuchHost(Exception):
    """The name has no address."""


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """`connect_tcp` raises NotPublic, NoSuchHost, and httpcore's ConnectError and ConnectTimeout."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = tuple(Place.parse(text) for text in allowed)
        self._network = httpcore.AnyIOBackend()
        self._lookups: dict[tuple[str, int], asyncio.Future[list[Address]]] = {}

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._looked_up(host, port)
        usable = [one for one in addresses if await self._may_go_to(one, port)][:MOST_ADDRESSES]
        if not usable:
            raise NotPublic
        for last, address in enumerate(usable, start=1 - len(usable)):
            try:
                stream = await self._network.connect_tcp(
                    str(address), port, timeout=timeout, local_address=local_address, socket_options=socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if last == 0:
                    raise
                continue
            if not await self._is_connected_to(stream, address, port):
                await stream.aclose()
                raise NotPublic
            return stream
        raise AssertionError("unreachable")

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise NotPublic

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _may_go_to(self, address: Address, port: int) -> bool:
        if is_public(address) and not is_own(address):
            return True
        return await self._is_allowed(address, port)

    async def _is_connected_to(self, stream: httpcore.AsyncNetworkStream, address: Address, port: int) -> bool:
        """By what the system says of the connection itself."""
        sock = stream.get_extra_info("socket")
        peer, here = (_address(name()[0]) for name in (sock.getpeername, sock.getsockname))
        if plain(peer) != plain(address):
            return False
        if is_public(peer) and plain(peer) != plain(here):
            return True
        return await self._is_allowed(peer, port)

    async def _is_allowed(self, address: Address, port: int) -> bool:
        address = plain(address)
        for place in self._allowed:
            if place.port not in (None, port):
                continue
            if place.network is not None:
                if address.version == place.network.version and address in place.network:
                    return True
            else:
                with suppress(NoSuchHost):
                    if address in map(plain, await self._looked_up(place.name, port)):
                        return True
        return False

    async def _looked_up(self, host: str, port: int) -> list[Address]:
        """Who asks for one name at once waits for one lookup."""
        lookup = self._lookups.get((host, port))
        if lookup is None:
            lookup = self._lookups[host, port] = _lookup(host, port)
            lookup.add_done_callback(lambda _: self._lookups.pop((host, port), None))
        return await asyncio.shield(lookup)


def _lookup(host: str, port: int) -> asyncio.Future[list[Address]]:
    """In a thread of its own that nobody waits for at the end: a name server that does not answer takes half a minute,
    and in the loop's own threads it would keep the files of tasks waiting."""
    loop = asyncio.get_running_loop()
    found = loop.create_future()

    def tell(addresses: list[Address], error: Exception | None) -> None:
        if not found.done():
            if error is None:
                found.set_result(addresses)
            else:
                found.set_exception(error)
                found.exception()  # whoever asked may have given up

    def look() -> None:
        addresses, error = list[Address](), None
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(_address(answer[4][0]) for answer in answers))
        except (OSError, UnicodeError, ValueError):
            error = NoSuchHost()
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, addresses, error)

    threading.Thread(target=look, name="webhook lookup", daemon=True).start()
    return found


def _address(text: object) -> Address:
    return ipaddress.ip_address(str(text).partition("%")[0])


def plain(address: Address) -> Address:
    """The IPv4 address of an IPv6 one that only stands for it on this machine (`::ffff:a.b.c.d`)."""
    return getattr(address, "ipv4_mapped", None) or address


def is_public(address: Address) -> bool:
    address = plain(address)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    if address.sixtofour is not None and not is_public(address.sixtofour):  # a relay hands it on to that one
        return False
    return address in _GLOBAL_V6 and not any(address in network for network in _SPECIAL_V6)


def is_own(address: Address) -> bool:
    """Whether it is this host's: from a host to itself, both ends of a connection have one address. Nothing is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((str(address), 9))
            return plain(_address(_name(sock)[0])) == plain(address)
    except OSError:  # no way there, so no connection either
        return False


def _name(sock: socket.socket) -> Sequence[object]:
    name: Sequence[object] = sock.getsockname()
    return name
