"""What a processor gives us, made into plain JSON: numbers of any library, dates, paths, sets, models.

Whoever writes a processor has numpy, duckdb or pydantic at hand, and what those return is as good as a plain value.
What has no JSON at all is refused where it is given, by the name of the argument, so that nobody looks for it in a log.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
from collections import deque
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

#: Deeper, and readers of JSON refuse it.
MOST_DEEP: Final = 100
#: Python reads no longer ones (sys.set_int_max_str_digits).
_MOST_BITS: Final = 12_000


def number(value: Any, name: str) -> int | float:
    """Any number there is. Raises TypeError or ValueError with the argument's name."""
    if not isinstance(value, str | bytes | bytearray):
        try:
            return operator.index(value)
        except TypeError:
            pass
        try:
            found = float(value)
        except (TypeError, ValueError, OverflowError):
            pass
        else:
            if math.isfinite(found):
                return found
            raise ValueError(f"{name} must be a finite number, not {found}")
    raise TypeError(f"{name} must be a number, not {type(value).__name__}")


def text(value: Any, name: str) -> str:
    """Raises TypeError with the argument's name."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {type(value).__name__}")
    return str(value)


def words_of(error: BaseException) -> str:
    """An exception's type and the first line of its text, whatever its text does."""
    name = type(error).__name__
    try:
        said = str(error).strip().partition("\n")[0].strip()
    except BaseException as worse:  # it is a stranger's code
        said = f"(its text cannot be had: {type(worse).__name__})"
    return f"{name}: {said}" if said else name


class Plain:
    """Makes values plain. `nulls` are the places where a number was none (NaN, Infinity) and null stands for it."""

    def __init__(self) -> None:
        self.nulls: list[str] = []

    def of(self, value: Any, name: str, depth: int = 0) -> Any:
        """Raises TypeError or ValueError, with where it is, for what has no JSON."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Enum):
            return self.of(value.value, name, depth)
        if isinstance(value, str):
            return str(value)
        if isinstance(value, int):
            return self._int(int(value), name)
        if isinstance(value, float):
            return self._float(float(value), name)
        if depth >= MOST_DEEP:
            raise ValueError(f"{name[:200]} is nested deeper than {MOST_DEEP}")
        return self._structure(value, name, depth + 1)

    def _structure(self, value: Any, name: str, depth: int) -> Any:
        if isinstance(value, Mapping):
            return {(key := _key(one, name)): self.of(inner, f"{name}.{key}", depth) for one, inner in value.items()}
        if isinstance(value, list | tuple | deque):
            return [self.of(inner, f"{name}[{place}]", depth) for place, inner in enumerate(value)]
        if isinstance(value, set | frozenset):
            return [self.of(inner, name, depth) for inner in _in_order(value)]
        if isinstance(value, BaseModel):
            return self.of(value.model_dump(), name, depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return self.of(fields, name, depth)
        return self._scalar(value, name, depth)

    def _scalar(self, value: Any, name: str, depth: int) -> Any:
        if isinstance(value, date | time):  # a datetime is a date
            return value.isoformat()
        if isinstance(value, timedelta):
            return value.total_seconds()
        if isinstance(value, UUID):
            return str(value)
        if isinstance(value, os.PathLike):
            return os.fsdecode(value)
        if isinstance(value, Decimal):
            if value.is_finite() and value == (whole := value.to_integral_value()) and whole.adjusted() < 3000:
                return self._int(int(whole), name)
            return self._float(float(value), name)
        if hasattr(value, "dtype") and hasattr(value, "tolist"):  # numpy's, and who follows it: a number, or an array
            return self.of(value.tolist(), name, depth)
        if hasattr(value, "__index__") or hasattr(value, "__float__"):
            found = number(value, name[:200])
            return self._int(found, name) if isinstance(found, int) else found
        raise TypeError(f"{name[:200]}: a {type(value).__name__} has no JSON")

    def _int(self, value: int, name: str) -> int:
        if value.bit_length() > _MOST_BITS:
            raise ValueError(f"{name[:200]}: a number of {value.bit_length()} bits is none that JSON's readers take")
        return value

    def _float(self, value: float, name: str) -> float | None:
        if math.isfinite(value):
            return value
        self.nulls.append(name[:200])
        return None


def _key(value: Any, name: str) -> str:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, int | float | Decimal | UUID | os.PathLike) or hasattr(value, "dtype"):
        return str(value)
    raise TypeError(f"{name[:200]}: a {type(value).__name__} cannot be the name of a field")


def _in_order(values: Any) -> list[Any]:
    """The same each time, so that the same file gives the same result."""
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)
