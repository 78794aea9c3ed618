"""Following one stream across its breaks, as a browser's EventSource would and further: it resumes by Last-Event-ID
after a cut, a clean end, a refused connection, a 502, 503 or 504; it is over with the event that ends it or a 204.

Pure but for the clock: a client opens the connections, hands in what comes, and waits as long as it is told.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, Protocol

from headway.client.errors import ClientError, Declined, Unreachable
from headway.client.wire import Event

#: Several heartbeats of the server's default: a stream silent for longer is half-open, and is asked for again.
SILENCE_SECONDS: Final = 60.0
FIRST_WAIT_SECONDS: Final = 1.0
LONGEST_WAIT_SECONDS: Final = 5.0
#: What a proxy or a restarting platform answers; a client that waits gets a better one.
PASSING: Final = frozenset({429, 502, 503, 504})

Ends = Callable[[Event], bool]


class Received(Protocol):
    """What an SSE reader hands out (httpx_sse.ServerSentEvent)."""

    @property
    def event(self) -> str: ...
    @property
    def data(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def retry(self) -> int | None: ...


class Following:
    """One stream, until `over`. `patience_seconds` is how long a platform that is away is waited for, at a time;
    `at_once` False: a first connection that fails is the end."""

    def __init__(self, ends: Ends, *, patience_seconds: float, last_event_id: str = "", at_once: bool = True) -> None:
        self.over = False
        self._ends = ends
        self._patience_seconds = patience_seconds
        self._last_event_id = last_event_id
        self._patient = at_once
        self._wait_seconds = FIRST_WAIT_SECONDS
        self._failures = 0
        self._away_since: float | None = None

    @property
    def headers(self) -> dict[str, str]:
        # A proxy that compresses a stream may hold it back; this asks it not to.
        headers = {"Accept-Encoding": "identity"}
        return headers | ({"Last-Event-ID": self._last_event_id} if self._last_event_id else {})

    def opened(self, status: int) -> bool:
        """The platform has answered, and not with a problem. False: the end had been seen."""
        self._patient, self._away_since = True, None
        return status != 204

    def take(self, sse: Received) -> Event | None:
        """The event to hand on; None for a comment or a `retry:` alone."""
        if sse.retry is not None:
            self._wait_seconds = min(sse.retry / 1000, LONGEST_WAIT_SECONDS)
        if not sse.data:  # httpx-sse hands these out too
            return None
        try:
            event = Event.read(sse.id, sse.event, sse.data)
        except ValueError:
            raise Unreachable("The stream holds what is no event of Headway's. Is it its URL?") from None
        self._last_event_id, self._failures = sse.id or self._last_event_id, 0
        self.over = self._ends(event)
        return event

    def pause_seconds(self, error: ClientError | None) -> float:
        """How long to wait before the next connection. Raises `error`, what ended the last one (None: a clean end), if
        waiting will not help or has been long enough."""
        if isinstance(error, Declined) and error.status not in PASSING:
            raise error
        if error is not None:
            now = time.monotonic()
            self._away_since = now if self._away_since is None else self._away_since
            if not self._patient or now - self._away_since > self._patience_seconds:
                raise error
        self._failures += 1
        longest = min(self._wait_seconds * 1.5 ** min(self._failures - 1, 10), LONGEST_WAIT_SECONDS)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads clients, guards nothing
