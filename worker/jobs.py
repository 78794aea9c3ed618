"""`process_file`, the one function arq runs: claim, sandbox, report, finish.

An attempt ends in exactly one of these ways:
    completed, failed    its own last word, written under its fence
    given back           this worker is told to stop: `queued` again, as the next attempt
    stopped              somebody cancelled the task, or another worker has it: nothing more is written
Whatever happens, the child is gone and its scratch folder is removed before the job is.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from typing import Any

from shared import keys
from shared.cancellation import cancel, heed_cancellation
from shared.errors import HeadwayError, ProcessorFailure, Refused, StorageFull, UnknownFile, UnknownTask
from shared.feed import Feed
from shared.logging import get_logger
from shared.models import ErrorType, Result, ResultFile, Status, TaskId
from shared.processors import Processor, Registry
from shared.progress import Claim, Publisher
from shared.settings import Settings
from shared.storage import Storage
from worker.meter import Meter
from worker.sandbox import Sandbox

log = get_logger(__name__)

#: Updates that wait for Redis. Counts replace each other, so this bounds phases and logs; beyond it the pipe is not
#: read and the processor waits, which loses nothing.
PENDING_UPDATES = 1000

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
        self._storage = storage
        self._registry = registry
        self._sandbox = sandbox
        self._running: dict[TaskId, asyncio.Task[Any]] = {}

    def stop(self, task_id: TaskId, why: str) -> None:
        """Ends a running attempt without another word: the task is cancelled, or somebody else has it."""
        if (running := self._running.get(task_id)) is not None:
            log.info("attempt stopped", task_id=task_id, why=why)
            running.cancel(why)

    def lost(self, job_id: str) -> None:
        """The lease of a job is another worker's."""
        self.stop(keys.task_of_job(job_id), "its lease was lost")

    async def run(self, task_id: TaskId) -> None:
        """Runs one attempt to its end. Raises only CancelledError, when the worker stops."""
        claim = await self._publisher.claim(task_id, self._feed)
        if claim is None:
            return
        log.info("attempt started", task_id=task_id, attempt=claim.attempt, processor=claim.task.processor)
        if task_id in self._running:  # this worker slept through its own lease and has the task twice
            self.stop(task_id, "a newer attempt is here")
        attempt = asyncio.create_task(self._attempt(claim), name=f"attempt {task_id}.{claim.attempt}")
        self._running[task_id] = attempt
        try:
            await asyncio.wait([attempt])
        except asyncio.CancelledError:
            await asyncio.shield(cancel(attempt, why="the worker stops"))
            await asyncio.shield(self._give_back(claim))
            raise
        finally:
            if self._running.get(task_id) is attempt:
                del self._running[task_id]
        if not attempt.cancelled() and (error := attempt.exception()) is not None:
            await self._fail(claim, error)

    async def _give_back(self, claim: Claim) -> None:
        try:
            async with asyncio.timeout(GIVE_BACK_SECONDS):
                await self._publisher.give_back(claim, "The worker was stopped, waiting for another one")
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

    async def _attempt(self, claim: Claim) -> None:
        task = claim.task
        try:
            processor = self._registry.get(task.processor)
        except HeadwayError:
            raise ProcessorFailure(
                ErrorType.PROCESSOR_ERROR, f"No worker knows the processor {task.processor!r}.", retryable=True
            ) from None
        scratch = await asyncio.to_thread(self._storage.scratch, task.task_id, claim.attempt)
        try:
            spec = self._spec(claim, processor, str(scratch))
            async with asyncio.timeout(self._settings.task_timeout_seconds):
                done = await self._watch(claim, spec)
            await self._finish(claim, done, scratch)
        finally:
            await asyncio.shield(asyncio.to_thread(self._storage.discard, scratch))

    def _spec(self, claim: Claim, processor: Processor, scratch: str) -> dict[str, Any]:
        task = claim.task
        try:
            input_path = self._storage.input_path(task.task_id, task.input_name) if task.filename is not None else None
        except UnknownFile:
            why = "The uploaded file is not on this worker's disk: do API and workers share HEADWAY_DATA_DIR?"
            raise ProcessorFailure(ErrorType.PROCESSOR_ERROR, why) from None
        return {
            "processor": processor.name,
            "options": task.options,
            "input_path": str(input_path) if input_path else None,
            "output_folder": scratch,
            "filename": task.filename,
            "content_type": task.content_type,
            "size_bytes": task.size_bytes or 0,
            "memory_bytes": int(self._settings.task_memory_bytes),
            "attempt": claim.attempt,
            "restored": None,
        }

    async def _watch(self, claim: Claim, spec: dict[str, Any]) -> dict[str, Any]:
        """The child's life: its messages become events. Returns its `done` message."""
        updates = _Updates()
        meter = Meter(claim.task.progress_base, time.monotonic())
        done: dict[str, Any] = {}
        try:
            async with self._sandbox.attempt(spec) as child, asyncio.TaskGroup() as group:
                watching = group.create_task(child.watch_memory(), name="memory")
                group.create_task(self._publish(claim, updates), name="publish")
                async for message in child.messages():
                    match message["kind"]:
                        case "phase" | "count":
                            fields = meter.read(message, time.monotonic())
                            await updates.put(fields, replaces=message["kind"] == "count")
                        case "log":
                            await updates.put({key: message[key] for key in ("level", "message", "at")}, name="log")
                        case "done":
                            done = message
                watching.cancel()
                await updates.close()
        except BaseExceptionGroup as group_error:
            raise _first(group_error) from None
        return done

    async def _publish(self, claim: Claim, updates: _Updates) -> None:
        task_id = claim.task.task_id
        while (update := await updates.take()) is not None:
            heed_cancellation()
            name, fields = update
            if name:
                await self._publisher.emit(task_id, name, fields, allowed=(Status.PROCESSING,), attempt=claim.attempt)
            else:
                await self._publisher.change(task_id, fields, allowed=(Status.PROCESSING,), attempt=claim.attempt)

    async def _finish(self, claim: Claim, done: dict[str, Any], scratch: Any) -> None:
        task_id = claim.task.task_id
        kept = await asyncio.to_thread(self._storage.keep_results, task_id, claim.attempt, scratch, done["outputs"])
        files = [
            ResultFile(
                name=file.name,
                size_bytes=file.size_bytes,
                content_type=file.content_type,
                sha256=file.sha256,
                url=file_url(task_id, file.name),
            )
            for file in kept
        ]
        try:
            await self._publisher.complete(task_id, Result(summary=done["summary"], files=files), attempt=claim.attempt)
        except Refused:
            await asyncio.to_thread(self._storage.discard_results, task_id, claim.attempt)
            raise
        log.info("attempt completed", task_id=task_id, attempt=claim.attempt)


