"""What Redis holds of a request that was sent under an idempotency key: who is at it, and what was answered.

One hash for each key of an owner. While a request is under way it names its holder, with a lease in Redis's time that
the holder renews. Before anything is made it names the task that will be, with the fingerprint of the request; that
outlives the holder, so that whoever comes after a crash makes the same task or finds it made, never a second one. In
the end it holds the answer, for a day.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Final

from headway.shared import keys
from headway.shared.redis.client import RedisClient
from headway.shared.tasks.models import OwnerId, TaskId
from headway.shared.units import DAY_SECONDS

#: A holder that is silent for this long is dead: the next request goes on in its place. It waits no longer than this,
#: and one that was only slow does no harm.
LEASE_SECONDS: Final = 5.0
#: How long an answer is given again (CONTRACT section 3).
KEPT_SECONDS: Final = DAY_SECONDS


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered to the request with this fingerprint."""

    fingerprint: str
    status_code: int
    location: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to make the task `task_id` and no other. `earlier` is the fingerprint of one who had it before and may
    have made the task."""

    name: str
    holder: str
    task_id: TaskId
    earlier: str | None


class Answers:
    """Errors: headway.shared.redis.client.AWAY. Each method is one script, and does nothing for who is no longer the
    holder."""

    def __init__(self, redis: RedisClient, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._lease_ms = int(lease_seconds * 1000)
        self._claim = redis.register_script(self._NOW + self._CLAIM)
        self._hold = redis.register_script(self._NOW + self._HOLD)
        self._answer = redis.register_script(self._ANSWER)
        self._release = redis.register_script(self._RELEASE)

    @property
    def renew_seconds(self) -> float:
        return self._lease_ms / 3000

    _NOW: Final = """
    local time = redis.call('TIME')
    local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
    local function leased(ms) return string.format('%d', now_ms + tonumber(ms)) end
    """

    _CLAIM: Final = """
    local fields = {'task_id', 'fingerprint', 'holder', 'until_ms', 'status', 'location', 'body'}
    local known = redis.call('HMGET', KEYS[1], unpack(fields))
    if known[5] then return {'answered', known[2], known[5], known[6], known[7]} end
    if known[3] and known[3] ~= ARGV[1] and tonumber(known[4]) > now_ms then return {'held'} end
    local task_id = known[1] or ARGV[2]
    redis.call('HSET', KEYS[1], 'task_id', task_id, 'holder', ARGV[1], 'until_ms', leased(ARGV[3]))
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    return {'yours', task_id, known[2] or ''}
    """

    async def claim(self, owner: OwnerId, key: str, holder: str, task_id: TaskId) -> Lease | Answer | None:
        """None: somebody else is at it. `task_id` is for a key that nobody used before."""
        name = keys.idempotency(owner, key)
        args: list[Any] = [holder, task_id, self._lease_ms, KEPT_SECONDS * 1000]
        found, *rest = await self._claim(keys=[name], args=args)
        if found == b"held":
            return None
        if found == b"yours":
            return Lease(name, holder, TaskId(rest[0].decode()), rest[1].decode() or None)
        fingerprint, status_code, location, body = rest
        return Answer(fingerprint.decode(), int(status_code), location.decode(), zlib.decompress(body))

    _HOLD: Final = """
    if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
    redis.call('HSET', KEYS[1], 'until_ms', leased(ARGV[2]))
    if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'fingerprint', ARGV[3]) end
    return 1
    """

    async def hold(self, lease: Lease, fingerprint: str = "") -> bool:
        """Renews the lease; with a fingerprint, also says that the task is about to be made. False: it was lost."""
        return bool(await self._hold(keys=[lease.name], args=[lease.holder, self._lease_ms, fingerprint]))

    _ANSWER: Final = """
    if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
    redis.call('HSET', KEYS[1], 'status', ARGV[2], 'location', ARGV[3], 'body', ARGV[4])
    redis.call('HDEL', KEYS[1], 'holder', 'until_ms')
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
    return 1
    """

    async def keep(self, lease: Lease, answer: Answer) -> None:
        """The end of the lease: from here on the answer is given again. The fingerprint stands there already."""
        args: list[Any] = [lease.holder, answer.status_code, answer.location, zlib.compress(answer.body)]
        await self._answer(keys=[lease.name], args=[*args, KEPT_SECONDS * 1000])

    _RELEASE: Final = """
    if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
    if redis.call('HEXISTS', KEYS[1], 'fingerprint') == 0 then return redis.call('DEL', KEYS[1]) end
    return redis.call('HDEL', KEYS[1], 'holder', 'until_ms')
    """

    async def release(self, lease: Lease) -> None:
        """The end of the lease without an answer: the key is free. Whether a task was made that nobody could be told of
        is for the next one to find out."""
        await self._release(keys=[lease.name], args=[lease.holder])
