"""From Redis to everybody who watches: one subscription a process, a topic a channel, bounded listeners.

The relay passes on what arrives and says when something may have been missed; what a watcher is owed is its listener's
business (api/listeners.py). A topic lives from its first listener until a while after its last, so that a reload costs
Redis nothing. A receiver that dies is run again, and readiness fails meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final, TypeVar

from api.listeners import RETRY_SECONDS, BatchListener, Listener, OwnerListener, TaskListener
from shared import keys
from shared.cancellation import cancel
from shared.feed import Feed, Scope, Snapshot, decode_feed_message, decode_message
from shared.logging import get_logger
from shared.models import Event, OwnerId, TaskId
from shared.settings import Settings
from shared.subscription import Subscription

log = get_logger(__name__)

#: A reload leaves and comes back: the channel is kept this long.
LINGER_SECONDS: Final = 5.0
#: Listeners read the truth again this often, whatever they heard: nothing should ever depend on it, but a lie that
#: lasts is worse than a read a minute.
DISTRUST_SECONDS: Final = 60.0

_Decode = Callable[[bytes], Event]
_ReadKey = tuple[str, OwnerId | None, int | None, int]
L = TypeVar("L", bound=Listener)


class _Topic:
    """A channel and who listens to it."""

    def __init__(self, decode: _Decode) -> None:
        self.decode = decode
        self.listeners: set[Listener] = set()
        self.live = False
        self.messages = 0
        self.closing: asyncio.TimerHandle | None = None


class Relay:
    """Owns the subscription and every listener. Entered by the lifespan; `drain` is called from the stop signal."""

    def __init__(self, feed: Feed, settings: Settings) -> None:
        self.feed = feed
        self._topics: dict[str, _Topic] = {}
        self._reads: dict[_ReadKey, asyncio.Future[Snapshot]] = {}
        #: The server is told to stop.
        self.draining = False
        self._stack = AsyncExitStack()
        self._subscription = Subscription(settings, on_message=self._on_message, on_subscribed=self._on_subscribed)
        self._restarts = 0

    async def __aenter__(self) -> Relay:
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._receiver = self._group.create_task(self._receive(), name="relay receiver")
        self._distruster = self._group.create_task(self._distrust_silence(), name="relay distrust")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.drain()
        for topic in self._topics.values():
            if topic.closing is not None:
                topic.closing.cancel()
        await cancel(self._receiver, self._distruster)
        await self._stack.aclose()

    @property
    def broken(self) -> str | None:
        """Why live events do not arrive right now; None while they do."""
        return self._subscription.broken

    @property
    def listener_count(self) -> int:
        return sum(len(topic.listeners) for topic in self._topics.values())

    @property
    def topic_count(self) -> int:
        """Channels subscribed to, those that linger included."""
        return len(self._topics)

    def listen(
        self, task_id: TaskId, owner: OwnerId | None, after: int | None
    ) -> AbstractAsyncContextManager[TaskListener]:
        """A listener of one task for as long as the block lasts. `after`: the last version the client has seen."""
        channel = keys.channel(task_id)
        return self._registered(TaskListener(self, channel, task_id, owner, after), decode_message)

    def listen_to_owner(
        self, owner: OwnerId, scope: Scope, after: int | None
    ) -> AbstractAsyncContextManager[OwnerListener]:
        """A listener of an owner's feed. `after`: the last number the client has seen."""
        channel = keys.OWNER_LIVE % owner
        return self._registered(OwnerListener(self, channel, owner, scope, after), decode_feed_message)

    def listen_to_batch(
        self, owner: OwnerId, batch_id: str, after: int | None
    ) -> AbstractAsyncContextManager[BatchListener]:
        """A listener of a batch's roll-up."""
        channel = keys.BATCH_LIVE % (owner, batch_id)
        return self._registered(BatchListener(self, channel, owner, batch_id, after), decode_message)

    @asynccontextmanager
    async def _registered(self, listener: L, decode: _Decode) -> AsyncIterator[L]:
        if self.draining:
            listener.drain()
        topic = self._topics.setdefault(listener.channel, _Topic(decode))
        if topic.closing is not None:
            topic.closing.cancel()
            topic.closing = None
        first = not topic.listeners and not topic.live
        topic.listeners.add(listener)
        try:
            if first:
                await self._subscription.subscribe(listener.channel)
            yield listener
        finally:
            topic.listeners.discard(listener)
            if not topic.listeners and topic.closing is None:
                loop = asyncio.get_running_loop()
                topic.closing = loop.call_later(LINGER_SECONDS, self._close_topic, listener.channel)

    def drain(self) -> None:
        """Ends every stream, whole, and every one that is asked for from here on."""
        self.draining = True
        self._each(Listener.drain)

    def is_live(self, channel: str) -> bool:
        topic = self._topics.get(channel)
        return topic is not None and topic.live and self._subscription.broken is None

    async def read_task(self, channel: str, task_id: TaskId, owner: OwnerId | None, after: int | None) -> Snapshot:
        # A read that began before a message was passed on may be older than a listener that came after it.
        key = (channel, owner, after, self._topics[channel].messages)
        if (reading := self._reads.get(key)) is None:
            reading = self._reads[key] = asyncio.ensure_future(self.feed.snapshot(task_id, owner, after))
            reading.add_done_callback(partial(self._read_done, key))
        return await asyncio.shield(reading)

    def _read_done(self, key: _ReadKey, done: asyncio.Future[Snapshot]) -> None:
        del self._reads[key]
        if not done.cancelled():
            done.exception()  # whoever waited has it; where all of them have left, nobody needs it

    def _close_topic(self, channel: str) -> None:
        topic = self._topics[channel]
        topic.closing = None
        if not topic.listeners and not self.draining:
            del self._topics[channel]
            self._group.create_task(self._unsubscribe(channel), name=f"unsubscribe {channel}")

    async def _unsubscribe(self, channel: str) -> None:
        await self._subscription.unsubscribe(channel)
        if channel in self._topics:  # somebody came in the meantime
            await self._subscription.subscribe(channel)

    def _on_message(self, channel: str, message: bytes) -> None:
        if (topic := self._topics.get(channel)) is not None:
            event = topic.decode(message)
            topic.messages += 1
            for listener in topic.listeners:
                listener.push(event)

    def _on_subscribed(self, channel: str) -> None:
        if (topic := self._topics.get(channel)) is not None:
            topic.live = True
            for listener in topic.listeners:
                listener.distrust()

    async def _receive(self) -> None:
        """Runs the receiver, and runs it again should it ever die of something other than Redis."""
        while True:
            try:
                await self._subscription.run()
            except Exception:
                self._restarts += 1
                self._subscription.broken = "the relay's receiver died and is being restarted"
                log.exception("relay receiver died", restarts=self._restarts)
                await asyncio.sleep(RETRY_SECONDS)

    async def _distrust_silence(self) -> None:
        while True:
            await asyncio.sleep(DISTRUST_SECONDS)
            self._each(Listener.distrust)

    def _each(self, call: Callable[[Listener], None]) -> None:
        for topic in list(self._topics.values()):
            for listener in list(topic.listeners):
                call(listener)
