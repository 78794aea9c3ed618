"""From Redis to everybody who watches: one subscription a process, a topic a channel, bounded listeners.

The relay passes on what arrives and says when something may have been missed. What a watcher is owed is its
listener's business (api/streams/listeners.py). How it gets there is a wire's (api/streams/wire.py) or, where the
server's connection cannot be had, a response's (api/streams/sse.py). A topic lives from its first listener until a
while after its last, so that a reload costs Redis nothing. A receiver that dies is run again; until then readiness
fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import cached_property, partial
from typing import Any, Final, Generic, Literal, TypeVar
from weakref import WeakValueDictionary

from starlette.types import Scope as AsgiScope

from headway.api.serving.api_metrics import ApiMetrics
from headway.api.serving.protocol import StreamProtocol
from headway.api.streams.batch_listener import BatchListener
from headway.api.streams.delivery_delay import DelaySampler
from headway.api.streams.last_events import LastEvents
from headway.api.streams.listeners import RETRY_SECONDS, Listener
from headway.api.streams.owner_listener import OwnerListener
from headway.api.streams.owner_reader import READS_AT_ONCE, OwnerReader
from headway.api.streams.sse import Encoder
from headway.api.streams.task_listener import TaskListener
from headway.api.streams.timer_wheel import TimerWheel
from headway.api.streams.topic import Topic
from headway.api.streams.wire import Wire
from headway.shared import keys
from headway.shared.cancellation import cancel
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY
from headway.shared.redis.subscription import Subscription
from headway.shared.settings import Settings
from headway.shared.tasks.models import Event, OwnerId, TaskId
from headway.shared.tasks.owner_feed import OwnerFeed, Scope, decode_feed_message
from headway.shared.tasks.reader import Reader, Snapshot, decode_message
from headway.shared.tracing import OFF, Tracing

log = get_logger(__name__)

#: A reload leaves and comes back: the channel is kept this long.
LINGER_SECONDS: Final = 5.0
#: Of what was silent for this long the newest version is asked, one cheap command a channel: nothing should ever depend
#: on it, but a lie that lasts is worse.
SILENCE_SECONDS: Final = 60.0
#: Channels that are asked about together.
ASKED_AT_ONCE: Final = 500

#: Why the truth is read again.
Cause = Literal["subscribed", "not understood", "not written", "behind", "unreadable"]

_Decode = Callable[[bytes], Event]
_ReadKey = tuple[str, OwnerId | None, int | None, int]
L = TypeVar("L", bound=Listener)


class Registration(Generic[L]):
    """A listener is registered for as long as the block lasts. No generator: there is one for each open stream."""

    __slots__ = ("_decode", "_listener", "_relay")

    def __init__(self, relay: Relay, listener: L, decode: _Decode) -> None:
        self._relay = relay
        self._listener = listener
        self._decode = decode

    async def __aenter__(self) -> L:
        self._relay.join(self._listener, self._decode)
        return self._listener

    async def __aexit__(self, *_: object) -> None:
        self._relay.leave(self._listener)


class Relay:
    """Owns the subscription and every listener. Entered by the lifespan; `drain` is called from the stop signal."""

    def __init__(
        self, reader: Reader, settings: Settings, metrics: ApiMetrics | None = None, tracing: Tracing = OFF
    ) -> None:
        self.reader = reader
        metrics = metrics or ApiMetrics()
        self.tally = metrics.tally
        self._delay = DelaySampler(metrics.publish_to_send.observe)
        self._topics: dict[str, Topic] = {}
        self._reads: dict[_ReadKey, asyncio.Future[Snapshot]] = {}
        self._owner_readers: WeakValueDictionary[OwnerId, OwnerReader] = WeakValueDictionary()
        self._owner_room = asyncio.Semaphore(READS_AT_ONCE)
        #: Why silence is not looked into at present.
        self._trouble: str | None = None
        #: The server is told to stop.
        self.draining = False
        self.heartbeat_seconds = settings.heartbeat_seconds
        self.send_timeout_seconds = settings.send_timeout_seconds
        self.timer_wheel = TimerWheel(min(1.0, max(0.02, min(self.heartbeat_seconds, self.send_timeout_seconds) / 30)))
        self._stack = AsyncExitStack()
        self._subscription = Subscription(
            settings,
            on_message=self._on_message,
            on_subscribed=self._on_subscribed,
            on_read=self._on_read,
            on_reconnect=metrics.subscription_reconnected,
        )
        self._last_events = LastEvents(reader, tracing, self.spawn)
        self._restarts = 0
        #: Topics that have something to write, and wires that have something to do, at the end of this read.
        self._unwritten: list[Topic] = []
        self._woken: list[Wire] = []

    async def __aenter__(self) -> Relay:
        self._loop = asyncio.get_running_loop()
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._services = [
            self._group.create_task(self._receive(), name="relay receiver"),
            self._group.create_task(self._look_into_silence(), name="relay silence"),
            self._group.create_task(self.timer_wheel.run(), name="relay pulse"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.drain()
        for topic in self._topics.values():
            if topic.closing is not None:
                topic.closing.cancel()
        await cancel(*self._services)
        await self._stack.aclose()

    @property
    def broken(self) -> str | None:
        """Why live events do not arrive right now; None while they do."""
        return self._subscription.broken or self._trouble

    @cached_property
    def owner_feed(self) -> OwnerFeed:
        return OwnerFeed(self.reader.redis)

    @property
    def listener_count(self) -> int:
        return sum(len(topic) for topic in self._topics.values())

    @property
    def topic_count(self) -> int:
        """Channels subscribed to, those that linger included."""
        return len(self._topics)

    def watched_tasks(self) -> dict[TaskId, int]:
        """Those with a stream of their own that is open, and how many messages each has had."""
        return {
            task_id: topic.messages
            for channel, topic in self._topics.items()
            if len(topic) and (task_id := keys.task_of_channel(channel)) is not None
        }

    def watched_owners(self) -> list[OwnerId]:
        """Those whose feed is watched."""
        begins, ends = (keys.OWNER_LIVE % "*").split("*")
        return [
            OwnerId(channel.removeprefix(begins).removesuffix(ends))
            for channel, topic in self._topics.items()
            if len(topic) and channel.startswith(begins) and channel.endswith(ends)
        ]

    def listen(self, task_id: TaskId, owner: OwnerId | None, after: int | None) -> Registration[TaskListener]:
        """A listener of one task. `after`: the last version the client has seen."""
        channel = keys.channel(task_id)
        return Registration(self, TaskListener(self, channel, task_id, owner, after), decode_message)

    def listen_to_owner(self, owner: OwnerId, scope: Scope, after: int | None) -> Registration[OwnerListener]:
        """A listener of an owner's feed. `after`: the last number the client has seen."""
        channel = keys.OWNER_LIVE % owner
        if (reader := self._owner_readers.get(owner)) is None:
            reader = OwnerReader(self.owner_feed, owner, spawn=self.spawn, room=self._owner_room)
            self._owner_readers[owner] = reader
        return Registration(self, OwnerListener(self, channel, owner, scope, after, reader), decode_feed_message)

    def listen_to_batch(self, owner: OwnerId, batch_id: str, after: int | None) -> Registration[BatchListener]:
        """A listener of a batch's roll-up."""
        channel = keys.BATCH_LIVE % (owner, batch_id)
        return Registration(self, BatchListener(self, channel, owner, batch_id, after), decode_message)

    def join(self, listener: Listener, decode: _Decode) -> None:
        if self.draining:
            listener.drain()
        topic = self._topics.get(listener.channel)
        if topic is None:
            topic = self._topics[listener.channel] = Topic(decode, self.tally)
            self._subscription.subscribe(listener.channel)
        elif topic.closing is not None:
            topic.closing.cancel()
            topic.closing = None
        topic.listeners.add(listener)

    def leave(self, listener: Listener) -> None:
        if (topic := self._topics.get(listener.channel)) is not None:
            topic.leave(listener)
            if not len(topic) and topic.closing is None:
                topic.closing = self._loop.call_later(LINGER_SECONDS, self._close_topic, listener.channel)
        self._last_events.left(listener)

    def carry(
        self, scope: AsgiScope, listener: Listener, encoder: Encoder, opened: AbstractAsyncContextManager[Any]
    ) -> bool:
        """Takes over a stream whose headers are out, if its connection can be had, and leaves `opened` at its end."""
        protocol = StreamProtocol.under(scope)
        if protocol is None:
            return False
        Wire(self, self._topics[listener.channel], protocol, listener, encoder, opened)
        return True

    def drain(self) -> None:
        """Ends every stream, whole, and every one that is asked for from here on."""
        self.draining = True
        for topic in list(self._topics.values()):
            topic.step_out()
            topic.tell(Listener.drain)
        self._proceed()

    def is_live(self, channel: str) -> bool:
        topic = self._topics.get(channel)
        return topic is not None and topic.live and self._subscription.broken is None

    async def read_task(self, channel: str, task_id: TaskId, owner: OwnerId | None, after: int | None) -> Snapshot:
        # A read that began before a message was passed on may be older than a listener that came after it.
        key = (channel, owner, after, self._topics[channel].messages)
        if (reading := self._reads.get(key)) is None:
            reading = self._reads[key] = asyncio.ensure_future(self.reader.snapshot(task_id, owner, after))
            reading.add_done_callback(partial(self._read_done, key))
        return await asyncio.shield(reading)

    def _read_done(self, key: _ReadKey, done: asyncio.Future[Snapshot]) -> None:
        del self._reads[key]
        if not done.cancelled():
            done.exception()  # whoever waited has it; where all of them have left, nobody needs it

    def _close_topic(self, channel: str) -> None:
        topic = self._topics[channel]
        topic.closing = None
        if not len(topic) and not self.draining:
            del self._topics[channel]
            self._subscription.unsubscribe(channel)

    def wake(self, wire: Wire) -> None:
        """Lets it proceed at the end of this read, or of this turn of the loop."""
        if not self._woken:
            self._loop.call_soon(self._proceed)
        self._woken.append(wire)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._group.create_task(_alone(work))

    def _proceed(self) -> None:
        woken, self._woken = self._woken, []
        for wire in woken:
            try:
                wire.proceed()
            except Exception as error:  # those behind it are owed their turn
                wire.fail(error)

    def _on_message(self, channel: str, message: bytes) -> None:
        if (topic := self._topics.get(channel)) is not None:
            try:
                if topic.message(message):
                    self._unwritten.append(topic)
            except Exception:  # what nobody understands harms its own channel alone, where the truth is read for it
                log.exception("message not understood", channel=channel)
                self._doubt(topic, "not understood")
        if self._delay.wanted:
            self._delay.newest = message

    def _on_read(self) -> None:
        if self._unwritten:
            now = self._loop.time()
            unwritten, self._unwritten = self._unwritten, []
            for topic in unwritten:
                try:
                    topic.write(now)
                except Exception:
                    log.exception("events not written")
                    self._doubt(topic, "not written")
        if self._woken:
            self._proceed()
        if self._delay.newest is not None:
            self._delay.written()

    def _on_subscribed(self, channel: str) -> None:
        if (topic := self._topics.get(channel)) is not None:
            topic.live = True
            self._doubt(topic, "subscribed")

    def _doubt(self, topic: Topic, cause: Cause) -> None:
        """Everybody who listens to it reads the truth again: never without a cause, since it costs Redis what they
        watch. A listener that finds a hole in the versions doubts for itself."""
        if cause != "subscribed":
            log.warning("the truth is read again", cause=cause, listeners=len(topic))
        topic.mark_stale()

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

    async def _look_into_silence(self) -> None:
        heard: dict[str, int] = {}
        while True:
            await asyncio.sleep(SILENCE_SECONDS)
            try:
                silent = {channel: topic for channel, topic in self._topics.items() if len(topic) and topic.live}
                silent = {name: topic for name, topic in silent.items() if heard.get(name) == topic.messages}
                await self._compare(silent)
                self._trouble = None
            except AWAY:  # and when it is back, everybody reads
                pass
            except Exception:
                if self._trouble is None:
                    log.exception("silence not looked into")
                self._trouble = "the relay cannot compare what it told with Redis; the log says why"
            heard = {channel: topic.messages for channel, topic in self._topics.items()}

    async def _compare(self, silent: dict[str, Topic]) -> None:
        """Doubts the channels of which Redis has another version than their listeners."""
        left = list(silent.values())
        while left:
            asked, left = left[:ASKED_AT_ONCE], left[ASKED_AT_ONCE:]
            before = [topic.messages for topic in asked]
            async with self.reader.redis.pipeline(transaction=False) as pipe:
                for topic in asked:
                    topic.anyone.ask_version(pipe)
                versions = await pipe.execute(raise_on_error=False)
            for topic, messages, found in zip(asked, before, versions, strict=True):
                if isinstance(found, Exception):
                    if not isinstance(found, AWAY):  # its listeners come upon it, each for itself
                        self._doubt(topic, "unreadable")
                elif topic.messages == messages and topic.strays_from(int(found or 0)):
                    self._doubt(topic, "behind")


async def _alone(work: Coroutine[Any, Any, None]) -> None:
    """What is done for one stream must not end the relay for all."""
    try:
        await work
    except Exception:
        log.exception("a stream could not be looked after")
