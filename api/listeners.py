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

Three kinds: of one task, of an owner's feed (all its tasks or some), of a batch's roll-up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any, ClassVar, Final, Protocol

from api.sse import Comment
from api.tally import Kind, Reason, Tally
from shared.errors import UnknownTask
from shared.feed import Feed, OwnerTruth, Scope, Snapshot, text_of
from shared.models import ErrorType, Event, FeedEvent, OwnerId, Status, TaskId, rfc3339, utc_now
from shared.redis import AWAY

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
    def feed(self) -> Feed: ...

    @property
    def tally(self) -> Tally: ...

    def is_live(self, channel: str) -> bool:
        """Whether every event of the channel arrives from here on, so that a read now leaves no hole."""

    async def read_task(self, channel: str, task_id: TaskId, owner: OwnerId | None, after: int | None) -> Snapshot:
        """The truth of a task, shared with whoever asks for the same at this moment."""


class Wire(Protocol):
    """Who writes for a listener without a task of its own (api/wire.py)."""

    def wake(self) -> None:
        """There is something to do. Never raises, never writes at once."""


class Listener:
    """A source for api/sse.py; made and closed by the relay. What differs between the kinds is in `_read`.

    Read in one of two ways: by `next`, which waits; or, with a `wire` that is woken instead, by `take`, and while it is
    `stale` by `catch_up`.
    """

    __slots__ = (
        *("_lagged", "_pending", "_source", "_waiter"),
        *("channel", "drained", "ended", "stale", "version", "why", "wire"),
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

    # What the relay calls.

    def push(self, event: Event) -> None:
        """A live event, in the order of the channel. Never waits."""
        self._pending.append(event)
        if len(self._pending) > QUEUE_EVENTS:
            self._shed()
        self._wake()

    def distrust(self) -> None:
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

    def _wake(self) -> None:
        if self.wire is not None:
            self.wire.wake()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def in_step(self) -> bool:
        """Nothing waits and nothing is doubted: the next event of the channel is the next one for this listener."""
        return not (self.stale or self._pending or self._lagged or self.ended or self.drained)

    # What the stream calls.

    async def next(self) -> list[Item] | None:
        """What there is to send, waiting for it; None at the end."""
        while True:
            if self.drained or self.ended:
                return None
            if self.stale:
                if items := await self._read_truth():
                    return items
            elif items := self.take():
                return items
            elif not (self.stale or self._pending or self.drained):
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
        newest = {_task_of(event): event for event in self._pending if event.is_state}
        named = [event for event in self._pending if not event.is_state][-QUEUE_NAMED_EVENTS:]
        kept = sorted((*named, *newest.values()), key=lambda event: event.version)
        self._lagged = self._lagged or len(kept) < len(self._pending)
        self._source.tally.coalesced += len(self._pending) - len(kept)
        self._pending = kept
        if len(kept) > QUEUE_EVENTS:  # so many tasks at once: their states are read anew, which is as true
            self._pending.clear()
            self.stale = True


class TaskListener(Listener):
    """Watches one task to its end."""

    __slots__ = ("_owner", "last_state", "task_id")
    kind = "task"

    def __init__(self, source: Source, channel: str, task_id: TaskId, owner: OwnerId | None, after: int | None) -> None:
        super().__init__(source, channel, after)
        self.task_id = task_id
        self._owner = owner
        #: What a client saw last, for the word `lost`; the relay's while this is in step.
        self.last_state: Event | None = None

    async def _read(self) -> list[Item]:
        try:
            truth = await self._source.read_task(self.channel, self.task_id, self._owner, self.version)
        except UnknownTask:
            items: list[Item] = []
            self.why = "lost"
            self._hand_over(lost_event(self.task_id, (self.version or 0) + 1, self.last_state), items)
            return items
        return self._deliver(truth)

    def _hand_over(self, event: Event, items: list[Item]) -> None:
        super()._hand_over(event, items)
        if event.is_state:
            self.last_state = event

    def _deliver(self, truth: Snapshot) -> list[Item]:
        items: list[Item] = []
        if self.version is not None and truth.state.version < self.version:
            # Redis was restored from an older time, or the client invented an id: what is now is the truth.
            self.version = None
        if self.version is None:
            self._hand_over(truth.state, items)
            return items
        history = list(truth.history)
        if truth.missed_from is not None:
            # What was trimmed cannot be replayed; the state that follows stands for it.
            while history and not history[0].is_state:
                history.pop(0)
            history = history or [truth.state]
            self._gap(history[0].version - 1, items)
        for event in history:
            self._hand_over(event, items)
            if self.ended:
                break
        return items

    def _gap_names(self) -> dict[str, str]:
        return {"task_id": self.task_id}


class OwnerListener(Listener):
    """Watches an owner's feed. With named tasks it ends when all of them have; else only with the server.

    Ids are numbers of the feed, so they have holes where events are not in scope. A state that was read is never
    followed by an older one of the same task.
    """

    __slots__ = ("_alive", "_awaited", "_owner", "_read_at", "_scope")
    kind = "feed"

    def __init__(self, source: Source, channel: str, owner: OwnerId, scope: Scope, after: int | None) -> None:
        super().__init__(source, channel, after)
        self._owner = owner
        self._scope = scope
        #: Of tasks whose state was read: its version there. What is live and not newer was seen in it.
        self._read_at: dict[TaskId, int] = {}
        #: Tasks that were shown and have not ended, which must be told if Redis loses them.
        self._alive: dict[TaskId, FeedEvent | None] = {}
        self._awaited = set(scope.task_ids or ())

    async def _read(self) -> list[Item]:
        truth = await self._source.feed.owner(
            self._owner, self._scope, after=self.version, known=self._awaited | self._alive.keys()
        )
        return self._deliver(truth)

    def _deliver(self, truth: OwnerTruth) -> list[Item]:
        items: list[Item] = []
        if self.version is not None and truth.number < self.version:
            self.version = None
        if truth.missed_from is not None:
            seen = str(self.version)
            self._gap(truth.number, items)
            if truth.states:  # who is cut off behind it is told it again, and so the states that stand for it
                items = [(item[0], seen) for item in items if not isinstance(item, Comment)]
        for state in truth.states:
            self._read_at[state.task_id] = state.task_version
            self._show(state, items)
        for event in truth.history:
            self._hand_over(event, items)
        for task_id in truth.gone:
            number = max(truth.number, self.version or 0)
            last = self._alive.get(task_id)
            lost = lost_event(task_id, last.task_version + 1 if last else 1, last)
            self._show(FeedEvent(number, "", lost.data, task_id, lost.version, ""), items)
        self.version = truth.number
        self._settle(truth.ended)
        return items

    def _hand_over(self, event: Event, items: list[Item]) -> None:
        assert isinstance(event, FeedEvent)
        self.version = event.version
        if not self._scope.holds(event):
            return
        if event.task_version <= self._read_at.get(event.task_id, 0):
            return
        self._read_at.pop(event.task_id, None)
        self._show(event, items)

    def _show(self, event: FeedEvent, items: list[Item]) -> None:
        items.append((event, None))
        if event.is_terminal:
            self._alive.pop(event.task_id, None)
            self._settle({event.task_id})
        elif event.is_state:
            self._alive[event.task_id] = event

    def _settle(self, ended: AbstractSet[TaskId]) -> None:
        if self._scope.task_ids is not None:
            self._awaited -= ended
            self.ended = not self._awaited


class BatchListener(Listener):
    """Watches the roll-up of a batch until every task of it has ended. Only the newest state matters."""

    __slots__ = ("_batch_id", "_owner", "_seen")
    kind = "batch"

    def __init__(self, source: Source, channel: str, owner: OwnerId, batch_id: str, after: int | None) -> None:
        super().__init__(source, channel, None)
        self._owner = owner
        self._batch_id = batch_id
        self._seen = after

    async def _read(self) -> list[Item]:
        items: list[Item] = []
        try:
            state = await self._source.feed.batch(self._owner, self._batch_id)
        except UnknownTask:
            self.ended = True
            return items
        if self.version is None or state.version != self.version:
            self._hand_over(state, items)
        return items

    def _hand_over(self, event: Event, items: list[Item]) -> None:
        self.version = event.version
        items.append((event, None))
        self.ended = batch_has_ended(event)


def batch_has_ended(event: Event) -> bool:
    return b'"status":"ended"' in event.data


def _task_of(event: Event) -> TaskId | None:
    return event.task_id if isinstance(event, FeedEvent) else None


def lost_event(task_id: TaskId, version: int, last: Event | None = None) -> Event:
    """The end of a task that Redis no longer knows while somebody watches it; `last` is the state they saw."""
    seen = json.loads(last.data) if last is not None else {}
    message = "Redis came back without this task. Submit the file again."
    now = rfc3339(utc_now())
    unknown: Sequence[str] = ("total", "unit", "rate", "eta_seconds", "size_bytes", "started_at", "result")
    state: dict[str, Any] = {
        "task_id": task_id,
        "version": version,
        "status": Status.FAILED,
        "progress": seen.get("progress", 0),
        "step": 0,
        "total_steps": 0,
        "message": message,
        "done": 0,
        "attempt": seen.get("attempt", 1),
        **dict.fromkeys(unknown),
        "updated_at": now,
        "finished_at": now,
        "error": {"type": ErrorType.LOST, "message": message, "retryable": False},
    }
    return Event(version, "", text_of(state).encode())
