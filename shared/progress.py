"""The progress channel: the publisher, which changes a task, and the feed, which reads it, side by side.

Redis holds one truth per task (shared/keys.py): a hash with the state, a bounded stream of events, a live channel. One
Lua script, progress.lua, changes them together: it checks the attempt and the status, adds one to `version`, writes,
appends, publishes and sets the expiry, or refuses and changes nothing. So there is no event without its state, no
state without its event, and after a terminal event no other, whoever writes late.

The hash's values are JSON texts, so that the script builds an event by joining them and never does arithmetic on them.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from typing import Any, Final

from shared import keys
from shared.errors import Conflict, Refused, UnknownTask
from shared.models import ACTIVE, ErrorType, Event, OwnerId, Result, Status, Task, TaskError, TaskId, rfc3339, utc_now
from shared.queue import WAKE, JobTicket, stop_message
from shared.redis import AWAY, RedisClient
from shared.settings import DAY_SECONDS, Settings

#: The fields of a state event, in their order on the wire. `status` is near the head: Event.is_terminal looks there.
LIVE_FIELDS: Final = (
    *("task_id", "version", "status", "progress", "step", "total_steps", "message"),
    *("done", "total", "unit", "rate", "eta_seconds", "attempt", "size_bytes"),
    *("started_at", "updated_at", "finished_at", "result", "error"),
)

#: CONTRACT section 4: one event is at most this on the wire. 512 bytes are left for the `id:` line and the rest of the
#: state beside the result.
EVENT_BYTES: Final = 16 * 1024
RESULT_EVENT_BYTES: Final = EVENT_BYTES - 6 * 1024

#: A message or a log line longer than this is cut: with every character escaped it still fits an event.
TEXT_CHARACTERS: Final = 500

#: A task that has not ended is kept at least this long, even where HEADWAY_TASK_TTL_SECONDS is short: a queue without
#: workers over a holiday must not lose anything.
ACTIVE_TTL_SECONDS: Final = 30 * DAY_SECONDS


#: Between two tries of a patient publisher: short beside the time a watcher notices, long beside a refused connection.
PATIENCE_SECONDS: Final = 0.3


def text_of(value: Any) -> str:
    """One line of ASCII JSON: no byte of it can end an SSE line."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def state_event(fields: Mapping[bytes, bytes]) -> Event:
    """The snapshot: what progress.lua would publish for the hash as it stands."""
    parts = (b'"%s":%s' % (name, fields.get(name, b"null")) for name in (f.encode() for f in LIVE_FIELDS))
    return Event(int(fields[b"version"]), "", b"{" + b",".join(parts) + b"}")


def decode_message(message: bytes) -> Event:
    """Reads what progress.lua publishes: `{version} {name} {data}`."""
    version, name, data = message.split(b" ", 2)
    return Event(int(version), name.decode(), data)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The truth about a task at one moment: its state, and the history after the version that was asked for.

    `missed_from` is the first version that was asked for and can no longer be replayed, else None.
    """

    task: Task
    state: Event
    history: tuple[Event, ...]
    missed_from: int | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to write: the task as it was claimed, `attempt` being the fence of every write."""

    task: Task
    attempt: int
    #: The attempt before this one died with its worker.
    took_over: bool


@cache
def _lua() -> str:
    names = ",".join(f"'{name}'" for name in LIVE_FIELDS)
    return (files("shared") / "progress.lua").read_text(encoding="utf-8").replace("LIVE_FIELDS", names)


