"""How full Redis is: what it uses of what it may, as it says itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from redis.exceptions import ResponseError

from headway.shared.redis.client import RedisClient

#: From here on no new work is taken, so that there is room for what was: its events, results and the rest of its notes.
NEARLY_FULL: Final = 0.85
#: Of one owner's words, in a Redis without a limit.
WORDS_BYTES: Final = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class Memory:
    """`most_bytes` 0: it has no limit, or does not say."""

    used_bytes: int = 0
    most_bytes: int = 0

    @property
    def is_nearly_full(self) -> bool:
        return self.share >= NEARLY_FULL

    @property
    def share(self) -> float:
        return self.used_bytes / self.most_bytes if self.most_bytes else 0.0


def words_of_one(setting: int | None, memory: Memory) -> int:
    """Bytes of Redis that one owner's words may hold: what HEADWAY_OWNER_WORDS_BYTES says, else a quarter. 0: no
    limit."""
    return int(setting) if setting is not None else memory.most_bytes // 4 or WORDS_BYTES


async def look_at_memory(redis: RedisClient) -> Memory:
    """Raises AWAY. A fake one, or a managed one without INFO, does not say."""
    try:
        found = await redis.info("memory")
    except ResponseError:
        return Memory()
    used = int(found.get("used_memory", 0)) - int(found.get("mem_not_counted_for_evict", 0))
    return Memory(used, int(found.get("maxmemory", 0)))
