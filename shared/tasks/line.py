"""The line of waiting jobs, and the scripts that change it: line.lua says who goes first.

A job is put in the line by the script that makes its task `queued` (progress.lua), taken out of it by a worker's turn
(worker/turn.lua), and put back where its worker died. `headway:queue`, arq's sorted set, is the way in for versions of
before there was a line and for arq's own client: each turn empties it into the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

from headway.shared import keys
from headway.shared.redis.client import RedisClient, channel_on
from headway.shared.redis.script_pipeline import ScriptPipeline
from headway.shared.redis.script_text import script_text
from headway.shared.tasks.models import OwnerId, Status, Task, TaskId
from headway.shared.tasks.queue import WAKE

#: Higher goes first, among an owner's own.
LOWEST: Final = 0
HIGHEST: Final = 9
DEFAULT: Final = 5


@cache
def _line() -> str:
    return f"(function()\n{(files('headway.shared.tasks') / 'line.lua').read_text(encoding='utf-8')}\nend)()"


def script_with_line(lua: str, key_names: Sequence[str], arguments: Sequence[str], redis: Any) -> str:
    """As script_text; `LINE` is the table of line.lua."""
    return script_text(re.sub(r"\bLINE\b", lambda _: _line(), lua), key_names, arguments, redis)


def line_counts(pipe: Any, now_ms: int) -> None:
    """Asks a pipeline for four numbers: the jobs that are still on arq's queue, that wait, that had a worker which is
    gone, and that workers have."""
    pipe.zcard(keys.QUEUE)
    pipe.zcard(keys.LINE_WAITING)
    pipe.zcount(keys.LINE_RUNNING, "-inf", now_ms)
    pipe.zcount(keys.LINE_RUNNING, f"({now_ms}", "+inf")


@dataclass(frozen=True, slots=True)
class Place:
    """Of a task that waits: its place, from 1, None where it waits for its time; when its turn comes, None where nobody
    knows; its version and attempt then; the position that whoever watches was told last."""

    position: int | None
    seconds: float | None
    version: int
    attempt: int
    told: int | None


class Line:
    """Who stands where, and which processors are paused. Errors: headway.shared.redis.client.AWAY."""

    def __init__(self, redis: RedisClient, limits: Mapping[str, int] | None = None) -> None:
        """`limits`: of processors, by name, how many of their tasks run at once."""
        self._limits = limits or {}
        self._redis = redis
        self._calls = ScriptPipeline(redis)
        self._place = redis.register_script(
            script_with_line(self._PLACE, self._PLACE_KEYS, self._PLACE_ARGUMENTS, redis)
        )
        self._first = redis.register_script(script_with_line(self._FIRST, (), ("owner", "end"), redis))

    _PLACE_KEYS: Final = ("state",)
    _PLACE_ARGUMENTS: Final = ("task_id", "limits", "end")
    #: Of a task that waits: position, seconds, version, attempt, and the position that was told last. Nothing: it does
    #: not wait.
    _PLACE: Final = """
    local line = LINE
    local known = redis.call('HMGET', KEY.state, 'status', 'attempt', 'version', 'queue_position', 'processor')
    if known[1] ~= '"queued"' then return {} end
    for attempt = tonumber(known[2]), math.max(1, known[2] - 20), -1 do
      local job = ARG.task_id .. '.' .. attempt
      local place = line.place_of(job)
      if place and redis.call('ZSCORE', 'LINE_WAITING', job) then
        local position = line.position(place)
        local seconds = line.starts_in(place, position, cjson.decode(ARG.limits)[place.processor] or 0)
        return {tostring(position), seconds, known[3], known[2], known[4] or 'null'}
      end
      local due_ms = redis.call('ZSCORE', 'LINE_LATER', job)
      if due_ms then
        local seconds = string.format('%.1f', math.max(0, due_ms - line.now_us() / 1000) / 1000)
        return {'null', seconds, known[3], known[2], known[4] or 'null'}
      end
    end
    return {'null', 'null', known[3], known[2], known[4] or 'null'}
    """

    async def place(self, task_id: TaskId) -> Place | None:
        """Where a task stands; None: it does not wait. It costs the same however long the line is."""
        found = await self._calls.call(self._place, [keys.state(task_id)], [task_id, json.dumps(dict(self._limits))])
        if not found:
            return None
        position, seconds, version, attempt, told = (json.loads(text) for text in found)
        return Place(position, seconds, version, attempt, told)

    async def placed(self, task: Task) -> Task:
        """The same task, with its present place where it waits."""
        if task.status is not Status.QUEUED:
            return task
        place = await self.place(task.task_id)
        if place is None:  # it has started meanwhile
            return task.model_copy(update={"queue_position": None, "starts_in_seconds": None})
        return task.model_copy(update={"queue_position": place.position, "starts_in_seconds": place.seconds})

    #: The first tasks of an owner that wait, by the groups whose turns come first. ARGV: the owner.
    _FIRST: Final = """
    local found = {}
    for _, processor in ipairs(redis.call('SMEMBERS', 'LINE_PROCESSORS')) do
      for _, member in ipairs(redis.call('ZRANGE', string.format('LINE_GROUPS', processor, ARG.owner), 0, 4)) do
        local priority, batch = string.match(member, '^(%d):(.*)$')
        local group = string.format('LINE_GROUP', processor, ARG.owner, priority, batch)
        for _, job in ipairs(redis.call('ZRANGE', group, 0, 9)) do
          if #found < 50 then found[#found + 1] = string.match(job, '^%x+') end
        end
      end
    end
    return found
    """

    async def first_of(self, owner: OwnerId) -> list[TaskId]:
        """Some of an owner's tasks that wait, at most 50, those whose turns come first."""
        found = await self._calls.call(self._first, [], [owner])
        return [TaskId(task_id.decode()) for task_id in found]

    async def paused(self) -> frozenset[str]:
        found = await self._redis.smembers(keys.LINE_PAUSED)  # type: ignore[misc]
        return frozenset(name.decode() for name in found)

    async def pause(self, processor: str) -> None:
        await self._redis.sadd(keys.LINE_PAUSED, processor)  # type: ignore[misc]

    async def resume(self, processor: str) -> None:
        await self._redis.srem(keys.LINE_PAUSED, processor)  # type: ignore[misc]
        await self._redis.publish(channel_on(self._redis, keys.CONTROL), WAKE)
