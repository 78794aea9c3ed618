"""Which server is the primary at present, asked of its sentinels: at every connect, and every few seconds after it.

Sentinels agree by majority and learn of each other's decisions a moment later, so one that answers may be wrong. A
majority of them is asked, and of their answers the newest configuration counts; redis-py's own search takes the first
answer, asks one after the other, and never again while a connection lives. Whoever the sentinels name is asked for its
role before it is used. Nobody to name is an error like a refused connection: it is tried again by who tries.

`Sentinels` is entered by shared/redis/client.py, which also builds its clients. Leaving it closes them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode
from weakref import WeakSet

from redis.asyncio import Redis
from redis.asyncio.connection import Connection, SSLConnection, parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError

from headway.shared.cancellation import cancel, heed_cancellation
from headway.shared.logging import get_logger
from headway.shared.redis.urls import url_parts

log = get_logger(__name__)

SENTINEL_PORT: Final = 26379
#: One that is silent for longer is passed over: its machine may have died with the primary's.
ANSWER_SECONDS: Final = 1.0
#: How long a connection may stay with a server that is no longer the primary and says nothing about it. One that
#: sentinels demote cuts its clients by itself; one that they cannot reach does not.
LOOK_SECONDS: Final = 0.5

EXAMPLE: Final = "redis+sentinel://USER:PASSWORD@HOST1:26379,HOST2:26379,HOST3:26379/SERVICE/0"
_OF_SENTINELS: Final = {"sentinel_username": "username", "sentinel_password": "password"}
_SCHEMES: Final = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\],]+)(?::([0-9]{1,5}))?")


class NoPrimary(RedisConnectionError):
    """The sentinels do not answer, or know no primary."""


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """`redis+sentinel://` read. The options are redis-py's, for a connection; `node` without host and port."""

    hosts: tuple[tuple[str, int], ...]
    service: str
    tls: bool
    node: dict[str, Any]
    sentinel: dict[str, Any]

    @staticmethod
    def fits(url: str) -> bool:
        return url.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Raises ValueError, whose words do not repeat the URL: it may hold a password."""
        parts = url_parts(url)
        hosts = tuple(_host(one) for one in parts.hosts.split(","))
        place = re.fullmatch(r"/([A-Za-z0-9._-]+)(?:/([0-9]{0,5}))?", parts.path)
        if place is None or parts.fragment:
            raise ValueError(f"names no service, or a database that is no number; write {EXAMPLE}")
        query = parse_qsl(parts.query, keep_blank_values=True)
        own = [(name, value) for name, value in query if name not in _OF_SENTINELS]
        try:  # the rest as redis-py reads the URL of one server
            alike = f"{_SCHEMES[parts.scheme]}://{parts.credentials}@host/{place[2] or 0}?{urlencode(own)}"
            node: dict[str, Any] = dict(parse_url(alike))
            connection_class: Any = node.pop("connection_class", Connection)
            sentinel = {name: value for name, value in node.items() if name.startswith("ssl_")}
            sentinel |= {_OF_SENTINELS[name]: value for name, value in query if name in _OF_SENTINELS}
            connection_class(**node)
            connection_class(**sentinel)
            del node["host"]
        except Exception:
            raise ValueError(f"is not a URL that redis-py can read; write {EXAMPLE}") from None
        return cls(hosts, place[1], parts.scheme == "rediss+sentinel", node, sentinel)


def _host(text: str) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int(found[2] or SENTINEL_PORT) if found is not None else 0
    if found is None or not 0 < port < 65_536:
        raise ValueError(f"lists a sentinel that is no HOST:PORT; write {EXAMPLE}")
    return found[1].strip("[]"), port


@dataclass(frozen=True, slots=True)
class Answer:
    """One sentinel's."""

    #: Of two configurations the newer one has the greater.
    config_epoch: int
    is_up: bool
    #: Another one is being promoted: what is written to this one is lost.
    is_changing: bool
    address: tuple[str, int]


def named(answers: Sequence[Answer]) -> tuple[str, int] | None:
    """Whom they name together; None for nobody at present."""
    if not answers or any(answer.is_changing for answer in answers):
        return None
    newest = max(answers, key=lambda answer: (answer.config_epoch, answer.is_up))
    return newest.address if newest.is_up else None


