"""The feed: every reading of the progress channel. What is written there is shared/tasks/progress.py's.

Three kinds of truth can be read, each as it stood at one moment, with what came after a version that was seen before:
a task's, an owner's (all its tasks, or some of them, on one feed) and a batch's roll-up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from headway.shared import keys
from headway.shared.cancellation import heed_cancellation
from headway.shared.errors import UnknownTask
from headway.shared.redis.client import AWAY, RedisClient
from headway.shared.redis.script_pipeline import ScriptPipeline
from headway.shared.tasks.models import DELETED, Event, FeedEvent, OwnerId, Status, Task, TaskId

#: The fields of a state event, in their order on the wire. `status` is near the head: Event.is_terminal looks there.
LIVE_FIELDS: Final = (
    *("task_id", "version", "status", "progress", "step", "total_steps", "message"),
    *("done", "total", "unit", "rate", "eta_seconds", "attempt", "size_bytes"),
    *("started_at", "updated_at", "finished_at", "result", "error"),
)

#: A new watcher of all tasks is shown those that have not ended and, of the others, this many that changed last.
SHOWN_TASKS: Final = 100

#: Between two tries of a patient reader or publisher: short beside what a watcher notices, long beside a refusal.
PATIENCE_SECONDS: Final = 0.3


def state_event(fields: Mapping[bytes, bytes]) -> Event:
    """The snapshot: what progress.lua would publish for the hash as it stands."""
    parts = (b'"%s":%s' % (name, fields.get(name, b"null")) for name in (f.encode() for f in LIVE_FIELDS))
    return Event(int(fields[b"version"]), "", b"{" + b",".join(parts) + b"}")


def task_state_event(fields: Mapping[bytes, bytes], number: int) -> FeedEvent:
    """The same, on its owner's feed."""
    state = state_event(fields)
    task_id, batch_id = json.loads(fields[b"task_id"]), json.loads(fields[b"batch_id"])
    return FeedEvent(number, "", state.data, TaskId(task_id), state.version, batch_id or "")


def decode_message(message: bytes) -> Event:
    """Reads what progress.lua publishes: `{version} {name} {data}`."""
    version, name, data = message.split(b" ", 2)
    return Event(int(version), name.decode(), data)


def decode_feed_message(message: bytes) -> FeedEvent:
    """Reads what progress.lua publishes to an owner: `{number} {task_id} {version} {batch_id} {name} {data}`."""
    number, task_id, version, batch_id, name, data = message.split(b" ", 5)
    return FeedEvent(int(number), name.decode(), data, TaskId(task_id.decode()), int(version), batch_id.decode())


@dataclass(frozen=True, slots=True)
class Scope:
    """Which of an owner's tasks: those named, those of a batch, or, with neither, all."""

    task_ids: frozenset[TaskId] | None = None
    batch_id: str | None = None

    def holds(self, event: FeedEvent) -> bool:
        if self.task_ids is not None:
            return event.task_id in self.task_ids
        return self.batch_id is None or event.batch_id == self.batch_id


@dataclass(frozen=True, slots=True)
class OwnerTruth:
    """An owner's feed at one moment.

    `states` are the tasks as they are: all of the scope where nothing was seen before, else those that changed since
    and whose events can no longer be replayed (`missed_from` is then the first number that cannot), with the deletions
    among those events. Each stands under
    the number at which it last changed, in that order, so that who is cut off among them resumes with the others; the
    last one stands under the newest. `history` is what came after what was seen. Of the tasks asked about, `gone` are
    those that Redis does not know, `ended` those that have ended.
    """

    number: int
    states: tuple[FeedEvent, ...]
    history: tuple[FeedEvent, ...]
    missed_from: int | None
    gone: frozenset[TaskId]
    ended: frozenset[TaskId]


@dataclass(frozen=True, slots=True)
class Rows:
    """A page of an owner's tasks, newest first: of each its values as JSON texts, None for one that it has not.

    `number` is that of the owner's last event: it falls only where Redis came back without what it had. `place` is
    where the next page goes on, None at the end. A page may hold fewer tasks than it looked at, those that expired
    being left out, and none at all without being the end.
    """

    number: int
    rows: tuple[Sequence[bytes | None], ...]
    place: tuple[int, TaskId] | None


