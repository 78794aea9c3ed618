"""A listener of an owner's feed: of all its tasks, those of a batch, or those that were named."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from api.listeners import Item, Listener, Source
from api.sse import Comment
from api.task_listener import lost_event
from shared.feed import OwnerTruth, Scope
from shared.models import DELETED, Event, FeedEvent, OwnerId, TaskId


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
        for task_id in truth.gone & (self._awaited | self._alive.keys()):  # but those that it was told are deleted
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

    def _pass_on(self, event: Event, items: list[Item]) -> None:
        if isinstance(event, FeedEvent) and self._scope.holds(event):
            items.append((event, None))

    def _show(self, event: FeedEvent, items: list[Item]) -> None:
        items.append((event, None))
        if event.is_terminal or event.name == DELETED:
            self._alive.pop(event.task_id, None)
            self._settle({event.task_id})
        elif event.is_state:
            self._alive[event.task_id] = event

    def _settle(self, ended: AbstractSet[TaskId]) -> None:
        if self._scope.task_ids is not None:
            self._awaited -= ended
            self.ended = not self._awaited
