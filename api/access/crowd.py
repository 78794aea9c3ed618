"""The connections of a server on which nobody is known yet: how many there may be, and who gives way.

From its first moment until a request on it has been let in (api/access/identity.py) a connection is a stranger's.
Strangers have a quarter of all connections, one address an eighth; over that the oldest gives way to a new one, because
whoever has a key is known within milliseconds. So however many a stranger opens, and however slowly they speak, who
comes next is heard. A few connections above the most are there for operators alone (`descriptors.OPERATORS`).

The addresses of proxies (FORWARDED_ALLOW_IPS) have no limit of their own: everybody comes from there.
"""

from __future__ import annotations

import asyncio
import ipaddress
from contextlib import suppress
from typing import Final, Literal, Protocol
from weakref import WeakKeyDictionary

from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import _TrustedHosts
from uvicorn.server import ServerState

from headway.api.serving.descriptors import OPERATORS, most_connections, most_strangers

#: What all have had to say who they are, whatever else comes: a deploy brings everybody in one moment.
CHANCE_SECONDS: Final = 1.0

#: More than a page, or a small deploy, brings at once.
DENSE: Final = 100

#: `spare`: for operators alone. `full`: there is none left for those either.
Place = Literal["in", "spare", "full"]


class Connection(Protocol):
    def give_way(self) -> None:
        """Ends it, in the next turn of the loop at the latest."""


def network_of(host: str) -> str:
    """What counts as one address: of IPv6 the first half, the other being free for everybody to choose."""
    if ":" in host:
        with suppress(ValueError):
            return str(ipaddress.ip_network(f"{host.partition('%')[0]}/64", strict=False))
    return host


class Crowd:
    _of_servers: Final[WeakKeyDictionary[ServerState, Crowd]] = WeakKeyDictionary()

    def __init__(self, config: Config) -> None:
        trusted = config.forwarded_allow_ips
        self._proxies = _TrustedHosts(trusted if trusted is not None else "127.0.0.1")
        self._count = 0
        #: Since when and from where, the oldest first.
        self._strangers: dict[Connection, tuple[float, str]] = {}
        self._addresses: dict[str, dict[Connection, None]] = {}
        self._turned_out: set[Connection] = set()

    @classmethod
    def of(cls, server: ServerState, config: Config) -> Crowd:
        if (crowd := cls._of_servers.get(server)) is None:
            crowd = cls._of_servers[server] = cls(config)
        return crowd

    def arrive(self, connection: Connection, host: str) -> Place:
        """It is counted until `leave`."""
        now = asyncio.get_running_loop().time()
        address = "" if host in self._proxies else network_of(host)
        of_address = self._addresses.get(address, {})
        if address and len(of_address) >= max(1, most_strangers() // 2):
            self._turn_out(next(iter(of_address)))
        elif len(self._strangers) >= most_strangers():
            oldest, (since, _) = next(iter(self._strangers.items()))
            if now - since > CHANCE_SECONDS:
                self._turn_out(oldest)
        if self._count >= most_connections() and self._strangers:
            self._turn_out(next(iter(self._strangers)))
        self._count += 1
        self._strangers[connection] = now, address
        self._addresses.setdefault(address, {})[connection] = None
        over = self._count - most_connections()
        return "in" if over <= 0 else "spare" if over <= OPERATORS else "full"

    @property
    def is_dense(self) -> bool:
        """There are so many strangers that they had better begin one after another."""
        return len(self._strangers) > DENSE

    def known(self, connection: Connection) -> None:
        """Somebody was let in by it."""
        if (stranger := self._strangers.pop(connection, None)) is None:
            return
        of_address = self._addresses[stranger[1]]
        del of_address[connection]
        if not of_address:
            del self._addresses[stranger[1]]

    def leave(self, connection: Connection) -> None:
        self.known(connection)
        if connection in self._turned_out:
            self._turned_out.discard(connection)
        else:
            self._count -= 1

    def _turn_out(self, connection: Connection) -> None:
        """Its place is free from here on."""
        self.known(connection)
        self._turned_out.add(connection)
        self._count -= 1
        connection.give_way()