class _Updates:
    """What waits to be published, in order. A count replaces the count before it; nothing else is ever dropped."""

    def __init__(self) -> None:
        self._pending: deque[tuple[str, dict[str, Any], bool]] = deque()
        self._changed = asyncio.Condition()
        self._closed = False

    async def put(self, fields: dict[str, Any], *, name: str = "", replaces: bool = False) -> None:
        async with self._changed:
            if replaces and self._pending and self._pending[-1][2]:
                self._pending.pop()
            while len(self._pending) >= PENDING_UPDATES:
                await self._changed.wait()
            self._pending.append((name, fields, replaces))
            self._changed.notify_all()

    async def take(self) -> tuple[str, dict[str, Any]] | None:
        """The next one, or None when closed and empty."""
        async with self._changed:
            while not self._pending:
                if self._closed:
                    return None
                await self._changed.wait()
            name, fields, _ = self._pending.popleft()
            self._changed.notify_all()
            return name, fields

    async def close(self) -> None:
        async with self._changed:
            self._closed = True
            self._changed.notify_all()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def without_paths(text: str) -> str:
    """Absolute paths have no business with a client."""
    return re.sub(r"(?<![\w.:/])/(?:[\w.+@%-]+/)+[\w.+@%-]*", "…", text)


def file_url(task_id: TaskId, name: str) -> str:
    from urllib.parse import quote

    return f"/tasks/{task_id}/files/{quote(name, safe='')}"


async def process_file(ctx: dict[str, Any], task_id: str) -> None:
    """What arq calls."""
    runner: Runner = ctx["runner"]
    try:
        await runner.run(TaskId(task_id))
    except UnknownTask:
        log.warning("task is gone", task_id=task_id)
