"""One subscription connection to Redis that is either known to work or known to be broken.

redis-py's own pub/sub reconnects without a word and loses what was sent meanwhile; a half-open socket is silent for
ever. So this owns the reconnecting: after every break it subscribes to all channels anew and reports each
acknowledgement, which is the sign to read the truth again; and it sends PING on an idle connection, so that silence is
an answer. Messages come in order within a connection. Between a break and the next acknowledgement some may be lost,
and the owner is told by that acknowledgement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from shared import keys
from shared.cancellation import heed_cancellation
from shared.logging import get_logger
from shared.redis import AWAY, connect_pubsub, why_away
from shared.settings import Settings

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
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_message: Callable[[str, bytes], None],
        on_subscribed: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._wanted: set[str] = set()
        self._pubsub: Any = None
        #: Why the connection is broken; None while it works.
        self.broken: str | None = "not connected yet"
        #: How often the connection was made.
        self.connections = 0

    async def subscribe(self, channel: str) -> None:
        """Asks for a channel; `on_subscribed` says when it is there, at the latest after the next reconnect."""
        self._wanted.add(channel)
        if self._pubsub is not None:
            with suppress(*AWAY):
                await self._pubsub.subscribe(channel)

    async def unsubscribe(self, channel: str) -> None:
        self._wanted.discard(channel)
        if self._pubsub is not None:
            with suppress(*AWAY):
                await self._pubsub.unsubscribe(channel)

    async def run(self) -> None:
        while True:
            heed_cancellation()
            try:
                await self._connection()
            except AWAY as error:
                if self.broken is None:
                    log.warning("subscription lost", reason=why_away(error))
                self.broken = why_away(error)
            finally:
                self._pubsub = None
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _connection(self) -> None:
        async with connect_pubsub(self._settings) as client:
            pubsub = client.pubsub()
            try:
                # redis-py has no connection to read from before the first SUBSCRIBE; a channel nobody publishes on.
                await pubsub.subscribe(keys.IDLE)
                self._pubsub = pubsub
                wanted = list(self._wanted)
                for start in range(0, len(wanted), SUBSCRIBE_BATCH):
                    await pubsub.subscribe(*wanted[start : start + SUBSCRIBE_BATCH])
                self.connections += 1
                await self._receive(pubsub)
            finally:
                with suppress(*AWAY):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]

    async def _receive(self, pubsub: Any) -> None:
        asked = False
        while True:
            heed_cancellation()
            message = await pubsub.get_message(timeout=PROBE_SECONDS)
            if message is None:
                if asked:
                    raise TimeoutError
                asked = True
                await pubsub.ping()
                continue
            asked = False
            if self.broken is not None:
                if self.connections > 1:
                    log.info("subscription restored", channels=len(self._wanted))
                self.broken = None
            match message["type"]:
                case "message":
                    self._on_message(message["channel"].decode(), message["data"])
                case "subscribe":
                    channel = message["channel"].decode()
                    if channel in self._wanted:
                        self._on_subscribed(channel)
