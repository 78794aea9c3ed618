"""The line of waiting jobs, and the scripts that change it: line.lua says who goes first.

A job is put in the line by the script that makes its task `queued` (progress.lua), taken out of it by a worker's turn
(worker/turn.lua), and put back where its worker died. `headway:queue`, arq's sorted set, is the way in for versions of
before there was a line and for arq's own client: each turn empties it into the line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

from headway.shared import keys
from headway.shared.redis.client import RedisClient
from headway.shared.redis.script_text import script_text
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


class Line:
    """Which processors are paused. Errors: headway.shared.redis.client.AWAY."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def paused(self) -> frozenset[str]:
        found = await self._redis.smembers(keys.LINE_PAUSED)  # type: ignore[misc]
        return frozenset(name.decode() for name in found)

    async def pause(self, processor: str) -> None:
        await self._redis.sadd(keys.LINE_PAUSED, processor)  # type: ignore[misc]

    async def resume(self, processor: str) -> None:
        await self._redis.srem(keys.LINE_PAUSED, processor)  # type: ignore[misc]
        await self._redis.publish(keys.CONTROL, WAKE)
