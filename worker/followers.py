"""Tasks whose file is another's: when that one has ended, they get the file and are queued, or fail with it.

progress.lua writes which of them are to be looked at (keys.FOLLOWERS) in the step that ends the other task, or that
makes one whose other task has ended before. Every worker looks; one that has looked and dies is followed after
LEASE_SECONDS, and two at once do no harm: the second one's write is refused, and its file is removed again.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from headway.shared import keys
from headway.shared.cancellation import heed_cancellation
from headway.shared.errors import BadInput, QuotaFull, Refused, StorageFull, UnknownFile, UnknownTask
from headway.shared.files.disk import STORAGE_FAULTS
from headway.shared.files.storage import Storage, StoredFile, StoredObject, results_folder
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY, RedisClient, RedisError, why_away
from headway.shared.tasks.models import ErrorType, InputOf, Status, Task, TaskId
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader

log = get_logger(__name__)

#: Each is looked for at once when there is work, and else this often.
LOOK_SECONDS: Final = 1.0
#: A file that has to be copied takes its time.
LEASE_SECONDS: Final = 60.0
#: The storage is away: the next look at a task.
AGAIN_SECONDS: Final = 2.0
#: Looked at in one go, and of those at the same time.
PAGE: Final = 100
AT_ONCE: Final = 8

#: KEYS: the set. ARGV: how many, the lease in ms.
_TAKE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = redis.call('ZRANGE', KEYS[1], '-inf', string.format('%d', now), 'BYSCORE', 'LIMIT', 0, ARGV[1])
for _, task_id in ipairs(found) do redis.call('ZADD', KEYS[1], string.format('%d', now + ARGV[2]), task_id) end
return found
"""

#: The other task was retried. KEYS: the set, that task, those that wait for it. ARGV: the task, a time to live in ms.
_WAIT: Final = """
local status = redis.call('HGET', KEYS[2], 'status')
if not status or status == '"completed"' or status == '"failed"' or status == '"cancelled"' then return 0 end
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
return redis.call('ZREM', KEYS[1], ARGV[1])
"""


class CannotFollow(Exception):
    """The file will never be there; the message says why, to the task's owner."""


@dataclass(frozen=True, slots=True)
class Found:
    content: StoredObject
    filename: str
    content_type: str | None
    sha256: str


