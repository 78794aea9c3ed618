"""Every reading of an owner's feed: all of an owner's tasks, or some of them, on one feed with numbers of its own.

Whatever there is to tell is read in pages, so that neither a long absence nor many tasks are ever in memory, or hold
Redis, at once. A page is true by itself: whoever is cut off behind its last number goes on from there. What is read for
one watcher fits all who stand at the same number (api/streams/owner_reader.py).

A state stands under the number of the task's last event (keys.OWNER_CHANGED), in that order, and has that event's
version: every event of the task with a later number has a later version, whether it is a state, a log or a note.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from headway.shared import keys
from headway.shared.redis.client import RedisClient
from headway.shared.tasks.models import DELETED, Event, FeedEvent, OwnerId, Status, TaskId
from headway.shared.tasks.reader import LIVE_FIELDS, state_event

T = TypeVar("T")

#: A new watcher of all tasks is shown those that have not ended and, of the others, this many that changed last.
SHOWN_TASKS: Final = 100
#: Events or states of one page. An event is at most 16 KiB, so a page is at most 1.6 MB, and most are 50 KB.
PAGE: Final = 100
#: Names, or keys that are asked about, in one command.
NAMES: Final = 500

#: Of a task's hash, what its state on the feed is made of.
_FIELDS: Final = (*LIVE_FIELDS, "owner", "batch_id")


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
class Page:
    """What came after a number that was seen, up to `upto`; `number` is that of the owner's newest event.

    `events` are in order, those out of scope among them. Where what came can no longer be replayed, it is `missed`: the
    events are the states of the tasks that changed, and the deletions. `number` is below what was seen only where Redis
    came back without what it had; then there is nothing else in it.
    """

    number: int
    upto: int
    missed: bool
    events: tuple[FeedEvent, ...]

    @property
    def is_last(self) -> bool:
        return self.upto >= self.number


@dataclass(frozen=True, slots=True)
class FirstLook:
    """Which tasks a new watcher is shown, oldest change first, each with the number of that change, in pages. What
    changes from `number` on follows as events."""

    number: int
    pages: tuple[tuple[tuple[int, TaskId], ...], ...]


@dataclass(frozen=True, slots=True)
class Named:
    """Tasks that were asked about by name: those that the owner has not, those that have ended, and the number up to
    which there is nothing to tell of any of them; `number` is that of the owner's newest event."""

    gone: frozenset[TaskId]
    ended: frozenset[TaskId]
    changed_at: int
    number: int


