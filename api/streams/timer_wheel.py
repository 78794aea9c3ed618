"""One clock for all streams: who is to be looked at when, at the cost of a stream's own look and nothing between.

A wheel: a stream stands in the slot of the tick at which it is due. A tick is short beside a heartbeat, and what is due
within it is looked at in one go, so that ten thousand idle streams are no ten thousand timers.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Protocol


class Timed(Protocol):
    #: Where it stands; the wheel's own.
    slot: int

    def look(self, now: float) -> float | None:
        """Does what is due at this time of the loop, and returns when to look again; None: no more."""

    def fail(self, error: Exception) -> None:
        """It could not be looked at, and will not be again. Never raises."""


class TimerWheel:
    """`run` is the service; it returns only when cancelled."""

    def __init__(self, tick_seconds: float) -> None:
        self._tick_seconds = tick_seconds
        self._slots: defaultdict[int, set[Timed]] = defaultdict(set)
        self._done = 0

    def set(self, timed: Timed, due: float) -> None:
        """Looks at it at `due`, or a tick later, and no longer when it was to be looked at before."""
        self.forget(timed)
        timed.slot = max(int(due / self._tick_seconds), self._done) + 1
        self._slots[timed.slot].add(timed)

    def forget(self, timed: Timed) -> None:
        if (slot := self._slots.get(timed.slot)) is not None:
            slot.discard(timed)
            if not slot:
                del self._slots[timed.slot]

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._done = int(loop.time() / self._tick_seconds)
        while True:
            await asyncio.sleep(self._tick_seconds)
            now = loop.time()
            first, self._done = self._done + 1, int(now / self._tick_seconds)
            for number in range(first, self._done + 1):
                for timed in self._slots.pop(number, ()):
                    try:
                        if (due := timed.look(now)) is not None:
                            self.set(timed, due)
                    except Exception as error:  # one stream's trouble must not stop the others' heart
                        timed.fail(error)
