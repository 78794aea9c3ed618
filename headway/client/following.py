"""Following one stream across its breaks, as a browser's EventSource would and further: it resumes by Last-Event-ID
after a cut, a clean end, a refused connection, a 502, 503 or 504; it is over with the event that ends it or a 204.

Pure but for the clock: a client opens the connections, hands in what comes, and waits as long as it is told.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from headway.client.errors import ClientError, Declined, Unreachable
from headway.client.wire import Event

#: Several heartbeats of the server's default: a stream silent for longer is half-open, and is asked for again.
SILENCE_SECONDS: Final = 60.0
#: What is waited at least, where the server does not say (`retry:`), and what it may say at most.
FIRST_WAIT_SECONDS: Final = 1.0
LONGEST_TOLD_SECONDS: Final = 30.0
#: Beside that, at random, up to twice as much after each failure, but no more than this: clients that were cut at once
#: do not come back at once.
LONGEST_SPREAD_SECONDS: Final = 5.0
#: What a proxy or a restarting platform answers; a client that waits gets a better one.
PASSING: Final = frozenset({429, 502, 503, 504})

Ends = Callable[[Event], bool]


class NoStream(Exception):
    """What answers is no event stream."""


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
        self._frame: dict[str, str] = {}

    @property
    def headers(self) -> dict[str, str]:
        # A proxy that compresses a stream may hold it back; this asks it not to.
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store", "Accept-Encoding": "identity"}
        return headers | ({"Last-Event-ID": self._last_event_id} if self._last_event_id else {})

    def opened(self, status: int, content_type: str) -> bool:
        """The platform has answered, and not with a problem. False: the end had been seen. Raises NoStream."""
        self._frame = {}
        if status != 204 and content_type.partition(";")[0].strip().lower() != "text/event-stream":
            raise NoStream
        self._patient, self._away_since = True, None
        return status != 204

    def line(self, line: str) -> Event | None:
        """One line of the stream; the event that it completes, to hand on. A `retry:` counts at once, as in browsers: a
        server that says goodbye with one does not end its frame, which would be a message to some."""
        if not line:
            frame, self._frame = self._frame, {}
            return self._event(frame) if frame.get("data") else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data" if "data" in self._frame:
                self._frame["data"] += f"\n{value}"
            case "data" | "event" | "id":
                self._frame[name] = value
            case "retry" if value.isascii() and value.isdigit():
                self._wait_seconds = min(int(value[:9]) / 1000, LONGEST_TOLD_SECONDS)
        return None

    def _event(self, frame: dict[str, str]) -> Event:
        event_id = frame.get("id") or self._last_event_id
        try:
            event = Event.read(event_id, frame.get("event", ""), frame["data"])
        except ValueError:
            raise Unreachable("The stream holds what is no event of Headway's. Is it its URL?") from None
        self._last_event_id, self._failures = event_id, 0
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
        # What was told is for coming back; a platform that is not there then is asked more often.
        least = self._wait_seconds if self._failures == 0 else min(self._wait_seconds, FIRST_WAIT_SECONDS)
        spread = min(max(least, 0.01) * 2 ** min(self._failures, 10), LONGEST_SPREAD_SECONDS)
        self._failures += 1
        return least + random.uniform(0, spread)  # noqa: S311 - spreads clients, guards nothing
