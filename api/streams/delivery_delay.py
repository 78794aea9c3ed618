"""How long events take from their making to their writing: looked at now and then, at no cost between.

An event says when it was made (`updated_at`, by the clock of whoever made it). Where a measurement is wanted the newest
of a read is kept, and measured when all that the read brought has been written; the next one is wanted SAMPLE_SECONDS
later, because each costs as much as a delivered event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

SAMPLE_SECONDS: Final = 0.05

#: The first of its name is the state's own: whatever a stranger has written comes after it or is escaped.
_MADE_AT: Final = b'"updated_at":"'
_TIME_CHARACTERS: Final = len("2026-11-22T13:40:25.123Z")


class DelaySampler:
    """`observe` is told seconds."""

    __slots__ = ("_observe", "newest", "wanted")

    def __init__(self, observe: Callable[[float], Any]) -> None:
        self._observe = observe
        #: Whether the relay is to keep the newest message of its read here.
        self.wanted = True
        self.newest: bytes | None = None

    def written(self) -> None:
        """All that came with the newest message has been written."""
        message, self.newest = self.newest, None
        if message is not None and (made_at := made_at_of(message)) is not None:
            self.wanted = False
            asyncio.get_running_loop().call_later(SAMPLE_SECONDS, self._want)
            self._observe(max(0.0, time.time() - made_at))

    def _want(self) -> None:
        self.wanted = True


def made_at_of(message: bytes) -> float | None:
    """In seconds of Unix time; None for an event that does not say."""
    at = message.find(_MADE_AT) + len(_MADE_AT)
    if at >= len(_MADE_AT):
        with suppress(ValueError):
            return datetime.fromisoformat(message[at : at + _TIME_CHARACTERS].decode("ascii")).timestamp()
    return None
