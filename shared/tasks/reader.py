"""The feed: every reading of the progress channel. What is written there is shared/tasks/progress.py's.

A task's truth is read as it stood at one moment, with what came after a version that was seen before; a batch's roll-up
as it is. What all of an owner's tasks have had is read by shared/tasks/owner_feed.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from redis.exceptions import NoPermissionError

from headway.shared import keys
from headway.shared.cancellation import heed_cancellation
from headway.shared.errors import UnknownTask
from headway.shared.redis.client import AWAY, RedisClient
from headway.shared.redis.script_pipeline import ScriptPipeline
from headway.shared.tasks.models import Event, OwnerId, Status, Task, TaskId

#: The fields of a state event, in their order on the wire. `status` is near the head: Event.is_terminal looks there.
LIVE_FIELDS: Final = (
    *("task_id", "version", "status", "progress", "step", "total_steps", "message"),
    *("done", "total", "unit", "rate", "eta_seconds", "attempt", "size_bytes"),
    *("started_at", "updated_at", "finished_at", "partial", "result", "error"),
    *("queue_position", "starts_in_seconds"),
)

#: Between two tries of a patient reader or publisher: short beside what a watcher notices, long beside a refusal.
PATIENCE_SECONDS: Final = 0.3


def state_event(fields: Mapping[bytes, bytes]) -> Event:
    """The snapshot: what progress.lua would publish for the hash as it stands."""
    parts = (b'"%s":%s' % (name, fields.get(name, b"null")) for name in (f.encode() for f in LIVE_FIELDS))
    return Event(int(fields[b"version"]), "", b"{" + b",".join(parts) + b"}")


def decode_message(message: bytes) -> Event:
    """Reads what progress.lua publishes: `{version} {name} {data}`."""
    version, name, data = message.split(b" ", 2)
    return Event(int(version), name.decode(), data)


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


#: Of each task of a list: what events have of a result, so that a page of tasks is never as long as their results.
_LISTED: Final = [name for name in Task.model_fields if name != "checkpoint"]
_LISTED_NAMES: Final = [name.encode() for name in _LISTED]


class Reader:
    """Every reading of a task. Errors: UnknownTask, and headway.shared.redis.client.AWAY where Redis is not there."""

    def __init__(self, redis: RedisClient, *, patient: bool = False) -> None:
        """`patient`: as the publisher's, for `task` alone."""
        self._redis = self.redis = redis
        self._patient = patient
        self._calls = ScriptPipeline(redis)
        self._snapshot_script = redis.register_script(self._SNAPSHOT)
        self._state_script = redis.register_script(self._STATE)
        self._end_script = redis.register_script(self._END)
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

    #: These two by scripts, because calls of scripts are sent together: every report of a producer asks the first, and
    #: everybody who opens a stream the second.
    _STATE = "return redis.call('HGETALL', KEYS[1])"

    async def _get_all(self, key: str) -> dict[bytes, bytes]:
        found = await self._calls.call(self._state_script, [key], [])
        return dict(zip(found[::2], found[1::2], strict=True))

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
        """Up to `limit` of an owner's tasks, newest first, each with its place; `before` is the last one's place. A
        long result, and a long partial one, is cut as in events; checkpoints are left out.

        Members whose task has expired are taken off the index on the way. An empty list is the end.
        """
        key = keys.OWNER_TASKS % owner if batch_id is None else keys.BATCH_TASKS % keys.of_batch(owner, batch_id)
        while places := (await self._page(owner, key, limit, before))[1]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for _, task_id in places:
                    pipe.hmget(keys.state(task_id), _LISTED)
                rows = await pipe.execute()
            found = [{n: v for n, v in zip(_LISTED_NAMES, row, strict=True) if v is not None} for row in rows]
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
        except (*AWAY, NoPermissionError):  # a right that was taken away is given back by somebody
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


def _event(entry: tuple[bytes, Mapping[bytes, bytes]]) -> Event:
    entry_id, values = entry
    return Event(int(entry_id.partition(b"-")[0]), values[b"n"].decode(), values[b"d"])
