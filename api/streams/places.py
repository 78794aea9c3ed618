"""Whoever watches a task that waits is told of its place in the line while it moves up.

Every PLACES_SECONDS the tasks are looked at that somebody watches here, and of owners whose feed is watched the first
50. A new place is a state event like any other. It is sent at once among the first TELLS_EACH; further behind, the
longer a task has waited the more seldom, so that its history keeps what is worth keeping. Each look costs the same
however long the line is (shared/tasks/line.lua).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from headway.api.streams.relay import Relay
from headway.shared.cancellation import heed_cancellation
from headway.shared.errors import HeadwayError, Refused
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY, RedisError
from headway.shared.tasks.line import Line
from headway.shared.tasks.models import Status, TaskId
from headway.shared.tasks.progress import Publisher

log = get_logger(__name__)

PLACES_SECONDS: Final = 2.0
TELLS_EACH: Final = 10
#: Of the time that a task has waited: what passes between two events further behind.
SHARE: Final = 20


@dataclass(slots=True)
class _Told:
    since: float
    at: float


class Places:
    """`run` is the service."""

    def __init__(self, relay: Relay, line: Line, publisher: Publisher) -> None:
        self._relay = relay
        self._line = line
        self._publisher = publisher
        self._told: dict[TaskId, _Told] = {}
        #: Those that did not wait, by how many messages their channel had then: nothing has come, nothing has changed.
        self._settled: dict[TaskId, int] = {}

    async def run(self) -> None:
        broken: str | None = None
        while True:
            heed_cancellation()
            await asyncio.sleep(PLACES_SECONDS)
            try:
                await self.look()
                broken = None
            except AWAY:
                pass  # said by whoever serves
            except (RedisError, HeadwayError) as error:
                if broken != (broken := repr(error)):
                    log.exception("places not told")

    async def look(self) -> None:
        """Tells of every place that has changed. Errors: AWAY, RedisError."""
        watched = self._relay.watched_tasks()
        self._settled = {one: count for one, count in self._settled.items() if watched.get(one) == count}
        waiting = {one for one in watched if one not in self._settled}
        for owner in self._relay.watched_owners():
            waiting |= set(await self._line.first_of(owner))
        self._told = {one: told for one, told in self._told.items() if one in waiting}
        for settled in await asyncio.gather(*(self._tell(one) for one in waiting)):
            if settled in watched:
                self._settled[settled] = watched[settled]

    async def _tell(self, task_id: TaskId) -> TaskId | None:
        """Answers with the task where it does not wait."""
        place = await self._line.place(task_id)
        if place is None:
            return task_id
        now = time.monotonic()
        told = self._told.setdefault(task_id, _Told(now, now))
        moved = place.position != place.told
        near = place.position is not None and place.position <= TELLS_EACH
        if moved and (near or now - told.at >= (now - told.since) / SHARE):
            told.at = now
            fields = {"queue_position": place.position, "starts_in_seconds": place.seconds}
            with suppress(Refused):  # it has started, or another process has told it
                await self._publisher.change(
                    task_id, fields, allowed=(Status.QUEUED,), attempt=place.attempt, as_of=place.version
                )
        return None
