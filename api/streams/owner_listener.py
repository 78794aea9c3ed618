"""A listener of an owner's feed: of all its tasks, those of a batch, or those that were named.

What there is to tell is read a page at a time (shared/tasks/owner_feed.py), each told before the next is read, so a
client that takes slowly reads slowly. After a doubt, and only then, it is also asked whether Redis still has the tasks
that were shown and have not ended.
"""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any, Final

from headway.api.streams.listeners import Item, Listener, Source
from headway.api.streams.owner_reader import OwnerReader
from headway.api.streams.sse import Comment
from headway.shared import keys
from headway.shared.tasks.lost import lost_event
from headway.shared.tasks.models import DELETED, ErrorType, Event, FeedEvent, OwnerId, TaskId
from headway.shared.tasks.owner_feed import FirstLook, Page, Scope

#: Tasks that a listener remembers to have told as lost. Of more, one may be told so twice.
TOLD_LOST: Final = 10_000


class OwnerListener(Listener):
    """Watches an owner's feed. With named tasks it ends when all of them have; else only with the server.

    Ids are numbers of the feed, so they have holes where events are not in scope. A state that was read is never
    followed by an older one of the same task.
    """

    __slots__ = (
        *("_again", "_alive", "_awaited", "_behind", "_caught_up", "_ended_before", "_look", "_missed_from"),
        *("_owner", "_reader", "_scope", "_told_lost", "_told_pages", "_unchecked"),
    )
    kind = "feed"

    def __init__(
        self, source: Source, channel: str, owner: OwnerId, scope: Scope, after: int | None, reader: OwnerReader
    ) -> None:
        super().__init__(source, channel, after)
        self._owner = owner
        self._scope = scope
        self._reader = reader
        #: The first look that is being told, and how far.
        self._look: FirstLook | None = None
        self._told_pages = 0
        #: From here on nothing could be replayed, and nothing in scope has been found since.
        self._missed_from: int | None = None
        #: There is something to read, or being read.
        self._behind = True
        #: All pages were told; what is left is to look for tasks that are gone.
        self._caught_up = False
        #: There was a doubt since tasks were last looked for.
        self._unchecked = False
        #: A page that is being read may be older than a doubt.
        self._again = False
        #: Tasks that were shown and have not ended, which must be told if Redis loses them.
        self._alive: dict[TaskId, FeedEvent] = {}
        #: Tasks that were told as lost by this listener, until the sweeper's word of the same comes over the feed. Of a
        #: Redis that came back empty it never comes.
        self._told_lost: dict[TaskId, None] = {}
        self._awaited = set(scope.task_ids or ())
        #: Of those named, the ones that had ended before anything was told; None: nobody has asked yet.
        self._ended_before: frozenset[TaskId] | None = None if self._awaited else frozenset()

    def mark_stale(self) -> None:
        self._unchecked = self._again = True
        self._caught_up = False
        super().mark_stale()

    def _shed(self) -> None:
        if not (self.stale or self._behind):
            super()._shed()
            return
        self._pending.clear()  # it is all read in a moment, with nothing left out
        self._lagged = False
        self._again = self.stale = True
        self._caught_up = False

    async def _read(self) -> list[Item]:
        """A page, or the look for what is gone; `stale` where more follows."""
        self._behind = True
        if self._caught_up:
            items = await self._look_for_gone()
        else:
            self._again = False
            items = await self._read_page()
            if not self._is_told():
                self.stale = True
                return items
        self._behind = self.stale
        self._caught_up = False
        return items

    def _is_told(self) -> bool:
        return self._caught_up and not self._unchecked

    async def _read_page(self) -> list[Item]:
        if self._ended_before is None:
            named = await self._reader.named(self._scope)
            self._ended_before = named.ended
            self._unchecked = self._unchecked or bool(named.gone)
        items: list[Item] = []
        if self.version is None:
            is_last = await self._read_first_look(items)
        else:
            page = await self._reader.page(self.version, self._scope)
            is_last = page.is_last and page.number >= self.version
            self._tell(page, items)
        if is_last and not self._again:
            self._caught_up = True
            self._close_gap(items)
            self._settle(self._ended_before - self._alive.keys())
        return items

    async def _read_first_look(self, items: list[Item]) -> bool:
        """A page of it. Behind the last one comes what has happened since it began."""
        if self._look is None:
            self._look, self._told_pages = await self._reader.first_look(self._scope), 0
        look = self._look
        if look.pages:
            for state in await self._reader.states(look, self._told_pages):
                self._show(state, items)
            self._told_pages += 1
        if self._told_pages >= len(look.pages):
            self.version, self._look = look.number, None
        return False

    def _tell(self, page: Page, items: list[Item]) -> None:
        assert self.version is not None
        if page.number < self.version:  # Redis was restored from an older time, or the client invented an id
            self.version = self._missed_from = None
            self._unchecked = True
        elif page.missed:
            missed_from = self._missed_from or self.version + 1
            states = [event for event in page.events if self._scope.holds(event)]
            if states:  # who is cut off among them is told all of it again
                self.version, self._missed_from = missed_from - 1, None
                self._gap(page.upto, items, event_id=str(missed_from - 1))
                for state in (*states[:-1], replace(states[-1], version=page.upto)):
                    self._show(state, items)
            else:
                self.version, self._missed_from = page.upto, missed_from
        else:
            self._close_gap(items)
            for event in page.events:
                if not self.ended:
                    self._hand_over(event, items)
            self.version = page.upto

    def _close_gap(self, items: list[Item]) -> None:
        """What was missed had nothing in scope that could stand for it."""
        if self._missed_from is not None and self.version is not None:
            to, self.version, self._missed_from = self.version, self._missed_from - 1, None
            self._gap(to, items)

    def _gap(self, to: int, items: list[Item], event_id: str | None = None) -> None:
        told = len(items)
        super()._gap(to, items)
        items[told:] = [(item[0], event_id or str(to)) for item in items[told:] if not isinstance(item, Comment)]

    async def _look_for_gone(self) -> list[Item]:
        items: list[Item] = []
        self._unchecked = False
        try:
            gone = await self._reader.gone(self._awaited | self._alive.keys())
        except BaseException:
            self._unchecked = True
            raise
        for task_id in gone & (self._awaited | self._alive.keys()):  # but those that it was told are deleted
            last = self._alive.get(task_id)
            lost = lost_event(task_id, last.task_version + 1 if last else 1, last)
            self._show(FeedEvent(self.version or 0, "", lost.data, task_id, lost.version, ""), items)
            self._told_lost[task_id] = None
            if len(self._told_lost) > TOLD_LOST:
                del self._told_lost[next(iter(self._told_lost))]
        return items

    def _hand_over(self, event: Event, items: list[Item]) -> None:
        assert isinstance(event, FeedEvent)
        self.version = event.version
        if self._scope.holds(event):
            self._show(event, items)

    def _pass_on(self, event: Event, items: list[Item]) -> None:
        if isinstance(event, FeedEvent) and self._scope.holds(event):
            items.append((event, None))

    def _show(self, event: FeedEvent, items: list[Item]) -> None:
        if event.task_id in self._told_lost:
            del self._told_lost[event.task_id]
            if _is_lost(event):  # Publisher.let_go has found it too; any other end is of a task that came back
                return
        items.append((event, None))
        if event.is_terminal or event.name == DELETED:
            self._alive.pop(event.task_id, None)
            self._settle({event.task_id})
        elif event.is_state:
            self._alive[event.task_id] = event

    def _settle(self, ended: AbstractSet[TaskId]) -> None:
        if self._scope.task_ids is not None:
            self._awaited -= ended
            self.ended = self.ended or not self._awaited

    def ask_version(self, pipe: Any) -> None:
        pipe.get(keys.OWNER_VERSION % self._owner)


def _is_lost(event: FeedEvent) -> bool:
    return event.is_terminal and (json.loads(event.data)["error"] or {}).get("type") == ErrorType.LOST
