"""What a processor gives us, as plain JSON, whatever library it comes from; and what is refused by its name."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import OrderedDict, deque
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from headway.worker.plain import Plain, number, text


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Word(StrEnum):
    YES = "yes"


@dataclasses.dataclass
class Point:
    x: int
    at: date


class Model(BaseModel):
    name: str
    size: Decimal
    inner: list[Colour] = []


class NumpyLike:
    """As numpy's numbers and arrays are, which are not installed here."""

    dtype = "int64"

    def __init__(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        return f"numpy's {self._value}"

    def tolist(self) -> Any:
        return self._value


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ({"a": [1, 2.5, "x", None, True]}, {"a": [1, 2.5, "x", None, True]}),
        ((1, 2), [1, 2]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        (deque([1]), [1]),
        (OrderedDict(a=1), {"a": 1}),
        (Decimal("1.50"), 1.5),
        (Decimal(7), 7),
        (Fraction(1, 4), 0.25),
        (datetime(2026, 12, 1, 1, 2, 3, tzinfo=UTC), "2026-12-01T01:02:03+00:00"),
        (date(2026, 12, 1), "2026-12-01"),
        (timedelta(minutes=1, milliseconds=500), 60.5),
        (Path("/a/b"), "/a/b"),
        (UUID(int=5), str(UUID(int=5))),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Word.YES, "yes"),
        (Point(1, date(2026, 1, 2)), {"x": 1, "at": "2026-01-02"}),
        (Model(name="n", size=Decimal("0.5"), inner=[Colour.RED]), {"name": "n", "size": 0.5, "inner": ["red"]}),
        (NumpyLike(5), 5),
        (NumpyLike([[1.5, 2], [3, 4]]), [[1.5, 2], [3, 4]]),
        ({1: "a", None: "b", False: "c", Colour.RED: "d"}, {"1": "a", "null": "b", "false": "c", "red": "d"}),
        ({date(2026, 1, 2): 1}, {"2026-01-02": 1}),
    ],
)
def test_what_libraries_return_is_taken_as_its_json(value: Any, plain: Any) -> None:
    taken = Plain().of(value, "summary")
    assert taken == plain
    assert json.loads(json.dumps(taken, allow_nan=False)) == plain


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, Decimal("NaN"), NumpyLike(math.nan)])
def test_a_number_that_is_none_is_null_and_its_place_is_told(value: Any) -> None:
    plain = Plain()
    assert plain.of({"columns": [{"mean": value}]}, "summary") == {"columns": [{"mean": None}]}
    assert plain.nulls == ["summary.columns[0].mean"]


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [object(), b"bytes", len, 1j, nested(200), 10**5000, {(1, 2): 3}, iter("x")],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_json_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^summary\.here"):
        Plain().of({"here": value}, "summary")


def test_a_value_that_holds_itself_is_refused() -> None:
    value: dict[str, Any] = {}
    value["self"] = value
    with pytest.raises(ValueError, match="deeper than"):
        Plain().of(value, "summary")


@pytest.mark.parametrize("value", [5, 5.0, Decimal(5), Fraction(5), True])
def test_every_number_is_a_number(value: Any) -> None:
    assert number(value, "n") in (5, 1)


@pytest.mark.parametrize("value", ["5", None, b"5", [], {}, object()])
def test_what_is_none_is_refused_by_the_name_of_the_argument(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^total must be a number, not "):
        number(value, "total")


@pytest.mark.parametrize("value", [math.nan, math.inf, Decimal("NaN")])
def test_a_number_has_an_end(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^done must be a finite number"):
        number(value, "done")


def test_a_name_is_a_string() -> None:
    assert text(Word.YES, "name") == "yes"
    with pytest.raises(TypeError, match=r"^name must be a string, not NoneType"):
        text(None, "name")
