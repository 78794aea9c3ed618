"""arq's Worker with a lease and a wake-up.

The payload and the functions are arq's. What differs: who goes first (shared/tasks/line.lua); one call to Redis lets go
of the jobs that have ended and claims as many others with their payloads, so a job costs no call of its own; claims are
leased (worker/leases.py), not locked for as long as the longest job; the loop waits for a wake-up and looks by itself
only for what a dead worker left or what is due; Redis being away ends nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from arq.jobs import SerializationError, deserialize_job_raw
from arq.worker import Retry, Worker
from structlog.contextvars import bind_contextvars

from headway.shared import keys
from headway.shared.cancellation import heed_cancellation
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY, RedisClient, RedisError, why_away
from headway.shared.tasks.queue import deserialize, is_newer, serialize, traceparent_of
from headway.shared.tracing import TRACEPARENT
from headway.worker.leases import Leases

log = get_logger(__name__)

#: A lease that ran out is found this late at most.
POLL_SECONDS: Final = 1.0

#: Where the queue is empty there is none to find: whatever comes wakes the worker, and so does a subscription that was
#: lost and is back. This is for what nobody thought of.
EMPTY_POLL_SECONDS: Final = 10.0

#: arq counts a try whenever a job is picked up, and gives up by itself. Attempts are ours to count.
_NO_LIMIT: Final = 2**31


@dataclass(frozen=True, slots=True)
class _End:
    """A job that has run, and waits for the next turn to be let go of."""

    job_id: str
    ended: bool
    told: asyncio.Future[None]


class LeasedWorker(Worker):
    """`main` is the service; it returns when `stop_picking` was called and cancels nothing by itself."""

    def __init__(
        self,
        function: Any,
        *,
        redis: RedisClient,
        queue_name: str,
        leases: Leases,
        lease_seconds: float,
        max_jobs: int,
        job_timeout_seconds: float,
        on_lost: Callable[[str], None],
        on_strange: Callable[[], None] = lambda: None,
        ctx: dict[str, Any],
    ) -> None:
        super().__init__(
            [function],
            queue_name=queue_name,
            redis_pool=redis,
            handle_signals=False,
            max_jobs=max_jobs,
            job_timeout=job_timeout_seconds,
            keep_result=0,
            max_tries=_NO_LIMIT,
            poll_delay=POLL_SECONDS,
            job_serializer=serialize,
            job_deserializer=deserialize,
            log_results=False,
            ctx=ctx,
        )
        self._leases = leases
        self._lease_seconds = lease_seconds
        self._on_lost = on_lost
        self._on_strange = on_strange
        self._wake = asyncio.Event()
        self._payloads: dict[str, bytes] = {}
        self._ends: list[_End] = []
        #: A turn and a renewal at once would take a job back that was just let go of.
        self._asking = asyncio.Lock()
        self._look_again_seconds = POLL_SECONDS
        self._renewed_at = float("-inf")
        self._found_newer = False
        #: Why Redis could not be reached the last time; None: it was.
        self.away: str | None = None

    def wake(self) -> None:
        """There may be work: look now."""
        self._wake.set()

    async def main(self) -> None:
        """Claims and starts jobs until cancelled."""
        self.ctx["redis"] = self.pool
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renewing(), name="leases")
            while True:
                heed_cancellation()
                self._look_again_seconds = POLL_SECONDS
                await self._guarded(self._poll_iteration)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._look_again_seconds):
                        await self._wake.wait()
                self._wake.clear()

    async def _poll_iteration(self) -> None:
        if self.tasks and self.loop.time() - self._renewed_at > self._lease_seconds:
            await self._renew()  # first ours: after a break they would look like jobs that nobody has
        async with self._asking:
            ends = list(self._ends)
            free = self.max_jobs - len(self.tasks) + len(ends) if self.allow_pick_jobs else 0
            if not ends and free <= 0:
                return
            turn = await self._leases.turn(
                free,
                ended=[end.job_id for end in ends if end.ended],
                given_back=[end.job_id for end in ends if not end.ended],
            )
            del self._ends[: len(ends)]
            for end in ends:
                self.tasks.pop(end.job_id, None)
                if not end.told.done():
                    end.told.set_result(None)
            for _ in range(turn.strange):
                self._on_strange()
            for job_id, payload in turn.taken.items():
                self._payloads[job_id] = payload
                self.tasks[job_id] = self.loop.create_task(self.run_job(job_id, 1), name=f"job {job_id}")
        if not turn.queued:
            self._look_again_seconds = EMPTY_POLL_SECONDS
        if turn.due_seconds is not None:
            self._look_again_seconds = min(self._look_again_seconds, turn.due_seconds)

    async def run_job(self, job_id: str, score: int) -> None:
        """arq's, without a call to Redis of its own. When it returns, the job has been let go of."""
        bind_contextvars(task_id=keys.task_of_job(job_id))
        ended = False
        payload = self._payloads.pop(job_id)
        if is_newer(payload):
            self._leave(job_id)
            return
        try:
            ended = await self._call(job_id, payload)
            if self.tasks.get(job_id) is not asyncio.current_task():
                return  # this worker slept through the lease and has the job again: it is the other one's to end
            end = _End(job_id, ended, self.loop.create_future())
            self._ends.append(end)
            self.wake()
            await end.told
        except asyncio.CancelledError:
            if self.tasks.get(job_id) is asyncio.current_task():
                del self.tasks[job_id]
                jobs = ([job_id], []) if ended else ([], [job_id])
                with suppress(*AWAY, RedisError):  # it comes back when its lease runs out
                    await asyncio.shield(self._leases.turn(ended=jobs[0], given_back=jobs[1]))
            raise

    def _leave(self, job_id: str) -> None:
        """Its lease is not let go of but runs out, so that this worker does not find it again at once."""
        if not self._found_newer:
            self._found_newer = True
            log.error("jobs of a newer version are left for newer workers; update this one")
        if self.tasks.get(job_id) is asyncio.current_task():
            del self.tasks[job_id]

    async def _call(self, job_id: str, payload: bytes) -> bool:
        """True if the job has ended, False if it is to be run again."""
        if not payload:
            log.warning("job expired", job_id=job_id)
            return True
        try:
            name, args, kwargs, _, _ = deserialize_job_raw(payload, deserializer=self.job_deserializer)
            function = self.functions[name]
            if not (isinstance(args, tuple | list) and isinstance(kwargs, dict)):
                raise TypeError("a job's arguments are a list and a mapping")  # noqa: TRY301
        except (SerializationError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            # Not the error itself, which quotes the job.
            log.error("job not understood", job_id=job_id, reason=type(error).__name__)  # noqa: TRY400
            return True
        try:
            async with asyncio.timeout(self.job_timeout_s):
                await function.coroutine({**self.ctx, TRACEPARENT: traceparent_of(payload)}, *args, **kwargs)
        except Retry:
            return False
        except Exception as error:
            log.error("job broke", job_id=job_id, exc_info=error)  # noqa: TRY400
        return True

    async def _renewing(self) -> None:
        while True:
            heed_cancellation()
            # With nothing to renew it only says that this worker is alive, which readiness wants every three leases.
            if self.tasks or self.loop.time() - self._renewed_at > 1.2 * self._lease_seconds:
                await self._guarded(self._renew)
            await asyncio.sleep(self._lease_seconds / 3)

    async def _renew(self) -> None:
        async with self._asking:
            for job_id in await self._leases.renew(list(self.tasks)):
                self._on_lost(job_id)
            self._renewed_at = self.loop.time()

    async def _guarded(self, step: Callable[[], Any]) -> None:
        """A Redis that is away is said once, and once more when it is back; the worker lives."""
        try:
            await step()
        except (*AWAY, RedisError) as error:  # a right that is missing, too: somebody sees to it, and this goes on
            if self.away != (reason := why_away(error)):
                self.away = reason
                log.error("redis away", reason=reason)  # noqa: TRY400 - the reason is all there is to say
        else:
            if self.away is not None:
                self.away = None
                log.info("redis back")