@dataclass(frozen=True, slots=True)
class Standing:
    """`attempt` with `claim` is the fence of the worker that has the task, or had it last."""

    status: Status
    attempt: int
    claim: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The truth about a task at one moment: its state, and the history after the version that was asked for.

    `missed_from` is the first version that was asked for and can no longer be replayed, else None.
    """

    fields: Mapping[bytes, bytes]
    state: Event
    history: tuple[Event, ...]
    missed_from: int | None

    @property
    def task(self) -> Task:
        return Task.from_fields(self.fields)


class Reader:
    """Every reading of a task. Errors: UnknownTask, and headway.shared.redis.client.AWAY where Redis is not there."""

    def __init__(self, redis: RedisClient, *, patient: bool = False) -> None:
        """`patient`: as the publisher's, for `task` alone."""
        self._redis = redis
        self._patient = patient
        self._calls = ScriptPipeline(redis)
        self._snapshot_script = redis.register_script(self._SNAPSHOT)
        self._end_script = redis.register_script(self._END)
        self._deleted_script = redis.register_script(self._DELETED)
        self._page_script = redis.register_script(self._PAGE)

    async def task(self, task_id: TaskId, owner: OwnerId | None = None) -> Task:
        """The whole task. With `owner`, another owner's is as unknown as one that never was."""
        fields = await patiently(partial(self._get_all, keys.state(task_id)), self._patient)
        return _owned(fields, owner)

    async def standing(self, task_id: TaskId) -> Standing | None:
        """Whose the task is at present; None where it is unknown."""
        values = await self._redis.hmget(keys.state(task_id), ["status", "attempt", "claim"])  # type: ignore[misc]
        if values[0] is None:
            return None
        status, attempt, claim = (json.loads(value or b"null") for value in values)
        return Standing(Status(status), attempt, claim)

    async def _get_all(self, key: str) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = await self._redis.hgetall(key)  # type: ignore[misc]
        return found

    #: By a script, because calls of scripts are sent together: everybody who opens a stream asks this first.
    _END = "return redis.call('HMGET', KEYS[1], 'owner', 'status', 'version', 'ended_version')"

    async def ended_version(self, task_id: TaskId, owner: OwnerId | None = None) -> int | None:
        """The version of the terminal event; None while there is none. Raises UnknownTask, as `task`."""
        values = await self._calls.call(self._end_script, [keys.state(task_id)], [])
        names = (b"owner", b"status", b"version", b"ended_version")
        fields = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        _check_owner(fields, owner)
        if not Status(json.loads(fields[b"status"])).is_terminal:
            return None
        return int(fields.get(b"ended_version", fields[b"version"]))

    _SNAPSHOT = """
    local state = redis.call('HGETALL', KEYS[1])
    return {state, ARGV[1] and redis.call('XRANGE', KEYS[2], ARGV[1], '+') or {}}
    """

    async def snapshot(self, task_id: TaskId, owner: OwnerId | None = None, after: int | None = None) -> Snapshot:
        """State and history by one script, so that they agree.

        With `after`, `history` is every event kept that has a greater version, in order; without it, empty.
        """
        here = [keys.state(task_id), keys.events(task_id)]
        state, entries = await self._calls.call(self._snapshot_script, here, [] if after is None else [f"({after}-0"])
        flat = iter(state)
        fields = dict(zip(flat, flat, strict=True))
        _check_owner(fields, owner)
        version = int(fields[b"version"])
        history = tuple(_event((entry_id, dict(zip(*[iter(pairs)] * 2, strict=True)))) for entry_id, pairs in entries)
        missed_from = None
        if after is not None and after < version and (not history or history[0].version > after + 1):
            missed_from = after + 1
        return Snapshot(fields, state_event(fields), history, missed_from)

    async def owner(
        self, owner: OwnerId, scope: Scope, *, after: int | None = None, known: Collection[TaskId] = ()
    ) -> OwnerTruth:
        """An owner's feed after number `after`. `known` are tasks to look for in `gone`."""
        while (truth := await self._owner_at_once(owner, scope, after, known)) is None:
            heed_cancellation()
        return truth

    async def _owner_at_once(
        self, owner: OwnerId, scope: Scope, after: int | None, known: Collection[TaskId]
    ) -> OwnerTruth | None:
        """First which tasks are meant, then all of it in one transaction: a state must not be newer than the number
        it is shown under, or who resumes from that number sees it twice. None: meanwhile a task came or history was
        trimmed, so read again."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.get(keys.OWNER_VERSION % owner)
            if after is not None:
                pipe.xrange(keys.OWNER_EVENTS % owner, min=f"({after}-0", count=1)
            found, *rest = await pipe.execute()
        begun = int(found or 0)
        ids: list[TaskId] = []
        missed_from = None
        replay_after = begun
        deleted: dict[int, FeedEvent] = {}
        if after is None or after > begun:  # nothing seen, or seen on a Redis that is no more
            ids = await self._in_scope(owner, scope)
        elif after < begun and (not rest[0] or _feed_event(rest[0][0]).version > after + 1):
            missed_from = after + 1
            changed = await self._members(keys.OWNER_CHANGED % owner, after + 1)
            ids = [task_id for task_id in changed if scope.task_ids is None or task_id in scope.task_ids]
            deleted = {event.version: event for event in await self._deleted_since(owner, after)}
        else:
            replay_after = after
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.get(keys.OWNER_VERSION % owner)
            pipe.xrange(keys.OWNER_EVENTS % owner, min=f"({replay_after}-0")
            if ids:
                pipe.zmscore(keys.OWNER_CHANGED % owner, [*ids])
            for task_id in (*ids, *known):
                pipe.hgetall(keys.state(task_id))
            found, entries, *hashes = await pipe.execute()
        changed_at = [int(score or 0) for score in hashes.pop(0)] if ids else []
        number = int(found or 0)
        history = tuple(_feed_event(entry) for entry in entries)
        trimmed = number > replay_after and (not history or history[0].version > replay_after + 1)
        if number < begun or trimmed:
            return None
        if replay_after != after:  # states stand for all that happened, but for what has none any more
            deleted |= {event.version: event for event in history if event.name == DELETED}
            if any(scope.holds(event) and event.task_id not in ids for event in history):
                return None
            history = ()
        states = []
        gone = set(known)
        ended = set()
        for position, fields in enumerate(hashes):
            if not fields or json.loads(fields[b"owner"]) != owner:
                continue
            event = task_state_event(fields, changed_at[position] if position < len(ids) else number)
            gone.discard(event.task_id)
            if position >= len(ids):
                ended |= {event.task_id} if event.is_terminal else set()
            elif scope.holds(event):
                states.append(event)
        if missed_from is not None:
            states += [event for event in deleted.values() if scope.holds(event)]
        states.sort(key=lambda event: event.version)
        if states:
            states[-1] = replace(states[-1], version=number)
        return OwnerTruth(
            number,
            tuple(states),
            tuple(event for event in history if scope.holds(event)),
            missed_from,
            frozenset(gone),
            frozenset(ended),
        )

    #: Of a feed's events after a number, the deletions.
    _DELETED: Final = """
    local found, from = {}, '(' .. ARGV[1] .. '-0'
    while from do
      local page = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 100)
      for _, entry in ipairs(page) do
        if entry[2][8] == ARGV[2] then found[#found + 1] = entry end
      end
      from = page[100] and '(' .. page[100][1]
    end
    return found
    """

    async def _deleted_since(self, owner: OwnerId, after: int) -> list[FeedEvent]:
        entries = await self._calls.call(self._deleted_script, [keys.OWNER_EVENTS % owner], [after, DELETED])
        return [_feed_event((entry_id, dict(zip(*[iter(pairs)] * 2, strict=True)))) for entry_id, pairs in entries]

    async def _in_scope(self, owner: OwnerId, scope: Scope) -> list[TaskId]:
        """The tasks whose state a new watcher is shown, oldest change first."""
        if scope.task_ids is not None:
            return sorted(scope.task_ids)
        if scope.batch_id is not None:
            return await self._members(keys.BATCH_TASKS % keys.of_batch(owner, scope.batch_id), 0)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.smembers(keys.OWNER_ACTIVE % owner)
            pipe.zrange(keys.OWNER_CHANGED % owner, -SHOWN_TASKS, -1)
            active, recent = await pipe.execute()
        ids = dict.fromkeys([*sorted(active), *recent])
        return [TaskId(task_id.decode()) for task_id in ids]

    async def _members(self, key: str, least: int) -> list[TaskId]:
        bottom: Any = least
        top: Any = "+inf"
        return [TaskId(member.decode()) for member in await self._redis.zrange(key, bottom, top, byscore=True)]

    async def named(self, task_id: TaskId, name: str) -> list[Event]:
        """The events of that name that a task's history still holds, in order."""
        entries = await self._redis.xrange(keys.events(task_id))
        return [event for event in map(_event, entries) if event.name == name]

    async def stored_bytes(self, owner: OwnerId) -> int:
        """What the files of an owner's tasks hold, announced ones included."""
        return int(await self._redis.hget(keys.OWNER_STORED % owner, "total") or 0)  # type: ignore[misc]

    async def batch(self, owner: OwnerId, batch_id: str) -> Event:
        """The roll-up of a batch. Raises UnknownTask."""
        found = await self._redis.hmget(keys.BATCH_STATE % keys.of_batch(owner, batch_id), ["version", "json"])  # type: ignore[misc]
        if found[1] is None:
            raise UnknownTask("There is no such batch.")
        return Event(int(found[0]), "", found[1])

    async def tasks(
        self,
        owner: OwnerId,
        *,
        limit: int,
        before: tuple[int, TaskId] | None = None,
        batch_id: str | None = None,
    ) -> list[tuple[Task, tuple[int, TaskId]]]:
        """Up to `limit` of an owner's tasks, newest first, each with its place; `before` is the last one's place.

        Members whose task has expired are taken off the index on the way. An empty list is the end.
        """
        key = keys.OWNER_TASKS % owner if batch_id is None else keys.BATCH_TASKS % keys.of_batch(owner, batch_id)
        while places := (await self._page(owner, key, limit, before))[1]:
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
            before = places[-1]
        return []

    async def rows(
        self,
        owner: OwnerId,
        fields: Sequence[str],
        *,
        limit: int,
        before: tuple[int, TaskId] | None = None,
        batch_id: str | None = None,
    ) -> Rows:
        """The same in columns, for who reads a million of them: of each task only `fields`, as they are kept."""
        key = keys.OWNER_TASKS % owner if batch_id is None else keys.BATCH_TASKS % keys.of_batch(owner, batch_id)
        number, places, found = await self._page(owner, key, limit, before, ("task_id", *fields))
        rows = tuple(row[1:] for row in found if row[0] is not None)
        return Rows(number, rows, places[-1] if places else None)

    #: The members after a place, newest first, and the number of the owner's last event. Members of one score are
    #: ordered by name, and there may be a million of them, so the place is looked for by halves: what stood there may
    #: be gone, and to walk past its equals would cost each page more than the one before. With fields, also what those
    #: tasks have in them: asked for one by one, they cost the client four times as much.
    _PAGE: Final = """
    local low = redis.call('ZCOUNT', KEYS[1], '(' .. ARGV[1], '+inf')
    local high = low + redis.call('ZCOUNT', KEYS[1], ARGV[1], ARGV[1])
    while low < high do
      local middle = math.floor((low + high) / 2)
      if redis.call('ZREVRANGE', KEYS[1], middle, middle)[1] < ARGV[2] then high = middle else low = middle + 1 end
    end
    local page = redis.call('ZREVRANGE', KEYS[1], low, low + tonumber(ARGV[3]) - 1, 'WITHSCORES')
    local rows = {}
    if ARGV[5] then
      for i = 1, #page, 2 do rows[#rows + 1] = redis.call('HMGET', ARGV[4] .. page[i], unpack(ARGV, 5)) end
    end
    return {redis.call('GET', KEYS[2]), page, rows}
    """

    async def _page(
        self, owner: OwnerId, key: str, limit: int, before: tuple[int, TaskId] | None, fields: Sequence[str] = ()
    ) -> tuple[int, list[tuple[int, TaskId]], list[list[bytes | None]]]:
        args: list[Any] = [*(before or ("+inf", "")), limit, keys.state(TaskId("")), *fields]
        number, found, rows = await self._page_script(keys=[key, keys.OWNER_VERSION % owner], args=args)
        pairs = zip(found[1::2], found[::2], strict=True)
        return int(number or 0), [(int(float(score)), TaskId(member.decode())) for score, member in pairs], rows


async def patiently(call: Callable[[], Awaitable[Any]], patient: bool) -> Any:
    while True:
        try:
            return await call()
        except AWAY:
            if not patient:
                raise
            heed_cancellation()
            await asyncio.sleep(PATIENCE_SECONDS)


def _owned(fields: Mapping[bytes, bytes], owner: OwnerId | None) -> Task:
    _check_owner(fields, owner)
    return Task.from_fields(fields)


def _check_owner(fields: Mapping[bytes, bytes], owner: OwnerId | None) -> None:
    if not fields or (owner is not None and json.loads(fields[b"owner"]) != owner):
        raise UnknownTask


def _feed_event(entry: tuple[bytes, Mapping[bytes, bytes]]) -> FeedEvent:
    entry_id, values = entry
    number = int(entry_id.partition(b"-")[0])
    task_id, batch_id = TaskId(values[b"t"].decode()), values[b"b"].decode()
    return FeedEvent(number, values[b"n"].decode(), values[b"d"], task_id, int(values[b"v"]), batch_id)


def _event(entry: tuple[bytes, Mapping[bytes, bytes]]) -> Event:
    entry_id, values = entry
    return Event(int(entry_id.partition(b"-")[0]), values[b"n"].decode(), values[b"d"])