class Followers:
    """`run` is the service."""

    def __init__(self, redis: RedisClient, publisher: Publisher, reader: Reader, storage: Storage) -> None:
        self._redis = redis
        self._publisher = publisher
        self._reader = reader
        self._storage = storage
        self._take = redis.register_script(_TAKE)
        self._wait = redis.register_script(_WAIT)
        self._more = asyncio.Event()

    def wake(self) -> None:
        self._more.set()

    async def run(self) -> None:
        broken: str | None = None
        while True:
            heed_cancellation()
            self._more.clear()
            try:
                await self.look()
                broken = None
            except AWAY:
                pass  # said by the worker's loop
            except RedisError as error:
                if broken != (broken := why_away(error)):
                    log.error("followers not looked at", reason=broken)  # noqa: TRY400 - the reason is all there is
            except Exception as error:
                if broken != (broken := repr(error)):
                    log.exception("look at followers broke")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._more.wait()

    async def look(self) -> None:
        """Sees to those that are due. Errors: AWAY, RedisError."""
        while found := await self._take(keys=[keys.FOLLOWERS], args=[PAGE, int(LEASE_SECONDS * 1000)]):
            for start in range(0, len(found), AT_ONCE):
                tasks = [TaskId(member.decode()) for member in found[start : start + AT_ONCE]]
                await asyncio.gather(*map(self._see_to, tasks))

    async def _see_to(self, task_id: TaskId) -> None:
        try:
            task = await self._reader.task(task_id)
        except UnknownTask:
            await self._redis.zrem(keys.FOLLOWERS, task_id)
            return
        source_id = task.follows
        if source_id is not None and task.status is Status.QUEUED:
            here = [keys.FOLLOWERS, keys.state(source_id), keys.FOLLOWERS_OF % source_id]
            if await self._wait(keys=here, args=[task_id, 30 * 86_400_000]):
                return
            try:
                await self._follow(task, source_id)
            except Refused:  # somebody else has seen to it, or something was written of it meanwhile
                await self._again(task_id, 0.05)
                return
            except (UnknownFile, *STORAGE_FAULTS) as error:
                if not isinstance(error, UnknownFile):
                    log.warning("file of another task not taken", task_id=task_id, reason=str(error))
                await self._again(task_id, AGAIN_SECONDS)
                return
        await self._redis.zrem(keys.FOLLOWERS, task_id)

    async def _again(self, task_id: TaskId, seconds: float) -> None:
        now, micros = await self._redis.time()
        at: dict[str, float] = {task_id: int(now * 1000 + micros / 1000 + seconds * 1000)}
        await self._redis.zadd(keys.FOLLOWERS, at, xx=True)

    async def _follow(self, task: Task, source_id: TaskId) -> None:
        try:
            found = await self._find(task, source_id)
            stored = await self._storage.take_over(found.content, task.task_id, found.sha256)
        except CannotFollow as error:
            await self._fail(task, ErrorType.BAD_INPUT, str(error))
            return
        except StorageFull as error:
            await self._fail(task, ErrorType.STORAGE_FULL, str(error), retryable=True)
            return
        await self._queue(task, found, stored)

    async def _queue(self, task: Task, found: Found, stored: StoredFile) -> None:
        fields: dict[str, Any] = {
            "input_name": stored.name,
            "input_sha256": stored.sha256,
            "size_bytes": stored.size_bytes,
            "filename": found.filename,
            "content_type": found.content_type,
        }
        try:
            await self._publisher.take_input(task, fields)
        except Refused:
            await self._storage.remove_entry(task.task_id, stored.name)
            raise
        except QuotaFull as error:
            await self._storage.remove_entry(task.task_id, stored.name)
            await self._fail(task, ErrorType.STORAGE_FULL, str(error), retryable=True)
        else:
            log.info("file of another task taken", task_id=task.task_id, source=task.follows)

    async def _fail(self, task: Task, error: ErrorType, message: str, *, retryable: bool = False) -> None:
        fence: dict[str, Any] = {"allowed": (Status.QUEUED,), "attempt": task.attempt, "as_of": task.version}
        await self._publisher.fail(task.task_id, error, message, retryable=retryable, **fence)

    async def _find(self, task: Task, source_id: TaskId) -> Found:
        """Raises CannotFollow, UnknownFile, STORAGE_FAULTS."""
        assert task.input_of is not None
        try:
            source = await self._reader.task(source_id, task.owner)
        except UnknownTask:
            raise CannotFollow("The task that its file comes from is gone. Submit the file again.") from None
        try:
            return await found_in(source, self._storage, task.input_of, waited=not task.source_had_ended)
        except UnknownFile:  # not while it is deleted, nor while its folder cannot be seen
            with suppress(UnknownTask):
                await self._reader.task(source_id, task.owner)
                raise
            raise CannotFollow("The task that its file comes from is gone. Submit the file again.") from None


async def found_in(source: Task, storage: Storage, asked: InputOf, *, waited: bool) -> Found:
    """The file of an ended task that is meant. Who has waited for it fails with it; who asks later gets its input
    however it ended. Raises CannotFollow, UnknownFile, STORAGE_FAULTS."""
    wants_result = "file" in asked or "result" in asked
    if source.status is not Status.COMPLETED and (waited or wants_result or source.input_name is None):
        why = f": {source.error.message}" if source.error is not None else ""
        raise CannotFollow(f"The task that its file comes from, {source.task_id}, is {source.status}{why}")
    if not wants_result:
        return await _input_of(source, storage)
    files = source.result.files if source.result is not None else []
    name = asked.get("file")
    if name is None:
        if not files and source.input_name is not None:
            return await _input_of(source, storage)
        if len(files) != 1:
            raise CannotFollow(_which(source, f"{len(files)} result files; one has to be named by `file`"))
        name = files[0].name
    file = next((file for file in files if file.name == name), None)
    if file is None:
        raise CannotFollow(_which(source, f"no result file {name!r}"))
    if (produced := source.produced.get(name)) is not None:
        content = await storage.input(source.task_id, produced.stored)
    else:
        try:
            folder = source.results_name or results_folder(source.attempt)
            content = await storage.result(source.task_id, folder, name)
        except BadInput:
            raise UnknownFile from None
    return Found(content, file.name, file.content_type, file.sha256)


def _which(source: Task, what: str) -> str:
    names = [file.name for file in source.result.files] if source.result is not None else []
    there = f" Those there are: {', '.join(names[:10])}{' …' if len(names) > 10 else ''}." if names else ""
    return f"The task that its file comes from, {source.task_id}, has {what}.{there}"


async def _input_of(source: Task, storage: Storage) -> Found:
    if source.input_name is None or source.filename is None or source.input_sha256 is None:
        raise CannotFollow(f"The task that its file comes from, {source.task_id}, has no file.")
    content = await storage.input(source.task_id, source.input_name)
    return Found(content, source.filename, source.content_type, source.input_sha256)
