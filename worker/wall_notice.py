"""Tells everybody which walls stand around this worker's children: in its log, in Redis for `/readyz`, and as a metric.

In Redis it is a field of keys.WALLS, named by the worker's id and renewed while the worker lives. Of workers that are
not alive (keys.WORKERS) nobody reads it, and the first word of a new one removes theirs.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from headway.shared import keys
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY, RedisClient
from headway.worker.box.walls import NETWORK_CLOSED, READING_CLOSED, Box, Standing, in_order

log = get_logger(__name__)

TELL_SECONDS = 30.0
#: A worker that is told of for this long has not spoken since; the key goes with the last of them.
_KEPT_MS = 120_000


def warning_of(standing: Standing) -> str | None:
    """Where a child that was taken over could read the machine, or reach others."""
    open_to = []
    if not standing.walls & READING_CLOSED:
        open_to.append("read every file that the worker may read")
    if not standing.walls & NETWORK_CLOSED:
        open_to.append("reach the network")
    if not open_to:
        return None
    return f"A processor that a file takes over can {' and '.join(open_to)}: see SECURITY.md, The box."


class WallNotice:
    def __init__(self, redis: RedisClient, worker_id: str, box: Box, standing: Standing) -> None:
        self._redis = redis
        self._worker_id = worker_id
        self._warning = warning_of(standing)
        self._about = json.dumps(
            {
                "confinement": box.mode,
                "walls": in_order(standing.walls),
                "missing": dict(standing.missing),
                "warning": self._warning,
            }
        )
        for wall, reason in standing.missing.items():
            log.info("wall missing", wall=wall, reason=reason)
        if self._warning is not None:
            log.warning("processors are not confined", reason=self._warning)

    async def run(self) -> None:
        """Until it is cancelled. A Redis that is away is told later."""
        while True:
            with suppress(*AWAY):
                await self._tell()
            await asyncio.sleep(TELL_SECONDS)

    async def _tell(self) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hkeys(keys.WALLS)
            pipe.zrange(keys.WORKERS, 0, -1)
            known, alive = await pipe.execute()
        async with self._redis.pipeline(transaction=False) as pipe:
            if gone := set(known) - set(alive) - {self._worker_id.encode()}:
                pipe.hdel(keys.WALLS, *gone)
            pipe.hset(keys.WALLS, self._worker_id, self._about)
            pipe.pexpire(keys.WALLS, _KEPT_MS)
            await pipe.execute()

    async def leave(self) -> None:
        """This worker is no more. Errors: headway.shared.redis.client.AWAY."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hdel(keys.WALLS, self._worker_id)
            await pipe.execute()
