"""The type of a column: what every value of it fits, and is given back by. One inference for every processor of tables.

A type is only given where nothing is lost by it: `007`, a number of twenty digits or a time with an offset stay text,
as they are. Words for no value (table_words.py) are none in a column that has a type by all its other values, and are
text in a column of text. `1/2/2024` may be the second of January or the first of February: where all values of a column
may be either, it stays text, and that is told.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from headway.shared.errors import BadInput
from headway.worker.processors.table_words import NO_VALUE

TEXT: Final = "VARCHAR"

_DATE: Final = "[0-9]{4}(-[0-9]{2}-[0-9]{2}|/[0-9]{2}/[0-9]{2})"
_CLOCK: Final = "[0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?"
_DOUBLE: Final = "[-+]?(0|[1-9][0-9]{0,14})?([.]0*[0-9]{0,17})?([eE][-+]?[0-9]{1,3})?"
_ANY_NUMBER: Final = "[-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?"
_DOTS: Final = "[0-9]{1,2}[.][0-9]{1,2}[.][0-9]{4}"
_SLASHES: Final = "[0-9]{1,2}(/[0-9]{1,2}/|-[0-9]{1,2}-)[0-9]{4}"
_MINUTES: Final = " [0-9]{1,2}:[0-9]{2}(:[0-9]{2})?"

WORDS_SQL: Final = ", ".join("'" + word.replace("'", "''") + "'" for word in NO_VALUE)


@dataclass(frozen=True, slots=True)
class Kind:
    """A type: `name` as people say it, `sql_type` as Parquet has it. `value` is NULL for a text that is none of it;
    `{c}` stands for the column."""

    key: str
    name: str
    sql_type: str
    value: str
    mean: bool = False
    utc: bool = False

    def of(self, column: str) -> str:
        return self.value.replace("{c}", column)


def _if(pattern: str, value: str) -> str:
    return f"CASE WHEN regexp_full_match({{c}}, '{pattern}') THEN {value} END"


def _when(pattern: str, form: str, kind: str) -> str:
    plain = "translate({c}, '.-', '//')"
    forms = f"'{form}'" if kind == "DATE" else f"['{form} %H:%M:%S', '{form} %H:%M']"
    return _if(pattern, f"CAST(try_strptime({plain}, {forms}) AS {kind})")


_DAY_FIRST, _MONTH_FIRST = "%d/%m/%Y", "%m/%d/%Y"

#: In order: a column has the first that all of its values fit.
KINDS: Final = {
    kind.key: kind
    for kind in (
        # What is a number and is written as that number is: no leading zero, no plus, no space.
        Kind(
            *("integer", "integer", "BIGINT"),
            "CASE WHEN CAST(TRY_CAST({c} AS BIGINT) AS VARCHAR) = {c} THEN TRY_CAST({c} AS BIGINT) END",
            mean=True,
        ),
        Kind("number", "number", "DOUBLE", _if(_DOUBLE, "TRY_CAST({c} AS DOUBLE)"), mean=True),
        Kind("boolean", "boolean", "BOOLEAN", "CASE lower({c}) WHEN 'true' THEN true WHEN 'false' THEN false END"),
        Kind("date", "date", "DATE", _if(_DATE, "TRY_CAST({c} AS DATE)")),
        Kind("date_dots", "date", "DATE", _when(_DOTS, _DAY_FIRST, "DATE")),
        Kind("date_dmy", "date", "DATE", _when(_SLASHES, _DAY_FIRST, "DATE")),
        Kind("date_mdy", "date", "DATE", _when(_SLASHES, _MONTH_FIRST, "DATE")),
        Kind(
            *("timestamp_utc", "timestamp", "TIMESTAMP"),
            _if(f"{_DATE}[ T]{_CLOCK}Z", "TRY_CAST({c} AS TIMESTAMP)"),
            utc=True,
        ),
        Kind("timestamp", "timestamp", "TIMESTAMP", _if(f"{_DATE}([ T]{_CLOCK}Z?)?", "TRY_CAST({c} AS TIMESTAMP)")),
        Kind("timestamp_dots", "timestamp", "TIMESTAMP", _when(_DOTS + _MINUTES, _DAY_FIRST, "TIMESTAMP")),
        Kind("timestamp_dmy", "timestamp", "TIMESTAMP", _when(_SLASHES + _MINUTES, _DAY_FIRST, "TIMESTAMP")),
        Kind("timestamp_mdy", "timestamp", "TIMESTAMP", _when(_SLASHES + _MINUTES, _MONTH_FIRST, "TIMESTAMP")),
        Kind("time", "time", "TIME", _if(_CLOCK, "TRY_CAST({c} AS TIME)")),
    )
}

#: What was asked for by name is taken more freely: who says `integer` wants `007` to be 7.
NAMED: Final = {
    **KINDS,
    "integer": Kind("integer", "integer", "BIGINT", _if("[-+]?[0-9]+", "TRY_CAST({c} AS BIGINT)"), mean=True),
    "number": Kind(*("number", "number", "DOUBLE"), _if(_ANY_NUMBER, "TRY_CAST({c} AS DOUBLE)"), mean=True),
    "date_dmy": Kind("date_dmy", "date", "DATE", _when(f"{_DOTS}|{_SLASHES}", _DAY_FIRST, "DATE")),
    "date_mdy": Kind("date_mdy", "date", "DATE", _when(f"{_DOTS}|{_SLASHES}", _MONTH_FIRST, "DATE")),
    "timestamp_dmy": Kind(
        *("timestamp_dmy", "timestamp", "TIMESTAMP"), _when(f"({_DOTS}|{_SLASHES}){_MINUTES}", _DAY_FIRST, "TIMESTAMP")
    ),
    "timestamp_mdy": Kind(
        *("timestamp_mdy", "timestamp", "TIMESTAMP"),
        _when(f"({_DOTS}|{_SLASHES}){_MINUTES}", _MONTH_FIRST, "TIMESTAMP"),
    ),
}

#: Either of two, where nothing but the values says which.
DOUBTFUL: Final = (("date_dmy", "date_mdy"), ("timestamp_dmy", "timestamp_mdy"))


def misfits(column: str, value: str, *, words: bool) -> str:
    """Counts the values that are none of the kind whose `value` is given; words for no value are left out, where they
    are known."""
    text = (
        f"CASE WHEN {column} NOT IN ({WORDS_SQL}) THEN 1 END" if words else f"CASE WHEN {column} IS NOT NULL THEN 1 END"
    )
    return f"count(CASE WHEN {value} IS NULL THEN {text} END)"


@dataclass(frozen=True, slots=True)
class Fit:
    """How many values are of a kind, and how many are something else."""

    kind: Kind
    values: int
    others: int


def choose(fits: Sequence[Fit]) -> tuple[Kind | None, bool]:
    """The kind of a column, None for text; and whether it is text only because nobody can tell which date it is."""
    fitting = [fit.kind for fit in fits if fit.values and not fit.others]
    if not fitting:
        return None, False
    keys = {kind.key for kind in fitting}
    if fitting[0].key in (first for first, _ in DOUBTFUL) and any(keys.issuperset(pair) for pair in DOUBTFUL):
        return None, True
    return fitting[0], False


def still_possible(fits: Sequence[Fit]) -> list[Kind]:
    """What the first rows do not rule out."""
    return [fit.kind for fit in fits if not fit.others]


def named_types(types: Mapping[str, str], names: Sequence[str]) -> dict[int, Kind | None]:
    """The kinds that the option `types` names, by column; None for text. Raises BadInput for a name that is no
    column's."""
    for name in types:
        if name != "*" and name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            some = ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")
            raise BadInput(
                f"The option `types` names a column {name[:80]!r}, which the table does not have.{hint} It has {some}."
            )
    found: dict[int, Kind | None] = {}
    for n, name in enumerate(names):
        if (asked := types.get(name, types.get("*"))) is not None:
            found[n] = None if asked == "text" else NAMED[asked]
    return found


