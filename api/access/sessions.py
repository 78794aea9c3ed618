"""Sessions of browsers, and the streams that end with what allowed them.

A session is a signed cookie (api/access/keyring.py) whose id is alive in Redis: so signing out ends it for every API
process at once, while a Redis that is away leaves it readable whose it is. Streams outlive their beginning, so those of
a session are known here by it, and end when it does: in this process at once, in the others a moment later.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from headway.shared import keys
from headway.shared.cancellation import cancel, heed_cancellation
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY, RedisClient
from headway.shared.tasks.models import OwnerId

log = get_logger(__name__)

#: A working day; then the key is asked for again, however busy the browser was.
SESSION_SECONDS: Final = 12 * 3600
#: How soon the streams of a session end that was ended at another API process. One question for all of them.
LOOK_SECONDS: Final = 2.0
#: The same while there are streams that were let in unasked, because Redis was away.
LOOK_SOON_SECONDS: Final = 0.2

End = Callable[[], None]


class Sessions:
    """Entered by the lifespan. Errors: headway.shared.redis.client.AWAY."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        #: What ends the streams of a session, by its id.
        self._streams: defaultdict[str, set[End]] = defaultdict(set)
        #: Sessions that nobody could be asked about yet.
        self._unasked: set[str] = set()
        #: Why sessions are not looked at; None while they are.
        self.broken: str | None = None

    async def __aenter__(self) -> Sessions:
        self._looking = asyncio.create_task(self._look_again_and_again(), name="sessions")
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(self._looking)

    async def begin(self, owner: OwnerId, seconds: int = SESSION_SECONDS) -> str:
        """A new session's id."""
        session_id = secrets.token_urlsafe(24)
        await self._redis.set(_key(session_id), owner, ex=seconds)
        return session_id

    async def go_on(self, session_id: str, owner: OwnerId, seconds: int) -> bool:
        """From now on for as long. False: it has ended."""
        return bool(await self._redis.set(_key(session_id), owner, ex=seconds, xx=True))

    async def end(self, session_id: str) -> None:
        await self._redis.delete(_key(session_id))
        self._end_streams(session_id)

    async def is_alive(self, session_id: str) -> bool:
        return bool(await self._redis.exists(_key(session_id)))

    def watch(self, session_id: str, end: End, *, unasked: bool) -> None:
        """Calls `end` when the session has ended, until `leave`. `unasked`: it may have ended before."""
        self._streams[session_id].add(end)
        if unasked:
            self._unasked.add(session_id)

    def leave(self, session_id: str, end: End) -> None:
        ends = self._streams[session_id]
        ends.discard(end)
        if not ends:
            del self._streams[session_id]
            self._unasked.discard(session_id)

    def _end_streams(self, session_id: str) -> None:
        for end in list(self._streams.get(session_id, ())):
            try:
                end()
            except Exception:  # those behind it are over as well
                log.exception("stream of an ended session not ended")

    async def _look_again_and_again(self) -> None:
        slept = 0.0
        while True:
            heed_cancellation()
            await asyncio.sleep(LOOK_SOON_SECONDS)
            slept += LOOK_SOON_SECONDS
            if self._streams and (self._unasked or slept >= LOOK_SECONDS):
                slept = 0.0
                await self._look()

    async def _look(self) -> None:
        try:
            await self._end_the_streams_of_the_ended()
            self.broken = None
        except AWAY:
            pass
        except Exception:
            if self.broken is None:
                log.exception("sessions not looked at")
            self.broken = "sessions that ended elsewhere are not noticed; the log says why"

    async def _end_the_streams_of_the_ended(self) -> None:
        session_ids = list(self._streams)
        found = await self._redis.mget([_key(session_id) for session_id in session_ids])
        for session_id, owner in zip(session_ids, found, strict=True):
            self._unasked.discard(session_id)
            if owner is None:
                self._end_streams(session_id)


def _key(session_id: str) -> str:
    return keys.session(hashlib.sha256(session_id.encode()).hexdigest())
