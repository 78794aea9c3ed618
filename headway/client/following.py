"""Following one stream across its breaks, as a browser's EventSource would and further: it resumes by Last-Event-ID
after a cut, a clean end, a refused connection, a 502, 503 or 504; it is over with the event that ends it or a 204.

Pure but for the clock: a client opens the connections, hands in what comes, and waits as long as it is told.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from headway.client.errors import ClientError, Declined, Unreachable
from headway.client.wire import Event

#: Two and a half heartbeats of the server's default: a stream silent for longer is half-open, or held back by a proxy.
#: The truth is asked for by a plain request then, and the stream again.
SILENCE_SECONDS: Final = 37.5
#: A platform begins to speak at once.
SPEAK_SECONDS: Final = 5.0
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

    def __init__(
        self,
        ends: Ends,
        *,
        patience_seconds: float,
        last_event_id: str = "",
        at_once: bool = True,
        numbered: bool = False,
    ) -> None:
        self.over = False
        self._ends = ends
        self._patience_seconds = patience_seconds
        self._last_event_id = last_event_id
        self._patient = at_once
        self._wait_seconds = FIRST_WAIT_SECONDS
        self._failures = 0
        self._away_since: float | None = None
        self._frame: dict[str, str] = {}
        #: Ids are versions: it is the stream of one task, or of one batch.
        self._numbered = numbered
        #: Of each task, the last that was told.
        self._versions: dict[str, int] = {}

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
        if event_id != self._last_event_id or not self._numbered:  # the same once more is no progress
            self._failures = 0
        self._last_event_id = event_id
        self._told(event)
        return event

    def _told(self, event: Event) -> None:
        if not event.name and isinstance(version := event.data.get("version"), int):
            self._versions[event.task_id] = version
        self.over = self._ends(event)

    def asked(self, answer: Mapping[str, Any]) -> list[Event]:
        """What a plain answer says that was not told yet: of a task, a batch or a page of tasks."""
        self._away_since = None
        found: list[Event] = []
        for item in answer["tasks"] if isinstance(answer.get("tasks"), list) else [answer]:
            known = self._versions.get(str(item.get("task_id", "")))
            if known is None and self._numbered and self._last_event_id.isdigit():
                known = int(self._last_event_id)
            version = item["version"]
            if known is not None and version <= known:
                continue
            if self._numbered:
                if known is not None and version > known + 1:
                    gap = {"from": known + 1, "to": version - 1}
                    found.append(Event(str(version - 1), "gap", json.dumps(gap), gap))
                self._last_event_id = str(version)
            found.append(Event(self._last_event_id, "", json.dumps(item), dict(item)))
            self._told(found[-1])
        return found

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
