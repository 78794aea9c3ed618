"""Reports of outside producers become their task's state: by the one publisher, under the fence of the attempt.

A report is read, applied and written; where somebody else wrote in between (`as_of`), it is read and applied again. So
two reports at once both count, and none is lost. Rate and time left are this process's estimate, from what it heard.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from headway.api.producing.reports import WAITS, Line, Report, UnknownPhase, applied, fresh, lines_of
from headway.shared.errors import Conflict, HeadwayError, InvalidRequest, Refused, WordsFull
from headway.shared.redis.client import AWAY
from headway.shared.tasks.meter import Meter
from headway.shared.tasks.models import (
    ErrorType,
    FieldError,
    OwnerId,
    ProducedFile,
    Producer,
    Result,
    ResultFile,
    Status,
    Task,
    TaskId,
    file_url,
    rfc3339,
    utc_now,
)
from headway.shared.tasks.progress import LEFT_OUT, Publisher
from headway.shared.tasks.reader import Reader

#: Estimates that are remembered; those of producers that were heard longest ago begin anew.
METERS: Final = 10_000
#: Each time somebody else was quicker.
TRIES: Final = 50
#: A result's entry stands in the task's state.
MOST_FILES: Final = 1000


class Producers:
    """Errors of all methods: UnknownTask, Conflict (the task has ended, another attempt has it, or a worker runs it),
    headway.shared.redis.client.AWAY."""

    def __init__(self, publisher: Publisher, reader: Reader) -> None:
        self._publisher = publisher
        self._reader = reader
        self._meters: OrderedDict[tuple[TaskId, int], Meter] = OrderedDict()
        self._told_left_out: OrderedDict[tuple[TaskId, int], None] = OrderedDict()

    async def report(self, task_id: TaskId, owner: OwnerId, reports: Sequence[Report]) -> tuple[Status, int]:
        """The status and the version after the reports. A cancelled task answers so, and they do not count. Raises
        InvalidRequest for an unknown phase."""
        told = False
        for _ in range(TRIES):
            task = await self._produced(task_id, owner)
            if task.status is Status.CANCELLED:
                return task.status, task.version
            _check(task, {report.attempt for report in reports})
            assert task.producer is not None
            lease_seconds = reports[-1].lease_seconds or task.producer.lease_seconds
            fence: dict[str, Any] = {"attempt": task.attempt, "allowed": (Status.PROCESSING,)}
            new = fresh(task, reports)
            count, others = _applied(task, new)  # before a line is told: a bad report changes nothing
            try:
                if not told and (lines := lines_of(new)):
                    for line in lines:
                        data = {"level": line.level, "message": line.message, "at": rfc3339(utc_now())}
                        write_id = _write_id(task, line)
                        try:
                            version = await self._publisher.emit(
                                task_id, "log", data, write_id=write_id, lease_seconds=lease_seconds, **fence
                            )
                        except WordsFull:
                            version = await self._left_out(task, **fence)
                    told = True
                    if task.started_at is not None and not any(report.changes_the_state for report in new):
                        return task.status, version
                    continue  # with the version that it has now
                if task.started_at is not None and not any(report.changes_the_state for report in new):
                    return task.status, await self._publisher.heard(task, lease_seconds=lease_seconds)
                fields = self._meter_of(task).read(count, time.monotonic()) | others
                if task.started_at is None:  # it was waiting, and begins
                    fields |= {"started_at": rfc3339(utc_now())}
                    fields |= {"message": "Started"} if fields["message"] == WAITS else {}
                fence |= {"as_of": task.version, "lease_seconds": lease_seconds}
                try:
                    version = await self._publisher.change(task_id, fields, within_words=True, **fence)
                except WordsFull:
                    del fields["checkpoint"]
                    version = await self._publisher.change(task_id, fields, **fence)
                    with suppress(Refused):  # it counts, whatever has become of the task since
                        version = await self._left_out(task, attempt=task.attempt, allowed=(Status.PROCESSING,))
            except Refused:
                continue  # what the task is now is looked at again
            return task.status, version
        raise Conflict("Too many report on this task at once. Send it again.")

    async def _left_out(self, task: Task, **fence: Any) -> int:
        """A line or a checkpoint found no room among its owner's words. The report counts all the same, because it is a
        sign of life; that something is left out is said once for an attempt. Returns the version."""
        if (task.task_id, task.attempt) in self._told_left_out:
            return (await self._reader.task(task.task_id)).version
        data = {"level": "warning", "message": LEFT_OUT, "at": rfc3339(utc_now())}
        write_id = hashlib.blake2b(f"left out {task.task_id} {task.attempt}".encode(), digest_size=8).hexdigest()
        version = await self._publisher.emit(task.task_id, "log", data, write_id=write_id, must_fit=False, **fence)
        self._told_left_out[task.task_id, task.attempt] = None
        while len(self._told_left_out) > METERS:
            self._told_left_out.popitem(last=False)
        return version

    async def report_many(
        self, owner: OwnerId, reports: Mapping[TaskId, Sequence[Report]]
    ) -> list[tuple[Status, int] | HeadwayError]:
        """`report` for each of the tasks, at once, so that their writes go to Redis together. One that is refused is
        no other's affair: its error stands in its place."""

        async def told(task_id: TaskId, said: Sequence[Report]) -> tuple[Status, int] | HeadwayError:
            try:
                return await self.report(task_id, owner, said)
            except AWAY:
                raise
            except HeadwayError as refused:
                return refused

        found = await asyncio.gather(*(told(*one) for one in reports.items()), return_exceptions=True)
        for one in found:
            if isinstance(one, BaseException) and (isinstance(one, AWAY) or not isinstance(one, HeadwayError)):
                raise one  # what has counted counts once, also when all of it is sent again with its numbers
        return found  # type: ignore[return-value]

    async def take_over(self, task_id: TaskId, owner: OwnerId, attempt: int | None) -> Task:
        """The next attempt of a task that is `processing`, or has `failed`, from its checkpoint. `attempt`: the one
        that is taken over, where the caller says it. Returns the task as it was before. Raises TooMany."""

        async def write(task: Task) -> Task:
            assert task.producer is not None
            number = task.attempt + 1
            message = f"Started again, as attempt {number}"
            if task.checkpoint is not None:
                message = f"Resuming from the last checkpoint, as attempt {number}"
            producer = Producer(lease_seconds=task.producer.lease_seconds, phases=task.producer.phases)
            fields = Publisher.start_of(task, task.checkpoint) | {
                "status": Status.PROCESSING,
                "attempt": number,
                "message": message,
                "total": task.options.get("total"),
                "unit": task.options.get("unit"),
                "total_steps": len(producer.phases),
                "started_at": rfc3339(utc_now()),
                "finished_at": None,
                "result": None,
                "error": None,
                "produced": {},
                "result_bytes": 0,
                "producer": producer.model_dump(),
            }
            await self._publisher.change(
                task_id,
                fields,
                allowed=(task.status,),
                attempt=task.attempt,
                as_of=task.version,
                lease_seconds=producer.lease_seconds,
                one_more=task.status is Status.FAILED,
            )
            return task

        before: Task = await self._once(task_id, owner, attempt, write, (Status.PROCESSING, Status.FAILED))
        return before

    async def keep(self, task_id: TaskId, owner: OwnerId, name: str, file: ProducedFile, *, attempt: int) -> str | None:
        """A result file that lies in the storage becomes the task's. Returns what the one before it was stored as.
        Raises QuotaFull."""

        async def write(task: Task) -> str | None:
            if len(task.produced) >= MOST_FILES and name not in task.produced:
                raise Conflict(f"A task has at most {MOST_FILES} result files; put many small ones into an archive.")
            before = task.produced.get(name)
            kept = task.produced | {name: file}
            assert task.producer is not None
            await self._publisher.change(
                task_id,
                {
                    "produced": {name: one.model_dump() for name, one in kept.items()},
                    "result_bytes": sum(one.size_bytes for one in kept.values()),
                },
                allowed=(Status.PROCESSING,),
                attempt=task.attempt,
                as_of=task.version,
                lease_seconds=task.producer.lease_seconds,
                within_quota=True,
            )
            return before.stored if before is not None else None

        before: str | None = await self._once(task_id, owner, attempt, write)
        return before

    async def complete(self, task_id: TaskId, owner: OwnerId, attempt: int, summary: dict[str, Any]) -> None:
        async def write(task: Task) -> None:
            files = [
                ResultFile(
                    name=name,
                    size_bytes=file.size_bytes,
                    content_type=file.content_type,
                    sha256=file.sha256,
                    url=file_url(task_id, name),
                )
                for name, file in task.produced.items()
            ]
            result = Result(summary=summary, files=files)
            await self._publisher.complete(task_id, result, attempt=attempt, as_of=task.version)

        await self._once(task_id, owner, attempt, write)

    async def fail(self, task_id: TaskId, owner: OwnerId, attempt: int, message: str, *, retryable: bool) -> None:
        async def write(task: Task) -> None:
            await self._publisher.fail(
                *(task_id, ErrorType.PROCESSOR_ERROR, message),
                retryable=retryable,
                allowed=(Status.PROCESSING,),
                attempt=attempt,
            )

        await self._once(task_id, owner, attempt, write)

    async def running(self, task_id: TaskId, owner: OwnerId, attempt: int | None = None) -> Task:
        """The task, where its producer may still change it."""
        task = await self._produced(task_id, owner)
        _check(task, () if attempt is None else (attempt,))
        return task

    async def _once(
        self,
        task_id: TaskId,
        owner: OwnerId,
        attempt: int | None,
        write: Callable[[Task], Awaitable[Any]],
        allowed: Collection[Status] = (Status.PROCESSING,),
    ) -> Any:
        for _ in range(TRIES):
            task = await self._produced(task_id, owner)
            _check(task, () if attempt is None else (attempt,), allowed)
            try:
                return await write(task)
            except Refused:
                continue
        raise Conflict("Too many change this task at once. Send it again.")

    async def _produced(self, task_id: TaskId, owner: OwnerId) -> Task:
        task = await self._reader.task(task_id, owner)
        if task.producer is None:
            raise Conflict("A worker runs this task, so nobody else reports on it.")
        return task

    def _meter_of(self, task: Task) -> Meter:
        key = (task.task_id, task.attempt)
        if (meter := self._meters.get(key)) is None:
            meter = self._meters[key] = Meter(0.0, time.monotonic(), task.progress)
            while len(self._meters) > METERS:
                self._meters.popitem(last=False)
        self._meters.move_to_end(key)
        return meter


def _check(task: Task, attempts: Any, allowed: Collection[Status] = (Status.PROCESSING,)) -> None:
    if task.status not in allowed:
        raise Conflict(f"The task is {task.status}, so nothing more can be said of it. Stop the work.")
    for attempt in attempts:
        if attempt != task.attempt:
            raise Conflict(f"The task is at attempt {task.attempt}; attempt {attempt} has lost it. Stop the work.")


def _applied(task: Task, reports: Sequence[Report]) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return applied(task, reports)
    except UnknownPhase as error:
        raise InvalidRequest(f"phase: {error}", [FieldError(field="phase", message=str(error))]) from None


def _write_id(task: Task, line: Line) -> str | None:
    """The same for a line that is sent again, so that it counts once."""
    if line.seq is None:
        return None
    name = f"{task.task_id} {task.attempt} {line.seq} {line.place}"
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
