"""The outbox of webhooks: notices of ends that are still to be sent, and what was tried with each.

A notice is written by progress.lua in the step that ends the task, so there is no end without its notice. It is sent at
least once: by whichever worker claims its receiver, and again where that worker dies with it. A receiver is an
owner's and one URL. It is served by one sender at a time, a few notices at once; so one that hangs keeps nobody else
waiting. Times are those of Redis' clock.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from headway.shared import keys
from headway.shared.json_text import text_of
from headway.shared.redis.client import RedisClient
from headway.shared.tasks.models import TaskId
from headway.shared.units import DAY_SECONDS

#: CONTRACT section 9. After the last of them it is given up.
RETRY_SECONDS: Final = (5, 30, 120, 600, 3600, 6 * 3600, 24 * 3600)
#: All of one try.
TRY_SECONDS: Final = 15.0
#: A sender that is gone is followed after this long.
LEASE_SECONDS: Final = TRY_SECONDS + 10
#: Longer than all of its tries take, 31 hours; and whoever looks for what went wrong comes after a weekend.
NOTICE_TTL_SECONDS: Final = 4 * DAY_SECONDS
#: Notices that one claim holds, and so what a receiver gets at once.
AT_ONCE: Final = 8
#: Of one notice.
KEPT_TRIES: Final = 50
#: Of one task: each of its ends is one.
MOST_NOTICES: Final = 100

#: pending: to be sent. delivered: 2xx. gone: 410. given_up: its tries are over.
State = Literal["pending", "delivered", "gone", "given_up"]


@dataclass(frozen=True, slots=True)
class Notice:
    """One that is to be sent now. `task` is the hash of the task as it was, as one JSON object."""

    webhook_id: str
    task_id: TaskId
    url: str
    type: str
    created_ms: int
    task: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A receiver and what is due to it. `release` ends it."""

    receiver: str
    token: str
    notices: tuple[Notice, ...]

    @property
    def owner(self) -> str:
        return self.receiver.rpartition("/")[0]

    @property
    def origin(self) -> str:
        """The owner's receivers of one origin."""
        return self.receiver.rpartition(".")[0]


#: KEYS: the receivers that are due. ARGV: how many to claim, the token, its lease in ms, notices of each, the patterns
#: of WEBHOOKS_TO, WEBHOOKS_BUSY and WEBHOOK, then owners and origins that are served enough at present, which wait a
#: second.
_CLAIM: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function at(ms) return string.format('%d', ms) end
local full = {}
for i = 8, #ARGV do full[ARGV[i]] = true end
local claims = {}
for _, receiver in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', at(now), 'BYSCORE', 'LIMIT', 0, 1000)) do
  if #claims >= tonumber(ARGV[1]) then break end
  local to, busy = string.format(ARGV[5], receiver), string.format(ARGV[6], receiver)
  local lease = redis.call('PTTL', busy)
  if full[string.match(receiver, '^(.*)/')] or full[string.match(receiver, '^(.*)%.')] then
    redis.call('ZADD', KEYS[1], at(now + 1000), receiver)
  elseif lease > 0 then
    redis.call('ZADD', KEYS[1], at(now + lease), receiver)
  else
    local notices = {}
    for _, id in ipairs(redis.call('ZRANGE', to, '-inf', at(now), 'BYSCORE', 'LIMIT', 0, ARGV[4])) do
      local notice = redis.call('HMGET', string.format(ARGV[7], id), 'id', 'task_id', 'url', 'type',
        'created_ms', 'task')
      if notice[1] then notices[#notices + 1] = notice else redis.call('ZREM', to, id) end
    end
    if notices[1] then
      redis.call('SET', busy, ARGV[2], 'PX', ARGV[3])
      redis.call('ZADD', KEYS[1], at(now + ARGV[3]), receiver)
      claims[#claims + 1] = {receiver, notices}
    else
      local next = redis.call('ZRANGE', to, 0, 0, 'WITHSCORES')
      if next[1] then redis.call('ZADD', KEYS[1], next[2], receiver) else redis.call('ZREM', KEYS[1], receiver) end
    end
  end
end
return claims
"""

#: KEYS: the notice, the receiver's notices, the task's. ARGV: the id; `delivered`, `gone` or `failed`; the try as JSON
#: on one line, with an id of its own, so that one sent twice counts once; how many are kept; then the waits in ms.
_TRIED: Final = r"""
local known = redis.call('HMGET', KEYS[1], 'status', 'failed', 'tries')
if not known[1] then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 'forgotten'
end
local tries = known[3] or ''
if string.find(tries, ARGV[3], 1, true) then return known[1] end
tries = tries == '' and ARGV[3] or tries .. '\n' .. ARGV[3]
if select(2, string.gsub(tries, '\n', '')) >= tonumber(ARGV[4]) then tries = string.match(tries, '\n(.*)') end
local status, failed, due = known[1], tonumber(known[2] or 0), nil
if ARGV[2] ~= 'failed' then
  status = ARGV[2]
elseif status == 'pending' then
  failed = failed + 1
  due = ARGV[4 + failed]
  if not due then status = 'given_up' end
end
redis.call('HSET', KEYS[1], 'tries', tries, 'status', status, 'failed', failed)
if due then
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[2], string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000) + due), ARGV[1])
elseif status ~= 'pending' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  if redis.call('EXISTS', KEYS[3]) == 0 then redis.call('DEL', KEYS[1]) end -- its task was deleted
end
return status
"""

#: KEYS: the receiver's claim, the receivers that are due, the receiver's notices. ARGV: the token, the receiver.
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return end
redis.call('DEL', KEYS[1])
local next = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
if next[1] then redis.call('ZADD', KEYS[2], next[2], ARGV[2]) else redis.call('ZREM', KEYS[2], ARGV[2]) end
"""

