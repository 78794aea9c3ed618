"""The sweeper: ends, puts back and removes what fell between two steps because something died there.

It runs in every worker, and one of them at a time works, by a lock in Redis that outlives its holder for seconds; every
step may be done twice without harm, so the lock only saves work. Each round is bounded: a page of the tasks, of the
partial files and of the task folders, and the next round goes on where it ended.

    an upload that never began, or was cut off and not taken up    `failed`, `bad_input`
    a task that waits or runs without a job and without a worker   back on the queue, in one step with the check
    an outside producer's task whose lease is lost                 a new one (shared/tasks/silent_producers.py)
    one that nothing was written of since a failover               told again (shared/redis/epoch.py)
    files that nobody needs any more                               removed (worker/orphaned_files.py)
    tasks that expired                                             taken off the lists and the feed of their owner
    histories, where Redis is nearly full                          of ended tasks dropped, of others the newest kept
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, Final

from headway.shared import keys
from headway.shared.cancellation import heed_cancellation
from headway.shared.errors import Refused
from headway.shared.files.disk import STORAGE_FAULTS, told_by_the_system
from headway.shared.files.storage import Partial, Storage
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY, RedisClient, channel_on, why_away
from headway.shared.redis.memory import Memory, look_at_memory
from headway.shared.settings import Settings
from headway.shared.tasks.line import script_with_line
from headway.shared.tasks.models import ANYONE, UPLOAD_CUT, ErrorType, OwnerId, Status, TaskId
from headway.shared.tasks.progress import ACTIVE_TTL_SECONDS, Publisher
from headway.shared.tasks.queue import WAKE, JobTicket
from headway.shared.units import DAY_SECONDS
from headway.worker.orphaned_files import OrphanedFiles
from headway.worker.task_scan import ScannedTask, look, task_ids

log = get_logger(__name__)

#: With UPLOAD_IDLE_SECONDS it keeps the scoreboard's promise that no cut upload waits after 60 s.
SWEEP_SECONDS: Final = 5.0
#: A worker that sweeps and dies is followed after this long.
LOCK_SECONDS: Final = 15.0

#: An upload that has begun and shows nothing new for this long was cut off. Seen by the sweeper's own clock.
UPLOAD_IDLE_SECONDS: Final = 40.0
#: Between a body that is given up by the API and the word of it.
SLACK_SECONDS: Final = 10.0
#: One that was announced and not begun: people announce, then go looking for the file.
UPLOAD_UNBEGUN_SECONDS: Final = DAY_SECONDS
#: All of it has arrived and the disk is making it safe: 5 GiB on a slow disk.
UPLOAD_COMMIT_SECONDS: Final = 900.0

#: Of one round: active tasks of each owner, and keys of whatever there is.
TASKS: Final = 1000
SCAN_KEYS: Final = 5000
#: What an owner's tasks are in, with those that expired.
INDEXES: Final = ("OWNER_STORED", "OWNER_CHANGED", "OWNER_TASKS")
#: Owners that are known, at most. Those of the settings are; others are learned from their tasks.
OWNERS: Final = 1000
#: Of a task that has not ended, and of an owner's feed, where Redis is nearly full.
KEPT_EVENTS: Final = 20
#: Where it is, it is looked at this often, and said this often.
ROOM_SECONDS: Final = 1.0
SAY_SECONDS: Final = 60.0
#: Uploads that are watched, at most: those that were not looked at for longest are learned again.
UPLOADS: Final = 10_000

#: Puts the job of a task in the line, if the task still waits or runs and none of its jobs is there or leased.
_PUT_BACK_KEYS: Final = ("state", "job")
_PUT_BACK_ARGUMENTS: Final = (
    *("attempt", "job_id", "payload", "due_ms", "lives_ms", "control", "wake", "lease"),
    "jobs",
)
_PUT_BACK: Final = """
local line = LINE
local known = redis.call('HMGET', KEY.state, 'status', 'attempt', 'processor', 'owner', 'priority', 'batch_id',
  'input_of', 'input_name')
local source = string.match(known[7] or '', '"task_id":"(%x+)"')
if source and (known[8] or 'null') == 'null' and known[1] == '"queued"' then -- it has no job while it waits for another
  local status = redis.call('HGET', 'ANY_STATE' .. source, 'status')
  if not status or status == '"completed"' or status == '"failed"' or status == '"cancelled"' then
    redis.call('ZADD', 'FOLLOWERS', 'NX', 1, string.match(KEY.state, '%x+$'))
  end
  return 0
