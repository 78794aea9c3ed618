"""`process_file`, the one function arq runs: claim, attempt, and the end of it.

An attempt ends in exactly one of these ways:
    completed, failed    its own last word, written under its fence
    retried              failed, and its processor wants another attempt: `queued` again, not before a time
    given back           this worker is told to stop: `queued` again, as the next attempt, with its checkpoint
    stopped              somebody cancelled the task, or another worker has it: nothing more is written
Whatever happens, the child is gone and its scratch folder is removed before the job is.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from arq import Retry
from structlog.contextvars import bind_contextvars

from headway.shared import keys
from headway.shared.cancellation import cancel
from headway.shared.descriptors import out_of_descriptors
from headway.shared.errors import NoDescriptors, ProcessorFailure, Refused, StorageAway, StorageFull, UnknownTask
from headway.shared.files.disk import STORAGE_FAULTS, told_by_the_system
from headway.shared.files.storage import Storage
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY
from headway.shared.settings import Settings
from headway.shared.tasks.models import ErrorType, Status, TaskId
from headway.shared.tasks.progress import Claim, Publisher
from headway.shared.tasks.reader import Reader
from headway.shared.tasks.registry import Registry
from headway.shared.tracing import OFF, TRACEPARENT, Span, Tracing
from headway.worker.attempt import Attempt, Workplace, results_folder_of
from headway.worker.sandbox import Sandbox
from headway.worker.worker_metrics import WorkerMetrics

log = get_logger(__name__)

#: How long a worker that stops tries to give a task back. After it the lease does the same, more slowly.
GIVE_BACK_SECONDS = 2.0
#: How long it is asked whether an attempt completed. After it the results are the next attempt's to remove.
SETTLE_SECONDS = 2.0


class Outcome(StrEnum):
    """How an attempt ended, for those who count and trace them."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"  #: its task was
    RETRIED = "retried"  #: failed, and tried again by itself
    HANDED_OVER = "handed_over"  #: given back, because this worker stops
    LOST = "lost"  #: another worker has the task


@dataclass(slots=True)
class _Running:
    attempt: int
    work: asyncio.Task[Any]
    #: What ended it from outside.
    stopped: Outcome | None = None


