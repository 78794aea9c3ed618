"""One reader of an owner's feed for all who watch it in this process.

A thousand feeds that doubt at once ask for the same: what waits to be read is read once for all who ask for it, and one
read of an owner is under way at a time, with the loop's other work between two. Whoever asks joins what has not begun
yet, never what has: its answer may be older than the asker's registration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from headway.shared.cancellation import heed_cancellation
from headway.shared.tasks.models import FeedEvent, OwnerId, TaskId
from headway.shared.tasks.owner_feed import FirstLook, Named, OwnerFeed, Page, Scope

#: Reads of all owners that are under way at once: after a break everybody asks, and others need connections too.
READS_AT_ONCE: Final = 8

_GONE: Final = "gone"


@dataclass(slots=True)
class _Asked:
    read: Callable[[], Awaitable[Any]]
    answer: asyncio.Future[Any]
    waiting: int = 0


class OwnerReader:
    """Lives as long as somebody watches. `spawn` owns what is started here; `room` is shared by all owners' readers.
    Errors of a read go to all who asked for it: headway.shared.redis.client.AWAY."""

    __slots__ = ("__weakref__", "_asked", "_owner", "_reader", "_reading", "_room", "_spawn", "_suspects")

    def __init__(
        self,
        reader: OwnerFeed,
        owner: OwnerId,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], Any],
        room: asyncio.Semaphore,
    ) -> None:
        self._reader = reader
        self._owner = owner
        self._spawn = spawn
        self._room = room
        #: What has been asked for and not begun, in order.
        self._asked: dict[Hashable, _Asked] = {}
        self._reading = False
        #: Tasks that somebody wants to know of whether they are gone.
        self._suspects: set[TaskId] = set()

    async def page(self, after: int, scope: Scope) -> Page:
        read = partial(self._reader.page, self._owner, after, scope.task_ids)
        return await self._ask((after, scope.task_ids), read)  # type: ignore[no-any-return]

    async def first_look(self, scope: Scope) -> FirstLook:
        return await self._ask(scope, partial(self._reader.first_look, self._owner, scope))  # type: ignore[no-any-return]

    async def states(self, look: FirstLook, page: int) -> tuple[FeedEvent, ...]:
        read = partial(self._reader.states, self._owner, look, page)
        return await self._ask((id(look), page), read)  # type: ignore[no-any-return]

    async def named(self, scope: Scope) -> Named:
        read = partial(self._reader.named, self._owner, scope.task_ids or ())
        return await self._ask(("named", scope), read)  # type: ignore[no-any-return]

    async def gone(self, task_ids: Collection[TaskId]) -> set[TaskId]:
        """Those of the tasks that Redis does not know, with some that others asked about."""
        self._suspects.update(task_ids)
        return await self._ask(_GONE, self._read_gone)  # type: ignore[no-any-return]

    async def _read_gone(self) -> set[TaskId]:
        suspects, self._suspects = self._suspects, set()
        return await self._reader.gone(suspects)

    async def _ask(self, what: Hashable, read: Callable[[], Awaitable[Any]]) -> Any:
        asked = self._asked.get(what)
        if asked is None:
            asked = self._asked[what] = _Asked(read, asyncio.get_running_loop().create_future())
            if not self._reading:
                self._reading = True
                self._spawn(self._read_all())
        asked.waiting += 1
        try:
            return await asyncio.shield(asked.answer)
        finally:
            asked.waiting -= 1

    async def _read_all(self) -> None:
        try:
            while self._asked:
                heed_cancellation()
                asked = self._asked.pop(next(iter(self._asked)))
                if not asked.waiting:  # whoever asked has left
                    continue
                try:
                    async with self._room:
                        answer = await asked.read()
                except Exception as error:
                    asked.answer.set_exception(error)
                    asked.answer.exception()  # whoever waits is told; where nobody does any more, that is no error
                else:
                    asked.answer.set_result(answer)
        finally:
            self._reading = False
