"""Who runs which job: one key a job in Redis, owned by one worker, alive as long as the worker renews it.

arq's in-progress key is that lease; arq itself sets it without an owner and for as long as the longest job, so a dead
worker's job came back after minutes. Here it holds the worker's id, lives HEADWAY_LEASE_SECONDS, and is renewed three
times as often. Time is Redis's (PX), never a machine's. A lease is an optimisation, not the guard: two workers that
both think they have a job are told apart by the attempt (shared/tasks/progress.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headway.shared import keys
from headway.shared.redis.client import RedisClient, channel_on
from headway.shared.tasks.queue import WAKE, is_job_id

#: Lets go of the jobs from ARGV[10] on: the first ARGV[9] have ended and leave the queue with their payload, the others
#: are given back, which wakes the other workers. Then takes up to ARGV[7] jobs that nobody has, oldest first. Answers
#: how many jobs the queue held and each job taken with its payload. Looks at no more than ARGV[8] of the queue, where
#: running jobs still are, and at a page at a time, because a long queue is not to be read for one job. A Redis that is
#: full refuses a lease only where nothing was let go of before it, so what has ended always gets through.
_TURN = """
local queue, worker, lease, payload = KEYS[1], ARGV[1], ARGV[3], ARGV[4]
-- What can fail comes before the first write, because Redis rolls nothing back.
local owners, given_back = {}, false
redis.call('ZCARD', queue)
for i = 10, #ARGV do owners[i] = redis.call('GET', lease .. ARGV[i]) end
for i = 10, #ARGV do
  local job, owner = ARGV[i], owners[i]
  if not owner or owner == worker then
    if i < 10 + ARGV[9] then
      redis.call('DEL', lease .. job, payload .. job)
      redis.call('ZREM', queue, job)
    else
      redis.call('DEL', lease .. job)
      given_back = true
    end
  end
end
if given_back then redis.call('PUBLISH', ARGV[5], ARGV[6]) end
local wanted, look, at, answer = 2 * ARGV[7], tonumber(ARGV[8]), 0, {0}
while #answer - 1 < wanted and at < look do
  local page = redis.call('ZRANGE', queue, at, at + 127)
  for _, job in ipairs(page) do
    if #answer - 1 >= wanted then break end
    if redis.call('SET', lease .. job, worker, 'NX', 'PX', ARGV[2]) then
      answer[#answer + 1] = job
      local found = redis.pcall('GET', payload .. job)
      answer[#answer + 1] = type(found) == 'string' and found or ''
    end
  end
  at = at + #page
  if #page < 128 then break end
end
answer[1] = at
return answer
"""

#: Renews ours, takes back one that ran out and nobody took, and returns those that somebody else has or that ended.
#: PEXPIRE and not SET for ours: a Redis that is full still takes it, so nobody loses a task to a full Redis.
#: Registers the worker by Redis's clock; a new one drops those that have been silent for a minute.
_RENEW = """
local lost, ours, free = {}, {}, {}
redis.call('ZSCORE', KEYS[2], ARGV[1])
for i = 4, #ARGV do
  local key = ARGV[3] .. ARGV[i]
  local owner = redis.call('GET', key)
  if owner == ARGV[1] then
    ours[#ours + 1] = key
  elseif not owner and redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    free[#free + 1] = key
  else
    lost[#lost + 1] = ARGV[i]
  end
end
for _, key in ipairs(ours) do redis.call('PEXPIRE', key, ARGV[2]) end
for _, key in ipairs(free) do redis.call('SET', key, ARGV[1], 'PX', ARGV[2]) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('ZADD', KEYS[2], now, ARGV[1]) == 1 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 60000)
end
redis.call('PEXPIRE', KEYS[2], 120000)
return lost
"""


@dataclass(frozen=True, slots=True)
class Turn:
    #: Job id to payload, empty where it has expired.
    taken: dict[str, bytes]
    #: How many jobs the queue held, running ones included; 0 is an empty queue, more may not be all.
    queued: int
    #: Members of the queue that are no job of anybody's; they were taken off it.
    strange: int = 0


class Leases:
    """Errors: headway.shared.redis.client.AWAY."""

    def __init__(self, redis: RedisClient, worker_id: str, lease_seconds: float) -> None:
        self._redis = redis
        self._worker_id = worker_id
        self._lease_ms = int(lease_seconds * 1000)
        self._turn = redis.register_script(_TURN)
        self._renew = redis.register_script(_RENEW)

    async def turn(
        self, count: int = 0, look_at: int = 0, *, ended: Sequence[str] = (), given_back: Sequence[str] = ()
    ) -> Turn:
        """Lets go of jobs, but for those that another worker has, and takes up to `count` waiting ones, oldest first.

        May be called again with the same jobs where it failed.
        """
        args: list[str | int] = [self._worker_id, self._lease_ms, keys.job_lease(""), keys.job("")]
        args += [channel_on(self._redis, keys.CONTROL), WAKE]
        args += [count, look_at, len(ended), *ended, *given_back]
        queued, *taken = await self._turn(keys=[keys.QUEUE], args=args)
        jobs = dict(zip(taken[::2], taken[1::2], strict=True))
        if strange := [job for job in jobs if not is_job_id(job)]:
            await self._redis.zrem(keys.QUEUE, *strange)
            await self._redis.delete(*(keys.job_lease("").encode() + job for job in strange))
        ours = {job.decode(): payload for job, payload in jobs.items() if job not in strange}
        return Turn(ours, int(queued), len(strange))

    async def renew(self, jobs: Iterable[str]) -> list[str]:
        """Renews these and says that this worker is alive. Returns those that are no longer ours."""
        lost = await self._renew(
            keys=[keys.QUEUE, keys.WORKERS], args=[self._worker_id, self._lease_ms, keys.job_lease(""), *jobs]
        )
        return [job.decode() for job in lost]

    async def leave(self) -> None:
        """This worker is no more."""
        await self._redis.zrem(keys.WORKERS, self._worker_id)
