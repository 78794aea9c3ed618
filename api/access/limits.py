"""How much one owner, and one address, may have at once: streams, uploads, unfinished tasks, requests a second.

Streams and uploads are counted in this process, where they live: what a process has open is what can wear it out.
Tasks are counted by Redis, which has them anyway. Requests a second and wrong keys are counted over all processes, by
the `limits` library on Redis. A Redis that is away limits nobody: what needs it is refused as it is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

from limits import RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter

from headway.api.access.head_room import HeadRoom
from headway.api.serving.descriptors import downloads_of_one, most_downloads, streams_of_one, uploads_of_one
from headway.shared import keys
from headway.shared.errors import TooMany
from headway.shared.redis.client import AWAY, RedisClient
from headway.shared.redis.faults import redis_faults
from headway.shared.settings import Settings
from headway.shared.tasks.models import OwnerId

#: Wrong keys that an address may try to sign in with.
WRONG_KEYS: Final = RateLimitItemPerMinute(10)
#: And a trusted proxy, for all whom it speaks for.
WRONG_KEYS_OF_PEER: Final = RateLimitItemPerMinute(100)
#: Requests of one name that change something, in one process, where no setting says how many: more than a page or a
#: script sends, and an end to what one owner can have written to Redis.
CHANGES_PER_SECOND: Final = 1000
CHANGES_AT_ONCE: Final = 10_000
#: Streams and uploads end, so it is worth asking again soon.
SOON_SECONDS: Final = 5


class Buckets:
    """So many of something a second for each name, and a store of them for a moment in which more come. In this process
    alone, so that it costs Redis nothing."""

    def __init__(self, per_second: float, most: float) -> None:
        self._per_second = per_second
        self._most = most
        #: What is left, and when that was so; whoever was seen last stands last.
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, name: str, now: float) -> bool:
        left, then = self._left.pop(name, (self._most, now))
        left = min(self._most, left + (now - then) * self._per_second)
        fits = left >= 1
        self._left[name] = left - fits, now
        self._forget_the_full(now)
        return fits

    def _forget_the_full(self, now: float) -> None:
        """Whoever has not been here for so long has all of it again."""
        for _ in range(2):
            name, (_, then) = next(iter(self._left.items()))
            if (now - then) * self._per_second < self._most:
                return
            del self._left[name]

    def __len__(self) -> int:
        return len(self._left)


class Gauge:
    """How many of something each name holds open."""

    def __init__(self, most: int, message: str) -> None:
        self._most = most
        self._message = message
        self._held: Counter[str] = Counter()

    def check(self, *names: str) -> None:
        """Raises TooMany where one of them has as many as it may. 0: nobody ever has."""
        if self._most and any(self._held[name] >= self._most for name in names):
            raise TooMany(f"{self._message} {self._most}.", retry_after_seconds=SOON_SECONDS)

    def take(self, *names: str) -> None:
        """One more for each name, until `give`. Raises as `check`."""
        self.check(*names)
        self._held.update(names)

    def give(self, *names: str) -> None:
        for name in names:
            if self._held[name] > 1:
                self._held[name] -= 1
            else:
                del self._held[name]

    @contextmanager
    def held(self, *names: str) -> Iterator[None]:
        """`take`, for as long as the block lasts."""
        self.take(*names)
        try:
            yield
        finally:
            self.give(*names)

    def __len__(self) -> int:
        return len(self._held)


def _set(setting: int | None, default: int) -> int:
    return default if setting is None else setting


class Limits:
    """Raises TooMany, and headway.shared.redis.client.AWAY where it says so."""

    def __init__(self, settings: Settings, redis: RedisClient, head_room: HeadRoom | None = None) -> None:
        self._redis = redis
        self._head_room = head_room
        self.streams = Gauge(
            _set(settings.max_streams, streams_of_one()), "The event streams that are open at once are at most"
        )
        self.uploads = Gauge(_set(settings.max_uploads, uploads_of_one()), "The uploads under way at once are at most")
        self.downloads = Gauge(downloads_of_one(), "The downloads under way at once are at most")
        self.all_downloads = Gauge(most_downloads(), "The downloads of all that are under way at once are at most")
        self._most_tasks = settings.max_unfinished_tasks
        notes = settings.max_notes_per_second
        self._notes = RateLimitItemPerSecond(notes) if notes else None
        per_second = settings.max_requests_per_second
        self._requests = RateLimitItemPerSecond(per_second) if per_second else None
        self._changes = Buckets(CHANGES_PER_SECOND, CHANGES_AT_ONCE) if per_second is None else None
        storage = RedisStorage(
            "redis://",
            implementation="redispy",
            key_prefix=keys.LIMITS,
            connection_pool=redis.connection_pool,  # type: ignore[arg-type]
        )
        self._rates = FixedWindowRateLimiter(storage)
        self._counters = storage
        #: By address: those who try a key, one after another.
        self._trying: dict[str, asyncio.Lock] = {}

    async def check_tasks(self, owner: OwnerId) -> None:
        """Whether the owner may have one more: a word before a file is sent, AWAY too. It is taken in the step that
        makes the task (shared/tasks/progress.lua). Raises NearlyFull where nobody may."""
        self.check_head_room()
        unfinished: int = await self._redis.scard(keys.OWNER_ACTIVE % owner)  # type: ignore[misc]
        if self._most_tasks and unfinished >= self._most_tasks:
            raise TooMany.tasks(unfinished, self._most_tasks)

    def check_head_room(self) -> None:
        """Raises NearlyFull where Redis has room for what was taken, and for no more (api/access/head_room.py)."""
        if self._head_room is not None:
            self._head_room.check()

    async def count_note(self, owner: OwnerId) -> None:
        """Raises TooMany where the owner says more than HEADWAY_MAX_NOTES_PER_SECOND; AWAY."""
        if self._notes is None:
            return
        with redis_faults():
            fits = await self._rates.hit(self._notes, "notes", owner)
        if not fits:
            raise TooMany(f"At most {self._notes.amount} notes a second are taken.")

    async def count_request(self, name: str, *, changes: bool) -> None:
        """Where no setting says how many, only those that change something count, and that costs nothing."""
        if self._changes is not None and changes:
            if not self._changes.take(name, asyncio.get_running_loop().time()):
                raise TooMany(f"At most {CHANGES_PER_SECOND} requests a second that change something are taken.")
            return
        if self._requests is None:
            return
        try:
            with redis_faults():
                fits = await self._rates.hit(self._requests, "requests", name)
        except AWAY:
            return
        if not fits:
            raise TooMany(f"At most {self._requests.amount} requests a second are answered.")

    @asynccontextmanager
    async def one_try(self, address: str, peer: str | None = None) -> AsyncIterator[None]:
        """Of a key: it counts before the key is looked at, so that of however many at once no more than WRONG_KEYS are.
        Where the block ends well, the key was right and does not count. Raises TooMany where the address has had as
        many as it may; AWAY. `peer` is who made the connection and said that it is for `address`: a proxy, or somebody
        who says another address each time."""
        counted = [(WRONG_KEYS, "wrong keys", address)]
        if peer is not None and peer != address:
            counted.append((WRONG_KEYS_OF_PEER, "wrong keys of peer", peer))
        lock = self._trying.setdefault(address, asyncio.Lock())
        try:
            async with asyncio.timeout(SOON_SECONDS):  # one after another: right ones do not count against each other
                await lock.acquire()
        except TimeoutError:
            raise TooMany("Too many keys come from this address at once.", retry_after_seconds=SOON_SECONDS) from None
        try:
            with redis_faults():
                fits = all([await self._rates.hit(item, *name) for item, *name in counted])
            if not fits:
                message = "Too many wrong keys have come from this address. Wait a minute."
                raise TooMany(message, retry_after_seconds=WRONG_KEYS.get_expiry())
            yield
            with suppress(*AWAY), redis_faults():
                for item, *name in counted:
                    await self._counters.incr(item.key_for(*name), item.get_expiry(), amount=-1)
        finally:
            lock.release()
            self._trying.pop(address, None)  # who waits has it; should another come beside, Redis counts them all
