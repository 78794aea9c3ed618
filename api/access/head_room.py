"""Head room in Redis: from 85 % on new work is refused, so that what was taken runs to its end.

At the limit itself Redis refuses every write, those of running tasks too. Between the two there is room for what is
under way, and the sweeper makes more of it by dropping the histories of ended tasks (worker/sweeper.py). An owner's
words have a share of the whole.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from headway.shared.cancellation import cancel, heed_cancellation
from headway.shared.errors import NearlyFull
from headway.shared.redis.client import AWAY, RedisClient, RedisError
from headway.shared.redis.memory import Memory, look_at_memory, words_of_one
from headway.shared.settings import Settings

#: What comes meanwhile is far less than the head room.
LOOK_SECONDS: Final = 0.5


class HeadRoom:
    """Entered by the lifespan."""

    def __init__(self, redis: RedisClient, settings: Settings) -> None:
        self._redis = redis
        self._words = settings.owner_words_bytes
        self._memory = Memory()

    async def __aenter__(self) -> HeadRoom:
        self._looking = asyncio.create_task(self._look_again_and_again(), name="head room")
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(self._looking)

    def check(self) -> None:
        """Raises NearlyFull."""
        if self._memory.is_nearly_full:
            used, most = self._memory.used_bytes, self._memory.most_bytes
            raise NearlyFull(
                f"Redis uses {used} of {most} bytes (maxmemory), so no new work is taken until some of it has ended; "
                "what was taken runs to its end. Try again later."
            )

    def most_words(self) -> int:
        """Bytes of Redis that one owner's words may hold. 0: no limit."""
        return words_of_one(self._words, self._memory)

    async def _look_again_and_again(self) -> None:
        while True:
            heed_cancellation()
            with suppress(RedisError, *AWAY):
                self._memory = await look_at_memory(self._redis)
            await asyncio.sleep(LOOK_SECONDS)
