"""The processor `table-profile`: what is in a table, column by column, in memory that does not grow with its rows.

duckdb reads the table twice and keeps nothing of it but sketches: once for the figures of every column, once to count
the top values and, where they are few, the different ones. Both passes have a true count of bytes. Every value is read
as text and no type is guessed from a sample which the rest of the file could belie: table_types.py says what a type is.

How a file becomes a table is table_input.py's, how it is kept from being more than read table_query.py's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pydantic import Field

from headway.shared.errors import BadInput
from headway.shared.tasks.processors import Job, processor
from headway.worker.processors.table_inference import possible_kinds
from headway.worker.processors.table_input import LOOKING, Read, on_table
from headway.worker.processors.table_layout import TEXT_CHARACTERS, cut
from headway.worker.processors.table_options import ACCEPTED, TableOptions
from headway.worker.processors.table_preview import show_first
from headway.worker.processors.table_query import Question, Source, Table
from headway.worker.processors.table_types import (
    KINDS,
    WORDS_SQL,
    Fit,
    Guesses,
    Kind,
    choose,
    misfits,
    named_types,
    not_of_type,
)
from headway.worker.processors.table_words import NO_VALUE

#: The first pass finds so many candidates for the top values by a sketch, the second counts them. Not by `histogram`,
#: which would find them all: it keeps a copy of every text it is given, and so grows with the rows.
CANDIDATES: Final = 50

#: Different values are counted exactly where there are so many at most, as promised, and where the sketch is not sure.
EXACT_DISTINCT: Final = 1000
SKETCH_ERROR: Final = 1.5

#: What a column of numbers costs while it is profiled: 5 MiB of vectors and sketches in two threads. A table too wide
#: for that is read in groups of columns, one after the other.
COLUMN_BYTES: Final = 6 * 1024 * 1024

#: The file is read once for every group of columns, and a query of a group takes a second to plan.
TABLE_COLUMNS: Final = 2000
#: A table of more columns than one group is, and of few values, is profiled as one column of all its values: a value
#: with what is counted of it.
WIDE_BYTES: Final = 1024
#: What a column of them costs.
TOGETHER_BYTES: Final = 2 * 1024 * 1024
#: With more columns in one query duckdb plans for longer than a pass takes.
MOST_COLUMNS: Final = 100

#: A summary is kept in Redis and may be a megabyte at most.
SUMMARY_BYTES: Final = 900 * 1024


class TableProfileOptions(TableOptions):
    """How to read the table; what is left out is found out."""

    top_values: int = Field(
        default=5, ge=0, le=20, description="how many of each column's most frequent values to list"
    )


@processor(
    "table-profile",
    description="Rows, and of each column its type, nulls, distinct values, least, greatest, mean and most frequent",
    accepts=ACCEPTED,
    options=TableProfileOptions,
    # As measured on 1 GB of ten columns.
    phases={LOOKING: 5, "Profiling columns": 67, "Counting top values": 28},
    preload=("duckdb",),
    aliases=("csv-profile",),
)
def table_profile(job: Job) -> dict[str, Any]:
    """Profiles every column. The whole report is the result file `profile.json` as well.

    Summary: `rows`; `read_as`, `left_out` and `notes`, see table_input.py; and `columns`, a list in the file's order of

    - `name`, `type`: `integer`, `number`, `boolean`, `date`, `timestamp`, `time` or `text`;
    - `nulls`: how many values are empty, or a word for no value in a column that has a type;
    - `distinct`: how many different values there are, as they are written; exact up to 1000, and `distinct_estimated`
      where it is only known within a few percent;
    - `min`, `max`: of the type; dates and times in ISO form; null where all values are empty;
    - `mean`: of numbers, else null;
    - `top`: `{"value", "count"}`, the most frequent first, exactly counted. In a column of 50 different values or more
      they are found by a sketch, which of many that are about as frequent may miss some, and a value that comes once
      is none of them.

    A text longer than 80 characters is cut, and counts as what is left of it. A summary that would be too large for a
    task, of thousands of columns, is `shortened`: its `top`s are empty and its last columns may be missing. Of a large
    file the first rows are profiled first, and shown as a partial result. Raises BadInput for what is no table, and
    MemoryError.
    """
    show_first(job, _profiled)
    result = _profiled(job)
    for note in result["notes"]:
        job.log(note, "warning")
    report = {"filename": job.filename, "size_bytes": job.size_bytes, **result["read_as"], **result}
    with job.create_output("profile.json", "application/json") as file:
        file.write(json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False).encode())
    return _summary(result)


def _profiled(job: Job) -> dict[str, Any]:
    options: TableProfileOptions = job.options

    def work(source: Source, read: Read) -> dict[str, Any]:
        if (found := len(source.names)) > TABLE_COLUMNS:
            raise BadInput(
                f"It has {found:,} columns; at most {TABLE_COLUMNS:,} are profiled. Split it by columns, or name what "
                "separates the values by the option `delimiter`."
            )
        with closing(Table(source, job.memory_bytes)) as table:
            rows, columns = _Profile(job, table, options, read.notes).columns()
        return {"rows": rows, "columns": columns, **read.summary()}

    return on_table(job, options, work)


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(result)) <= SUMMARY_BYTES:
        return result
    columns, left_bytes = [], SUMMARY_BYTES
    for column in result["columns"]:
        short = {**column, "top": []}
        if (left_bytes := left_bytes - len(json.dumps(short))) < 0:
            break
        columns.append(short)
    return {**result, "columns": columns, "shortened": True}


@dataclass(slots=True)
class _Found:
    """What the first pass says of a column, for the second: the candidates for its top values, whether there may be
    others, and, where its different values are to be counted, what is."""

    candidates: list[str]
    more: bool
    counted: str


class _Profile:
    def __init__(self, job: Job, table: Table, options: TableProfileOptions, notes: list[str]) -> None:
        self._job, self._table, self._notes, self._guesses = job, table, notes, Guesses()
        self._source = table.source
        self._top_values = options.top_values
        self._named = named_types(options.types, self._source.names)
        self._words = options.null_values is None
        size = min(MOST_COLUMNS, max(16, job.memory_bytes // 2 // COLUMN_BYTES))
        count = len(self._source.names)
        self._groups = [range(first, min(first + size, count)) for first in range(0, count, size)]

    def columns(self) -> tuple[int, list[dict[str, Any]]]:
        job, table = self._job, self._table
        possible = possible_kinds(table, self._named, words=self._words)
        rows, columns, found = 0, list[dict[str, Any]](), dict[int, _Found]()
        job.phase("Profiling columns", unit="bytes")
        if len(self._groups) > 1 and self._source.rows * len(self._source.names) <= job.memory_bytes // WIDE_BYTES:
            return self._wide(possible)
        for progress, group in self._passes(self._groups):
            rows, figures = table.ask({n: self._figures(n, possible[n]) for n in group}, progress)
            for n in group:
                column, found[n] = self._column(n, rows, figures[n], possible[n])
                columns.append(column)
        job.phase("Counting top values", unit="bytes")
        again = [group for group in self._groups if self._top_values or any(found[n].counted for n in group)]
        for progress, group in self._passes(again):
            wanted = {f"top{n}": found[n].candidates for n in group}
            _, counts = table.ask({n: _counts(n, found[n].counted) for n in group}, progress, wanted)
            for n in group:
                histogram, *different = counts[n]
                columns[n]["top"] = _top(histogram, found[n], self._top_values)
                if different:
                    columns[n] |= {"distinct": different[0], "distinct_estimated": False}
        self._notes += self._guesses.notes()
        return rows, columns

    def _wide(self, possible: Mapping[int, list[Kind]]) -> tuple[int, list[dict[str, Any]]]:
        """Many columns of few rows: a few hundred columns in two questions, which count every value exactly."""
        job, count = self._job, len(self._source.names)
        size = max(16, job.memory_bytes // TOGETHER_BYTES)
        columns = list[dict[str, Any]]()
        [rows] = self._table.run(f"SELECT count(*) FROM {self._table.rows_of([0])}")  # noqa: S608
        self._table.check(rows)
        for first in range(0, count, size):
            together = range(first, min(first + size, count))
            columns += self._wide_columns(together, rows, possible)
            job.progress_to(job.size_bytes * together.stop // count, job.size_bytes)
        job.phase("Counting top values", unit="bytes")
        job.progress_to(job.size_bytes, job.size_bytes)
        self._notes += self._guesses.notes()
        return rows, columns

    def _wide_columns(self, together: range, rows: int, possible: Mapping[int, list[Kind]]) -> list[dict[str, Any]]:
        table = self._table
        # A named type has the key of one that is found, and reads more: each is its own.
        different = {kind: None for n in together for kind in possible[n]}
        kinds = sorted(different, key=lambda kind: list(KINDS).index(kind.key))
        typed = [(f"v{index}", kind) for index, kind in enumerate(kinds)]
        derived = [f"{kind.of('trim(c)' if self._source.padded else 'c')} AS {value}" for value, kind in typed]
        asked = ", ".join(column_figures("", ("0", "NULL"), typed, words=self._words))
        values = f"(SELECT {', '.join(('n', 'c', short(''), *derived))} FROM {table.values(together)})"  # noqa: S608
        figures = {int(n): answer for n, *answer in table.all(f"SELECT n, {asked} FROM {values} GROUP BY n")}  # noqa: S608
        columns, worded = dict[int, dict[str, Any]](), list[int]()
        for n in together:
            answer = figures.get(n) or [0, 0, None, None, None, *(0, 0, None, None, None) * len(typed)]
            groups = zip(kinds, zip(*[iter(answer[5:])] * 5, strict=True), strict=True)
            own = [one for kind, group in groups if kind in possible[n] for one in group]
            of_column = [kind for kind in kinds if kind in possible[n]]
            columns[n], _ = self._column(n, rows, [*answer[:5], *own], of_column)
            if columns[n]["nulls"] > rows - answer[0]:
                worded.append(n)
        counted = (
            f"SELECT n, s, count(*) AS times, count(DISTINCT c) AS texts FROM {values} WHERE c IS NOT NULL "  # noqa: S608
            f"AND NOT (list_contains($worded, n) AND c IN ({WORDS_SQL})) GROUP BY n, s"
        )
        most = f"min_by([s, times::VARCHAR], {{'times': -times, 's': s}}, {max(1, self._top_values)})"
        sql = f"SELECT n, sum(texts), {most} FROM ({counted}) GROUP BY n"  # noqa: S608
        for n, different, top in table.all(sql, values={"worded": worded}):
            listed = [{"value": cut(value), "count": int(times)} for value, times in top][: self._top_values]
            columns[n] |= {"distinct": int(different), "distinct_estimated": False, "top": listed}
        return list(columns.values())

    def _passes(self, groups: Sequence[range]) -> Iterator[tuple[Callable[[float], None], range]]:
        """Each group with what is to be told of the share of its pass that is done: all the passes' bytes are one
        count."""
        total = self._job.size_bytes * len(groups)
        for index, group in enumerate(groups):
            yield partial(self._progress, self._job.size_bytes * index, total), group
            self._job.progress_to(self._job.size_bytes * (index + 1), total)

    def _progress(self, before: int, total: int, share: float) -> None:
        self._job.progress_to(before + int(self._job.size_bytes * share), total)

    def _figures(self, n: int, kinds: Sequence[Kind]) -> Question:
        sketches = (f"approx_count_distinct(c{n})", f"approx_top_k(s{n}, {CANDIDATES})")
        typed = [(f"v{n}_{index}", kind) for index, kind in enumerate(kinds)]
        derived = [f"{kind.of(self._source.typed(n))} AS {value}" for value, kind in typed]
        aggregates = column_figures(str(n), sketches, typed, words=self._words)
        return Question(aggregates, (short(str(n)), *derived))

    def _column(
        self, n: int, rows: int, figures: Sequence[Any], kinds: Sequence[Kind]
    ) -> tuple[dict[str, Any], _Found]:
        """A column of the summary from what was asked by `_figures`."""
        name = self._source.names[n]
        filled, distinct, candidates, least, greatest, *rest = figures
        groups = list(zip(kinds, zip(*[iter(rest)] * 5, strict=True), strict=True))
        fits = [Fit(kind, *values[:2]) for kind, values in groups]
        if n in self._named and fits and fits[0].others:
            raise self._not_of_type(n, fits[0])
        kind, doubtful = choose(fits)
        if doubtful:
            self._guesses.doubtful(name)
        low, high, mean, values = least, greatest, None, filled
        if kind is not None:
            low, high, mean = next(figures[2:] for one, figures in groups if one is kind)
            values = next(fit.values for fit in fits if fit.kind is kind)
            self._guesses.words(name, filled - values)
        candidates = candidates or []
        found = len(candidates)
        if kind is not None and values < filled:
            candidates = [value for value in candidates if value not in NO_VALUE]
        # Fewer than could be found are all there are, unless one was cut and stands for several.
        known = found < CANDIDATES and all(len(value) <= TEXT_CHARACTERS for value in candidates)
        distinct = len(candidates) if known else min(distinct, values)
        column = {"name": name, "type": kind.name if kind else "text", "nulls": rows - values}
        column |= {"distinct": distinct, "distinct_estimated": not known}
        column |= {"min": _plain(low), "max": _plain(high), "mean": _plain(mean), "top": []}
        words = kind is not None and values < filled
        counted = not known and distinct <= EXACT_DISTINCT * SKETCH_ERROR
        return column, _Found(candidates, found == CANDIDATES, (_without_words(n) if words else f"c{n}") * counted)

    def _not_of_type(self, n: int, fit: Fit) -> BadInput:
        row, value = first_misfit(self._table, n, fit.kind, words=self._words)
        return not_of_type(self._source.names[n], fit.kind, fit.others, row, value)


def first_misfit(table: Table, n: int, kind: Kind, *, words: bool) -> tuple[int, Any]:
    """The number of the first row whose value is none of the kind, and that value."""
    other = misfits(f"c{n}", kind.of(table.source.typed(n)), words=words).removeprefix("count(").removesuffix(")")
    sql = f"SELECT row, c{n} FROM (SELECT row_number() OVER () AS row, c{n} FROM {table.rows_of([n])}) "  # noqa: S608
    row, value = table.run(f"{sql} WHERE ({other}) IS NOT NULL ORDER BY row LIMIT 1")
    return int(row), value


def column_figures(n: str, sketches: Sequence[str], typed: Sequence[tuple[str, Kind]], *, words: bool) -> list[str]:
    """What is asked of a column in the first pass; of each of its possible kinds five things."""
    aggregates = [f"count(c{n})", *sketches, f"min(s{n})", f"max(s{n})"]
    for value, kind in typed:
        aggregates += [f"count({value})", misfits(f"c{n}", value, words=words), *_of_kind(value, kind)]
    return aggregates


def _of_kind(value: str, kind: Kind) -> list[str]:
    """The lowest, the highest, the mean."""
    if kind.mean:
        # 'inf' is a number, but not to JSON. Left out by CASE and not by FILTER: each FILTER has buffers for all
        # columns, which for 50 of them is 7 GB.
        finite = value if kind.sql_type == "BIGINT" else f"CASE WHEN isfinite({value}) THEN {value} END"
        return [f"{name}({finite})" for name in ("min", "max", "avg")]
    if kind.name == "boolean":
        return [f"min({value})", f"max({value})", "NULL"]
    shown = [f"CAST({name}({value}) AS VARCHAR)" for name in ("min", "max")]
    if kind.name == "timestamp":
        shown = [f"replace({text}, ' ', 'T'){' || ' + repr('Z') if kind.utc else ''}" for text in shown]
    return [*shown, "NULL"]


def _counts(n: int, counted: str) -> Question:
    different = [f"count(DISTINCT {counted})"] if counted else []
    return Question([f"histogram_exact(s{n}, $top{n})", *different], [short(str(n))])


def short(n: str) -> str:
    """One character more than is shown, so that `cut` sees what to cut. Asking for the length first spares a quarter of
    the pass's time."""
    return f"CASE WHEN strlen(c{n}) <= {TEXT_CHARACTERS} THEN c{n} ELSE left(c{n}, {TEXT_CHARACTERS + 1}) END AS s{n}"


def _top(counts: Mapping[str, int], found: _Found, top_values: int) -> list[dict[str, Any]]:
    least = 2 if found.more else 1
    most = sorted((-counts[value], value) for value in found.candidates if counts[value] >= least)
    return [{"value": cut(value), "count": -count} for count, value in most[:top_values]]


def _without_words(n: int) -> str:
    return f"CASE WHEN c{n} NOT IN ({WORDS_SQL}) THEN c{n} END"


def _plain(value: Any) -> Any:
    """What JSON can say."""
    if isinstance(value, str):
        return cut(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
