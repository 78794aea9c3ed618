"""Files that nobody needs any more: what a dead upload or attempt left half, and what an expired task left whole.

One page of each folder a round; the next round goes on where it ended. The sweeper owns it and calls it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from headway.shared import keys
from headway.shared.files.disk import STORAGE_FAULTS
from headway.shared.files.storage import Partial, Storage, TaskFolder
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY, RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import TaskId
from headway.shared.tasks.progress import ACTIVE_TTL_SECONDS, Publisher
from headway.shared.units import DAY_SECONDS
from headway.worker.task_scan import ScannedTask, look, task_ids

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
#: From a file that is in its place to its task that says so: seconds, with a Redis that restarts.
UNNAMED_SECONDS: Final = 3600.0
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


class OrphanedFiles:
    """`clock` is monotonic, in seconds. Errors: headway.shared.redis.client.AWAY, STORAGE_FAULTS. What cannot be
    removed keeps nothing else from being removed: it is raised when the page is done, and tried again."""

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
        self._told: set[str] = set()  # names of what cannot be removed
        self._leaving: dict[TaskId, float] = {}  # when it expires

    async def partials(self) -> list[Partial]:
        return await self._partials.next()

    async def remove_partials(self, partials: Collection[Partial]) -> None:
        seen = await look(self._redis, {partial.task_id for partial in partials})
        tasks = {task.task_id: task for task in seen}
        removing = self._removing()
        for partial in partials:
            if is_orphaned(partial, tasks.get(partial.task_id)):
                with removing.next(partial.name):
                    if await self._storage.remove(partial):
                        log.info("partial file removed", task_id=partial.task_id, name=partial.name)
        removing.end()

    async def remove_expired(self, ended: Iterable[ScannedTask]) -> None:
        """`ended` are tasks that were looked at just now. Those that will expire soon are remembered, and looked for
        when they have: that they are gone then is no loss of Redis's."""
        now = self._clock()
        for task in ended:
            if 0 <= task.ttl_ms < LEAVING_SECONDS * 1000 and len(self._leaving) < REMEMBERED:
                self._leaving[task.task_id] = now + task.ttl_ms / 1000
        due = {task_id for task_id, at in self._leaving.items() if at < now}
        removing, known = self._removing(), await self._known(due)
        for task_id in due:
            with removing.next(task_id):
                if task_id not in known:
                    await self._remove_files(task_id, "it expired")
                del self._leaving[task_id]
        removing.end()

    async def remove_deleted(self, publisher: Publisher) -> None:
        """Files of tasks whose deletion was cut off between Redis and the storage. One that is made again under its id,
        by a request with an idempotency key, keeps its own."""
        seconds, _ = await self._redis.time()
        before = int(seconds - SETTLED_SECONDS)
        found = await self._redis.zrange(keys.DELETED, 0, before, byscore=True, offset=0, num=PAGE)
        deleted = list(task_ids(found))
        known = await self._known(deleted)
        removing, removed = self._removing(), []
        for task_id in deleted:
            with removing.next(task_id):
                if task_id not in known:
                    await self._remove_files(task_id, "it was deleted")
                removed.append(task_id)
        if removed:
            await publisher.files_removed(removed)
        removing.end()

    async def remove_unknown(self) -> None:
        """Files of tasks that Redis does not know, late: it may have lost what the disk still has."""
        folders = await self._folders.next()
        await self._remove_unnamed(folders)
        old = {folder.task_id for folder in folders if folder.idle_seconds > self._kept_seconds}
        if not old and self._clock() < self._asked_held + ASK_HELD_SECONDS:
            return
        self._asked_held = self._clock()
        held_seconds = await self._redis_has_held_seconds()
        if old and held_seconds > UNKNOWN_FOLDER_SECONDS:
            removing = self._removing()
            for task_id in old - await self._known(old):
                with removing.next(task_id):
                    await self._remove_files(task_id, "nobody knows it")
            removing.end()

    async def _remove_unnamed(self, folders: Iterable[TaskFolder]) -> None:
        """Files of known tasks that their state does not name: of an upload whose task was never queued with it, of an
        attempt that died between its results and its end. Whoever put them there has long said so, or never will."""
        removing = self._removing()
        quiet = {folder.task_id: folder for folder in folders if folder.idle_seconds > UNNAMED_SECONDS}
        for task in await look(self._redis, quiet):
            unnamed = [entry for entry in quiet[task.task_id].entries if not task.names(entry)]
            for entry in unnamed:
                with removing.next(f"{task.task_id}/{entry}"):
                    await self._storage.remove_entry(task.task_id, entry)
                    log.info("file removed", task_id=task.task_id, name=entry, why="its task does not name it")
        removing.end()

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
        await self._storage.delete(task_id)
        log.info("files removed", task_id=task_id, why=why)

    def _removing(self) -> _Removing:
        return _Removing(self._told)


class _Removing:
    """Goes on after what cannot be removed. What a storage may be unable to do is raised at the end; anything else is
    a mistake, which is said once for each name. `told`: those that it was said of."""

    def __init__(self, told: set[str]) -> None:
        self._told = told
        self._first: Exception | None = None

    @contextmanager
    def next(self, name: str) -> Iterator[None]:
        try:
            yield
        except AWAY:
            raise
        except (*STORAGE_FAULTS, OSError) as error:
            self._first = self._first or error
        except Exception as error:
            if len(self._told) < REMEMBERED and name not in self._told:
                self._told.add(name)
                log.exception("files cannot be removed", name=name, reason=type(error).__name__)

    def end(self) -> None:
        """Raises what was wrong first."""
        if self._first is not None:
            raise self._first


def is_orphaned(partial: Partial, task: ScannedTask | None) -> bool:
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
