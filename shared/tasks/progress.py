"""The progress channel: the publisher, which changes a task. Who reads it is shared/tasks/reader.py's.

Redis holds one truth per task (shared/keys.py): a hash with the state, a bounded stream of events, a live channel. One
Lua script, progress.lua, changes them together: it checks the attempt and the status, adds one to `version`, writes,
appends, publishes and sets the expiry, or refuses and changes nothing. So there is no event without its state, no
state without its event, and after a terminal event no other, whoever writes late.

The hash's values are JSON texts, so that the script builds an event by joining them and never does arithmetic on them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from importlib.resources import files
from typing import Any, Final

from redis.exceptions import NoScriptError

from headway.shared import keys
from headway.shared.errors import Conflict, QuotaFull, Refused, TooMany, UnknownTask, WordsFull
from headway.shared.json_text import text_of
from headway.shared.redis.client import RedisClient, channel_on
from headway.shared.redis.script_pipeline import ScriptPipeline
from headway.shared.settings import Settings
from headway.shared.tasks.line import script_with_line
from headway.shared.tasks.lost import lost_text
from headway.shared.tasks.models import (
    ACTIVE,
    DELETED,
    TERMINAL,
    TEXT_CHARACTERS,
    Checkpoint,
    ErrorType,
    OwnerId,
    Result,
    Status,
    Task,
    TaskError,
    TaskId,
    rfc3339,
    utc_now,
    waiting,
)
from headway.shared.tasks.queue import WAKE, JobTicket, stop_message
from headway.shared.tasks.reader import LIVE_FIELDS, Reader, patiently
from headway.shared.tracing import OFF, TRACEPARENT, Tracing
from headway.shared.units import DAY_SECONDS
from headway.shared.webhooks.address import webhook_to
from headway.shared.webhooks.outbox import NOTICE_TTL_SECONDS

#: CONTRACT section 4: one event is at most this on the wire. 512 bytes are left for the `id:` line and the rest of the
#: state beside the result.
EVENT_BYTES: Final = 16 * 1024
RESULT_EVENT_BYTES: Final = EVENT_BYTES - 6 * 1024

#: Beside it an event has room for an error and a message of the longest.
PARTIAL_EVENT_BYTES: Final = 8 * 1024


#: The message of a task whose file is another's, which has not ended.
WAITS_FOR_ANOTHER: Final = "Its file is another task's: waiting for that one to end"

#: A task that has not ended is kept at least this long, even where HEADWAY_TASK_TTL_SECONDS is short: a queue without
#: workers over a holiday must not lose anything.
ACTIVE_TTL_SECONDS: Final = 30 * DAY_SECONDS


#: Said on the task itself where its owner's words have no room for more.
LEFT_OUT: Final = (
    "From here on log lines and checkpoints are left out: your tasks' words hold as much of Redis as they may "
    "(HEADWAY_OWNER_WORDS_BYTES). Delete tasks to make room."
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to write: the task as it was claimed, `attempt` with `token` being the fence of every write."""

    task: Task
    attempt: int
    #: The fence beside the attempt: where Redis lost a claim, another worker's may have the same number.
    token: str
    #: The attempt before this one died with its worker.
    took_over: bool

    @property
    def fence(self) -> dict[str, Any]:
        return {"attempt": self.attempt, "claim": self.token}


#: What progress.lua calls KEY.name and ARG.name, in the order in which `Publisher._write` hands them over. ARG.fields
#: is where the fields of the state begin.
_KEYS: Final = ("state", "events", "live", "job")
_ARGUMENTS: Final = (
    *("allowed", "attempt", "write_id", "event", "data", "history_length", "lives_ms", "owner_lives_ms"),
    *("queue", "job_id", "payload", "due_ms", "control", "message", "created_ms", "task_id", "step"),
    *("most_bytes", "claim", "most_tasks", "most_words", "as_of", "lease_ms"),
    *("follows", "webhook", "webhook_lives_ms", "fields"),
)