#: KEYS: the notice, the task's notices, the receivers that are due. ARGV: the id, the pattern of WEBHOOKS_TO, times to
#: live in ms: of the notice, and of what belongs to its receiver.
_RESEND: Final = """
local receiver = redis.call('HGET', KEYS[1], 'receiver')
if not receiver or not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local to = string.format(ARGV[2], receiver)
redis.call('HSET', KEYS[1], 'status', 'pending', 'failed', 0)
for i = 1, 2 do
  if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
end
redis.call('ZADD', to, now, ARGV[1])
redis.call('PEXPIRE', to, ARGV[4])
redis.call('ZADD', KEYS[3], 'LT', now, receiver)
redis.call('PEXPIRE', KEYS[3], ARGV[4])
return 1
"""


class Outbox:
    """Errors of all methods: headway.shared.redis.client.AWAY."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._claim = redis.register_script(_CLAIM)
        self._tried = redis.register_script(_TRIED)
        self._release = redis.register_script(_RELEASE)
        self._resend = redis.register_script(_RESEND)

    async def claim(self, most: int, full: Collection[str] = ()) -> list[Claim]:
        """Up to `most` receivers that something is due to, each for LEASE_SECONDS. Those of
        an owner or an origin in `full` wait."""
        token = secrets.token_hex(8)
        args: list[Any] = [most, token, int(LEASE_SECONDS * 1000), AT_ONCE]
        args += [keys.WEBHOOKS_TO, keys.WEBHOOKS_BUSY, keys.WEBHOOK, *full]
        found = await self._claim(keys=[keys.WEBHOOKS_DUE], args=args)
        return [
            Claim(receiver.decode(), token, tuple(_notice(values) for values in notices)) for receiver, notices in found
        ]

    async def tried(self, claim: Claim, notice: Notice, end: str, told: dict[str, Any]) -> str:
        """One try is over: `end` is `delivered`, `gone` or `failed`. Returns the State, or `forgotten`."""
        record = text_of({"id": secrets.token_hex(4), **told})
        where = [keys.WEBHOOK % notice.webhook_id, keys.WEBHOOKS_TO % claim.receiver, keys.WEBHOOKS_OF % notice.task_id]
        waits = [seconds * 1000 for seconds in RETRY_SECONDS]
        state: bytes = await self._tried(keys=where, args=[notice.webhook_id, end, record, KEPT_TRIES, *waits])
        return state.decode()

    async def release(self, claim: Claim) -> None:
        """The receiver is free for the next sender, at the moment at which something is due."""
        here = [keys.WEBHOOKS_BUSY % claim.receiver, keys.WEBHOOKS_DUE, keys.WEBHOOKS_TO % claim.receiver]
        await self._release(keys=here, args=[claim.token, claim.receiver])

    async def of_task(self, task_id: TaskId) -> list[dict[str, Any]]:
        """The notices of a task, oldest first, as `GET /tasks/{id}/webhooks` shows them, with times in ms."""
        ids = [member.decode() for member in await self._redis.zrange(keys.WEBHOOKS_OF % task_id, 0, -1)]
        names = ["id", "type", "url", "from", "status", "created_ms", "tries", "receiver"]
        async with self._redis.pipeline(transaction=False) as pipe:
            for one in ids:
                pipe.hmget(keys.WEBHOOK % one, names)
            rows = [[(value or b"").decode() for value in row] for row in await pipe.execute() if row[0] is not None]
            for row in rows:
                pipe.zscore(keys.WEBHOOKS_TO % row[-1], row[0])
            dues = await pipe.execute() if rows else []
        found = list[dict[str, Any]]()
        for row, due in zip(rows, dues, strict=True):
            notice: dict[str, Any] = dict(zip(names, row, strict=True))
            notice["url"] = json.loads(notice["url"])
            notice["tries"] = [json.loads(line) for line in notice["tries"].splitlines()]
            notice["created_ms"] = int(notice["created_ms"])
            notice["due_ms"] = int(due) if due is not None and notice["status"] == "pending" else None
            found.append(notice)
        return found

    async def count(self, task_id: TaskId) -> int:
        """How many notices of a task there are."""
        return int(await self._redis.zcard(keys.WEBHOOKS_OF % task_id))

    async def resend(self, task_id: TaskId, webhook_id: str, *, lives_seconds: int, owner_lives_seconds: int) -> bool:
        """Sends it again from now on, with all of its tries. False: the task has no such notice."""
        here = [keys.WEBHOOK % webhook_id, keys.WEBHOOKS_OF % task_id, keys.WEBHOOKS_DUE]
        args: Sequence[Any] = [webhook_id, keys.WEBHOOKS_TO, lives_seconds * 1000, owner_lives_seconds * 1000]
        return bool(await self._resend(keys=here, args=args))

    async def receivers(self) -> int:
        """How many something is to be sent to, now or later."""
        return int(await self._redis.zcard(keys.WEBHOOKS_DUE))


def _notice(values: Sequence[bytes]) -> Notice:
    webhook_id, task_id, url, kind, created_ms, task = (value.decode() for value in values)
    return Notice(webhook_id, TaskId(task_id), json.loads(url), kind, int(created_ms), task)