class OwnerFeed:
    """Errors: headway.shared.redis.client.AWAY where Redis is not there."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        fields = ",".join(f"'{name}'" for name in _FIELDS)
        self._page_script = redis.register_script(self._PAGE.replace("FIELDS", fields).replace("DELETED", DELETED))

    #: KEYS  1 the owner's number   2 its events   3 what changed when   4 the epoch
    #: ARGV  1 the number seen   2 how many of a page   3 where a task's hash begins   4… only these tasks
    #: Between two events of which both are kept only deletions leave a hole, within an epoch.
    _PAGE: Final = """
    local number, after, size = tonumber(redis.call('GET', KEYS[1]) or 0), tonumber(ARGV[1]), tonumber(ARGV[2])
    if number <= after then return {number, number, 0, {}, {}} end
    local function number_of(entry) return entry and tonumber(string.match(entry[1], '%d+')) end
    local events = redis.call('XRANGE', KEYS[2], '(' .. ARGV[1] .. '-0', '+', 'COUNT', size)
    local whole = events[1] and number_of(events[1]) == after + 1
    if events[1] and not whole and after >= tonumber(redis.call('HGET', KEYS[4], 'number') or 0) * 1000000 then
      whole = number_of(redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]) <= after + 1
    end
    if whole then return {number, events[size] and number_of(events[size]) or number, 0, events, {}} end

    local changed, upto, states, deletions = {}, number, {}, {}
    if ARGV[4] then
      for i = 4, #ARGV do
        local at = redis.call('ZSCORE', KEYS[3], ARGV[i])
        if at and tonumber(at) > after then
          changed[#changed + 1] = ARGV[i]
          changed[#changed + 1] = at
        end
      end
    else
      changed = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, size)
      if changed[2 * size] then upto = tonumber(changed[2 * size]) end
    end
    for i = 1, #changed, 2 do
      states[#states + 1] = {changed[i + 1], redis.call('HMGET', ARGV[3] .. changed[i], FIELDS)}
    end
    local from, to = '(' .. ARGV[1] .. '-0', string.format('%d-0', upto)
    while from do
      local some = redis.call('XRANGE', KEYS[2], from, to, 'COUNT', 100)
      for _, entry in ipairs(some) do
        if entry[2][8] == 'DELETED' then deletions[#deletions + 1] = entry end
      end
      from = some[100] and '(' .. some[100][1]
    end
    return {number, upto, 1, deletions, states}
    """

    async def page(self, owner: OwnerId, after: int, task_ids: Collection[TaskId] | None = None) -> Page:
        """What came after number `after`. `task_ids`: what was missed is wanted of these alone, and comes at once."""
        here = [pattern % owner for pattern in (keys.OWNER_VERSION, keys.OWNER_EVENTS, keys.OWNER_CHANGED)]
        args: list[str | int] = [after, PAGE, keys.state(TaskId("")), *(task_ids or ())]
        number, upto, missed, entries, rows = await self._page_script(keys=[*here, keys.EPOCH], args=args)
        events = [_feed_event((entry_id, dict(zip(*[iter(pairs)] * 2, strict=True)))) for entry_id, pairs in entries]
        if missed:
            states = (_state(row, int(float(changed_at)), owner) for changed_at, row in rows)
            events += [state for state in states if state is not None]
            events.sort(key=lambda event: event.version)
        return Page(number, upto, bool(missed), tuple(events))

    async def first_look(self, owner: OwnerId, scope: Scope) -> FirstLook:
        """The number first, and then what stands where: what has changed meanwhile has a number above it."""
        number = int(await self._redis.get(keys.OWNER_VERSION % owner) or 0)
        task_ids: Collection[TaskId]
        if scope.task_ids is not None:
            task_ids = scope.task_ids
        elif scope.batch_id is not None:
            members = await self._redis.zrange(keys.BATCH_TASKS % keys.of_batch(owner, scope.batch_id), 0, -1)
            task_ids = [TaskId(member.decode()) for member in members]
        else:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.smembers(keys.OWNER_ACTIVE % owner)
                pipe.zrange(keys.OWNER_CHANGED % owner, -SHOWN_TASKS, -1)
                active, recent = await pipe.execute()
            task_ids = [TaskId(member.decode()) for member in {*active, *recent}]
        found: list[tuple[int, TaskId]] = []
        for names in _cut(sorted(task_ids), NAMES):
            scores = await self._redis.zmscore(keys.OWNER_CHANGED % owner, [*names])
            found += [(min(int(score or 0), number), task_id) for score, task_id in zip(scores, names, strict=True)]
        return FirstLook(number, tuple(tuple(page) for page in _cut(sorted(found), PAGE)))

    async def states(self, owner: OwnerId, look: FirstLook, page: int) -> tuple[FeedEvent, ...]:
        """A page of a first look: each state with the version that it had then. One that has changed since is left out,
        because it follows. The last state of all stands under the number of the look."""
        places = look.pages[page]
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zmscore(keys.OWNER_CHANGED % owner, [task_id for _, task_id in places])
            for _, task_id in places:
                pipe.hmget(keys.state(task_id), [*_FIELDS])
            scores, *rows = await pipe.execute()
        moved = any(int(score or 0) > look.number for score in scores)
        since = await self._since(owner, look.number) if moved else {}
        states = []
        for (changed_at, task_id), row in zip(places, rows, strict=True):
            first, follows = since.get(task_id, (None, False))
            if not follows and (state := _state(row, changed_at, owner, first and first - 1)) is not None:
                states.append(state)
        if states and page + 1 == len(look.pages):
            states[-1] = replace(states[-1], version=look.number)
        return tuple(states)

    async def _since(self, owner: OwnerId, number: int) -> dict[TaskId, tuple[int, bool]]:
        """Of each task that has had an event after that number: the first one's version, and whether any is a state."""
        found: dict[TaskId, tuple[int, bool]] = {}
        after = f"({number}-0"
        while entries := await self._redis.xrange(keys.OWNER_EVENTS % owner, after, "+", NAMES):
            for event in map(_feed_event, entries):
                first, has_state = found.get(event.task_id, (event.task_version, False))
                found[event.task_id] = (first, has_state or event.is_state)
            after = f"({entries[-1][0].decode()}"
        return found

    async def named(self, owner: OwnerId, task_ids: Collection[TaskId]) -> Named:
        names = sorted(task_ids)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.get(keys.OWNER_VERSION % owner)
            pipe.zmscore(keys.OWNER_CHANGED % owner, [*names])
            for task_id in names:
                pipe.hmget(keys.state(task_id), ["owner", "status"])
            number, scores, *rows = await pipe.execute()
        found = {
            task_id: Status(json.loads(status)).is_terminal
            for task_id, (its_owner, status) in zip(names, rows, strict=True)
            if its_owner is not None and json.loads(its_owner) == owner
        }
        ended = frozenset(task_id for task_id, is_ended in found.items() if is_ended)
        changed_at = max(int(score or 0) for score in scores)
        return Named(frozenset(names) - found.keys(), ended, changed_at, int(number or 0))

    async def gone(self, task_ids: Collection[TaskId]) -> set[TaskId]:
        """Those of the tasks that Redis does not know. A command for each NAMES of them, while it knows them all."""
        gone: set[TaskId] = set()
        for names in _cut(list(task_ids), NAMES):
            if await self._redis.exists(*map(keys.state, names)) == len(names):
                continue
            async with self._redis.pipeline(transaction=False) as pipe:
                for task_id in names:
                    pipe.exists(keys.state(task_id))
                found = await pipe.execute()
            gone |= {task_id for task_id, there in zip(names, found, strict=True) if not there}
        return gone


def _cut(whole: list[T], size: int) -> list[list[T]]:
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def _state(row: Sequence[bytes | None], number: int, owner: OwnerId, version: int | None = None) -> FeedEvent | None:
    """What progress.lua would publish for the hash as it stands; None where there is none of this owner's. `version`:
    an earlier one, after which only logs and notes came."""
    fields = {name.encode(): value for name, value in zip(_FIELDS, row, strict=True) if value is not None}
    if b"task_id" not in fields or json.loads(fields[b"owner"]) != owner:
        return None
    if version is not None:
        fields[b"version"] = b"%d" % version
    state: Event = state_event(fields)
    task_id, batch_id = json.loads(fields[b"task_id"]), json.loads(fields.get(b"batch_id", b"null"))
    return FeedEvent(number, "", state.data, TaskId(task_id), state.version, batch_id or "")


def _feed_event(entry: tuple[bytes, Mapping[bytes, bytes]]) -> FeedEvent:
    entry_id, values = entry
    number = int(entry_id.partition(b"-")[0])
    task_id, batch_id = TaskId(values[b"t"].decode()), values[b"b"].decode()
    return FeedEvent(number, values[b"n"].decode(), values[b"d"], task_id, int(values[b"v"]), batch_id)
