"""One subscription connection to Redis that is either known to work or known to be broken.

redis-py's own pub/sub reconnects without a word and loses what was sent meanwhile; a half-open socket is silent for
ever. So this owns the reconnecting: after every break it subscribes to all channels anew and reports each
acknowledgement, which is the sign to read the truth again; and it sends PING on an idle connection, so that silence is
an answer. Messages come in order within a connection. Between a break and the next acknowledgement some may be lost,
and the owner is told by that acknowledgement.

What arrives is parsed where it arrives (hiredis, no task woken for it), and whoever listens is told when all that one
read brought has been handed over, so that it can write it out together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis
from redis.exceptions import BusyLoadingError, NoPermissionError, ResponseError

from headway.shared import keys
from headway.shared.cancellation import heed_cancellation
from headway.shared.errors import RedisAway
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY, connect, connect_link, database_of, why_away
from headway.shared.redis.faults import ForNowError, is_for_now, redis_faults
from headway.shared.settings import MEMORY_URL, Settings

log = get_logger(__name__)

#: Nothing heard for this long: ask. Nothing for twice as long: the connection is dead. Together with connecting anew
#: this keeps a half-open socket under the 5 s of the scoreboard.
PROBE_SECONDS: Final = 1.5
RECONNECT_SECONDS: Final = 0.25
#: A SUBSCRIBE with more channels than this would hold Redis, and the reading of answers, for too long at once.
SUBSCRIBE_BATCH: Final = 500


class Subscription:
    """`run` is the service; it returns only when cancelled. The callbacks are called from it and must not block.

    on_message(channel, data): one message.
    on_subscribed(channel): from here on every message of the channel arrives, until the next break.
    on_read(): everything that came with one read has been handed over.
    on_reconnect(): the connection was lost and has been made again.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_message: Callable[[str, bytes], None],
        on_subscribed: Callable[[str], None],
        on_read: Callable[[], None] = lambda: None,
        on_reconnect: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._database = database_of(settings)
        self.on_message = on_message
        self.on_read = on_read
        self._on_subscribed = on_subscribed
        self._on_reconnect = on_reconnect
        self._wanted: set[str] = set()
        self._link: _Link | _MemoryLink | None = None
        #: Why the connection is broken; None while it works.
        self.broken: str | None = "not connected yet"
        #: How often the connection was made.
        self.connections = 0

    def subscribe(self, channel: str) -> None:
        """Asks for a channel; `on_subscribed` says when it is there, at the latest after the next reconnect."""
        self._wanted.add(channel)
        if self._link is not None:
            self._link.send("SUBSCRIBE", self._spelled(channel))

    def unsubscribe(self, channel: str) -> None:
        self._wanted.discard(channel)
        if self._link is not None:
            self._link.send("UNSUBSCRIBE", self._spelled(channel))

    async def run(self) -> None:
        while True:
            heed_cancellation()
            try:
                if self._settings.redis_url.startswith(MEMORY_URL):
                    await _MemoryLink(self).run(self._settings)
                else:
                    async with connect_link(self._settings, _Link(self)) as link:
                        await link.run()
            except (*AWAY, ResponseError) as error:
                if self.broken is None:
                    log.warning("subscription lost", reason=why_away(error))
                self.broken = why_away(error)
            finally:
                self._link = None
            await asyncio.sleep(RECONNECT_SECONDS)

    def _spelled(self, channel: str) -> str:
        return keys.on_database(channel, self._database)

    def _channel(self, spelled: bytes) -> str:
        return keys.off_database(spelled.decode(), self._database)

    # What a link calls.

    def connected(self, link: _Link | _MemoryLink) -> None:
        """Asks for everything that is wanted; a PING first, whose answer shows that the connection works."""
        self._link = link
        self.connections += 1
        if self.connections > 1:
            self._on_reconnect()
        link.send("PING")
        wanted = [self._spelled(channel) for channel in self._wanted]
        for start in range(0, len(wanted), SUBSCRIBE_BATCH):
            link.send("SUBSCRIBE", *wanted[start : start + SUBSCRIBE_BATCH])

    def heard(self) -> None:
        if self.broken is not None:
            if self.connections > 1:
                log.info("subscription restored", channels=len(self._wanted))
            self.broken = None

    def message(self, spelled: bytes, data: bytes) -> None:
        self.on_message(self._channel(spelled), data)

    def acknowledged(self, spelled: bytes) -> None:
        if (channel := self._channel(spelled)) in self._wanted:
            self._on_subscribed(channel)