def _lua(redis: RedisClient) -> str:
    lua = (files("headway.shared.tasks") / "progress.lua").read_text(encoding="utf-8")
    lua = lua.replace("LIVE_FIELDS", ",".join(f"'{name}'" for name in LIVE_FIELDS))
    # One expression, so that Lua makes one string of it; a table of its parts took a tenth of what an event costs.
    state = "..','..".join(
        f"'\"{name}\":'..(given.{name} or values[{place}] or 'null')"
        for place, name in enumerate(LIVE_FIELDS, start=12)
    )
    lua = lua.replace("LIVE_STATE", f"'{{'..{state}..'}}'")
    return script_with_line(lua, _KEYS, _ARGUMENTS, redis)


class Publisher:
    """Every change of a task. Each method is one call of the script: done whole, or Refused with nothing changed.

    Errors: Refused, and headway.shared.redis.client.AWAY where Redis is not there. A write sent twice because its
    answer was lost counts once, whatever others wrote in between (the script remembers the ids of the last ones).
    """

    def __init__(
        self,
        redis: RedisClient,
        settings: Settings,
        *,
        patient: bool = False,
        tracing: Tracing = OFF,
        on_event: Callable[[], None] = lambda: None,
        most_words: Callable[[], int] = lambda: 0,
    ) -> None:
        """`patient`: wait for a Redis that is away, for ever, instead of raising: for a worker, whose work goes on.
        `on_event` is told of each event that was written. `most_words` says how many bytes of Redis an owner's options,
        notes, log lines, summaries and checkpoints may hold, where a new task, a note, a line or a checkpoint is
        refused for more; 0: no limit."""
        self._most_words = most_words
        self._patient = patient
        self._tracing = tracing
        self._on_event = on_event
        self._redis = redis
        self._calls = ScriptPipeline(redis)
        self._script = redis.register_script(_lua(redis))
        self._keep_checkpoint = redis.register_script(self._CHECKPOINT)
        self._let_go = redis.register_script(self._LET_GO)
        self._hear = redis.register_script(self._HEARD)
        self._settings = settings
        self._ttl_seconds = settings.task_ttl_seconds
        self._active_ttl_seconds = max(settings.task_ttl_seconds, ACTIVE_TTL_SECONDS)
        self._webhook_ttl_seconds = max(settings.task_ttl_seconds, NOTICE_TTL_SECONDS)
        self._webhook_of_all = text_of(webhook_to(settings.webhook_url).model_dump()) if settings.webhook_url else ""

    async def create(self, task: Task) -> int:
        """Makes the task known with its first event, and queues it if it is `queued`. Returns the version.

        Raises QuotaFull where its file is more than its owner may still hold, TooMany where the owner may have no more
        unfinished tasks."""
        fields, write = self._creation(task)
        if task.status is Status.QUEUED and task.follows is None:
            return await self._queue(task, task.attempt, fields, allowed=(), **write)
        return await self._write(task.task_id, fields | self._traced(), allowed=(), **write)

    async def create_all(self, tasks: Sequence[Task]) -> None:
        """The first as `create`; each other one follows the one before it. All of them in one step or none: only the
        first can be refused, and none follows a task that is not there. Raises as `create`."""
        if len(tasks) == 1:
            await self.create(tasks[0])
            return
        first, *others = tasks
        limit, words = self._settings.max_unfinished_tasks, self._most_words()
        if limit and limit <= len(others):
            raise TooMany.tasks(0, limit)
        calls = []
        for task in tasks:
            fields, write = self._creation(task)
            if task.status is Status.QUEUED and task.follows is None:
                here = self._traced().get(TRACEPARENT)
                ticket = JobTicket.new(task.task_id, task.attempt, here, task.not_before)
                write |= {"ticket": ticket, "ttl_seconds": self._active_ttl_seconds + ticket.wait_seconds}
            if task is not first:
                write |= {"within_quota": False, "one_more": False, "within_words": False}
            keys_of, args = self._call(task.task_id, fields | self._traced(), allowed=(), **write)
            if task is first:
                places = {name: place for place, name in enumerate(_ARGUMENTS)}
                if limit:
                    args[places["most_tasks"]] = limit - len(others)
                if words:
                    args[places["most_words"]] = words - sum(len(text_of(one.options)) for one in others)
            calls.append((keys_of, args))
        answers = await patiently(partial(self._at_once, calls), self._patient)
        for reason, detail in answers:
            self._answered(reason, detail)

    async def _at_once(self, calls: Sequence[tuple[list[str], list[Any]]]) -> list[Any]:
        for _ in range(2):
            async with self._redis.pipeline(transaction=True) as pipe:
                for keys_of, args in calls:
                    pipe.evalsha(self._script.sha, len(keys_of), *keys_of, *args)
                answers = await pipe.execute(raise_on_error=False)
            broken = [answer for answer in answers if isinstance(answer, Exception)]
            if not any(isinstance(error, NoScriptError) for error in broken):
                break
            await self._redis.script_load(self._script.script)  # a Redis that has just started
        if broken:
            raise broken[0]
        return answers

    def _creation(self, task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of a new task, and what its first write is besides."""
        fields = task.model_dump(mode="json") | {
            "owner": task.owner,
            "progress_base": task.progress_base,
            "losses": task.losses,
            "input_name": task.input_name,
            "input_sha256": task.input_sha256,
            "upload_expires_at": rfc3339(task.upload_expires_at) if task.upload_expires_at else None,
            "upload_metadata": task.upload_metadata,
            "declared_sha256": task.declared_sha256,
        }
        del fields["version"]
        if task.producer is not None:
            fields["producer"] = task.producer.model_dump()
        if task.webhook is not None:
            fields["webhook"] = task.webhook.model_dump()
        write: dict[str, Any] = {
            "created_ms": task.created_at.timestamp() * 1000,
            "within_quota": True,
            "one_more": True,
            "within_words": True,
        }
        if task.follows is not None:
            write["follows"] = task.follows
        if task.producer is not None:
            write["lease_seconds"] = task.producer.waits_seconds or task.producer.lease_seconds
        return fields, write

    async def change(
        self, task_id: TaskId, fields: Mapping[str, Any], *, allowed: Collection[Status], **fence: Any
    ) -> int:
        """Writes `fields` and sends a state event. `attempt` and `claim` are the fence of a worker's write."""
        return await self._write(task_id, {**fields, "updated_at": _now()}, allowed=allowed, **fence)

    async def emit(
        self,
        task_id: TaskId,
        name: str,
        data: Mapping[str, Any],
        *,
        allowed: Collection[Status] = tuple(Status),
        must_fit: bool = True,
        **fence: Any,
    ) -> int:
        """Sends a named event (`log`, `note`); the state stays as it is but for its version. Raises WordsFull, unless
        `must_fit` is False: for the little that has to be said of what did not fit."""
        event = (name, {"task_id": task_id, **data})
        return await self._write(task_id, {}, allowed=allowed, event=event, within_words=must_fit, **fence)

    async def tell(self, task: Task, name: str, data: Mapping[str, Any]) -> None:
        """A named event to those who watch at this moment (`transfer`). It is kept nowhere and has no version, so
        however many a reader causes, the history of what was written has room for what was written."""
        text = text_of({"task_id": task.task_id, **data})
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.publish(channel_on(self._redis, keys.channel(task.task_id)), f"0 {name} {text}")
            feed = channel_on(self._redis, keys.OWNER_LIVE) % task.owner
            pipe.publish(feed, f"0 {task.task_id} 0 {task.batch_id or ''} {name} {text}")
            await pipe.execute()

    async def enqueue(self, task: Task, fields: Mapping[str, Any]) -> int:
        """`uploading` → `queued`: the file is whole on disk. Raises QuotaFull."""
        fields = {**fields, "status": Status.QUEUED, "message": waiting(task.not_before), "updated_at": _now()}
        fields |= {"rate": None, "eta_seconds": None}
        fence: dict[str, Any] = {"allowed": (Status.UPLOADING,), "attempt": task.attempt}
        return await self._queue(task, task.attempt, fields, link=task.traceparent, **fence, within_quota=True)

    async def _queue(
        self,
        task: Task,
        queued: int,
        fields: Mapping[str, Any],
        *,
        parent: str | None = None,
        link: str | None = None,
        not_before: datetime | None = None,
        **write: Any,
    ) -> int:
        """A write that puts the job of attempt `queued` in the line, not before the task's own time or this one.
        `parent` and `link`: of its span."""
        about: dict[str, Any] = {"task_id": task.task_id, "attempt": queued}
        with self._tracing.span("enqueue", "producer", parent=parent, link=link, **about):
            traced = self._traced()
            ticket = JobTicket.new(task.task_id, queued, traced.get(TRACEPARENT), not_before or task.not_before)
            if ticket.due_ms is not None:
                write["ttl_seconds"] = self._active_ttl_seconds + ticket.wait_seconds
            return await self._write(task.task_id, {**fields, **traced}, ticket=ticket, **write)

    async def take_input(self, task: Task, fields: Mapping[str, Any]) -> int:
        """The file that a task waited for is there: its job is queued. Raises QuotaFull; Refused where anything else
        has been written of it meanwhile."""
        fields = {**fields, "status": Status.QUEUED, "message": waiting(task.not_before), "updated_at": _now()}
        fence: dict[str, Any] = {"allowed": (Status.QUEUED,), "attempt": task.attempt, "as_of": task.version}
        return await self._queue(task, task.attempt, fields, link=task.traceparent, **fence, within_quota=True)

    def _traced(self) -> dict[str, str]:
        """What joins whatever happens next to the task to the span of this moment."""
        here = self._tracing.here()
        return {} if here is None else {TRACEPARENT: here}

    async def claim(self, task_id: TaskId, reader: Reader) -> Claim | None:
        """Takes a task for this worker: `queued` as it is, `processing` (its worker is gone) as the next attempt.

        None: there is nothing to do, because the task has ended, is unknown, or was taken by somebody quicker; or
        because its workers died HEADWAY_MAX_ATTEMPTS times, in which case this call has failed it (`worker_lost`).
        """
        with suppress(UnknownTask, Refused):
            task = await reader.task(task_id)
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
            message = "Starting" if task.checkpoint is None else "Resuming from the last checkpoint"
            if took_over:
                message = f"The worker was lost, {message.lower()} as attempt {attempt}"
            token = secrets.token_hex(8)
            fields = self.start_of(task, task.checkpoint) | {
                "status": Status.PROCESSING,
                "attempt": attempt,
                "claim": token,
                "losses": losses,
                "message": message,
                "started_at": _now(),
            }
            await self.change(task_id, fields | self._traced(), allowed=(task.status,), attempt=task.attempt)
            return Claim(task, attempt, token, took_over)
        return None

    #: A checkpoint is private and no event, so the version stays; the fence is that of every other write. It takes the
    #: place of the one before, also among its owner's words.
    _CHECKPOINT: Final = """
    local known = redis.call('HMGET', KEYS[1], 'attempt', 'status', 'claim', 'checkpoint')
    if known[1] ~= ARGV[1] or known[2] ~= '"processing"' or (ARGV[2] ~= '' and known[3] ~= ARGV[2]) then return 0 end
    if not ARGV[3] then return 1 end
    local kept = redis.call('HMGET', KEYS[2], 'total', ARGV[4])
    local total, held = tonumber(kept[1]) or 0, tonumber(kept[2]) or 0
    local words = math.max(0, held + #ARGV[3] - (known[4] and known[4] ~= 'null' and #known[4] or 0))
    if tonumber(ARGV[5]) > 0 and words > held and total + words - held > tonumber(ARGV[5]) then return 2 end
    redis.call('HSET', KEYS[1], 'checkpoint', ARGV[3])
    redis.call('HSET', KEYS[2], 'total', string.format('%d', math.max(0, total + words - held)), ARGV[4],
      string.format('%d', words))
    redis.call('PEXPIRE', KEYS[2], ARGV[6])
    return 1
    """

    async def checkpoint(
        self,
        task_id: TaskId,
        checkpoint: Checkpoint | None,
        *,
        owner: OwnerId,
        attempt: int,
        claim: str | None = None,
    ) -> None:
        """Keeps where the next attempt goes on, should this one be lost. Nobody is told. With None nothing is kept, and
        only the fence is asked. Raises WordsFull: then the one before is kept."""
        args: list[Any] = [attempt, text_of(claim) if claim else ""]
        if checkpoint is not None:
            args += [text_of(checkpoint.model_dump()), task_id, self._most_words(), self._active_ttl_seconds * 1000]
        here = [keys.state(task_id), keys.OWNER_WORDS % owner]
        kept = await patiently(partial(self._calls.call, self._keep_checkpoint, here, args), self._patient)
        if kept == 2:
            raise WordsFull
        if not kept:
            raise Refused("stale")

    #: A sign of life that says nothing else is no event either.
    _HEARD: Final = """
    local known = redis.call('HMGET', KEYS[1], 'attempt', 'status', 'version')
    if known[1] ~= ARGV[1] or known[2] ~= '"processing"' then return {0, known[2]} end
    local time = redis.call('TIME')
    redis.call('ZADD', KEYS[2], string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2]), ARGV[3])
    redis.call('PEXPIRE', KEYS[2], ARGV[4])
    return {1, known[3]}
    """

    async def heard(self, task: Task, *, lease_seconds: float) -> int:
        """The producer of a task lives, and has nothing to say. Returns the version. Raises Refused."""
        args: list[Any] = [task.attempt, int(lease_seconds * 1000), task.task_id, self._active_ttl_seconds * 1000]
        here = [keys.state(task.task_id), keys.PRODUCERS]
        alive, told = await patiently(partial(self._calls.call, self._hear, here, args), self._patient)
        if not alive:
            raise Refused("status", json.loads(told) if told else None)
        return int(told)

    @staticmethod
    def start_of(task: Task, checkpoint: Checkpoint | None) -> dict[str, Any]:
        fields = _fresh_attempt(task)
        if checkpoint is not None:
            fields["progress"] = checkpoint.progress
        return fields

    async def give_back(self, claim: Claim, message: str, checkpoint: Checkpoint | None = None) -> int:
        """`processing` → `queued` as the next attempt, for a worker that is told to stop. The arq job stays."""
        fields = self.start_of(claim.task, checkpoint) | {
            "checkpoint": checkpoint.model_dump() if checkpoint else None,
            "status": Status.QUEUED,
            "attempt": claim.attempt + 1,
            "message": message,
        }
        return await self.change(claim.task.task_id, fields, allowed=(Status.PROCESSING,), **claim.fence)

    async def try_again(
        self, claim: Claim, reason: str, checkpoint: Checkpoint | None, *, most: int, wait: timedelta
    ) -> int:
        """`processing` → `queued` as the next attempt, which starts after `wait` from the newest checkpoint: an attempt
        failed whose processor wants another. The stream goes on."""
        task, retried, due = claim.task, claim.task.retried + 1, utc_now() + wait
        message = f"Retry {retried} of {most} at {rfc3339(due)}: {reason}"
        fields = self.start_of(task, checkpoint) | {
            "checkpoint": checkpoint.model_dump() if checkpoint else None,
            "status": Status.QUEUED,
            "attempt": claim.attempt + 1,
            "retried": retried,
            "message": message[:TEXT_CHARACTERS],
            "updated_at": _now(),
        }
        again: dict[str, Any] = {"parent": task.traceparent} if task.traceparent else {}
        fence: dict[str, Any] = {"allowed": (Status.PROCESSING,), **claim.fence}
        return await self._queue(task, claim.attempt + 1, fields, not_before=due, **again, **fence)

    async def complete(
        self,
        task_id: TaskId,
        result: Result,
        *,
        results_name: str | None = None,
        partial_bytes: int = 0,
        **fence: Any,
    ) -> int:
        """`processing` → `completed`. The files are in their place already, `results_name`. A large result is cut
        in the event only, in which `partial_bytes` are taken."""
        most_bytes = RESULT_EVENT_BYTES - partial_bytes
        whole = result.model_dump(mode="json", exclude_defaults=False)
        live = whole
        fields: dict[str, Any] = {}
        if len(text_of(whole)) > most_bytes:
            fields["whole_result"] = whole
            live = {"summary": {}, "files": [], "truncated": True}
            for file in whole["files"]:
                live["files"].append(file)
                if len(text_of(live)) > most_bytes:
                    live["files"].pop()
                    break
        fields |= {"progress": 100, "message": "Done", "eta_seconds": 0, "result": live, "results_name": results_name}
        fields["result_bytes"] = sum(file.size_bytes for file in result.files)
        return await self._end(task_id, Status.COMPLETED, fields, allowed=(Status.PROCESSING,), **fence)

    async def fail(
        self,
        task_id: TaskId,
        error_type: ErrorType,
        message: str,
        *,
        retryable: bool = False,
        allowed: Collection[Status] = ACTIVE,
        **fence: Any,
    ) -> int:
        """Any active state → `failed`. The checkpoint is kept for a retry where the work itself was not to blame."""
        error = TaskError(type=error_type, message=message[:TEXT_CHARACTERS], retryable=retryable)
        fields = {"message": error.message, "error": error.model_dump(mode="json"), "eta_seconds": None}
        return await self._end(task_id, Status.FAILED, fields, allowed=allowed, keep_checkpoint=retryable, **fence)

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
        """`failed` or `cancelled` → `queued`, as the next attempt of the same task: from its checkpoint after an error
        that was `retryable`, which is not the work's own; else from the start. Raises Conflict, UnknownTask,
        TooMany."""
        attempt = task.attempt + 1
        fields = self.start_of(task, task.checkpoint) | {
            "status": Status.QUEUED,
            "attempt": attempt,
            "losses": 0,
            "retried": 0,
            "message": waiting(task.not_before),
            "started_at": None,
            "finished_at": None,
            "updated_at": _now(),
            "result": None,
            "error": None,
        }
        try:
            fence: dict[str, Any] = {"allowed": (Status.FAILED, Status.CANCELLED), "attempt": task.attempt}
            fence["one_more"] = True
            if task.follows is not None:
                waits = {"message": WAITS_FOR_ANOTHER, **self._traced()}
                return await self._write(task.task_id, fields | waits, follows=task.follows, **fence)
            # In the trace that it has, whoever asks for it again.
            again: dict[str, Any] = (
                {"parent": task.traceparent, "link": self._tracing.here()} if task.traceparent else {}
            )
            return await self._queue(task, attempt, fields, **again, **fence)
        except Refused as refused:
            raise _conflict(refused, "Only a failed or cancelled task can be retried.") from None

    async def delete(self, task: Task) -> None:
        """An ended task is forgotten, with its history, and whoever watches the feeds of its owner is told. Raises
        Conflict while it is active. Its files are to be removed next, which `files_removed` is told of."""
        event = (DELETED, {"task_id": task.task_id, "batch_id": task.batch_id, "at": _now()})
        try:
            await self._write(task.task_id, {}, allowed=TERMINAL, event=event, deleted=True)
        except Refused as refused:
            if refused.reason != "unknown":  # else it is gone: by this, whose answer was lost, or by somebody quicker
                raise Conflict(f"The task is {refused.status}. Cancel it first.") from None

    async def files_removed(self, task_ids: Collection[TaskId]) -> None:
        """Of deleted tasks: nobody else needs to see to them."""
        await self._redis.zrem(keys.DELETED, *task_ids)

    #: Tasks that Redis no longer knows, because they expired or were thrown away, are in no index of their owner, hold
    #: none of its bytes and words and are not replayed. Each is told on the owner's feed, once: `deleted`, or, where it
    #: had not ended, its last state, `lost`. One that was never made, of which nothing is left but a reservation that
    #: has run out, is told to nobody. KEYS: the owner's bytes, events, indexes and number, the epoch, the owner's
    #: reservations and words. ARGV: how a state's key begins, the feed's channel, its length, the event of a deletion,
    #: the lost state, then the tasks.
    _LET_GO: Final = """
    local time = redis.call('TIME')
    local now_ms = time[1] * 1000
    redis.call('ZREMRANGEBYSCORE', KEYS[8], '-inf', now_ms - 86400000)
    local gone, order, total = {}, {}, tonumber(redis.call('HGET', KEYS[1], 'total')) or 0
    for i = 6, #ARGV do
      local reserved_ms = tonumber(redis.call('ZSCORE', KEYS[8], ARGV[i]) or nil)
      if redis.call('EXISTS', ARGV[1] .. ARGV[i]) == 0 and not gone[ARGV[i]]
        and (not reserved_ms or reserved_ms <= now_ms) then
        order[#order + 1] = ARGV[i]
        gone[ARGV[i]] = {version = 0, batch = '', progress = '0', attempt = '1', reserved = reserved_ms}
        total = total - (tonumber(redis.call('HGET', KEYS[1], ARGV[i])) or 0)
      end
    end
    if not order[1] then return 0 end
    local events, from, last = {}, '-', 0
    while from do
      local page = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', 100)
      for _, entry in ipairs(page) do
        local values = entry[2]
        local task = gone[values[2]]
        last = tonumber(string.match(entry[1], '%d+'))
        if task and values[8] ~= 'deleted' then
          events[#events + 1] = {entry[1], task}
          task.version, task.batch = tonumber(values[4]), values[6]
          task.progress = values[8] == '' and string.match(values[10], '"progress":([%d.]+)') or task.progress
          task.attempt = values[8] == '' and string.match(values[10], '"attempt":(%d+)') or task.attempt
        end
      end
      from = page[100] and '(' .. page[100][1]
    end
    redis.call('ZCARD', KEYS[3])
    redis.call('ZCARD', KEYS[4])
    local epoch = tonumber(redis.call('HGET', KEYS[7], 'number') or 0)
    local number = tonumber(redis.call('GET', KEYS[6]))
    number = number and math.max(number, last, epoch * 1000000)
    for _, task_id in ipairs(order) do
      local task = gone[task_id]
      task.lives = redis.call('SREM', KEYS[5], task_id) == 1
      task.known = task.lives
      if redis.call('HDEL', KEYS[1], task_id) == 1 then
        redis.call('HSET', KEYS[1], 'total', string.format('%d', math.max(0, total)))
        task.known = task.known or not task.reserved
      end
      redis.call('ZREM', KEYS[8], task_id)
      local held = tonumber(redis.call('HGET', KEYS[9], task_id)) or 0
      if redis.call('HDEL', KEYS[9], task_id) == 1 then redis.call('HINCRBY', KEYS[9], 'total', -held) end
      if redis.call('ZREM', KEYS[3], task_id) + redis.call('ZREM', KEYS[4], task_id) > 0 then task.known = true end
    end
    for _, event in ipairs(events) do
      if event[2].known then redis.pcall('XDEL', KEYS[2], event[1]) end
    end
    for _, task_id in ipairs(order) do
      local task = gone[task_id]
      if task.known and number then -- else somebody has told it, or nobody has ever been told anything
        number = number + 1
        local at, version = string.format('%d', number), string.format('%d', task.version + 1)
        local name, data = 'deleted', ARGV[4]
        if task.lives then name, data = '', ARGV[5] end
        local words = {TASK = '"' .. task_id .. '"', BATCH = task.batch == '' and 'null' or '"' .. task.batch .. '"',
          VERSION = version, PROGRESS = task.progress, ATTEMPT = task.attempt}
        data = string.gsub(data, '"<(%u+)>"', words)
        redis.call('XADD', KEYS[2], 'MAXLEN', '=', ARGV[3], at .. '-0', 't', task_id, 'v', version, 'b', task.batch,
          'n', name, 'd', data)
        redis.call('PUBLISH', ARGV[2], at .. ' ' .. task_id .. ' ' .. version .. ' ' .. task.batch .. ' ' .. name
          .. ' ' .. data)
      end
    end
    if number then
      redis.call('SET', KEYS[6], string.format('%d', number), 'KEEPTTL')
      redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[6]))
    end
    return #order
    """

    async def let_go(self, owner: OwnerId, task_ids: Collection[TaskId]) -> None:
        """Those of the tasks that Redis no longer knows are no longer their owner's, and whoever watches is told."""
        patterns = (keys.OWNER_STORED, keys.OWNER_EVENTS, keys.OWNER_CHANGED, keys.OWNER_TASKS, keys.OWNER_ACTIVE)
        if task_ids:
            deleted = text_of({"task_id": "<TASK>", "batch_id": "<BATCH>", "at": _now()})
            args: list[Any] = [
                keys.state(TaskId("")),
                channel_on(self._redis, keys.OWNER_LIVE) % owner,
                self._settings.history_length,
            ]
            args += [deleted, lost_text(), *task_ids]
            here = [pattern % owner for pattern in (*patterns, keys.OWNER_VERSION)]
            held = (keys.OWNER_RESERVED % owner, keys.OWNER_WORDS % owner)
            await self._let_go(keys=[*here, keys.EPOCH, *held], args=args)

    async def _end(
        self, task_id: TaskId, status: Status, fields: Mapping[str, Any], *, keep_checkpoint: bool = False, **write: Any
    ) -> int:
        now = _now()
        ended = {**fields, "status": status, "rate": None, "finished_at": now, "updated_at": now}
        if not keep_checkpoint:
            ended["checkpoint"] = None
        if status is not Status.COMPLETED:  # what an outside producer has sent goes with it
            ended |= {"result_bytes": 0, "produced": {}}
        return await self._write(task_id, ended, ttl_seconds=self._ttl_seconds, ended=True, **write)

    async def _write(self, task_id: TaskId, fields: Mapping[str, Any], **write: Any) -> int:
        keys_of, args = self._call(task_id, fields, **write)
        call = partial(self._calls.call, self._script, keys=keys_of, args=args)
        return self._answered(*await patiently(call, self._patient))

    def _call(
        self,
        task_id: TaskId,
        fields: Mapping[str, Any],
        *,
        allowed: Collection[Status],
        attempt: int | None = None,
        claim: str | None = None,
        event: tuple[str, Mapping[str, Any]] | None = None,
        ticket: JobTicket | None = None,
        dequeue: str = "",
        control: str = "",
        created_ms: float | None = None,
        ttl_seconds: int | None = None,
        ended: bool = False,
        deleted: bool = False,
        within_quota: bool = False,
        one_more: bool = False,
        within_words: bool = False,
        as_of: int | None = None,
        lease_seconds: float | None = None,
        lease_over: bool = False,
        write_id: str | None = None,
        follows: TaskId | None = None,
    ) -> tuple[list[str], list[Any]]:
        """Keys and arguments of one call of the script. `write_id`: what makes two writes the same one, where the
        caller may send it again."""
        ttl_seconds = self._active_ttl_seconds if ttl_seconds is None else ttl_seconds
        job = ticket.job_id if ticket else dequeue
        queue_action = "add" if ticket else "remove" if dequeue else ""
        name, data = event or ("", None)
        named_keys = {
            "state": keys.state(task_id),
            "events": keys.events(task_id),
            "live": channel_on(self._redis, keys.channel(task_id)),
            "job": keys.job(job),
        }
        quota_bytes = self._settings.owner_quota_bytes if within_quota else 0
        arguments = {
            "allowed": f",{','.join(allowed)}," if allowed else "",
            "attempt": "" if attempt is None else attempt,
            "claim": text_of(claim) if claim else "",
            "write_id": write_id or secrets.token_hex(8),
            "event": name,
            "data": "" if data is None else text_of(data),
            "history_length": self._settings.history_length,
            "lives_ms": ttl_seconds * 1000,
            "owner_lives_ms": self._active_ttl_seconds * 1000,
            "queue": queue_action,
            "job_id": job,
            "payload": ticket.payload if ticket else "",
            "due_ms": ticket.due_ms if ticket and ticket.due_ms else "",
            "control": channel_on(self._redis, keys.CONTROL),
            "message": WAKE if ticket else control,
            "created_ms": "" if created_ms is None else int(created_ms),
            "task_id": task_id,
            "step": "deletes" if deleted else "ends" if ended else "",
            "most_bytes": int(quota_bytes) if quota_bytes else "",
            "most_tasks": (one_more and self._settings.max_unfinished_tasks) or "",
            "most_words": (within_words and self._most_words()) or "",
            "as_of": "" if as_of is None else as_of,
            "follows": follows or "",
            "webhook": self._webhook_of_all if ended else "",
            "webhook_lives_ms": self._webhook_ttl_seconds * 1000,
            "lease_ms": "over" if lease_over else "" if lease_seconds is None else int(lease_seconds * 1000),
        }
        args = [*(arguments[argument] for argument in _ARGUMENTS[:-1]), *_flat(fields)]
        return [named_keys[key] for key in _KEYS], args

    def _answered(self, reason: Any, detail: Any) -> int:
        """The version. Raises Refused and what else the script refuses for."""
        if reason == b"ok":
            self._on_event()
            return int(detail)
        if reason == b"quota":
            raise QuotaFull.of(int(detail), int(self._settings.owner_quota_bytes))
        if reason == b"words":
            raise WordsFull
        if reason == b"source":
            raise UnknownTask("There is no task with the id in `input`.")
        if reason == b"many":
            raise TooMany.tasks(int(detail), self._settings.max_unfinished_tasks)
        raise Refused(reason.decode(), (detail or b"").decode().strip('"') or None)


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
        "partial": None,
        "whole_partial": None,
        "live": None,
    }


def _conflict(refused: Refused, why: str) -> Exception:
    if refused.reason == "unknown":
        return UnknownTask()
    return Conflict(f"The task is {refused.status}. {why}")


def _now() -> str:
    return rfc3339(utc_now())
