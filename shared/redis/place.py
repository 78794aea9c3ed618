"""Which place of files a platform in this namespace works with, so that a second one with other files is noticed.

API and workers of one platform have the same files: the same data directory, or the same bucket. Each process says in
Redis which ones its are, for as long as it runs and HELD_SECONDS longer. One that starts and finds another place there
is refused: it would take tasks whose files it does not have, and remove those that the other needs. Redis' users of an
older file of rules may not say it; then nothing is noticed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from redis.exceptions import ResponseError

from headway.shared import keys
from headway.shared.cancellation import cancel, heed_cancellation
from headway.shared.errors import SettingsError
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY, RedisClient, connect
from headway.shared.settings import MEMORY_URL, Settings

log = get_logger(__name__)

RENEW_SECONDS: Final = 5.0
HELD_SECONDS: Final = 20.0
#: Of the data directory: the folder in it that has a folder with the name of the place. No file: those are users'.
_FOLDER: Final = "place"


def place_of(settings: Settings) -> str:
    """The name of the place, made where it has none. Raises OSError."""
    if settings.storage_url:
        return hashlib.sha256(settings.storage_url.encode()).hexdigest()[:16]
    folder = settings.data_dir / _FOLDER
    if (name := _name_in(folder)) is None:
        ours = settings.data_dir / f"{_FOLDER}-{secrets.token_hex(8)}"
        (ours / secrets.token_hex(8)).mkdir(parents=True, mode=0o700)
        with suppress(OSError):  # somebody was quicker
            ours.rename(folder)
        if ours.exists():
            for one in ours.iterdir():
                one.rmdir()
            ours.rmdir()
        name = _name_in(folder)
    return name or ""


def _name_in(folder: Path) -> str | None:
    try:
        return min(os.listdir(folder), default=None)  # noqa: PTH208
    except FileNotFoundError:
        return None


class Place:
    def __init__(self, redis: RedisClient, name: str) -> None:
        self._redis = redis
        self._name = name
        self._member = f"{name} {secrets.token_hex(8)}"
        self._said = False

    async def take(self) -> None:
        """Raises SettingsError where a platform in this namespace has another place. A Redis that is away says
        nothing."""
        with suppress(*AWAY, ResponseError):
            if await self._others():
                raise _refused()
            await self._say()
            if (others := await self._others()) and min(others) < self._name:  # both began in this moment
                await self.leave()
                raise _refused()

    async def renew(self) -> None:
        """For as long as this process runs."""
        while True:
            heed_cancellation()
            await asyncio.sleep(RENEW_SECONDS)
            with suppress(*AWAY, ResponseError):
                await self._say()
                if (others := await self._others()) and not self._said:
                    log.error("another platform with other files is in this namespace", places=len(others))
                self._said = bool(others)

    async def leave(self) -> None:
        with suppress(*AWAY, ResponseError, TimeoutError):
            async with asyncio.timeout(0.5):
                await self._redis.zrem(keys.PLACE, self._member)

    async def _others(self) -> set[str]:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(keys.PLACE, 0, -1, withscores=True)
            (seconds, _), members = await pipe.execute()
        return {
            name
            for name, until in ((member.decode().partition(" ")[0], until) for member, until in members)
            if until > seconds and name != self._name
        }

    async def _say(self) -> None:
        seconds, _ = await self._redis.time()
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(keys.PLACE, {self._member: seconds + HELD_SECONDS})
            pipe.pexpire(keys.PLACE, int(3 * HELD_SECONDS * 1000))
            await pipe.execute()


def _refused() -> SettingsError:
    return SettingsError(
        "HEADWAY_DATA_DIR: another platform, with other files, uses this Redis in the same namespace. API and workers "
        "of one platform need the same HEADWAY_DATA_DIR or HEADWAY_STORAGE_URL; a second platform needs a "
        f"HEADWAY_NAMESPACE or a database of its own. One that was killed counts for {HELD_SECONDS:g} s more. "
        "Example: HEADWAY_NAMESPACE=headway-two"
    )


@asynccontextmanager
async def held(redis: RedisClient, settings: Settings) -> AsyncIterator[None]:
    """This process is in its place. Raises SettingsError."""
    if settings.redis_url.startswith(MEMORY_URL):
        yield
        return
    place = Place(redis, await asyncio.to_thread(_place_of, settings))
    await place.take()
    renewing = asyncio.create_task(place.renew(), name="place")
    try:
        yield
    finally:
        await cancel(renewing)
        await place.leave()


async def check(settings: Settings) -> None:
    """For a start that is to be refused before anything has begun. Raises SettingsError."""
    if not settings.redis_url.startswith(MEMORY_URL):
        async with connect(settings) as redis:
            place = Place(redis, await asyncio.to_thread(_place_of, settings))
            await place.take()
            await place.leave()


def _place_of(settings: Settings) -> str:
    try:
        return place_of(settings)
    except OSError as error:
        raise SettingsError(
            f"HEADWAY_DATA_DIR: it cannot be written ({error.strerror}). Example: HEADWAY_DATA_DIR=./data"
        ) from None
