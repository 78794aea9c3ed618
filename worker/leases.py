"""Who runs which job: one key a job in Redis, owned by one worker, alive as long as the worker renews it.

arq's in-progress key is that lease; arq itself sets it without an owner and for as long as the longest job, so a dead
worker's job came back after minutes. Here it holds the worker's id, lives HEADWAY_LEASE_SECONDS, and is renewed three
times as often. A job that a worker has is no longer in the line (shared/tasks/line.lua); where its lease runs out, the
next turn of any worker puts it back in its place. Time is Redis's (PX), never a machine's. A lease is an optimisation,
not the guard: two workers that both think they have a job are told apart by the attempt (shared/tasks/progress.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Final

from headway.shared import keys
from headway.shared.redis.client import RedisClient, channel_on
from headway.shared.tasks.line import script_with_line
from headway.shared.tasks.queue import WAKE, is_job_id

#: What turn.lua calls KEY.name and ARG.name.
_TURN_KEYS: Final = ("queue",)
_TURN_ARGUMENTS: Final = (
    *("worker", "lease_ms", "lease", "payload", "control", "wake", "wanted", "ended", "owner_limit", "limits"),
    "jobs",
)

#: Renews ours, takes back one that ran out and nobody took, and returns those that somebody else has or that ended.
#: PEXPIRE and not SET for ours: a Redis that is full still takes it, so nobody loses a task to a full Redis.
#: Registers the worker by Redis's clock; a new one drops those that have been silent for a minute.
_RENEW_KEYS: Final = ("workers",)
_RENEW_ARGUMENTS: Final = ("worker", "lease_ms", "lease", "jobs")
_RENEW: Final = """
local line = LINE
local lost, ours, free = {}, {}, {}
redis.call('ZSCORE', KEY.workers, ARG.worker)
line.check('')
for i = ARG.jobs, #ARGV do
  local job = ARGV[i]
  line.check(job)
  local owner = redis.call('GET', ARG.lease .. job)
  if owner == ARG.worker then
    ours[#ours + 1] = job
  elseif not owner and line.knows(job) then
    free[#free + 1] = job
  else
    lost[#lost + 1] = job
  end
end
local now_ms = math.floor(line.now_us() / 1000)
local until_ms = string.format('%d', now_ms + ARG.lease_ms)
for _, job in ipairs(ours) do redis.call('PEXPIRE', ARG.lease .. job, ARG.lease_ms) end
for _, job in ipairs(free) do
  redis.call('SET', ARG.lease .. job, ARG.worker, 'PX', ARG.lease_ms)
  line.hold(job, line.place_of(job), until_ms)
end
for _, job in ipairs(ours) do redis.pcall('ZADD', 'LINE_RUNNING', 'XX', until_ms, job) end
if redis.call('ZADD', KEY.workers, now_ms, ARG.worker) == 1 then
  redis.call('ZREMRANGEBYSCORE', KEY.workers, '-inf', now_ms - 60000)
end
redis.call('PEXPIRE', KEY.workers, 120000)
return lost
"""


@dataclass(frozen=True, slots=True)
class Turn:
    #: Job id to payload, empty where it has expired.
    taken: dict[str, bytes]
    #: How many jobs wait or run; those that are not due yet are not counted.
    queued: int
    #: When the next job is due; None: none is waiting for that.
    due_seconds: float | None = None
    #: Members of the queue that are no job of anybody's; they were taken off it.
    strange: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """How many tasks may run at once, over all workers: of one owner (0: no limit), and of processors, by name."""

    of_owner: int = 0
    of_processors: Mapping[str, int] = field(default_factory=dict)


class Leases:
    """Errors: headway.shared.redis.client.AWAY."""

    def __init__(self, redis: RedisClient, worker_id: str, lease_seconds: float, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self._redis = redis
        self._worker_id = worker_id
        self._lease_ms = int(lease_seconds * 1000)
        self._limits = [limits.of_owner, json.dumps(dict(limits.of_processors))]
        turn = (files("headway.worker") / "turn.lua").read_text(encoding="utf-8")
        self._turn = redis.register_script(script_with_line(turn, _TURN_KEYS, _TURN_ARGUMENTS, redis))
        self._renew = redis.register_script(script_with_line(_RENEW, _RENEW_KEYS, _RENEW_ARGUMENTS, redis))

    async def turn(self, count: int = 0, *, ended: Sequence[str] = (), given_back: Sequence[str] = ()) -> Turn:
        """Lets go of jobs, but for those that another worker has, and takes up to `count` waiting ones, in turn.

        May be called again with the same jobs where it failed.
        """
        queued, due_ms, *taken = await self._call(count, ended, given_back)
        jobs = dict(zip(taken[::2], taken[1::2], strict=True))
        if strange := [job for job in jobs if not is_job_id(job)]:
            await self._call(0, strange, ())
        ours = {job.decode(): payload for job, payload in jobs.items() if job not in strange}
        return Turn(ours, int(queued), None if due_ms < 0 else due_ms / 1000, len(strange))

    async def _call(self, count: int, ended: Sequence[str | bytes], given_back: Sequence[str]) -> list[Any]:
        args: list[Any] = [self._worker_id, self._lease_ms, keys.job_lease(""), keys.job("")]
        args += [channel_on(self._redis, keys.CONTROL), WAKE]
        args += [count, len(ended), *self._limits, *ended, *given_back]
        answer: list[Any] = await self._turn(keys=[keys.QUEUE], args=args)
        return answer

    async def renew(self, jobs: Iterable[str]) -> list[str]:
        """Renews these and says that this worker is alive. Returns those that are no longer ours."""
        args: list[Any] = [self._worker_id, self._lease_ms, keys.job_lease(""), *jobs]
        lost = await self._renew(keys=[keys.WORKERS], args=args)
        return [job.decode() for job in lost]

    async def leave(self) -> None:
        """This worker is no more."""
        await self._redis.zrem(keys.WORKERS, self._worker_id)