end
if (known[1] ~= '"queued"' and known[1] ~= '"processing"') or known[2] ~= ARG.attempt then return 0 end
for i = ARG.jobs, #ARGV do
  local job = ARGV[i]
  if line.knows(job) or redis.call('ZSCORE', 'QUEUE', job) or redis.call('EXISTS', ARG.lease .. job) == 1 then
    return 0
  end
end
local place = line.place_by(known[3], known[4], known[5], known[6], line.now_us())
line.check(ARG.job_id, place)
redis.call('SET', KEY.job, ARG.payload, 'PX', ARG.lives_ms)
if ARG.due_ms ~= '' then line.put_later(ARG.job_id, place, ARG.due_ms) else line.put(ARG.job_id, place) end
redis.call('PUBLISH', ARG.control, ARG.wake)
return 1
"""


class Sweeper:
    """`run` is the service. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        redis: RedisClient,
        settings: Settings,
        *,
        publisher: Publisher,
        storage: Storage,
        worker_id: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._put_back_script = redis.register_script(
            script_with_line(_PUT_BACK, _PUT_BACK_KEYS, _PUT_BACK_ARGUMENTS, redis)
        )
        self._publisher = publisher
        self._leftovers = OrphanedFiles(redis, settings, storage, clock)
        self._worker_id = worker_id
        self._clock = clock
        # A body that is still within its time-out must not be taken for one that was cut off.
        self._idle_seconds = max(UPLOAD_IDLE_SECONDS, settings.receive_timeout_seconds + SLACK_SECONDS)
        self._known = frozenset((ANYONE, *settings.api_keys))
        self._learnt_last = OwnerId("")
        #: As it was when room was looked for last.
        self.memory = Memory()
        self._owners: dict[OwnerId, int] = dict.fromkeys((ANYONE, *settings.api_keys), 0)  # and where SSCAN goes on
        #: The indexes that expired tasks are taken off, and where each scan goes on.
        self._indexes = {(owner, index): 0 for owner in self._owners for index in INDEXES}
        self._cursor = 0
        self._said_at = float("-inf")
        self._uploads: dict[TaskId, tuple[int, float]] = {}  # its version, and since when
        self._failing: dict[str, str] = {}  # jobs, and why

    async def run(self) -> None:
        broken: str | None = None
        tight = False
        while True:
            heed_cancellation()
            try:
                tight = await self.make_room()
                if await self.may_sweep():
                    await self.sweep()
                broken = None
            except AWAY as error:
                if broken != (broken := why_away(error)):
                    log.warning("sweep put off", reason=broken)
            except Exception as error:
                # A mistake here must not end the worker, whose tasks are well.
                if broken != (broken := repr(error)):
                    log.exception("sweep broke")
            await asyncio.sleep(ROOM_SECONDS if tight else SWEEP_SECONDS)

    async def make_room(self) -> bool:
        """Where Redis is nearly full: of some tasks, those that have ended lose their history, whose state stands for
        it, and the others all but the newest events. Needs no lock, which a full Redis would not give. Whether it was
        needed."""
        memory = self.memory = await look_at_memory(self._redis)
        if not memory.is_nearly_full:
            return False
        tasks = await look(self._redis, await self._some_tasks())
        self._learn_owners(tasks)
        async with self._redis.pipeline(transaction=False) as pipe:
            for task in tasks:
                if task.status.is_terminal:
                    pipe.delete(keys.events(task.task_id))
                else:
                    pipe.xtrim(keys.events(task.task_id), maxlen=KEPT_EVENTS, approximate=False)
            for owner in self._owners:
                pipe.xtrim(keys.OWNER_EVENTS % owner, maxlen=KEPT_EVENTS, approximate=False)
            await pipe.execute(raise_on_error=False)  # a file of Redis users from before this has no XTRIM in it
        now = self._clock()
        if now > self._said_at + SAY_SECONDS:
            self._said_at = now
            used, most = memory.used_bytes, memory.most_bytes
            log.warning("redis nearly full, histories dropped", used_bytes=used, most_bytes=most)
        return True

    async def may_sweep(self) -> bool:
        """Takes the lock or keeps it. Two that both think so do no harm."""
        lock_ms = int(LOCK_SECONDS * 1000)
        if (holder := await self._redis.get(keys.SWEEPER)) is None:
            return bool(await self._redis.set(keys.SWEEPER, self._worker_id, nx=True, px=lock_ms))
        if holder != self._worker_id.encode():
            return False
        return bool(await self._redis.pexpire(keys.SWEEPER, lock_ms))

    async def leave(self) -> None:
        """Another worker may sweep at once."""
        if await self._redis.get(keys.SWEEPER) == self._worker_id.encode():
            await self._redis.delete(keys.SWEEPER)

    async def sweep(self) -> None:
        """One round. What fails of it is said once, and keeps nothing else from being done; but without Redis nothing
        can be done, so that is raised (AWAY)."""
        tasks = await look(self._redis, await self._some_tasks())
        self._learn_owners(tasks)
        active = [task for task in tasks if task.status in (Status.QUEUED, Status.PROCESSING)]
        await self._job("put back lost tasks", self._put_back([one for one in active if one.lease_seconds is None]))
        await self._job("leases of producers", self._renew_lost_leases(active))
        await self._job("tell again", self._tell_again(tasks))
        await self._job("settle quotas", self._let_go_of_expired())
        await self._job("uploads and partial files", self._look_at_partials(tasks))
        ended = [task for task in tasks if task.status.is_terminal]
        await self._job("files of expired tasks", self._leftovers.remove_expired(ended))
        await self._job("files of unknown tasks", self._leftovers.remove_unknown())
        await self._job("files of deleted tasks", self._leftovers.remove_deleted(self._publisher))

    async def _job(self, name: str, job: Awaitable[None]) -> None:
        try:
            await job
        except AWAY:
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, STORAGE_FAULTS) else repr(error)
            if self._failing.get(name) != reason:
                self._failing[name] = reason
                traceback = None if isinstance(error, STORAGE_FAULTS) else error
                log.error("sweep failed", job=name, reason=reason, exc_info=traceback, **told_by_the_system(error))  # noqa: TRY400
        else:
            if self._failing.pop(name, None) is not None:
                log.info("sweep works again", job=name)

    async def _look_at_partials(self, tasks: Collection[ScannedTask]) -> None:
        partials = await self._leftovers.partials()  # an upload that cannot be seen is not given up
        await self._give_up_uploads(tasks, partials)
        await self._leftovers.remove_partials(partials)

    async def _some_tasks(self) -> set[TaskId]:
        """Active tasks by their owners' lists, and a few of whatever there is, in case a list should not be true."""
        found: set[TaskId] = set()
        for owner, cursor in list(self._owners.items()):
            self._owners[owner], members = await self._redis.sscan(keys.OWNER_ACTIVE % owner, cursor, count=TASKS)
            found |= set(task_ids(members))
        for _ in range(SCAN_KEYS // 1000):
            self._cursor, names = await self._redis.scan(self._cursor, keys.ANY_TASK, count=1000, _type="hash")
            found |= set(task_ids(names))
            if self._cursor == 0:
                break
        return found

    def _learn_owners(self, tasks: Iterable[ScannedTask]) -> None:
        """Where there are more than OWNERS, they take turns by their names: those of earlier rounds make room."""
        leaving = iter([owner for owner in self._owners if owner not in self._known])
        others = {task.owner for task in tasks} - self._owners.keys()
        for owner in sorted(others, key=lambda owner: (owner <= self._learnt_last, owner)):
            if len(self._owners) >= OWNERS:
                if (oldest := next(leaving, None)) is None:
                    return
                del self._owners[oldest]
                for index in INDEXES:
                    del self._indexes[oldest, index]
            self._owners[owner], self._learnt_last = 0, owner
            self._indexes |= {(owner, index): 0 for index in INDEXES}

    async def _let_go_of_expired(self) -> None:
        """A page of each index of each owner a round."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for (owner, index), at in self._indexes.items():
                key = getattr(keys, index) % owner
                if index == "OWNER_STORED":
                    pipe.hscan(key, at, count=TASKS)
                else:
                    pipe.zrange(key, at, at + TASKS - 1)
            pages = await pipe.execute()
        held: dict[OwnerId, set[TaskId]] = {}
        for (owner, index), found in zip(list(self._indexes), pages, strict=True):
            if index == "OWNER_STORED":
                self._indexes[owner, index], page = found
            else:  # what is taken off moves the others up, and they are looked at in the next pass
                page = found
                self._indexes[owner, index] = self._indexes[owner, index] + TASKS if len(page) == TASKS else 0
            held.setdefault(owner, set()).update(task_ids(page))
        for owner, expired in held.items():
            await self._publisher.let_go(owner, expired)

    async def _put_back(self, tasks: Collection[ScannedTask]) -> None:
        if not tasks:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for task in tasks:
                ticket = JobTicket.new(task.task_id, task.attempt, task.traceparent, task.not_before)
                # A job keeps its id through take-overs, so any attempt's may be the one that is there.
                jobs = [keys.job_id(task.task_id, attempt) for attempt in range(1, task.attempt + 1)]
                args: list[Any] = [task.attempt, ticket.job_id, ticket.payload, ticket.due_ms or ""]
                lives_seconds = ACTIVE_TTL_SECONDS + ticket.wait_seconds
                args += [lives_seconds * 1000, channel_on(self._redis, keys.CONTROL), WAKE, keys.job_lease(""), *jobs]
                names = [keys.state(task.task_id), keys.job(ticket.job_id)]
                await self._put_back_script(keys=names, args=args, client=pipe)
            answers = await pipe.execute()
        for task, put_back in zip(tasks, answers, strict=True):
            if put_back:
                log.warning("task put back on the queue", task_id=task.task_id, status=task.status)

    async def _renew_lost_leases(self, tasks: Iterable[ScannedTask]) -> None:
        """An outside producer's task that is in no list of leases, because Redis has lost it, would never end."""
        seconds, _ = await self._redis.time()
        leases: dict[str, float] = {
            task.task_id: int((seconds + task.lease_seconds) * 1000) for task in tasks if task.lease_seconds is not None
        }
        if leases:
            await self._redis.zadd(keys.PRODUCERS, leases, nx=True)

    async def _tell_again(self, tasks: Iterable[ScannedTask]) -> None:
        """Who watches may have seen what Redis has lost, and learns of it by the next event, for which nobody may see
        to: the task waits, or says nothing for long."""
        epoch = int(await self._redis.hget(keys.EPOCH, "number") or 0)  # type: ignore[misc]
        for task in tasks:
            unbegun = task.status is Status.UPLOADING and task.version == 1
            if task.epoch == epoch or task.status.is_terminal or unbegun:
                continue
            with suppress(Refused):
                await self._publisher.change(task.task_id, {}, allowed=(task.status,), attempt=task.attempt)

    async def _give_up_uploads(self, tasks: Iterable[ScannedTask], partials: Iterable[Partial]) -> None:
        arriving = {partial.task_id: partial for partial in partials if partial.attempt is None}
        now = self._clock()
        seconds, _ = await self._redis.time()  # this machine's clock may be hours off
        for task in tasks:
            version, since = self._uploads.pop(task.task_id, (0, now))
            if task.status is not Status.UPLOADING:
                continue
            since = since if version == task.version else now
            self._uploads[task.task_id] = (task.version, since)
            if len(self._uploads) > UPLOADS:
                del self._uploads[next(iter(self._uploads))]
            if task.upload_expires_at is not None:
                overdue = seconds > task.upload_expires_at.timestamp()
                message = "The upload was cut off and the rest did not come in time. Submit the file again."
                if now - since > self._idle_seconds and task.message != UPLOAD_CUT:
                    await self._say_that_it_waits(task)
            elif task.version == 1:
                overdue = seconds - task.created_at.timestamp() > UPLOAD_UNBEGUN_SECONDS
                message = "The upload never arrived. Submit the file again."
            else:
                overdue = now - since > self._idle_seconds
                message = "The upload was cut off and the rest never arrived. Submit the file again."
            if overdue and not _is_being_made_safe(task, arriving.get(task.task_id)):
                await self._give_up(task, message)

    async def _say_that_it_waits(self, task: ScannedTask) -> None:
        """Whoever received it died, or receives nothing more."""
        fields = {"message": UPLOAD_CUT, "rate": None}
        with suppress(Refused):
            await self._publisher.change(task.task_id, fields, allowed=(Status.UPLOADING,), attempt=task.attempt)

    async def _give_up(self, task: ScannedTask, message: str) -> None:
        fence: Any = {"attempt": task.attempt, "allowed": (Status.UPLOADING,)}
        with suppress(Refused):  # it has arrived after all, or was cancelled
            await self._publisher.fail(task.task_id, ErrorType.BAD_INPUT, message, **fence)
            log.info("upload given up", task_id=task.task_id, version=task.version)


def _is_being_made_safe(task: ScannedTask, partial: Partial | None) -> bool:
    if partial is None or task.size_bytes is None:
        return False
    return partial.size_bytes >= task.size_bytes and partial.idle_seconds < UPLOAD_COMMIT_SECONDS