class Publisher:
    """Every change of a task. Each method is one call of the script: done whole, or Refused with nothing changed.

    Errors: Refused, and shared.redis.AWAY where Redis is not there. A write sent twice because its answer was lost
    counts once (the script remembers the last write's id).
    """

    def __init__(self, redis: RedisClient, settings: Settings, *, patient: bool = False) -> None:
        """`patient`: wait for a Redis that is away, for ever, instead of raising: for a worker, whose work goes on."""
        self._patient = patient
        self._redis = redis
        self._script = redis.register_script(_lua())
        self._settings = settings
        self._ttl_seconds = settings.task_ttl_seconds
        self._active_ttl_seconds = max(settings.task_ttl_seconds, ACTIVE_TTL_SECONDS)

    async def create(self, task: Task) -> int:
        """Makes the task known with its first event, and queues it if it is `queued`. Returns the version."""
        ticket = JobTicket.new(task.task_id, task.attempt) if task.status is Status.QUEUED else None
        fields = task.model_dump(mode="json") | {
            "owner": task.owner,
            "progress_base": task.progress_base,
            "losses": task.losses,
            "input_name": task.input_name,
            "input_sha256": task.input_sha256,
        }
        del fields["version"]
        return await self._write(
            task.task_id,
            fields,
            allowed=(),
            owner=task.owner,
            ticket=ticket,
            created_ms=task.created_at.timestamp() * 1000,
        )

    async def change(
        self, task_id: TaskId, fields: Mapping[str, Any], *, allowed: Collection[Status], attempt: int | None = None
    ) -> int:
        """Writes `fields` and sends a state event. `attempt` is the fence of a worker's write."""
        return await self._write(task_id, {**fields, "updated_at": _now()}, allowed=allowed, attempt=attempt)

    async def emit(
        self,
        task_id: TaskId,
        name: str,
        data: Mapping[str, Any],
        *,
        allowed: Collection[Status] = tuple(Status),
        attempt: int | None = None,
    ) -> int:
        """Sends a named event (`log`, `note`, `transfer`); the state stays as it is but for its version."""
        return await self._write(
            task_id, {}, allowed=allowed, attempt=attempt, event=(name, {"task_id": task_id, **data})
        )

    async def enqueue(self, task: Task, fields: Mapping[str, Any]) -> int:
        """`uploading` → `queued`: the file is whole on disk."""
        ticket = JobTicket.new(task.task_id, task.attempt)
        fields = {**fields, "status": Status.QUEUED, "message": "Waiting for a worker", "updated_at": _now()}
        fields |= {"rate": None, "eta_seconds": None}
        return await self._write(task.task_id, fields, allowed=(Status.UPLOADING,), attempt=task.attempt, ticket=ticket)

    async def claim(self, task_id: TaskId, feed: Feed) -> Claim | None:
        """Takes a task for this worker: `queued` as it is, `processing` (its worker is gone) as the next attempt.

        None: there is nothing to do, because the task has ended, is unknown, or was taken by somebody quicker; or
        because its workers died HEADWAY_MAX_ATTEMPTS times, in which case this call has failed it (`worker_lost`).
        """
        with suppress(UnknownTask, Refused):
            task = await feed.task(task_id)
            attempt, losses = task.attempt, task.losses
            if task.status is Status.PROCESSING:
                attempt, losses = attempt + 1, losses + 1
                if losses >= self._settings.max_attempts:
                    message = f"The worker was lost {losses} times while it ran this task. Retry it to try again."
                    await self.fail(task_id, ErrorType.WORKER_LOST, message, retryable=True, attempt=task.attempt)
                    return None
            elif task.status is not Status.QUEUED:
                return None
            took_over = task.status is Status.PROCESSING
            message = f"The worker was lost, starting attempt {attempt}" if took_over else "Starting"
            fields = _fresh_attempt(task) | {
                "status": Status.PROCESSING,
                "attempt": attempt,
                "losses": losses,
                "message": message,
                "started_at": _now(),
            }
            await self.change(task_id, fields, allowed=(task.status,), attempt=task.attempt)
            return Claim(task, attempt, took_over)
        return None

    async def give_back(self, claim: Claim, message: str) -> int:
        """`processing` → `queued` as the next attempt, for a worker that is told to stop. The arq job stays."""
        fields = _fresh_attempt(claim.task) | {
            "status": Status.QUEUED,
            "attempt": claim.attempt + 1,
            "message": message,
        }
        return await self.change(claim.task.task_id, fields, allowed=(Status.PROCESSING,), attempt=claim.attempt)

    async def complete(self, task_id: TaskId, result: Result, *, attempt: int) -> int:
        """`processing` → `completed`. The files are in their place already. A large result is cut in the event only."""
        whole = result.model_dump(mode="json", exclude_defaults=False)
        live = whole
        fields: dict[str, Any] = {}
        if len(text_of(whole)) > RESULT_EVENT_BYTES:
            fields["whole_result"] = whole
            live = {"summary": {}, "files": [], "truncated": True}
            for file in whole["files"]:
                live["files"].append(file)
                if len(text_of(live)) > RESULT_EVENT_BYTES:
                    live["files"].pop()
                    break
        fields |= {"progress": 100, "message": "Done", "eta_seconds": 0, "result": live}
        return await self._end(task_id, Status.COMPLETED, fields, allowed=(Status.PROCESSING,), attempt=attempt)

    async def fail(
        self,
        task_id: TaskId,
        error_type: ErrorType,
        message: str,
        *,
        retryable: bool = False,
        attempt: int | None = None,
    ) -> int:
        """Any active state → `failed`."""
        error = TaskError(type=error_type, message=message[:TEXT_CHARACTERS], retryable=retryable)
        fields = {"message": error.message, "error": error.model_dump(mode="json"), "eta_seconds": None}
        return await self._end(task_id, Status.FAILED, fields, allowed=ACTIVE, attempt=attempt)

    async def cancel(self, task: Task) -> int:
        """Any active state → `cancelled`, at once: what still runs is told to stop and can write nothing any more."""
        fields = {"message": "Cancelled", "eta_seconds": None}
        try:
            return await self._end(
                task.task_id,
                Status.CANCELLED,
                fields,
                allowed=ACTIVE,
                control=stop_message(task.task_id),
                dequeue=keys.job_id(task.task_id, task.attempt),
            )
        except Refused as refused:
            raise _conflict(refused, "It has ended, so there is nothing to cancel.") from None

    async def retry(self, task: Task) -> int:
        """`failed` or `cancelled` → `queued`, as the next attempt of the same task."""
        attempt = task.attempt + 1
        fields = _fresh_attempt(task) | {
            "status": Status.QUEUED,
            "attempt": attempt,
            "losses": 0,
            "message": "Waiting for a worker",
            "started_at": None,
            "finished_at": None,
            "updated_at": _now(),
            "result": None,
            "error": None,
        }
        try:
            return await self._write(
                task.task_id,
                fields,
                allowed=(Status.FAILED, Status.CANCELLED),
                attempt=task.attempt,
                ticket=JobTicket.new(task.task_id, attempt),
            )
        except Refused as refused:
            raise _conflict(refused, "Only a failed or cancelled task can be retried.") from None

    async def delete(self, task: Task) -> None:
        """An ended task is forgotten, with its history. Raises Conflict while it is active."""
        if not task.status.is_terminal:
            raise Conflict(f"The task is {task.status}. Cancel it first.")
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(keys.state(task.task_id), keys.events(task.task_id))
            pipe.zrem(keys.owner_tasks(task.owner), task.task_id)
            await pipe.execute()

    async def _end(self, task_id: TaskId, status: Status, fields: Mapping[str, Any], **write: Any) -> int:
        now = _now()
        ended = {**fields, "status": status, "rate": None, "finished_at": now, "updated_at": now}
        return await self._write(task_id, ended, ttl_seconds=self._ttl_seconds, ended=True, **write)

    async def _write(
        self,
        task_id: TaskId,
        fields: Mapping[str, Any],
        *,
        allowed: Collection[Status],
        attempt: int | None = None,
        event: tuple[str, Mapping[str, Any]] | None = None,
        ticket: JobTicket | None = None,
        dequeue: str = "",
        control: str = "",
        owner: OwnerId | None = None,
        created_ms: float | None = None,
        ttl_seconds: int | None = None,
        ended: bool = False,
    ) -> int:
        ttl_seconds = self._active_ttl_seconds if ttl_seconds is None else ttl_seconds
        job = ticket.job_id if ticket else dequeue
        queue_action = "add" if ticket else "remove" if dequeue else ""
        name, data = event or ("", None)
        write = partial(
            self._script,
            keys=[
                keys.state(task_id),
                keys.events(task_id),
                keys.channel(task_id),
                keys.owner_tasks(owner) if owner else "",
                keys.QUEUE,
                keys.job(job),
            ],
            args=[
                f",{','.join(allowed)}," if allowed else "",
                "" if attempt is None else attempt,
                secrets.token_hex(8),
                name,
                "" if data is None else text_of(data),
                self._settings.history_length,
                ttl_seconds * 1000,
                queue_action,
                job,
                ticket.payload if ticket else "",
                ticket.score_ms if ticket else "",
                self._active_ttl_seconds * 1000,
                keys.CONTROL,
                WAKE if ticket else control,
                "" if created_ms is None else int(created_ms),
                task_id,
                "1" if ended else "",
                *_flat(fields),
            ],
        )
        reason, detail = await _patiently(write, self._patient)
        if reason == b"ok":
            return int(detail)
        raise Refused(reason.decode(), (detail or b"").decode().strip('"') or None)


