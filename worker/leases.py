"""Who runs which job: one key a job in Redis, owned by one worker, alive as long as the worker renews it.

arq's in-progress key is that lease; arq itself sets it without an owner and for as long as the longest job, so a dead
worker's job came back after minutes. Here it holds the worker's id, lives HEADWAY_LEASE_SECONDS, and is renewed three
times as often. Time is Redis's (PX), never a machine's. A lease is an optimisation, not the guard: two workers that
both think they have a job are told apart by the attempt (shared/progress.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from shared import keys
from shared.queue import WAKE
from shared.redis import RedisClient

#: Takes up to ARGV[3] jobs that nobody has. Looks at no more than ARGV[4] of the queue, where running ones still are.
_CLAIM = """
local taken = {}
for _, job in ipairs(redis.call('ZRANGE', KEYS[1], 0, ARGV[4] - 1)) do
  if #taken >= tonumber(ARGV[3]) then break end
  if redis.call('SET', ARGV[5] .. job, ARGV[1], 'NX', 'PX', ARGV[2]) then taken[#taken + 1] = job end
end
return taken
"""

#: Renews ours, takes back one that ran out and nobody took, and returns those that somebody else has or that ended.
#: PEXPIRE and not SET for ours: a Redis that is full still takes it, so nobody loses a task to a full Redis.
#: Registers the worker by Redis's clock and drops those that have been silent for a minute.
_RENEW = """
local lost = {}
for i = 4, #ARGV do
  local key = ARGV[3] .. ARGV[i]
  local owner = redis.call('GET', key)
  if owner == ARGV[1] then
    redis.call('PEXPIRE', key, ARGV[2])
  elseif not owner and redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 60000)
redis.call('PEXPIRE', KEYS[2], 120000)
return lost
"""

#: Lets go of a job, and takes it off the queue if it has ended; a job that is given back wakes the others.
_RELEASE = """
local key = ARGV[3] .. ARGV[2]
local owner = redis.call('GET', key)
if owner and owner ~= ARGV[1] then return 0 end
redis.call('DEL', key)
if ARGV[4] == '1' then
  redis.call('ZREM', KEYS[1], ARGV[2])
  redis.call('DEL', ARGV[5], ARGV[6])
else
  redis.call('PUBLISH', ARGV[7], ARGV[8])
end
return 1
"""


class Leases:
    """Errors: shared.redis.AWAY."""

    def __init__(self, redis: RedisClient, worker_id: str, lease_seconds: float) -> None:
        self._redis = redis
        self._worker_id = worker_id
        self._lease_ms = int(lease_seconds * 1000)
        self._claim = redis.register_script(_CLAIM)
        self._renew = redis.register_script(_RENEW)
        self._release = redis.register_script(_RELEASE)

    async def claim(self, count: int, look_at: int) -> list[str]:
        """Takes up to `count` waiting jobs, oldest first."""
        taken = await self._claim(
            keys=[keys.QUEUE], args=[self._worker_id, self._lease_ms, count, look_at, keys.job_lease("")]
        )
        return [job.decode() for job in taken]

    async def renew(self, jobs: Iterable[str]) -> list[str]:
        """Renews these and says that this worker is alive. Returns those that are no longer ours."""
        lost = await self._renew(
            keys=[keys.QUEUE, keys.WORKERS], args=[self._worker_id, self._lease_ms, keys.job_lease(""), *jobs]
        )
        return [job.decode() for job in lost]

    async def release(self, job: str, *, ended: bool) -> None:
        """Lets go of a job. Does nothing if another worker has it."""
        await self._release(
            keys=[keys.QUEUE],
            args=[
                *(self._worker_id, job, keys.job_lease(""), int(ended)),
                *(keys.job(job), keys.job_retries(job), keys.CONTROL, WAKE),
            ],
        )

    async def leave(self) -> None:
        """This worker is no more."""
        await self._redis.zrem(keys.WORKERS, self._worker_id)
