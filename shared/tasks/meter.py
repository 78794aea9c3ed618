"""From a child's counts to the numbers people read: progress of the whole, a smoothed rate, the time left.

Pure; the clock is passed in. Progress never falls within an attempt and stays under 100 until the result is safe.
"""

from __future__ import annotations

import math
from typing import Any, Final

#: The rate is an exponential average over about this long: a bar's numbers should not jitter, nor lag a change much.
SMOOTHING_SECONDS: Final = 2.0
#: Before this much time and progress a guess at the time left is noise, so it is null.
GUESS_AFTER_SECONDS: Final = 0.5
GUESS_AFTER_PROGRESS: Final = 0.5
#: A guess beyond this is a bar that stands still.
LONGEST_GUESS_SECONDS: Final = 30 * 86_400
#: 100 is said by `completed` alone.
MOST_PROGRESS: Final = 99.9


class Meter:
    """`base` is the progress at which the work starts: what the upload has taken of the bar. `begun` is where this
    attempt begins, which is further on after a checkpoint."""

    def __init__(self, base: float, now: float, begun: float = 0.0) -> None:
        self._base = base
        self._started = now
        self._begun = self._progress = min(MOST_PROGRESS, max(base, begun))
        self._speed = _Average(now, self._progress)  # percent a second, over the whole attempt
        self._rate: _Average | None = None  # units a second, in this phase
        self._step = -1

    def read(self, message: dict[str, Any], now: float) -> dict[str, Any]:
        """The fields of a state from a `phase` or `count` message. `now` in seconds of a monotonic clock."""
        self._progress = max(self._progress, self.whole(message["progress"]))
        if message["step"] != self._step or self._rate is None:
            self._step = message["step"]
            self._rate = _Average(now, message["done"])
        rate = self._rate.of(message["done"], now)
        speed = self._speed.of(self._progress, now)
        return {
            "progress": round(self._progress, 2),
            "step": message["step"],
            "total_steps": message["total_steps"],
            "message": message["message"],
            "done": message["done"],
            "total": message["total"],
            "unit": message["unit"],
            "rate": round(rate or 0.0, 1) or None,
            "eta_seconds": self._eta(speed, now),
        }

    def whole(self, progress: float) -> float:
        """What a child's progress, 0 to 100 of its work, is of the bar."""
        return min(MOST_PROGRESS, max(self._begun, self._base + (100 - self._base) * float(progress) / 100))

    def _eta(self, speed: float | None, now: float) -> float | None:
        elapsed, covered = now - self._started, self._progress - self._begun
        if not speed or elapsed < GUESS_AFTER_SECONDS or covered < GUESS_AFTER_PROGRESS:
            return None
        seconds = (100 - self._progress) / speed
        return round(seconds, 1) if seconds < LONGEST_GUESS_SECONDS else None


class _Average:
    """Exponentially weighted change a second of a number that rises."""

    def __init__(self, at: float, value: float) -> None:
        self._at = at
        self._value = value
        self._rate: float | None = None

    def of(self, value: float, at: float) -> float | None:
        elapsed = at - self._at
        if elapsed > 0:
            now = max(0.0, (value - self._value) / elapsed)
            weight = 1 - math.exp(-elapsed / SMOOTHING_SECONDS)
            self._rate = now if self._rate is None else self._rate + weight * (now - self._rate)
            self._at, self._value = at, value
        return self._rate