class Feed:
    """Every reading of a task. Errors: UnknownTask, and shared.redis.AWAY where Redis is not there."""

    def __init__(self, redis: RedisClient, *, patient: bool = False) -> None:
        """`patient`: as the publisher's, for `task` alone."""
        self._redis = redis
        self._patient = patient

    async def task(self, task_id: TaskId, owner: OwnerId | None = None) -> Task:
        """The whole task. With `owner`, another owner's is as unknown as one that never was."""
        fields = await _patiently(partial(self._get_all, keys.state(task_id)), self._patient)
        return _owned(fields, owner)

    async def _get_all(self, key: str) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = await self._redis.hgetall(key)  # type: ignore[misc]
        return found

    async def snapshot(self, task_id: TaskId, owner: OwnerId | None = None, after: int | None = None) -> Snapshot:
        """State and history in one transaction, so that they agree.

        With `after`, `history` is every event kept that has a greater version, in order; without it, empty.
        """
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.state(task_id))
            if after is not None:
                pipe.xrange(keys.events(task_id), min=f"({after}-0")
            fields, *rest = await pipe.execute()
        task = _owned(fields, owner)
        history = tuple(_event(entry) for entry in rest[0]) if rest else ()
        missed_from = None
        if after is not None and after < task.version and (not history or history[0].version > after + 1):
            missed_from = after + 1
        return Snapshot(task, state_event(fields), history, missed_from)

    async def tasks(
        self, owner: OwnerId, *, limit: int, before: tuple[int, TaskId] | None = None
    ) -> list[tuple[Task, tuple[int, TaskId]]]:
        """Up to `limit` of an owner's tasks, newest first, each with its place; `before` is the last one's place.

        Members whose task has expired are taken off the index on the way. An empty list is the end.
        """
        key = keys.owner_tasks(owner)
        top: Any = "+inf" if before is None else before[0]
        bottom: Any = "-inf"
        # Tasks of the same millisecond are ordered by id, so a page that starts inside one skips those seen before.
        while True:
            rows = await self._redis.zrange(
                key, top, bottom, desc=True, byscore=True, offset=0, num=limit + 1 + self._TIES, withscores=True
            )
            places = [(int(score), TaskId(member.decode())) for member, score in rows]
            if before is not None:
                places = [place for place in places if place < before]
            places = places[:limit]
            if not places:
                return []
            async with self._redis.pipeline(transaction=False) as pipe:
                for _, task_id in places:
                    pipe.hgetall(keys.state(task_id))
                found = await pipe.execute()
            gone = [task_id for (_, task_id), fields in zip(places, found, strict=True) if not fields]
            if gone:
                await self._redis.zrem(key, *gone)
            if len(gone) < len(places):
                return [
                    (Task.from_fields(fields), place) for place, fields in zip(places, found, strict=True) if fields
                ]

    _TIES = 256


