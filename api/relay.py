"""From Redis to everybody who watches: one subscription a process, a topic a task, bounded listeners.

A listener is registered before the truth is read, so nothing falls between; what arrives meanwhile waits in its queue;
duplicates go by version; a hole in the versions means that Redis dropped something, and the truth is read again. The
same read serves everybody who asks for it at that moment. How a listener ends:

    done      the terminal event was handed over
    gone      its owner closed it: the client left, or was too slow to be kept
    drained   the server is told to stop
    lost      Redis came back without the task: a last state `failed`, `lost`
Redis being away ends nothing: listeners wait, and are told the truth when it is back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

from api.sse import Comment
from shared import keys
from shared.cancellation import cancel
from shared.errors import UnknownTask
from shared.logging import get_logger
from shared.models import ErrorType, Event, OwnerId, Status, TaskId, rfc3339, utc_now
from shared.progress import Feed, Snapshot, decode_message, text_of
from shared.redis import AWAY
from shared.settings import Settings
from shared.subscription import Subscription

log = get_logger(__name__)

#: A reload leaves and comes back: the channel is kept this long, so that it costs Redis nothing.
LINGER_SECONDS: Final = 5.0
#: While Redis is away a listener asks again this often.
RETRY_SECONDS: Final = 0.5
#: A topic with listeners but silent for this long is read again: nothing should ever depend on it, but a lie that
#: lasts is worse than a read a minute.
DISTRUST_SECONDS: Final = 60.0

#: What waits for one listener, at most. Over it, states coalesce to the newest (the terminal one is always that), and
#: of the named events the newest are kept; what was dropped is told as a gap.
QUEUE_EVENTS: Final = 256
QUEUE_NAMED_EVENTS: Final = 128

_ReadKey = tuple[TaskId, OwnerId | None, int | None, int]
Item = tuple[Event, str | None] | Comment


class Listener:
    """One watcher of one task. A Source for api/sse.py; made by `Relay.listen`, which also closes it."""

    def __init__(self, relay: Relay, task_id: TaskId, owner: OwnerId | None, after: int | None) -> None:
        self._relay = relay
        self._task_id = task_id
        self._owner = owner
        #: The last version handed over, or seen by the client before it connected; None: it wants the snapshot.
        self._version = after
        self._pending: deque[Event] = deque()
        self._changed = asyncio.Event()
        #: The truth has to be read: at the start, after a hole, after a break of the subscription.
        self._stale = True
        self._lagged = False
        self._progress = 0.0
        self.drained = False
        self.ended = False

    def push(self, event: Event) -> None:
        """Called by the relay for each live event, in the order of the channel. Never waits."""
        self._pending.append(event)
        if len(self._pending) > QUEUE_EVENTS:
            self._shed()
        self._changed.set()

    def distrust(self) -> None:
        """Something may have been missed: read the truth before going on."""
        self._stale = True
        self._changed.set()

    def drain(self) -> None:
        self.drained = True
        self._changed.set()

    def _shed(self) -> None:
        states = [event for event in self._pending if event.is_state]
        named = [event for event in self._pending if not event.is_state][-QUEUE_NAMED_EVENTS:]
        self._pending = deque(sorted((*named, *states[-1:]), key=lambda event: event.version))
        self._lagged = True

    async def next(self) -> list[Item] | None:
        """What there is to send, waiting for it; None at the end."""
        while True:
            if self.drained or self.ended:
                return None
            if self._stale:
                if items := await self._read_truth():
                    return items
            elif items := self._take():
                return items
            else:
                self._changed.clear()
                if not (self._stale or self._pending or self.drained):
                    await self._changed.wait()

    async def _read_truth(self) -> list[Item]:
        if not self._relay.is_live(self._task_id):
            await self._pause()
            return []
        self._stale = False
        try:
            truth = await self._relay.read(self._task_id, self._owner, self._version)
        except UnknownTask:
            return self._lose()
        except AWAY:
            self._stale = True
            await self._pause()
            return []
        except asyncio.CancelledError:  # only this wait was given up, for a heartbeat; the next one reads again
            self._stale = True
            raise
        return self._deliver_truth(truth)

    async def _pause(self) -> None:
        self._changed.clear()
        if not self.drained:
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS):
                    await self._changed.wait()

    def _deliver_truth(self, truth: Snapshot) -> list[Item]:
        items: list[Item] = []
        if self._version is not None and truth.state.version < self._version:
            # Redis was restored from an older time, or the client invented an id: what is now is the truth.
            self._version = None
        if self._version is None:
            self._hand_over(truth.state, items)
            return items
        history = list(truth.history)
        if truth.missed_from is not None:
            # What was trimmed cannot be replayed; the state that follows stands for it.
            while history and not history[0].is_state:
                history.pop(0)
            resume = history[0].version if history else truth.state.version
            self._gap(resume, items)
            if not history:
                history = [truth.state]
        for event in history:
            self._hand_over(event, items)
            if self.ended:
                break
        return items

    def _take(self) -> list[Item]:
        items: list[Item] = []
        while self._pending and not self.ended:
            event = self._pending[0]
            if self._version is not None and event.version <= self._version:
                self._pending.popleft()
            elif self._version is not None and event.version == self._version + 1:
                self._hand_over(self._pending.popleft(), items)
            elif self._lagged:
                self._gap(event.version, items)
                self._hand_over(self._pending.popleft(), items)
            else:  # Redis dropped something on the way
                self._stale = True
                break
        if not self._pending:
            self._lagged = False
        return items

    def _hand_over(self, event: Event, items: list[Item]) -> None:
        self._version = event.version
        items.append((event, None))
        self.ended = event.is_terminal

    def _gap(self, resume: int, items: list[Item]) -> None:
        """Tells that what lies before `resume` is not coming. Its id is the last version it stands for."""
        assert self._version is not None
        data = text_of({"task_id": self._task_id, "from": self._version + 1, "to": resume - 1})
        self._version = resume - 1
        items.append((Event(resume - 1, "gap", data.encode()), None))

    def _lose(self) -> list[Item]:
        version = (self._version or 0) + 1
        items: list[Item] = []
        self._hand_over(lost_event(self._task_id, version), items)
        return items


def lost_event(task_id: TaskId, version: int) -> Event:
    """The end of a task that Redis no longer knows while somebody watches it."""
    error = {
        "type": ErrorType.LOST,
        "message": "Redis came back without this task. Submit the file again.",
        "retryable": False,
    }
    now = rfc3339(utc_now())
    state: dict[str, Any] = {
        "task_id": task_id,
        "version": version,
        "status": Status.FAILED,
        "progress": 0,
        "step": 0,
        "total_steps": 0,
        "message": error["message"],
        "done": 0,
        "total": None,
        "unit": None,
        "rate": None,
        "eta_seconds": None,
        "attempt": 1,
        "size_bytes": None,
        "started_at": None,
        "updated_at": now,
        "finished_at": now,
        "result": None,
        "error": error,
    }
    return Event(version, "", text_of(state).encode())


class _Topic:
    """A channel and who listens to it. Lives from the first listener until a while after the last."""

    def __init__(self) -> None:
        self.listeners: set[Listener] = set()
        self.live = False
        self.messages = 0
        self.closing: asyncio.TimerHandle | None = None


class Relay:
    """Owns the subscription and every listener. Entered by the lifespan; `drain` is called from the stop signal."""

    def __init__(self, feed: Feed, settings: Settings) -> None:
        self._feed = feed
        self._topics: dict[TaskId, _Topic] = {}
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

    @asynccontextmanager
    async def listen(self, task_id: TaskId, owner: OwnerId | None, after: int | None) -> AsyncIterator[Listener]:
        """A listener for as long as the block lasts. `after`: the last version the client has seen."""
        listener = Listener(self, task_id, owner, after)
        if self.draining:
            listener.drain()
        topic = self._topics.setdefault(task_id, _Topic())
        if topic.closing is not None:
            topic.closing.cancel()
            topic.closing = None
        first = not topic.listeners and not topic.live
        topic.listeners.add(listener)
        try:
            if first:
                await self._subscription.subscribe(keys.channel(task_id))
            yield listener
        finally:
            topic.listeners.discard(listener)
            if not topic.listeners and topic.closing is None:
                loop = asyncio.get_running_loop()
                topic.closing = loop.call_later(LINGER_SECONDS, self._close_topic, task_id)

    def drain(self) -> None:
        """Ends every stream, whole, and every one that is asked for from here on."""
        self.draining = True
        self._each(Listener.drain)

    def is_live(self, task_id: TaskId) -> bool:
        """Whether every event of the task arrives from here on, so that a read now leaves no hole."""
        topic = self._topics.get(task_id)
        return topic is not None and topic.live and self._subscription.broken is None

    async def read(self, task_id: TaskId, owner: OwnerId | None, after: int | None) -> Snapshot:
        """The truth. Who asks for the same while it is being read gets the same answer."""
        # A read that began before a message was passed on may be older than a listener that came after it.
        key = (task_id, owner, after, self._topics[task_id].messages)
        if (reading := self._reads.get(key)) is None:
            reading = self._reads[key] = asyncio.ensure_future(self._feed.snapshot(task_id, owner, after))
            reading.add_done_callback(partial(self._read_done, key))
        return await asyncio.shield(reading)

    def _read_done(self, key: _ReadKey, done: asyncio.Future[Snapshot]) -> None:
        del self._reads[key]
        if not done.cancelled():
            done.exception()  # whoever waited has it; where all of them have left, nobody needs it

    def _close_topic(self, task_id: TaskId) -> None:
        topic = self._topics[task_id]
        topic.closing = None
        if not topic.listeners and not self.draining:
            del self._topics[task_id]
            self._group.create_task(self._unsubscribe(task_id), name=f"unsubscribe {task_id}")

    async def _unsubscribe(self, task_id: TaskId) -> None:
        await self._subscription.unsubscribe(keys.channel(task_id))
        if task_id in self._topics:  # somebody came in the meantime
            await self._subscription.subscribe(keys.channel(task_id))

    def _on_message(self, channel: str, message: bytes) -> None:
        if (topic := self._topics.get(keys.task_of_channel(channel))) is not None:
            event = decode_message(message)
            topic.messages += 1
            for listener in topic.listeners:
                listener.push(event)

    def _on_subscribed(self, channel: str) -> None:
        if (topic := self._topics.get(keys.task_of_channel(channel))) is not None:
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