class Runner:
    """Runs attempts. One a worker, handed to arq as `ctx["runner"]`."""

    def __init__(
        self,
        settings: Settings,
        *,
        publisher: Publisher,
        reader: Reader,
        storage: Storage,
        registry: Registry,
        sandbox: Sandbox,
        metrics: WorkerMetrics,
        tracing: Tracing = OFF,
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._reader = reader
        self._place = Workplace(settings, publisher, storage, registry, sandbox, reader, tracing)
        self._tracing = tracing
        self._metrics = metrics
        self._running: dict[TaskId, _Running] = {}
        self._stopping = asyncio.Event()

    def give_back_all(self) -> None:
        """This worker is told to stop: every attempt ends now, and `run` gives its task to another worker."""
        self._stopping.set()
        for running in self._running.values():
            running.work.cancel("the worker stops")

    def stop(self, task_id: TaskId, why: str, outcome: Outcome = Outcome.LOST) -> None:
        """Ends a running attempt without another word: the task is cancelled, or somebody else has it."""
        if (running := self._running.get(task_id)) is not None:
            log.info("attempt stopped", task_id=task_id, attempt=running.attempt, why=why)
            running.stopped = outcome
            running.work.cancel(why)

    def lost(self, job_id: str) -> None:
        """The lease of a job is another worker's."""
        self.stop(keys.task_of_job(job_id), "its lease was lost")

    async def run(self, task_id: TaskId, traceparent: str | None = None) -> None:
        """Runs one attempt to its end. Raises arq's Retry, which leaves the job on the queue, when the worker stops.

        `traceparent`: the span that queued it."""
        if self._stopping.is_set():
            raise Retry
        with self._tracing.span("process", "consumer", parent=traceparent, task_id=task_id) as span:
            claim = await self._publisher.claim(task_id, self._reader)
            if claim is None:
                log.info("attempt not started", task_id=task_id)
                span.set(outcome="not_started")
                return
            span.rename(f"process {claim.task.processor}")
            span.set(processor=claim.task.processor, attempt=claim.attempt)
            if claim.task.traceparent != traceparent:  # that of the attempt before
                span.link(claim.task.traceparent)
            with self._metrics.attempt(claim) as counted:
                outcome = counted.outcome = await self._run(claim, span)
            span.set(outcome=outcome)
        if outcome is Outcome.HANDED_OVER:
            raise Retry

    async def _run(self, claim: Claim, span: Span) -> Outcome:
        task_id = claim.task.task_id
        bind_contextvars(attempt=claim.attempt)
        if claim.attempt > 1:  # none of those before can complete any more
            with self._results_left(claim):
                await self._place.storage.discard_earlier_results(task_id, claim.attempt)
        resumes = {"from_progress": claim.task.checkpoint.progress} if claim.task.checkpoint else {}
        log.info("attempt started", task_id=task_id, attempt=claim.attempt, processor=claim.task.processor, **resumes)
        if task_id in self._running:  # this worker slept through its own lease and has the task twice
            self.stop(task_id, "a newer attempt is here")
        attempt = Attempt(claim, self._place)
        work = asyncio.create_task(attempt.run(), name=f"attempt {task_id}.{claim.attempt}")
        running = self._running[task_id] = _Running(claim.attempt, work)
        outcome: Outcome | None = None
        try:
            try:
                await asyncio.wait([work])
            finally:
                if self._running.get(task_id) is running:
                    del self._running[task_id]
                await cancel(work)  # done, unless this itself was cancelled
            outcome = await self._end(claim, attempt, running, span)
        finally:
            if attempt.has_results and outcome is not Outcome.COMPLETED:
                outcome = await asyncio.shield(self._settle(claim)) or outcome
        return outcome

    @contextmanager
    def _results_left(self, claim: Claim) -> Iterator[None]:
        """Results that are to be removed: where the storage cannot be used they stay, unseen, for the sweeper."""
        try:
            yield
        except STORAGE_FAULTS as error:
            about = {"task_id": claim.task.task_id, "attempt": claim.attempt, "reason": str(error)}
            log.warning("results left", **about, **told_by_the_system(error))

    async def _end(self, claim: Claim, attempt: Attempt, running: _Running, span: Span) -> Outcome:
        if not running.work.cancelled():
            error = running.work.exception()
            return Outcome.COMPLETED if error is None else await self._fail(claim, attempt, error, span)
        if self._stopping.is_set():
            await self._give_back(claim, attempt)
            return Outcome.HANDED_OVER
        return running.stopped or Outcome.LOST

    async def _settle(self, claim: Claim) -> Outcome | None:
        """Removes the results of an attempt that did not complete; COMPLETED where it did all the same.

        A write whose answer was given up may still arrive, so the truth is asked whether the attempt can still
        complete: then its results are left to the next attempt, which removes those before it."""
        task_id = claim.task.task_id
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                standing = await self._reader.standing(task_id)
                if standing is not None and (standing.attempt, standing.claim) == (claim.attempt, claim.token):
                    if standing.status is Status.PROCESSING:
                        return None
                    if standing.status is Status.COMPLETED:
                        return Outcome.COMPLETED
                with self._results_left(claim):
                    await self._place.storage.discard_results(task_id, results_folder_of(claim))
        except (*AWAY, TimeoutError) as error:
            log.warning("results left", task_id=task_id, attempt=claim.attempt, reason=type(error).__name__)
        return None

    async def _give_back(self, claim: Claim, attempt: Attempt) -> None:
        message = "The worker was stopped, waiting for another one"
        try:
            async with asyncio.timeout(GIVE_BACK_SECONDS):
                await self._publisher.give_back(claim, message, attempt.checkpoint)
        except (Refused, TimeoutError):
            return
        log.info("attempt given back", task_id=claim.task.task_id, attempt=claim.attempt)

    async def _fail(self, claim: Claim, attempt: Attempt, error: BaseException, span: Span) -> Outcome:
        task_id = claim.task.task_id
        told: dict[str, Any] = {}
        if isinstance(error, OSError) and out_of_descriptors(error):
            out = NoDescriptors()
            out.__cause__ = error
            error = out
        match error:
            case Refused():
                return self._superseded(claim, error)
            case ProcessorFailure():
                failure = error
            case StorageAway() | NoDescriptors():
                told = told_by_the_system(error)
                failure = ProcessorFailure(ErrorType.PROCESSOR_ERROR, str(error), retryable=True)
            case StorageFull():
                failure = ProcessorFailure(ErrorType.STORAGE_FULL, str(error), retryable=True)
            case TimeoutError():
                seconds = attempt.timeout_seconds
                whose = "its processor's own limit" if attempt.has_own_timeout else "HEADWAY_TASK_TIMEOUT_SECONDS"
                message = f"It ran longer than {seconds:g} s ({whose})."
                failure = ProcessorFailure(ErrorType.TIMEOUT, message, retryable=True)
            case _:
                log.error("attempt broke", task_id=task_id, attempt=claim.attempt, exc_info=error)
                failure = ProcessorFailure(ErrorType.PROCESSOR_ERROR, "The worker could not run it; its log says why.")
        log.info(
            "attempt failed", task_id=task_id, attempt=claim.attempt, type=failure.type, reason=str(failure), **told
        )
        reason = without_paths(str(failure))
        retries, retried = attempt.retries, claim.task.retried
        again = retries is not None and retried < retries.max and retries.takes(failure.type, failure.again)
        try:
            if retries is not None and again:
                wait = timedelta(seconds=retries.wait_seconds(retried))
                await self._publisher.try_again(claim, reason, attempt.checkpoint, most=retries.max, wait=wait)
                log.info("attempt is tried again", task_id=task_id, retry=retried + 1, seconds=wait.total_seconds())
            else:
                await self._publisher.fail(task_id, failure.type, reason, retryable=failure.retryable, **claim.fence)
        except Refused as refused:
            return self._superseded(claim, refused)
        span.fail(failure.type)
        return Outcome.RETRIED if again else Outcome.FAILED

    def _superseded(self, claim: Claim, refused: Refused) -> Outcome:
        log.info("attempt superseded", task_id=claim.task.task_id, attempt=claim.attempt, reason=refused.reason)
        return Outcome.CANCELLED if refused.status == Status.CANCELLED else Outcome.LOST


def without_paths(text: str) -> str:
    """Absolute paths have no business with a client."""
    return re.sub(r"(?<![\w.:/])/(?:[\w.+@%-]+/)+[\w.+@%-]*", "…", text)


async def process_file(ctx: dict[str, Any], task_id: str) -> None:
    """What arq calls."""
    runner: Runner = ctx["runner"]
    try:
        await runner.run(TaskId(task_id), ctx.get(TRACEPARENT))
    except UnknownTask:
        log.warning("task is gone", task_id=task_id)
