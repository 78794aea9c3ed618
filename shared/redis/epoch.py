"""Which of its histories Redis is in: counted on whenever it may have lost the end of the last one.

Replication is asynchronous, so a replica that is promoted may lack the last writes of the primary before it, and so may
a server without an append-only file that starts again. What is written next would then have numbers that clients have
seen on something else: a stream would take the second version 20 for the one it knows. So the first connection to such
a server begins an epoch, and progress.lua lifts a number that it goes on with in a new epoch above all those of the old
ones; whoever watches is told of it by a gap.

A server says by its replication id which history it is in. Each connection compares, before its first command. Minutes
make an epoch's number, so that one that was itself lost is not given again.
"""

from __future__ import annotations

from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from headway.shared import keys
from headway.shared.units import DAY_SECONDS

#: As long as anything that has a number, which refresh it (shared/tasks/progress.lua).
TTL_SECONDS: Final = 30 * DAY_SECONDS

#: Begun anew: promoted, or started again without a file that holds every write it has acknowledged.
_ENTER: Final = """
local told = redis.call('INFO', 'replication')
local now, before = string.match(told, 'master_replid:(%x+)'), string.match(told, 'master_replid2:(%x+)')
if not now or string.match(told, 'role:(%a+)') ~= 'master' then return 0 end
local known = redis.call('HGET', KEYS[1], 'replid')
if known == now then return 0 end
local kept = string.match(redis.call('INFO', 'persistence'), 'aof_enabled:1') and not string.match(before or '', '[^0]')
if known and not kept then
  local minutes = math.floor(redis.call('TIME')[1] / 60) - 29453760
  local number = math.max(minutes, 1 + (redis.call('HGET', KEYS[1], 'number') or 0))
  redis.call('HSET', KEYS[1], 'number', string.format('%d', number))
end
redis.call('HSET', KEYS[1], 'replid', now)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""


async def enter_epoch(connection: Any) -> None:
    """redis-py's `redis_connect_func`. A server that does not say its id, or does not let us ask or write, stays in the
    epoch it is in."""
    await connection.on_connect()
    try:
        await connection.send_command("EVAL", _ENTER, 1, keys.EPOCH, TTL_SECONDS * 1000)
        await connection.read_response()
    except RedisConnectionError:
        raise
    except ResponseError:
        return
