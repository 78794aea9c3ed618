"""What a stream needs to stay open: a place under its owner's limit, and the token or session that opened it.

Each stream holds one of these for as long as it lasts, so there may be tens of thousands: it keeps nothing of the
request.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager

from headway.api.access.identity import Identity
from headway.api.lifespan import State
from headway.api.streams.listeners import Listener


class StreamSlot:
    """A context manager around the listener's own, which it opens and closes. Raises TooMany."""

    __slots__ = ("_identity", "_listener", "_names", "_opened", "_state", "_timer")

    def __init__(
        self, opened: AbstractAsyncContextManager[Listener], state: State, identity: Identity, names: tuple[str, ...]
    ) -> None:
        self._opened = opened
        self._state = state
        self._identity = identity
        self._names = names
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Listener:
        state, identity = self._state, self._identity
        state.limits.streams.take(*self._names)
        try:
            self._listener = await self._opened.__aenter__()
        except BaseException:
            state.limits.streams.give(*self._names)
            raise
        state.metrics.tally.stream_opened(self._listener)
        end = self._listener.end
        if identity.session_id is not None:
            state.sessions.watch(identity.session_id, end, unasked=identity.unasked)
        if identity.expires_at is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, identity.expires_at - time.time()), end)
        return self._listener

    def slow(self) -> None:
        """The stream is cut because its client takes nothing."""
        self._listener.why = "slow"

    async def __aexit__(self, *error: object) -> None:
        state, identity = self._state, self._identity
        state.limits.streams.give(*self._names)
        state.metrics.tally.stream_ended(self._listener)
        if self._timer is not None:
            self._timer.cancel()
        if identity.session_id is not None:
            state.sessions.leave(identity.session_id, self._listener.end)
        await self._opened.__aexit__(None, None, None)