class _Link(asyncio.Protocol):
    """One connection, from the first PING to its end."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._ended: asyncio.Future[Exception] = self._loop.create_future()
        self._heard_at = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no asyncio.Transport by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(RedisAway())

    def _end(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_result(error)

    def send(self, *command: str) -> None:
        self._transport.write(hiredis.pack_command(cast(Any, command)))

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        subscription, reader = self._subscription, self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if isinstance(reply, hiredis.ReplyError):
                    self._end(_refusal(str(reply)))
                    self._transport.abort()
                    return
                if subscription.broken is not None:
                    subscription.heard()
                if isinstance(reply, list):
                    if reply[0] == b"message":
                        subscription.message(reply[1], reply[2])
                    elif reply[0] == b"subscribe":
                        subscription.acknowledged(reply[1])
            subscription.on_read()
        except Exception as error:  # whoever runs this hears of it; what came is lost, so the connection goes with it
            self._end(error)
            self._transport.abort()

    async def run(self) -> None:
        """Until the connection ends; raises why."""
        self._subscription.connected(self)
        asked_at = 0.0
        while not self._ended.done():
            heed_cancellation()
            silent = self._loop.time() - self._heard_at
            if silent >= 2 * PROBE_SECONDS:
                raise RedisAway(f"Redis has said nothing for {2 * PROBE_SECONDS:g} s")
            if silent >= PROBE_SECONDS and asked_at <= self._heard_at:
                asked_at = self._loop.time()
                self.send("PING")
            next_look = PROBE_SECONDS * (2 if asked_at > self._heard_at else 1)
            await asyncio.wait({self._ended}, timeout=next_look - silent)
        raise self._ended.result()


def _refusal(words: str) -> Exception:
    """A server that has just started and reads its data, or one that does not let us: both may pass."""
    if words.startswith("LOADING"):
        return RedisAway(why_away(BusyLoadingError()))
    if words.startswith("NOPERM "):
        return NoPermissionError(words.removeprefix("NOPERM "))
    return RedisAway(why_away(ForNowError(words))) if is_for_now(words) else ResponseError(words)


class _MemoryLink:
    """The same for fakeredis, which has no connection: redis-py's own pub/sub."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._asked: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()

    def send(self, *command: str) -> None:
        self._asked.put_nowait(command)

    async def run(self, settings: Settings) -> None:
        with redis_faults():
            await self._run(settings)

    async def _run(self, settings: Settings) -> None:
        async with connect(settings) as client, asyncio.TaskGroup() as group:
            pubsub: Any = client.pubsub()
            # redis-py has nothing to read from before the first SUBSCRIBE; a channel nobody publishes on.
            await pubsub.subscribe(keys.IDLE)
            self._subscription.connected(self)
            group.create_task(self._ask(pubsub))
            try:
                while True:
                    heed_cancellation()
                    message = await pubsub.get_message(timeout=PROBE_SECONDS)
                    self._subscription.heard()
                    if message is not None and message["type"] == "message":
                        self._subscription.message(message["channel"], message["data"])
                        self._subscription.on_read()
                    elif message is not None and message["type"] == "subscribe":
                        self._subscription.acknowledged(message["channel"])
            finally:
                await pubsub.aclose()

    async def _ask(self, pubsub: Any) -> None:
        while True:
            verb, *channels = await self._asked.get()
            if verb == "SUBSCRIBE":
                await pubsub.subscribe(*channels)
            elif verb == "UNSUBSCRIBE":
                await pubsub.unsubscribe(*channels)
