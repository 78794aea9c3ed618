"""When a failed attempt is tried again by itself: what a processor declares, and how long is waited."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from headway.shared.tasks.models import ErrorType

#: No wait is longer, however often was tried.
LONGEST_SECONDS: Final = 3600.0
#: What is added to a wait by chance, so that what failed together is not tried again together.
JITTER: Final = 0.25

#: Raising this: the file is not what the processor takes, and will not be the next time.
_NEVER: Final = frozenset({ErrorType.BAD_INPUT})


@dataclass(frozen=True, slots=True)
class Retries:
    """`@processor(…, retries=Retries(max=3, backoff_seconds=5, on=(ConnectionError, "timeout")))`.

    `max`: how many more attempts a task gets after the one that failed. `backoff_seconds`: the wait before the first of
    them; it doubles with each, up to an hour, and up to a quarter is added by chance. `on`: after which failures:
    exceptions that the processor raises, and types of errors (docs/reference.md) by name; empty: after all but
    `bad_input`. Raises ValueError or TypeError, where it is written.
    """

    max: int = 3
    backoff_seconds: float = 5.0
    on: Iterable[type[BaseException] | str] | type[BaseException] | str = ()

    def __post_init__(self) -> None:
        on = (self.on,) if isinstance(self.on, (str, type)) else tuple(self.on)
        object.__setattr__(self, "on", on)
        if type(self.max) is not int or not 0 <= self.max <= 1000:
            raise ValueError(f"Retries(max={self.max!r}): a whole number from 0 to 1000")
        seconds = self.backoff_seconds
        is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if not is_number or not math.isfinite(seconds) or not 0 <= seconds <= LONGEST_SECONDS:
            raise ValueError(f"Retries(backoff_seconds={seconds!r}): seconds from 0 to {LONGEST_SECONDS:g}")
        for one in on:
            if isinstance(one, str):
                if one not in list(ErrorType):
                    raise ValueError(f"Retries(on={one!r}): no type of error; there are {', '.join(ErrorType)}")
            elif not (isinstance(one, type) and issubclass(one, BaseException)):
                raise TypeError(f"Retries(on={one!r}): neither an exception nor the type of an error")

    @property
    def types(self) -> frozenset[str]:
        return frozenset(one for one in self._on if isinstance(one, str))

    @property
    def exceptions(self) -> tuple[type[BaseException], ...]:
        return tuple(one for one in self._on if not isinstance(one, str))

    @property
    def _on(self) -> tuple[type[BaseException] | str, ...]:
        assert isinstance(self.on, tuple)
        return self.on

    def takes(self, error_type: ErrorType, raised: bool) -> bool:
        """Whether this failure is one to try again after. `raised`: it is one of its exceptions."""
        if not self.on:
            return error_type not in _NEVER
        return raised or error_type in self.types

    def wait_seconds(self, retried: int) -> float:
        """Before the next attempt, where so many were retries already."""
        doubled = min(LONGEST_SECONDS, self.backoff_seconds * 2.0 ** min(retried, 30))
        return doubled * (1 + random.uniform(0, JITTER))  # noqa: S311 - no secret
