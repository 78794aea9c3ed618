"""Bytes of an owner's quota, taken before they are written: what a file on its way in holds until it is a task's.

They are counted where a task's own bytes are (`keys.OWNER_STORED`), so the step that makes the file a task's, in
progress.lua, puts its true size in their place. A reservation lives as long as it is renewed: what a dead process had
is let go by the sweeper (`Publisher.let_go`). Without a quota nothing is reserved.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Final

from headway.shared import keys
from headway.shared.errors import QuotaFull
from headway.shared.redis.client import AWAY, RedisClient, RedisError
from headway.shared.tasks.models import OwnerId, TaskId
from headway.shared.tasks.progress import ACTIVE_TTL_SECONDS

#: Taken ahead of what has come, where nobody says how much will: a question a MiB.
AHEAD_BYTES: Final = 1024 * 1024

#: KEYS: the owner's bytes, its reservations. ARGV: task, least and most that it is to hold, quota, life and time to
#: live in ms. Answers with what it holds now and the owner's total; nothing has changed where that is less than the
#: least.
_COVER: Final = """
local stored = redis.call('HMGET', KEYS[1], 'total', ARGV[1])
redis.call('ZSCORE', KEYS[2], ARGV[1])
local time = redis.call('TIME')
local function whole(number) return string.format('%d', number) end
local total, held = tonumber(stored[1]) or 0, tonumber(stored[2]) or 0
local holds = math.max(held, math.min(tonumber(ARGV[3]), tonumber(ARGV[4]) - total + held))
if holds < tonumber(ARGV[2]) then return {whole(held), whole(total)} end
redis.call('HSET', KEYS[1], 'total', whole(total + holds - held), ARGV[1], whole(holds))
redis.call('ZADD', KEYS[2], whole(time[1] * 1000 + ARGV[5]), ARGV[1])
for i = 1, 2 do redis.call('PEXPIRE', KEYS[i], ARGV[6]) end
return {whole(holds), whole(total)}
"""

#: KEYS: as above, and the task's state. ARGV: task. From here on it holds what its state says.
_SETTLE: Final = """
local state = redis.call('HMGET', KEYS[3], 'status', 'size_bytes')
local stored = redis.call('HMGET', KEYS[1], 'total', ARGV[1])
local total, held = tonumber(stored[1]) or 0, tonumber(stored[2]) or 0
if redis.call('ZREM', KEYS[2], ARGV[1]) == 0 then return end
local bytes = held
if not state[1] then bytes = 0 elseif state[1] == '"uploading"' then bytes = tonumber(state[2]) or 0 end
if bytes == held then return end
redis.call('HSET', KEYS[1], 'total', string.format('%d', math.max(0, total + bytes - held)), ARGV[1],
  string.format('%d', bytes))
if bytes == 0 then redis.call('HDEL', KEYS[1], ARGV[1]) end
"""


class Reservation:
    """What one file on its way in holds. `settle` ends it, whatever became of the file."""

    def __init__(
        self, redis: RedisClient, owner: OwnerId, task_id: TaskId, *, quota_bytes: int, life_seconds: float
    ) -> None:
        """`life_seconds`: longer than the file may go without a byte."""
        self._cover_script = redis.register_script(_COVER)
        self._settle_script = redis.register_script(_SETTLE)
        self._keys = [pattern % owner for pattern in (keys.OWNER_STORED, keys.OWNER_RESERVED)]
        self._task_id = task_id
        self._quota_bytes = quota_bytes
        self._life_seconds = life_seconds
        self._held_bytes = 0
        self._renewed_at = float("-inf")

    async def cover(self, least_bytes: int, most_bytes: int | None = None) -> None:
        """From here on so much is held, and up to `most_bytes` if it fits. Raises QuotaFull.

        While Redis is away nothing can be reserved: the step that makes the file a task's looks at its size in any
        case."""
        fresh = time.monotonic() < self._renewed_at + self._life_seconds / 3
        if least_bytes <= self._held_bytes and fresh:
            return
        most_bytes = most_bytes or least_bytes + min(AHEAD_BYTES, least_bytes // 4)
        args: list[Any] = [self._task_id, least_bytes, most_bytes, self._quota_bytes]
        args += [int(self._life_seconds * 1000), ACTIVE_TTL_SECONDS * 1000]
        try:
            held, total = await self._cover_script(keys=self._keys, args=args)
        except AWAY:
            return
        if int(held) < least_bytes:
            raise QuotaFull.of(int(total), self._quota_bytes)
        self._held_bytes = int(held)
        self._renewed_at = time.monotonic()

    async def settle(self) -> None:
        with suppress(RedisError, *AWAY):  # then it runs out
            await self._settle_script(keys=[*self._keys, keys.state(self._task_id)], args=[self._task_id])
