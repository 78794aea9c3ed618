"""arq's Worker with a lease and a wake-up.

What arq does stays arq's: the queue's layout, the payload, running a job, counting tries. What differs: jobs are
claimed in one call to Redis and leased (worker/leases.py), not locked for as long as the longest job; the loop waits
for a wake-up and polls once a second only to find what a dead worker left; Redis being away ends nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from arq.worker import Worker

from shared.cancellation import heed_cancellation
from shared.logging import get_logger
from shared.queue import deserialize, serialize
from shared.redis import AWAY, RedisClient, why_away
from worker.leases import Leases

log = get_logger(__name__)

#: A lease that ran out is found this late at most, and an idle worker asks Redis no more often.
POLL_SECONDS: Final = 1.0

#: How far into the queue to look: running jobs stay on it, so this is the most jobs a fleet runs at once.
QUEUE_LOOK: Final = 2000

#: arq counts a try whenever a job is picked up, and gives up by itself. Attempts are ours to count.
_NO_LIMIT: Final = 2**31


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
        self._wake = asyncio.Event()
        self._renewed_at = float("-inf")
        self._away: str | None = None

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
                await self._guarded(self._poll_iteration)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._wake.wait()
                self._wake.clear()

    async def _poll_iteration(self) -> None:
        for job_id, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[job_id]
                if not task.cancelled() and (error := task.exception()) is not None:
                    # Only Redis can make arq's own part fail; the job stays leased and comes back by itself.
                    log.warning("job left to its lease", job_id=job_id, reason=why_away(error))
        free = self.max_jobs - len(self.tasks)
        if free > 0 and self.allow_pick_jobs:
            if self.loop.time() - self._renewed_at > self._lease_seconds:
                await self._renew()  # first ours: after a break they would look like jobs that nobody has
            for job_id in await self._leases.claim(free, QUEUE_LOOK):
                await self.sem.acquire()
                self.job_counter += 1
                self.tasks[job_id] = task = self.loop.create_task(self.run_job(job_id, 1), name=f"job {job_id}")
                task.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[Any]) -> None:
        self._release_sem_dec_counter_on_complete()
        self.wake()

    async def _renewing(self) -> None:
        while True:
            heed_cancellation()
            await self._guarded(self._renew)
            await asyncio.sleep(self._lease_seconds / 3)

    async def _renew(self) -> None:
        running = [job_id for job_id, task in self.tasks.items() if not task.done()]
        for job_id in await self._leases.renew(running):
            self._on_lost(job_id)
        self._renewed_at = self.loop.time()

    async def _guarded(self, step: Callable[[], Any]) -> None:
        """A Redis that is away is said once, and once more when it is back; the worker lives."""
        try:
            await step()
        except AWAY as error:
            if self._away != (reason := why_away(error)):
                self._away = reason
                log.error("redis away", reason=reason)  # noqa: TRY400 - the reason is all there is to say
        else:
            if self._away is not None:
                self._away = None
                log.info("redis back")

    # arq's ends of a job, which would delete a lease that may be another worker's by now.

    async def finish_job(
        self,
        job_id: str,
        finish: bool,
        result_data: bytes | None,
        result_timeout_s: float | None,
        keep_result_forever: bool,
        incr_score: int | None,
        keep_in_progress: float | None,
    ) -> None:
        await self._leases.release(job_id, ended=finish)

    async def finish_failed_job(self, job_id: str, result_data: bytes | None) -> None:
        await self._leases.release(job_id, ended=True)
