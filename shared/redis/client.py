"""The only place that builds a Redis client.

Two kinds: `connect` for commands, `connect_link` for one subscription connection. Both are closed by whoever enters
them. Timeouts are set by hand because redis-py's default is to wait for ever on a server that has stopped. Where the
server is one that sentinels name (shared/redis/sentinel.py), both follow them to the next one.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from inspect import signature
from typing import Any, ClassVar, Final, TypeAlias, TypeVar, cast

from arq.connections import ArqRedis
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, Connection, DefaultParser, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from headway.shared import keys
from headway.shared.errors import SettingsError
from headway.shared.redis.epoch import enter_epoch
from headway.shared.redis.faults import (
    AWAY,
    COMMAND_TIMEOUT_SECONDS,
    ForNowError,
    TranslatingClient,
    WritesStoppedError,
    is_for_now,
    redis_faults,
    why_away,
)
from headway.shared.redis.sentinel import (
    ANSWER_SECONDS,
    PrimaryConnection,
    PrimaryTLSConnection,
    Sentinels,
    SentinelUrl,
)
from headway.shared.settings import MEMORY_URL, Settings

RedisClient: TypeAlias = ArqRedis


#: By redis-py itself, on the same connection or a new one.
_RETRIED: tuple[Any, ...] = (RedisConnectionError, RedisTimeoutError, OSError)

#: More connections than tasks a process runs at once would only queue inside Redis, which has one thread.
POOL_SIZE = 64


async def trouble_ahead(redis: RedisClient) -> str | None:
    """What is wrong with a Redis that answers, and what to do: it evicts, or has no room. Raises AWAY.

    None where it cannot be asked: a fake one, or a managed one without INFO.
    """
    try:
        memory = await redis.info("memory")
    except ResponseError:
        return None
    most = int(memory.get("maxmemory", 0))
    used = int(memory.get("used_memory", 0)) - int(memory.get("mem_not_counted_for_evict", 0))
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        return f"Redis may throw tasks away (maxmemory-policy {policy}); run CONFIG SET maxmemory-policy noeviction"
    if most and used >= most:
        return why_away(OutOfMemoryError())
    return None


async def durability(redis: RedisClient) -> str | None:
    """What of Redis survives its end: `append-only, fsync always|everysec|no`, `snapshots` or `nothing`. Raises AWAY.

    None where it cannot be asked: a fake one, or a managed one without CONFIG.
    """
    try:
        config = await redis.config_get("append*")
    except ResponseError:
        return None
    if config.get("appendonly") == "yes":
        return f"append-only, fsync {config.get('appendfsync')}"
    return "snapshots" if (await redis.config_get("save")).get("save") else "nothing"


_memory_lock = threading.Lock()


def _memory_server() -> Any:
    """The one fake server of this process; API and worker may come for it from two threads at once."""
    with _memory_lock:
        return _the_memory_server()


@cache
def _the_memory_server() -> Any:
    import fakeredis  # only here: a third of a second that no other start should pay

    return fakeredis.FakeServer()


def _memory_client() -> Any:
    from fakeredis import FakeAsyncRedis

    class Client(TranslatingClient, FakeAsyncRedis):  # type: ignore[misc]
        pass

    return Client(server=_memory_server())


class _Client(TranslatingClient, ArqRedis):  # type: ignore[misc] # the bases of redis-py disagree
    pass


_REFUSED_WITHIN: Final = re.compile(r"-((?:OOM|READONLY|MISCONF|NOREPLICAS|BUSY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN) )")


class _Parser(DefaultParser):  # type: ignore[misc,valid-type] # hiredis's, or redis-py's own
    EXCEPTION_CLASSES: ClassVar[dict[str, Any]] = DefaultParser.EXCEPTION_CLASSES | {
        "NOREPLICAS": WritesStoppedError,
        "MISCONF": WritesStoppedError,
    }

    @classmethod
    def parse_error(cls, response: str) -> Any:
        # Redis 6.2 wraps what a call within a script was refused with in an error of its own.
        if response.startswith("ERR Error running script") and (found := _REFUSED_WITHIN.search(response)):
            response = response[found.start(1) :]
        code = response.partition(" ")[0]
        if code not in cls.EXCEPTION_CLASSES and is_for_now(response):
            return ForNowError(response)
        return super().parse_error(response)


_PACKER = HiredisRespSerializer()


class _Pool(BlockingConnectionPool):
    """Tells of connections that are made again."""

    def __init__(self, on_reconnect: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self._on_reconnect = on_reconnect

    def make_connection(self) -> Any:
        connection = super().make_connection()  # type: ignore[no-untyped-call]
        connection.register_connect_callback(self._connected)
        connection.made = False
        # redis-py packs with hiredis in its blocking client only; a third of what an event costs its publisher.
        connection.pack_command = _PACKER.pack
        return connection

    def _connected(self, connection: Any) -> None:
        if connection.made:
            self._on_reconnect()
        connection.made = True


@asynccontextmanager
async def connect(
    settings: Settings, *, retries: int = 1, on_reconnect: Callable[[], None] = lambda: None
) -> AsyncIterator[RedisClient]:
    """A client for commands. It is arq's class, which is redis-py's with arq's methods, so that arq can use it too.

    `retries` times a command is sent again after a lost connection or a timeout; 1 for the API, which tells the user
    to try again, more for a worker, which has nobody to tell. `on_reconnect` is told of each connection that was lost
    and has been made again. What its commands raise is said in shared/redis/faults.py.
    """
    _use_namespace(settings)
    if settings.redis_url.startswith(MEMORY_URL):
        fake = _memory_client()
        try:
            yield cast(ArqRedis, fake)
        finally:
            await fake.aclose()
        return
    async with _server(settings) as options:
        pool = _Pool(
            on_reconnect,
            max_connections=POOL_SIZE,
            timeout=COMMAND_TIMEOUT_SECONDS,
            **options,
            redis_connect_func=enter_epoch,
            parser_class=_Parser,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries, supported_errors=_RETRIED),
            # Without this list redis-py reconnects but does not send the command again after a timeout.
            retry_on_error=list(_RETRIED),
        )
        client = _Client(connection_pool=pool)
        try:
            yield client
        finally:
            await client.aclose(close_connection_pool=False)
            await pool.aclose()


def _use_namespace(settings: Settings) -> None:
    """Raises SettingsError."""
    try:
        keys.use(settings.namespace)
    except ValueError as error:
        raise SettingsError(f"HEADWAY_NAMESPACE: {error}. Example: HEADWAY_NAMESPACE={keys.DEFAULT}") from None


def channel_on(redis: Any, channel: str) -> str:
    """What a channel of shared/keys.py is called on the database that this client uses."""
    return keys.on_database(channel, int(redis.connection_pool.connection_kwargs.get("db") or 0))


def database_of(settings: Settings) -> int:
    """The number of the database."""
    url = settings.redis_url
    if url.startswith(MEMORY_URL):
        return 0
    options = SentinelUrl.parse(url).node if SentinelUrl.fits(url) else cast(dict[str, Any], parse_url(url))
    return int(options.get("db") or 0)


L = TypeVar("L", bound=asyncio.Protocol)


@asynccontextmanager
async def connect_link(settings: Settings, link: L) -> AsyncIterator[L]:
    """A connection for a subscription, handed over to `link` once redis-py has made it: address, TLS, user and password
    are redis-py's business, what comes over it from here on is the link's. No retries, so that a break is seen at once
    by who must act on it. Raises AWAY, and what Redis refuses (ResponseError)."""
    async with _server(settings) as options:
        pool: ConnectionPool = ConnectionPool(**options, retry=Retry(_NO_WAIT, 0))
        connection = pool.make_connection()  # type: ignore[no-untyped-call]
        with redis_faults():
            await connection.connect()
        transport = connection._writer.transport
        try:
            transport.set_protocol(link)
            link.connection_made(transport)
            yield link
        finally:
            transport.abort()
            await connection.disconnect(nowait=True)


_NO_WAIT = ExponentialBackoff(cap=0, base=0)

#: No name of the library at each connection: it is one more command, and one that a careful server does not permit.
#: redis-py 7 has one option for what were two, and warns of those.
_HAS_ONE = "driver_info" in signature(AbstractConnection.__init__).parameters
_UNNAMED: dict[str, Any] = {"driver_info": None} if _HAS_ONE else {"lib_name": None, "lib_version": None}
_EVERYWHERE: dict[str, Any] = {"socket_timeout": COMMAND_TIMEOUT_SECONDS, **_UNNAMED}
_BY_TCP = _EVERYWHERE | {"socket_connect_timeout": COMMAND_TIMEOUT_SECONDS, "socket_keepalive": True}


@asynccontextmanager
async def _server(settings: Settings) -> AsyncIterator[dict[str, Any]]:
    """A pool's options for the server of the settings, which may be another one at each connection."""
    if not SentinelUrl.fits(settings.redis_url):
        options = _EVERYWHERE if settings.redis_url.startswith("unix://") else _BY_TCP
        yield options | cast(dict[str, Any], parse_url(settings.redis_url))
        return
    url = SentinelUrl.parse(settings.redis_url)
    wait = {"socket_timeout": ANSWER_SECONDS, "socket_connect_timeout": ANSWER_SECONDS}
    kind: type[Connection] = SSLConnection if url.tls else Connection
    clients: list[Any] = []
    for host, port in url.hosts:
        pool = ConnectionPool(kind, host=host, port=port, **_BY_TCP | url.sentinel | wait)
        clients.append(Redis.from_pool(pool))
    async with Sentinels(url.service, clients) as sentinels:
        asking = {"connection_class": PrimaryTLSConnection if url.tls else PrimaryConnection, "sentinels": sentinels}
        yield _BY_TCP | url.node | asking


__all__ = [
    "AWAY",
    "RedisClient",
    "RedisError",
    "channel_on",
    "connect",
    "connect_link",
    "database_of",
    "durability",
    "trouble_ahead",
    "why_away",
]
