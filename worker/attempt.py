"""One attempt at a task, from an empty scratch folder to `completed`: what its child says becomes events.

Whoever runs it writes the other ends, and removes the results of one that did not complete (worker/jobs.py). However it
ends, the child is gone and the scratch folder with it. `checkpoint` is the newest place to go on from: this attempt's
own, or the one it went on from itself.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headway.shared.cancellation import heed_cancellation
from headway.shared.errors import HeadwayError, ProcessorFailure, QuotaFull, UnknownFile, WordsFull
from headway.shared.files.disk import STORAGE_FAULTS, told_by_the_system
from headway.shared.files.storage import Storage, results_folder
from headway.shared.files.trees import Measured
from headway.shared.json_text import text_of
from headway.shared.logging import get_logger
from headway.shared.settings import Settings
from headway.shared.tasks.meter import Meter
from headway.shared.tasks.models import (
    Checkpoint,
    ErrorType,
    Result,
    ResultFile,
    Status,
    file_url,
    rfc3339,
    utc_now,
)
from headway.shared.tasks.processors import Processor
from headway.shared.tasks.progress import LEFT_OUT, PARTIAL_EVENT_BYTES, Claim, Publisher
from headway.shared.tasks.reader import Reader
from headway.shared.tasks.registry import Registry
from headway.shared.tasks.retries import Retries
from headway.shared.tracing import OFF, Tracing
from headway.worker.sandbox import Child, Sandbox
from headway.worker.updates import Updates
from headway.worker.usage import over_disk

log = get_logger(__name__)

#: Of one attempt; those beyond are read when they are done.
MOST_LIVE: Final = 100
#: Stands in an event for a partial result that it has no room for.
TOO_LARGE: Final = {"truncated": True}
#: What a processor left running is said to whoever watches its task.
LEFT_RUNNING: Final = "What it had started was still running when it ended, and was ended too."


@dataclass(frozen=True, slots=True)
class Workplace:
    """What every attempt of a worker works with."""

    settings: Settings
    publisher: Publisher
    storage: Storage
    registry: Registry
    sandbox: Sandbox
    reader: Reader
    tracing: Tracing = OFF


class Attempt:
    """`run` is called once. It raises Refused where the task is somebody else's or has ended, TimeoutError, and what
    ended the work: ProcessorFailure, STORAGE_FAULTS."""

    def __init__(self, claim: Claim, place: Workplace) -> None:
        self._claim = claim
        self._task = claim.task
        self._place = place
        self.checkpoint: Checkpoint | None = claim.task.checkpoint
        #: Its results may be in their place, which only a task that it completed is to have.
        self.has_results = False
        self._unsaved = asyncio.Event()
        self._updates = Updates()
        #: Of the partial result that is in the state: what is left of an event for the result.
        self._partial_bytes = 0
        #: Result files that are read while they grow, and the folder they are in.
        self._live: list[str] = []
        self._scratch_name = ""
        #: Log lines and checkpoints that its owner's words had no room for.
        self._left_out: Counter[str] = Counter()

    @property
    def policy(self) -> Processor | None:
        """What its processor declares; None where this worker does not know it."""
        return self._place.registry.processors.get(self._task.processor)

    @property
    def has_own_timeout(self) -> bool:
        return self.policy is not None and self.policy.timeout_seconds is not None

    @property
    def timeout_seconds(self) -> float:
        own = self.policy.timeout_seconds if self.policy else None
        return self._place.settings.task_timeout_seconds if own is None else own

    @property
    def retries(self) -> Retries | None:
        return self.policy.retries if self.policy else None

    async def run(self) -> None:
        storage = self._place.storage
        processor = self._processor()
        scratch = await storage.scratch(self._task.task_id, self._claim.attempt)
        self._scratch_name = scratch.name
        try:
            async with asyncio.timeout(self.timeout_seconds) as limit, self._input() as input_path:
                done = await self._watch(self._spec(processor, input_path, scratch))
                ends_at = limit.when()
            with self._place.tracing.span("finish"):
                assert ends_at is not None
                await self._finish(done, scratch, ends_at - asyncio.get_running_loop().time())
        finally:
            await asyncio.shield(self._discard(scratch))

    async def _discard(self, scratch: Path) -> None:
        """What cannot be removed is the sweeper's, and no fault of the attempt's."""
        try:
            await self._place.storage.discard(scratch)
        except STORAGE_FAULTS as error:
            about = {"task_id": self._task.task_id, "reason": str(error), **told_by_the_system(error)}
            log.warning("scratch folder left", **about)

    def _processor(self) -> Processor:
        try:
            return self._place.registry.get(self._task.processor)
        except HeadwayError:
            raise ProcessorFailure(
                ErrorType.PROCESSOR_ERROR, f"No worker knows the processor {self._task.processor!r}.", retryable=True
            ) from None

    @asynccontextmanager
    async def _input(self) -> AsyncIterator[Path | None]:
        task = self._task
        async with AsyncExitStack() as stack:
            path = None
            if task.filename is not None:
                try:
                    local = self._place.storage.local_input(task.task_id, task.input_name)
                    with self._place.tracing.span("input"):
                        path = await stack.enter_async_context(local)
                except UnknownFile:
                    why = "The uploaded file is not where this worker looks: do API and workers have the same storage?"
                    raise ProcessorFailure(ErrorType.PROCESSOR_ERROR, why) from None
            yield path

    def _spec(self, processor: Processor, input_path: Path | None, scratch: Path) -> dict[str, Any]:
        task = self._task
        return {
            "task_id": task.task_id,
            "processor": processor.name,
            "options": task.options,
            "input_path": str(input_path) if input_path else None,
            "output_folder": str(scratch),
            "filename": task.filename,
            "content_type": task.content_type,
            "size_bytes": task.size_bytes or 0,
            "memory_bytes": int(processor.memory_bytes or self._place.settings.task_memory_bytes),
            "disk_bytes": int(self._place.settings.task_disk_bytes),
            "attempt": self._claim.attempt,
            "restored": self.checkpoint.state if self.checkpoint else None,
            "env": {name: os.environ[name] for name in processor.env if name in os.environ},
        }

    async def _watch(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The child's life. Returns its `done` message."""
        begun = self.checkpoint.progress if self.checkpoint else 0.0
        meter = Meter(self._task.progress_base, time.monotonic(), begun)
        done: dict[str, Any] = {}
        try:
            async with AsyncExitStack() as stack:
                with self._place.tracing.span("start child"):
                    child = await stack.enter_async_context(self._place.sandbox.attempt(spec))
                group = await stack.enter_async_context(asyncio.TaskGroup())
                aside = [
                    group.create_task(child.watch(self._place.sandbox.threads), name="limits"),
                    group.create_task(self._keep_checkpoints(), name="checkpoints"),
                ]
                group.create_task(self._publish(), name="publish")
                done = await self._hear(child, meter)
                for task in aside:
                    task.cancel()
                await self._updates.close()
        except BaseExceptionGroup as group_error:
            raise _first(group_error) from None
        finally:
            if self._left_out:
                log.warning("words left out", task_id=self._task.task_id, **self._left_out)
        if self._left_out:
            counted = " and ".join(f"{count} {what}" for what, count in self._left_out.items())
            await self._say(f"Left out for want of room: {counted}.")
        return done

    async def _hear(self, child: Child, meter: Meter) -> dict[str, Any]:
        """All that the child says. Returns its `done` message."""
        done: dict[str, Any] = {}
        async for message in child.messages():
            match message["kind"]:
                case "phase" | "count":
                    if message["kind"] == "phase":
                        step = {"step": message["step"], "total_steps": message["total_steps"]}
                        self._place.tracing.event("phase", **step)
                    fields = meter.read(message, time.monotonic())
                    await self._updates.put(fields, replaces=message["kind"] == "count")
                case "log":
                    fields = {key: message[key] for key in ("level", "message", "at")}
                    await self._updates.put(fields, name="log")
                case "checkpoint":
                    progress = round(meter.whole(message["progress"]), 2)
                    self.checkpoint = Checkpoint(state=message["state"], progress=progress)
                    self._unsaved.set()
                case "live" if len(self._live) < MOST_LIVE:
                    self._live.append(message["name"])
                    await self._updates.put({"live": {"folder": self._scratch_name, "names": list(self._live)}})
                case "partial":
                    await self._updates.put(self._partial_of(message["value"]), replaces=True)
                case "done":
                    done = message
        if child.left:
            log.warning("processes left behind", task_id=self._task.task_id, count=child.left)
            fields = {"level": "warning", "message": LEFT_RUNNING, "at": rfc3339(utc_now())}
            await self._updates.put(fields, name="log")
        return done

    def _partial_of(self, value: Any) -> dict[str, Any]:
        """The fields of a partial result. One that is too large for an event is in `GET /tasks/{id}` alone."""
        self._partial_bytes = len(text_of(value))
        if self._partial_bytes <= PARTIAL_EVENT_BYTES:
            return {"partial": value, "whole_partial": None}
        self._partial_bytes = len(text_of(TOO_LARGE))
        return {"partial": TOO_LARGE, "whole_partial": value}

    async def _publish(self) -> None:
        task_id, publisher = self._task.task_id, self._place.publisher
        fence: Any = {"allowed": (Status.PROCESSING,), **self._claim.fence}
        while True:
            # Before the wait: a cancellation that the last write swallowed would never be heard in it.
            heed_cancellation()
            if (update := await self._updates.take()) is None:
                return
            name, fields = update
            if not name:
                shows = "partial" in fields
                try:
                    await publisher.change(task_id, fields, within_words=shows, **fence)
                except WordsFull:
                    await self._leave_out("partial results", 1)
                    fields = {key: value for key, value in fields.items() if key not in ("partial", "whole_partial")}
                    await publisher.change(task_id, fields, **fence)
                continue
            try:
                await publisher.emit(task_id, name, fields, **fence)
            except WordsFull:
                await self._leave_out("log lines", 1 + fields["message"].count("\n"))

    async def _keep_checkpoints(self) -> None:
        """The newest, one at a time: what comes while Redis is slow or away replaces what waits."""
        while True:
            heed_cancellation()
            await self._unsaved.wait()
            self._unsaved.clear()
            assert self.checkpoint is not None
            task, kept = self._task, self.checkpoint
            try:
                await self._place.publisher.checkpoint(task.task_id, kept, owner=task.owner, **self._claim.fence)
            except WordsFull:
                await self._leave_out("checkpoints", 1)

    async def _leave_out(self, what: str, count: int) -> None:
        """Said once when it begins, and counted at the end; neither has to fit."""
        if not self._left_out:
            await self._say(LEFT_OUT)
        self._left_out[what] += count

    async def _say(self, words: str) -> None:
        fields = {"level": "warning", "message": words, "at": rfc3339(utc_now())}
        fence: Any = {"allowed": (Status.PROCESSING,), **self._claim.fence}
        await self._place.publisher.emit(self._task.task_id, "log", fields, must_fit=False, **fence)

    async def _finish(self, done: dict[str, Any], scratch: Path, left_seconds: float) -> None:
        """`left_seconds`: of what one attempt may take. Raises TimeoutError."""
        task_id, storage, folder = self._task.task_id, self._place.storage, results_folder_of(self._claim)
        # Results are moved for an attempt that still counts.
        await self._place.publisher.checkpoint(task_id, None, owner=self._task.owner, **self._claim.fence)
        self.has_results = True
        check_capacity = await self._room()  # a Redis that is away is waited for, and is not the processor's time
        async with asyncio.timeout(left_seconds):
            kept = await storage.keep_results(task_id, folder, scratch, done["outputs"], check_capacity)
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
        result = Result(summary=done["summary"], files=files)
        await self._place.publisher.complete(
            task_id, result, results_name=folder, partial_bytes=self._partial_bytes, **self._claim.fence
        )
        log.info("attempt completed", task_id=task_id, attempt=self._claim.attempt)

    async def _room(self) -> Callable[[int], None]:
        """What is asked with the size of the results before they are read: whether one attempt may have so much on the
        disk, and whether their owner may hold it too. Raises ProcessorFailure, QuotaFull then."""
        limit_bytes = int(self._place.settings.task_disk_bytes)
        quota_bytes = int(self._place.settings.owner_quota_bytes)
        held_bytes = await self._place.reader.stored_bytes(self._task.owner) if quota_bytes else 0

        def check(size_bytes: int) -> None:
            if (over := over_disk(Measured(size_bytes), limit_bytes)) is not None:
                raise over
            if quota_bytes and size_bytes and held_bytes + size_bytes > quota_bytes:
                raise QuotaFull.of(held_bytes, quota_bytes)

        return check


def results_folder_of(claim: Claim) -> str:
    return results_folder(claim.attempt, claim.token)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