async def _patiently(call: Callable[[], Awaitable[Any]], patient: bool) -> Any:
    while True:
        try:
            return await call()
        except AWAY:
            if not patient:
                raise
            await asyncio.sleep(PATIENCE_SECONDS)


def _owned(fields: Mapping[bytes, bytes], owner: OwnerId | None) -> Task:
    if not fields:
        raise UnknownTask
    task = Task.from_fields(fields)
    if owner is not None and task.owner != owner:
        raise UnknownTask
    return task


def _event(entry: tuple[bytes, Mapping[bytes, bytes]]) -> Event:
    entry_id, values = entry
    return Event(int(entry_id.partition(b"-")[0]), values[b"n"].decode(), values[b"d"])


def _flat(fields: Mapping[str, Any]) -> Iterable[str]:
    for name, value in fields.items():
        yield name
        yield text_of(value)


def _fresh_attempt(task: Task) -> dict[str, Any]:
    """What an attempt starts from. The bytes of the upload stay counted: they do not come again."""
    return {
        "progress": task.progress_base,
        "step": 0,
        "done": 0,
        "total": None,
        "unit": None,
        "rate": None,
        "eta_seconds": None,
    }


def _conflict(refused: Refused, why: str) -> Exception:
    if refused.reason == "unknown":
        return UnknownTask()
    return Conflict(f"The task is {refused.status}. {why}")


def _now() -> str:
    return rfc3339(utc_now())
