"""Files that nobody needs any more: what a dead upload or attempt left half, and what an expired task left whole.

One page of each folder a round; the next round goes on where it ended. The sweeper owns it and calls it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from shared import keys
from shared.errors import StorageAway
from shared.logging import get_logger
from shared.models import TaskId
from shared.progress import ACTIVE_TTL_SECONDS, Publisher
from shared.redis import AWAY, RedisClient
from shared.settings import DAY_SECONDS, Settings
from shared.storage import Partial, Storage
from worker.seen import Seen, look, task_ids

log = get_logger(__name__)
T = TypeVar("T")

#: Entries of a folder in one round.
PAGE: Final = 1000
#: Ended tasks that are remembered until they expire, at most.
REMEMBERED: Final = 10_000

#: A form's file has no task before it is whole, so its sender may pause this long.
UNKNOWN_PARTIAL_SECONDS: Final = 3600.0
#: Nobody may write here any more, but somebody who does not know it yet may still be removing it.
SETTLED_SECONDS: Final = 60.0
#: Files of unknown tasks are kept at least this long, and this long after Redis was found empty.
UNKNOWN_FOLDER_SECONDS: Final = 3600.0
#: Where no file is old enough to ask for, the age of Redis's data is marked this often, so that it is known by then.
ASK_HELD_SECONDS: Final = 60.0
#: Ended tasks with less to live than this are remembered, so that their files go when they do.
LEAVING_SECONDS: Final = 600.0


class Pages(Generic[T]):
    """A listing, a page at a time, begun anew when it was read to its end."""

    def __init__(self, begin: Callable[[], AsyncIterator[T]]) -> None:
        self._begin = begin
        self._rest = begin()

    async def next(self) -> list[T]:
        page: list[T] = []
        try:
            async for item in self._rest:
                page.append(item)
                if len(page) == PAGE:
                    return page
        except BaseException:
            self._rest = self._begin()  # one that was broken off cannot go on
            raise
        self._rest = self._begin()
        return page


class Leftovers:
    """`clock` is monotonic, in seconds. Errors: shared.redis.AWAY."""

    def __init__(
        self, redis: RedisClient, settings: Settings, storage: Storage, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis = redis
        self._asked_held = float("-inf")
        self._storage = storage
        self._clock = clock
        self._kept_seconds = max(UNKNOWN_FOLDER_SECONDS, float(settings.task_ttl_seconds))
        self._partials = Pages(storage.partials)
        self._folders = Pages(storage.task_folders)
        #: Removals that failed.
        self.failed = 0
        self._told: set[str] = set()
        self._leaving: dict[TaskId, float] = {}  # when it expires

    async def partials(self) -> list[Partial]:
        return await self._partials.next()

    async def remove_partials(self, partials: Collection[Partial]) -> None:
        seen = await look(self._redis, {partial.task_id for partial in partials})
        tasks = {task.task_id: task for task in seen}
        for partial in partials:
            if is_left_behind(partial, tasks.get(partial.task_id)):
                with self._one(partial.name):
                    if await self._storage.remove(partial):
                        log.info("partial file removed", task_id=partial.task_id, name=partial.name)

    async def remove_expired(self, ended: Iterable[Seen]) -> None:
        """`ended` are tasks that were looked at just now. Those that will expire soon are remembered, and looked for
        when they have: that they are gone then is no loss of Redis's."""
        now = self._clock()
        for task in ended:
            if 0 <= task.ttl_ms < LEAVING_SECONDS * 1000 and len(self._leaving) < REMEMBERED:
                self._leaving[task.task_id] = now + task.ttl_ms / 1000
        due = {task_id for task_id, at in self._leaving.items() if at < now}
        for task_id in due - await self._known(due):
            await self._remove_files(task_id, "it expired")
        self._leaving = {task_id: at for task_id, at in self._leaving.items() if task_id not in due}

    async def remove_deleted(self, publisher: Publisher) -> None:
        """Files of tasks whose deletion was cut off between Redis and the storage. One that is made again under its id,
        by a request with an idempotency key, keeps its own."""
        seconds, _ = await self._redis.time()
        before = int(seconds - SETTLED_SECONDS)
        found = await self._redis.zrange(keys.DELETED, 0, before, byscore=True, offset=0, num=PAGE)
        deleted = list(task_ids(found))
        known = await self._known(deleted)
        for task_id in deleted:
            if task_id not in known:
                await self._remove_files(task_id, "it was deleted")
        if deleted:
            await publisher.files_removed(deleted)

    async def remove_unknown(self) -> None:
        """Files of tasks that Redis does not know, late: it may have lost what the disk still has."""
        folders = await self._folders.next()
        old = {folder.task_id for folder in folders if folder.idle_seconds > self._kept_seconds}
        if not old and self._clock() < self._asked_held + ASK_HELD_SECONDS:
            return
        self._asked_held = self._clock()
        held_seconds = await self._redis_has_held_seconds()
        if old and held_seconds > UNKNOWN_FOLDER_SECONDS:
            for task_id in old - await self._known(old):
                await self._remove_files(task_id, "nobody knows it")

    async def _known(self, asked_for: Collection[TaskId]) -> set[TaskId]:
        """Also one whose state cannot be read: what it is, somebody must look at."""
        asked = list(asked_for)
        async with self._redis.pipeline(transaction=False) as pipe:
            for task_id in asked:
                pipe.exists(keys.state(task_id))
            return {task_id for task_id, known in zip(asked, await pipe.execute(), strict=True) if known}

    async def _redis_has_held_seconds(self) -> float:
        """How long Redis has held what it holds: one that came back empty is no proof that files are nobody's."""
        seconds, microseconds = await self._redis.time()
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(keys.SINCE, now_ms, nx=True)
            pipe.pexpire(keys.SINCE, ACTIVE_TTL_SECONDS * 1000)
            pipe.get(keys.SINCE)
            *_, since_ms = await pipe.execute()
        return (now_ms - int(since_ms)) / 1000

    async def _remove_files(self, task_id: TaskId, why: str) -> None:
        with self._one(task_id):
            await self._storage.delete(task_id)
            log.info("files removed", task_id=task_id, why=why)

    @contextmanager
    def _one(self, name: str) -> Iterator[None]:
        """One that cannot be removed is said and counted, and the others go on. A storage or Redis that is away is the
        whole round's."""
        try:
            yield
        except (*AWAY, StorageAway):
            raise
        except Exception as error:
            self.failed += 1
            if len(self._told) < REMEMBERED and name not in self._told:
                self._told.add(name)
                log.exception("files cannot be removed", name=name, failed=self.failed, reason=type(error).__name__)


def is_left_behind(partial: Partial, task: Seen | None) -> bool:
    """Whether nobody writes it any more."""
    if task is None:
        return partial.idle_seconds > UNKNOWN_PARTIAL_SECONDS
    if task.status.is_terminal:
        return partial.idle_seconds > SETTLED_SECONDS
    if partial.attempt is None and task.upload_expires_at is not None:
        return False  # it is waited for, until the sweeper gives it up
    if partial.attempt is None:
        return partial.idle_seconds > DAY_SECONDS
    return partial.attempt < task.attempt and partial.idle_seconds > SETTLED_SECONDS
