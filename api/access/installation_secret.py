"""The secret that signs task tokens and sessions of owners without a key: made once for an installation, kept in Redis.

Every API process finds it there, so what one signed all read. It lives as long as anything that it may have signed, and
its life is renewed by each signing. Where Redis came back empty, who signs next puts there what it has, so that what is
signed goes on being good. Where the secret follows from the settings (HEADWAY_JWT_KEY is one) nothing of this is asked.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from typing import Final

from headway.api.access.keyring import Keyring
from headway.shared import keys
from headway.shared.redis.client import AWAY, RedisClient, RedisError
from headway.shared.tasks.models import OwnerId

#: Longer than a task token and a session can live.
LIVES_SECONDS: Final = 60 * 86_400
#: How often Redis is asked for a secret that a token names and this process does not know: anybody can make such a one.
LOOK_SECONDS: Final = 1.0


class InstallationSecret:
    """Errors: headway.shared.redis.client.AWAY."""

    def __init__(self, redis: RedisClient, keyring: Keyring) -> None:
        self._redis = redis
        self._keyring = keyring
        self._looked_at = float("-inf")

    async def ready_for(self, owner: OwnerId) -> None:
        """To be awaited before something is signed for this owner."""
        if self._keyring.derives_house_secret or not self._keyring.needs_house_secret(owner):
            return
        ours = self._keyring.house_secret or secrets.token_bytes(32)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(keys.SIGNING, ours, nx=True)
            pipe.expire(keys.SIGNING, LIVES_SECONDS)
            pipe.get(keys.SIGNING)
            *_, kept = await pipe.execute()
        self._keyring.add_house_secret(kept or ours)

    async def look_for(self, token: str) -> None:
        """To be awaited before a token or a cookie is read."""
        if self._keyring.derives_house_secret or not self._keyring.is_of_unknown_secret(token):
            return
        if self._keyring.house_secret is not None and time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        await self._look()

    async def look_ahead(self) -> None:
        """At the start, so that what is known needs no Redis later. Raises nothing: what is wrong is said when it is
        needed."""
        if self._keyring.signs_for_others and not self._keyring.derives_house_secret:
            with suppress(*AWAY, RedisError):
                await self._look()

    async def _look(self) -> None:
        kept = await self._redis.get(keys.SIGNING)
        self._looked_at = time.monotonic()
        if kept is not None:
            self._keyring.add_house_secret(kept)
