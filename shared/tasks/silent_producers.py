"""Outside producers that were silent for longer than their lease: their tasks are `failed`, `worker_lost`.

One look, at the one sorted set that progress.lua keeps (keys.PRODUCERS). Every worker looks, beside its sweeper, and so
does every API process, because there may be no worker. Two that look at once do no harm: the write is refused unless
the lease is over in the step that ends the task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from headway.shared import keys
from headway.shared.cancellation import heed_cancellation
from headway.shared.errors import Refused
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY, RedisClient, RedisError, why_away
from headway.shared.tasks.models import ErrorType, Status, TaskId
from headway.shared.tasks.progress import Publisher

log = get_logger(__name__)

#: The contract promises the end at most 2 s after the lease.
LOOK_SECONDS: Final = 1.0
#: Who has not looked for this long was away, or Redis was, and then nobody could report.
AWAY_SECONDS: Final = 5.0
#: What those have then who are overdue: longer than headway.report waits between two tries.
GRACE_SECONDS: Final = 5.0
#: Ended in one look; the next one goes on.
PAGE: Final = 500

#: KEYS: the set. ARGV: how many. Answers with the time in ms, and those whose time is over.
_OVERDUE: Final = """
local time = redis.call('TIME')
local now_ms = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
return {now_ms, redis.call('ZRANGE', KEYS[1], '-inf', now_ms, 'BYSCORE', 'LIMIT', 0, ARGV[1])}
"""


class SilentProducers:
    """`run` is the service. `clock` is monotonic, in seconds."""

    def __init__(
        self, redis: RedisClient, publisher: Publisher, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis = redis
        self._publisher = publisher
        self._clock = clock
        self._overdue = redis.register_script(_OVERDUE)
        self._looked_at = float("-inf")

    async def run(self) -> None:
        broken: str | None = None
        while True:
            heed_cancellation()
            try:
                await self.look()
                broken = None
            except AWAY:
                pass  # said by whoever sweeps or serves
            except RedisError as error:
                if broken != (broken := why_away(error)):
                    log.error("producers not looked at", reason=broken)  # noqa: TRY400 - the reason is all there is
            except Exception as error:
                if broken != (broken := repr(error)):
                    log.exception("look at producers broke")
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Ends the tasks whose producers are silent. Errors: AWAY, RedisError."""
        now_ms, found = await self._overdue(keys=[keys.PRODUCERS], args=[PAGE])
        before, self._looked_at = self._looked_at, self._clock()
        overdue = [TaskId(member.decode()) for member in found]
        if overdue and self._looked_at - before > AWAY_SECONDS:
            later: dict[str, float] = dict.fromkeys(overdue, int(now_ms) + GRACE_SECONDS * 1000)
            await self._redis.zadd(keys.PRODUCERS, later, xx=True, gt=True)
            return
        for task_id in overdue:
            await self._end(task_id)

    async def _end(self, task_id: TaskId) -> None:
        message = "Its producer has not been heard for longer than its lease."
        try:
            await self._publisher.fail(
                *(task_id, ErrorType.WORKER_LOST, message),
                retryable=True,
                allowed=(Status.PROCESSING,),
                lease_over=True,
            )
        except Refused as refused:
            if refused.reason != "alive":  # it has ended or expired, and nobody took it off
                await self._redis.zrem(keys.PRODUCERS, task_id)
        else:
            log.info("producer lost", task_id=task_id)
