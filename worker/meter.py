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
#: 100 is said by `completed` alone.
MOST_PROGRESS: Final = 99.9


class Meter:
    """`base` is the progress at which the attempt's work starts: what the upload has taken of the bar."""

    def __init__(self, base: float, now: float) -> None:
        self._base = base
        self._started = now
        self._progress = base
        self._speed = _Average(now, base)  # percent a second, over the whole attempt
        self._rate: _Average | None = None  # units a second, in this phase
        self._step = -1

    def read(self, message: dict[str, Any], now: float) -> dict[str, Any]:
        """The fields of a state from a `phase` or `count` message. `now` in seconds of a monotonic clock."""
        whole = self._base + (100 - self._base) * float(message["progress"]) / 100
        self._progress = min(MOST_PROGRESS, max(self._progress, whole))
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
            "rate": round(rate, 1) if rate else None,
            "eta_seconds": self._eta(speed, now),
        }

    def _eta(self, speed: float | None, now: float) -> float | None:
        if not speed or now - self._started < GUESS_AFTER_SECONDS or self._progress - self._base < GUESS_AFTER_PROGRESS:
            return None
        return round((100 - self._progress) / speed, 1)


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