def not_of_type(name: str, kind: Kind, others: int, row: int, value: Any) -> BadInput:
    shown = str(value)
    shown = shown if len(shown) <= 60 else f"{shown[:59]}…"
    values = "a value that is" if others == 1 else f"{others:,} values that are"
    return BadInput(
        f"The column {name!r} has {values} no {kind.key.replace('_', ' ')}, which the option `types` says; the first, "
        f"in row {row:,}, is {shown!r}. Take the column out of `types`, or add the word to `null_values` if it stands "
        "for no value."
    )


class Guesses:
    """What was taken for something in the columns, for a sentence about all of them."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {}
        self._doubtful: list[str] = []

    def words(self, name: str, values: int) -> None:
        """So many values of the column are words for no value."""
        if values:
            self._words[name] = self._words.get(name, 0) + values

    def doubtful(self, name: str) -> None:
        self._doubtful.append(name)

    def notes(self) -> list[str]:
        notes = list[str]()
        if self._words:
            values = sum(self._words.values())
            said = "1 value is a word" if values == 1 else f"{values:,} values are words"
            notes.append(
                f"{said} for no value, such as NA, and counted as null, in {_columns(list(self._words))}. The option "
                "`null_values` says which words are."
            )
        if self._doubtful:
            notes.append(
                f"Dates may be day/month/year or month/day/year, and stay text, in {_columns(self._doubtful)}. Say "
                "which by the option `types`: date_dmy or date_mdy."
            )
        return notes


def _columns(names: Sequence[str]) -> str:
    some = ", ".join(repr(name[:40]) for name in names[:5])
    if len(names) == 1:
        return f"the column {some}"
    return f"the columns {some}{f' and {len(names) - 5:,} more' if len(names) > 5 else ''}"
