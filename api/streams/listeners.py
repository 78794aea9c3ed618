"""One watcher's view of the relay: what it has seen, what waits for it, what the truth is.

A listener is registered before the truth is read, so nothing falls between; what arrives meanwhile waits in its queue;
duplicates go by version; a hole in the versions means that Redis dropped something, and the truth is read again. How a
listener ends:

    done      the terminal event was handed over
    gone      its owner closed it: the client left, or was too slow to be kept
    drained   the server is told to stop
    lost      Redis came back without the task: a last state `failed`, `lost`
    expired   the token or the session that opened the stream is over
Redis being away ends nothing: listeners wait, and are told the truth when it is back.

Three kinds, a file each: of one task, of an owner's feed (all its tasks or some), of a batch's roll-up.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, ClassVar, Final, Protocol

from headway.api.serving.tally import Kind, Reason, Tally
from headway.api.streams.sse import Comment
from headway.shared.json_text import text_of
from headway.shared.redis.client import AWAY
from headway.shared.tasks.models import DELETED, Event, FeedEvent, OwnerId, TaskId
from headway.shared.tasks.reader import Reader, Snapshot

#: While Redis is away a listener asks again this often.
RETRY_SECONDS: Final = 0.5
#: What waits for one listener, at most. Over it, states coalesce to the newest of each task (the terminal one is always
#: that), and of the named events the newest are kept; what was dropped is told as a gap.
QUEUE_EVENTS: Final = 256
QUEUE_NAMED_EVENTS: Final = 128

Item = tuple[Event, str | None] | Comment


class Source(Protocol):
    """What a listener needs of the relay."""

    @property
    def reader(self) -> Reader: ...

    @property
    def tally(self) -> Tally: ...

    def is_live(self, channel: str) -> bool:
        """Whether every event of the channel arrives from here on, so that a read now leaves no hole."""

    async def read_task(self, channel: str, task_id: TaskId, owner: OwnerId | None, after: int | None) -> Snapshot:
        """The truth of a task, shared with whoever asks for the same at this moment."""


class Wire(Protocol):
    """Who writes for a listener without a task of its own (api/streams/wire.py)."""

    def wake(self) -> None:
        """There is something to do. Never raises, never writes at once."""


class Listener:
    """A source for api/streams/sse.py; made and closed by the relay. What differs between the kinds is in `_read`.

    Read in one of two ways: by `next`, which waits; or, with a `wire` that is woken instead, by `take`, and while it is
    `stale` by `catch_up`.
    """

    __slots__ = (
        *("_lagged", "_pending", "_source", "_waiter"),
        *("channel", "drained", "ended", "error", "stale", "version", "why", "wire"),
    )
    kind: ClassVar[Kind]

    def __init__(self, source: Source, channel: str, after: int | None) -> None:
        self._source = source
        self.channel = channel
        #: The last version handed over, or seen by the client before it connected; None: it wants the snapshot.
        self.version = after
        self._pending: list[Event] = []
        #: The truth has to be read: at the start, after a hole, after a break of the subscription.
        self.stale = True
        self._lagged = False
        self._waiter: asyncio.Future[None] | None = None
        self.wire: Wire | None = None
        self.drained = False
        self.ended = False
        #: How it ended, where that is not to be seen.
        self.why: Reason | None = None
        #: What went wrong with this listener alone; its stream is cut.
        self.error: Exception | None = None

    # What the relay calls.

    def push(self, event: Event) -> None:
        """A live event, in the order of the channel. Never waits."""
        self._pending.append(event)
        if len(self._pending) > QUEUE_EVENTS:
            self._shed()
        self._wake()

    def mark_stale(self) -> None:
        """Something may have been missed: read the truth before going on."""
        self.stale = True
        self._wake()

    def end(self) -> None:
        """What allowed the client to listen is over."""
        self.why = self.why if self.ended else "expired"
        self.ended = True
        self._wake()

    def drain(self) -> None:
        self.drained = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """What the relay called raised this."""
        self.error = error
        self._wake()

    def _wake(self) -> None:
        if self.wire is not None:
            self.wire.wake()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def caught_up(self) -> bool:
        """Nothing waits and nothing is doubted: the next event of the channel is the next one for this listener."""
        return not (self.stale or self._pending or self._lagged or self.ended or self.drained)

    @property
    def newest(self) -> int | None:
        """The last version that came; None while the truth has to be read."""
        return None if self.stale else self._pending[-1].version if self._pending else self.version

    def ask_version(self, pipe: Any) -> None:
        """Asks Redis, in one cheap command, for the version that `newest` should be."""
        raise NotImplementedError

    # What the stream calls.

    async def next(self) -> list[Item] | None:
        """What there is to send, waiting for it; None at the end. Raises what it failed of."""
        while True:
            if self.error is not None:
                raise self.error
            if self.drained or self.ended:
                return None
            if self.stale:
                if items := await self._read_truth():
                    return items
            elif items := self.take():
                return items
            elif not (self.stale or self._pending or self.drained or self.error):
                await self._changed()

    async def catch_up(self) -> list[Item]:
        """What is new in the truth; nothing if that is nothing, or once there is an end to come."""
        while self.stale and not (self.drained or self.ended):
            if items := await self._read_truth():
                return items
        return []

    async def _read_truth(self) -> list[Item]:
        if not self._source.is_live(self.channel):
            await self._pause()
            return []
        self.stale = False
        try:
            items = await self._read()
        except AWAY:
            self.stale = True
            await self._pause()
            return []
        except asyncio.CancelledError:  # only this wait was given up, for a heartbeat; the next one reads again
            self.stale = True
            raise
        self._source.tally.events += len(items)
        return items

    async def _read(self) -> list[Item]:
        """Reads the truth and hands over what is new in it."""
        raise NotImplementedError

    async def _pause(self) -> None:
        if not self.drained:
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS):
                    await self._changed()

    async def _changed(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def take(self) -> list[Item]:
        """What came live and is next; may find that the truth has to be read."""
        items: list[Item] = []
        taken = 0
        for event in self._pending:
            if self.ended:
                break
            if not event.version:  # said to those who are here, and kept nowhere
                if self.version is not None:
                    self._pass_on(event, items)
                taken += 1
                continue
            if self.version is None or (event.version > self.version + 1 and not self._lagged):
                self.stale = True  # Redis dropped something on the way
                break
            if event.version > self.version:
                self._gap(event.version - 1, items)
                self._hand_over(event, items)
            taken += 1
        del self._pending[:taken]
        if not self._pending:
            self._lagged = False
        self._source.tally.events += len(items)
        return items

    def _hand_over(self, event: Event, items: list[Item]) -> None:
        self.version = event.version
        items.append((event, None))
        self.ended = self.ended or event.is_terminal

    def _pass_on(self, event: Event, items: list[Item]) -> None:
        items.append((event, None))

    def _gap(self, to: int, items: list[Item]) -> None:
        """Tells that what lies between the last version and `to`, `to` included, is not coming. Its id is `to`."""
        assert self.version is not None
        if to <= self.version:
            return
        self._source.tally.gaps += 1
        data = text_of({**self._gap_names(), "from": self.version + 1, "to": to})
        self.version = to
        items.append((Event(to, "gap", data.encode()), None))

    def _gap_names(self) -> dict[str, str]:
        return {}

    def _shed(self) -> None:
        newest = {_task_of(event): event for event in self._pending if event.is_state or event.name == DELETED}
        named = [event for event in self._pending if event.version and not event.is_state and event.name != DELETED]
        named = named[-QUEUE_NAMED_EVENTS:]
        kept = sorted((*named, *newest.values()), key=lambda event: event.version)
        self._lagged = self._lagged or len(kept) < len(self._pending)
        self._source.tally.coalesced += len(self._pending) - len(kept)
        self._pending = kept
        if len(kept) > QUEUE_EVENTS:  # so many tasks at once: their states are read anew, which is as true
            self._pending.clear()
            self.stale = True


def _task_of(event: Event) -> TaskId | None:
    return event.task_id if isinstance(event, FeedEvent) else None
