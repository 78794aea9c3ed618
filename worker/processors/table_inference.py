"""What the first rows say of the types of all columns: which they still may have. One question, whatever the width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from headway.worker.processors.table_query import Table
from headway.worker.processors.table_types import KINDS, Fit, Kind, misfits, still_possible

#: They rule types out, so that the pass over the whole file tries few casts. More rows would only be more casts that
#: fail, which are slow.
SAMPLE_ROWS: Final = 200

#: Columns that are looked at together: their values are copied.
TOGETHER: Final = 200


def possible_kinds(table: Table, named: Mapping[int, Kind | None], *, words: bool) -> dict[int, list[Kind]]:
    """Of each column the kinds that it may be of. One whose type is named has that, and no other."""
    possible = {n: [kind] if kind else [] for n, kind in named.items()}
    open_columns = [n for n in range(len(table.source.names)) if n not in named]
    kinds = list(KINDS.values())
    typed = "trim(c)" if table.source.padded else "c"
    values = [f"v{index}" for index in range(len(kinds))]
    counts = ", ".join(f"count({value}), {misfits('c', value, words=words)}" for value in values)
    derived = ", ".join(f"{kind.of(typed)} AS {value}" for kind, value in zip(kinds, values, strict=True))
    for first in range(0, len(open_columns), TOGETHER):
        columns = open_columns[first : first + TOGETHER]
        rows = table.values(columns, SAMPLE_ROWS)
        found = table.all(f"SELECT n, {counts} FROM (SELECT n, c, {derived} FROM {rows}) GROUP BY n")  # noqa: S608
        fits = {
            n: [Fit(kind, *count) for kind, count in zip(kinds, zip(*[iter(answer)] * 2, strict=True), strict=True)]
            for n, *answer in found
        }
        for n in columns:
            allowed = table.source.kinds_of(n, kinds)
            possible[n] = [kind for kind in still_possible(fits[n]) if kind in allowed] if n in fits else allowed
    return possible
