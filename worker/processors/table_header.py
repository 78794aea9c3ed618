"""Whether the first row of a table has the names of its columns. Pure.

A row of words is a header. A row with numbers in it is one where the column below has something else, or where the
numbers are a run of years or of positions that does not go on below.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Literal

from headway.worker.processors.table_words import NO_VALUE

Shape = Literal["number", "date", "word", ""]

_NUMBER: Final = re.compile(r"[-+(]?[$€£¥]?\s?\d[\d.,' ]*(?:[eE][-+]?\d+)?\s?%?\)?|[-+]?[.,]\d+")
_DATE: Final = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(?:[ T]\d{1,2}:\d{2}.*)?|\d{1,2}:\d{2}(?::\d{2}.*)?")
_YEAR: Final = re.compile(r"(?:1[5-9]|20|21)\d\d")
_POSITION: Final = re.compile(r"\d{1,5}")


def is_header(first: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    shapes = [_shape(value) for value in first]
    if not any(shape in ("number", "date") for shape in shapes):
        return True
    below = [[row[n] for row in others if n < len(row) and _shape(row[n])] for n in range(len(first))]
    named = any(shape == "word" and _all_data(values) for shape, values in zip(shapes, below, strict=True))
    return named or _is_run(first, below) or _has_years(first, below) or _dates_over_numbers(shapes, below)


def looks_like_names(values: Sequence[str]) -> bool:
    """Each is a word, and no word comes twice."""
    found = [value.strip() for value in values]
    return all(_shape(value) == "word" for value in found) and len(set(found)) == len(found)


def _shape(value: str) -> Shape:
    value = value.strip()
    if not value or value in NO_VALUE:
        return ""
    if _NUMBER.fullmatch(value) and not _DATE.fullmatch(value):
        return "number"
    return "date" if _DATE.fullmatch(value) else "word"


def _all_data(values: Sequence[str]) -> bool:
    return (
        bool(values) and len({_shape(value) for value in values} - {"word"}) > 0 and "word" not in map(_shape, values)
    )


def _is_run(first: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    """`1960,1961,1962`, or `0,1,2` beside an empty name: each one more, and the column does not go on with it."""
    numbered = [(n, int(value)) for n, value in enumerate(map(str.strip, first)) if _POSITION.fullmatch(value)]
    rest = [value for value in first if not _POSITION.fullmatch(value.strip())]
    if len(numbered) < 2 or any(b[1] - a[1] != 1 for a, b in pairwise(numbered)):
        return False
    if any(_shape(value) in ("number", "date") for value in rest):
        return False
    if not all(_YEAR.fullmatch(str(value)) for _, value in numbered):
        return numbered[0][1] <= 1 and bool(rest) and not any(value.strip() for value in rest)
    again = [values[0] for values in (below[n] for n, _ in numbered) if values]
    return not again or not all(_YEAR.fullmatch(value.strip()) for value in again)


def _has_years(first: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    """`city,2019`: a year over what is none, beside names."""
    if not any(_shape(value) == "word" for value in first):
        return False
    return any(
        _YEAR.fullmatch(value.strip()) and values and not all(_YEAR.fullmatch(one.strip()) for one in values)
        for value, values in zip(first, below, strict=True)
    ) and all(_YEAR.fullmatch(value.strip()) for value in first if _shape(value) == "number")


def _dates_over_numbers(shapes: Sequence[Shape], below: Sequence[Sequence[str]]) -> bool:
    """`country,1/22/20`: a date over numbers."""
    dated = [values for shape, values in zip(shapes, below, strict=True) if shape == "date"]
    return bool(dated) and "number" not in shapes and all(v and {_shape(x) for x in v} == {"number"} for v in dated)