class Sentinels:
    """Entered while connections are open: those to a server that is no longer the primary are closed."""

    def __init__(self, service: str, clients: Sequence[Redis]) -> None:
        self._service = service
        self._clients = clients
        self._stack = AsyncExitStack()
        self._asking: asyncio.Task[tuple[str, int] | None] | None = None
        self._asked: set[asyncio.Task[Answer | None]] = set()
        #: By the last answer.
        self.named: tuple[str, int] | None = None
        #: Those that ask here whom to connect to.
        self.connections: WeakSet[PrimaryConnection] = WeakSet()

    async def __aenter__(self) -> Sentinels:
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._looking = self._group.create_task(self._look(), name="sentinels")
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(self._looking, *([self._asking] if self._asking else []), *self._asked)
        await self._stack.aclose()
        for client in self._clients:
            await client.aclose()

    async def primary(self) -> tuple[str, int]:
        """Its address, one question for all who want to know it at this moment. Raises NoPrimary."""
        if self._asking is None or self._asking.done():
            self._asking = self._group.create_task(self._ask())
        address = await asyncio.shield(self._asking)
        if address is None:
            raise NoPrimary(f"the sentinels name no primary of {self._service}")
        return address

    async def _ask(self) -> tuple[str, int] | None:
        asked = [self._group.create_task(self._answer_of(client)) for client in self._clients]
        self._asked = {*asked, *(one for one in self._asked if not one.done())}
        answers: list[Answer] = []
        for answered in asyncio.as_completed(asked):
            if (answer := await answered) is not None:
                answers.append(answer)
            if len(answers) > len(asked) // 2:
                break  # the others may take their time: to give them up would cost their connections
        self.named = named(answers)
        return self.named

    async def _answer_of(self, client: Redis) -> Answer | None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                told = await client.sentinel_master(self._service)  # type: ignore[no-untyped-call]
                is_up = told["is_master"] and not (told["is_sdown"] or told["is_odown"])
                is_changing = "failover_in_progress" in told["flags"]
                return Answer(told["config-epoch"], is_up, is_changing, (told["ip"], told["port"]))
        except Exception as error:  # it is gone, does not know the service or us, or is no sentinel
            log.debug("sentinel passed over", reason=type(error).__name__)
            return None

    async def _look(self) -> None:
        while True:
            heed_cancellation()
            await asyncio.sleep(LOOK_SECONDS)
            try:
                primary = await self.primary()
            except NoPrimary:
                continue
            for connection in list(self.connections):
                if (connection.host, connection.port) != primary:
                    connection.cut()


class PrimaryConnection(Connection):
    """A connection to whoever the sentinels name when it is made; made anew where that is no primary any more."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        super().__init__(**options)
        self._sentinels = sentinels
        sentinels.connections.add(self)

    async def _connect(self) -> None:
        self.host, self.port = await self._sentinels.primary()
        await super()._connect()  # type: ignore[no-untyped-call]

    def cut(self) -> None:
        """As if the server had: `disconnect` would take the streams away from who is writing to them."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def on_connect(self) -> None:
        await super().on_connect()
        # HELLO is permitted to everybody; ROLE and INFO are not.
        await self.send_command("HELLO", 2)
        told = iter(await super().read_response())
        is_master = dict(zip(told, told, strict=True)).get(b"role") == b"master"
        # One that hung meanwhile has missed that another was promoted.
        if not is_master or self._sentinels.named not in {None, (self.host, self.port)}:
            raise RedisConnectionError(_NO_PRIMARY_ANY_MORE)

    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        try:
            await super()._send_packed_command(command)
        except RuntimeError as error:  # uvloop's, where the connection was closed a moment ago
            raise RedisConnectionError(str(error)) from error

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)
        except ReadOnlyError:
            await self.disconnect(nowait=True)
            raise RedisConnectionError(_NO_PRIMARY_ANY_MORE) from None


class PrimaryTLSConnection(PrimaryConnection, SSLConnection):
    """The same by TLS."""


_NO_PRIMARY_ANY_MORE: Final = "the server is a replica, or about to become one"
