"""`process_file`, the one function arq runs: claim, attempt, and the end of it.

An attempt ends in exactly one of these ways:
    completed, failed    its own last word, written under its fence
    given back           this worker is told to stop: `queued` again, as the next attempt, with its checkpoint
    stopped              somebody cancelled the task, or another worker has it: nothing more is written
Whatever happens, the child is gone and its scratch folder is removed before the job is.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from arq import Retry

from shared import keys
from shared.cancellation import cancel
from shared.errors import ProcessorFailure, Refused, StorageAway, StorageFull, UnknownTask
from shared.feed import Feed
from shared.logging import get_logger
from shared.models import ErrorType, TaskId
from shared.processors import Registry
from shared.progress import Claim, Publisher
from shared.settings import Settings
from shared.storage import Storage
from worker.attempt import Attempt, Workplace
from worker.sandbox import Sandbox

log = get_logger(__name__)

#: How long a worker that stops tries to give a task back. After it the lease does the same, more slowly.
GIVE_BACK_SECONDS = 2.0


class Runner:
    """Runs attempts. One a worker, handed to arq as `ctx["runner"]`."""

    def __init__(
        self,
        settings: Settings,
        *,
        publisher: Publisher,
        feed: Feed,
        storage: Storage,
        registry: Registry,
        sandbox: Sandbox,
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._feed = feed
        self._place = Workplace(settings, publisher, storage, registry, sandbox)
        self._running: dict[TaskId, asyncio.Task[Any]] = {}
        self._stopping = asyncio.Event()

    def give_back_all(self) -> None:
        """This worker is told to stop: every attempt ends now, and `run` gives its task to another worker."""
        self._stopping.set()
        for running in self._running.values():
            running.cancel("the worker stops")

    def stop(self, task_id: TaskId, why: str) -> None:
        """Ends a running attempt without another word: the task is cancelled, or somebody else has it."""
        if (running := self._running.get(task_id)) is not None:
            log.info("attempt stopped", task_id=task_id, why=why)
            running.cancel(why)

    def lost(self, job_id: str) -> None:
        """The lease of a job is another worker's."""
        self.stop(keys.task_of_job(job_id), "its lease was lost")

    async def run(self, task_id: TaskId) -> None:
        """Runs one attempt to its end. Raises arq's Retry, which leaves the job on the queue, when the worker stops."""
        if self._stopping.is_set():
            raise Retry
        claim = await self._publisher.claim(task_id, self._feed)
        if claim is None:
            return
        resumes = {"from_progress": claim.task.checkpoint.progress} if claim.task.checkpoint else {}
        log.info("attempt started", task_id=task_id, attempt=claim.attempt, processor=claim.task.processor, **resumes)
        if task_id in self._running:  # this worker slept through its own lease and has the task twice
            self.stop(task_id, "a newer attempt is here")
        attempt = Attempt(claim, self._place)
        running = asyncio.create_task(attempt.run(), name=f"attempt {task_id}.{claim.attempt}")
        self._running[task_id] = running
        try:
            await asyncio.wait([running])
        finally:
            if self._running.get(task_id) is running:
                del self._running[task_id]
            await cancel(running)  # done, unless this itself was cancelled
        if running.cancelled() and self._stopping.is_set():
            await self._give_back(claim, attempt)
            raise Retry
        if not running.cancelled() and (error := running.exception()) is not None:
            await self._fail(claim, error)

    async def _give_back(self, claim: Claim, attempt: Attempt) -> None:
        message = "The worker was stopped, waiting for another one"
        try:
            async with asyncio.timeout(GIVE_BACK_SECONDS):
                await self._publisher.give_back(claim, message, attempt.checkpoint)
        except (Refused, TimeoutError):
            return
        log.info("attempt given back", task_id=claim.task.task_id, attempt=claim.attempt)

    async def _fail(self, claim: Claim, error: BaseException) -> None:
        task_id = claim.task.task_id
        match error:
            case Refused():
                log.info("attempt superseded", task_id=task_id, attempt=claim.attempt, reason=error.reason)
                return
            case ProcessorFailure():
                failure = error
            case StorageAway():
                failure = ProcessorFailure(ErrorType.PROCESSOR_ERROR, str(error), retryable=True)
            case StorageFull():
                failure = ProcessorFailure(ErrorType.STORAGE_FULL, str(error), retryable=True)
            case TimeoutError():
                seconds = self._settings.task_timeout_seconds
                message = f"It ran longer than {seconds:g} s (HEADWAY_TASK_TIMEOUT_SECONDS)."
                failure = ProcessorFailure(ErrorType.TIMEOUT, message, retryable=True)
            case _:
                log.error("attempt broke", task_id=task_id, attempt=claim.attempt, exc_info=error)
                failure = ProcessorFailure(ErrorType.PROCESSOR_ERROR, "The worker could not run it; its log says why.")
        log.info("attempt failed", task_id=task_id, attempt=claim.attempt, type=failure.type, reason=str(failure))
        try:
            await self._publisher.fail(
                task_id, failure.type, without_paths(str(failure)), retryable=failure.retryable, attempt=claim.attempt
            )
        except Refused as refused:
            log.info("attempt superseded", task_id=task_id, attempt=claim.attempt, reason=refused.reason)


def without_paths(text: str) -> str:
    """Absolute paths have no business with a client."""
    return re.sub(r"(?<![\w.:/])/(?:[\w.+@%-]+/)+[\w.+@%-]*", "…", text)


async def process_file(ctx: dict[str, Any], task_id: str) -> None:
    """What arq calls."""
    runner: Runner = ctx["runner"]
    try:
        await runner.run(TaskId(task_id))
    except UnknownTask:
        log.warning("task is gone", task_id=task_id)
