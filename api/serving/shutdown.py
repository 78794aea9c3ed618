"""The word that the server stops, for what has no end of its own: a body that is still coming, or is let pass.

uvicorn waits for requests that are under way and then cuts them. Whoever waits for a client's bytes does so within
`limit`, and is out of it while there is still time for the client to read why. Streams hear it from the relay.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.types import Scope

#: After the signal: a body that has come by then is taken, any other is told that it has to come again.
BODY_SECONDS: Final = 0.4
#: And a client that goes on sending has this long to look up, under the time that uvicorn waits
#: (api/serving/server.py).
LOOK_UP_SECONDS: Final = 0.7


class Shutdown:
    """`begin` is called from the stop signal, on the event loop."""

    def __init__(self) -> None:
        self._began_at: float | None = None
        self._waits: dict[asyncio.Timeout, float] = {}

    @classmethod
    def of(cls, scope: Scope) -> Shutdown:
        """The server's own; where nobody runs a lifespan, one that never comes."""
        state = scope.get("state", {}).get("headway")
        stop: Shutdown = cls() if state is None else state.stop
        return stop

    def begin(self) -> None:
        self._began_at = self._began_at or asyncio.get_running_loop().time()
        for wait, seconds in self._waits.items():
            self._shorten(wait, seconds)

    @property
    def has_begun(self) -> bool:
        return self._began_at is not None

    def is_over(self, seconds: float) -> bool:
        """Whether the signal was so long ago."""
        return self._began_at is not None and asyncio.get_running_loop().time() >= self._began_at + seconds

    @asynccontextmanager
    async def limit(self, seconds: float, *, at_a_stop: float) -> AsyncIterator[None]:
        """As `asyncio.timeout`; once the server stops, no longer than `at_a_stop` after the signal."""
        async with asyncio.timeout(seconds) as wait:
            self._waits[wait] = at_a_stop
            self._shorten(wait, at_a_stop)
            try:
                yield
            finally:
                del self._waits[wait]

    def _shorten(self, wait: asyncio.Timeout, seconds: float) -> None:
        if self._began_at is not None and not wait.expired():
            due = self._began_at + seconds
            wait.reschedule(due if (when := wait.when()) is None else min(when, due))
