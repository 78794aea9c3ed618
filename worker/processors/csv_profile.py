"""The processor `csv-profile`: what is in a CSV, column by column, in memory that does not grow with its rows.

duckdb reads the file twice and keeps nothing of it but sketches: once for the figures of every column, once to count
the top values exactly. So there is no scratch file, and both passes have a true count of bytes. Every value is read as
text and no type is guessed from a sample which the rest of the file could belie: a type is what every value fits.

How the file is read, and how it is kept from being more than read, is csv_table.py's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from headway.shared.errors import BadInput
from headway.shared.tasks.processors import Job, Options, processor
from headway.worker.processors.csv_dialect import TEXT_CHARACTERS, cut, find_dialect
from headway.worker.processors.csv_table import CsvTable, Question

#: The first pass finds so many candidates for the top values by a sketch, the second counts them. Not by `histogram`,
#: which would find them all: it keeps a copy of every text it is given, and so grows with the rows.
CANDIDATES: Final = 50

#: The first rows rule types out, so that the pass over the whole file tries few casts. More rows would only be
#: more casts that fail, which are slow.
SAMPLE_ROWS: Final = 100

#: What a column of numbers costs while it is profiled: 5 MiB of vectors and sketches in two threads. A table too wide
#: for that is read in groups of columns, one after the other.
COLUMN_BYTES: Final = 6 * 1024 * 1024

#: The file is read once for every hundred columns: more of them than this would take minutes for megabytes.
TABLE_COLUMNS: Final = 1000
#: With more columns in one query duckdb plans for longer than a pass takes.
MOST_COLUMNS: Final = 100

#: A summary is kept in Redis and may be a megabyte at most.
SUMMARY_BYTES: Final = 900 * 1024


class CsvProfileOptions(Options):
    """How to read the CSV; what is left out is found out."""

    delimiter: str | None = Field(
        default=None, pattern=r'^([^"\r\n\x00]|\\t)$', description="the character between two values; \\t is a tab"
    )
    header: bool | None = Field(default=None, description="whether the first row has the names of the columns")
    top_values: int = Field(
        default=5, ge=0, le=20, description="how many of each column's most frequent values to list"
    )


@dataclass(frozen=True, slots=True)
class Kind:
    """A type in SQL. `value` is NULL for a text that is none of it; `{c}` stands for the column, `{v}` for a value."""

    name: str
    value: str
    low: str = "CAST(min({v}) AS VARCHAR)"
    high: str = "CAST(max({v}) AS VARCHAR)"
    mean: str = "NULL"

    def figures(self, value: str) -> list[str]:
        """How many values fit, the lowest, the highest, the mean."""
        return [f"count({value})", *(text.format(v=value) for text in (self.low, self.high, self.mean))]


#: In order: a column has the first type which all of its values fit, else it is text.
KINDS: Final = (
    # '1.5' can be cast to an integer, it is 2: so ask whether that is the same number.
    Kind(
        "integer",
        "CASE WHEN TRY_CAST({c} AS BIGINT) = TRY_CAST({c} AS DOUBLE) THEN TRY_CAST({c} AS BIGINT) END",
        *("min({v})", "max({v})", "avg({v})"),
    ),
    # 'nan' and 'inf' are numbers, but not to JSON. Left out by CASE and not by FILTER: each FILTER has buffers for all
    # columns, which for 50 of them is 7 GB.
    Kind(
        "number",
        "TRY_CAST({c} AS DOUBLE)",
        *(f"{name}(CASE WHEN isfinite({{v}}) THEN {{v}} END)" for name in ("min", "max", "avg")),
    ),
    Kind("boolean", "CASE lower({c}) WHEN 'true' THEN true WHEN 'false' THEN false END", "min({v})", "max({v})"),
    # A timestamp can be cast to a date too: its length tells.
    Kind("date", "CASE WHEN strlen({c}) <= 10 THEN TRY_CAST({c} AS DATE) END"),
    Kind(
        "timestamp",
        "TRY_CAST({c} AS TIMESTAMP)",
        *(f"replace(CAST({name}({{v}}) AS VARCHAR), ' ', 'T')" for name in ("min", "max")),
    ),
    Kind("time", "TRY_CAST({c} AS TIME)"),
)


@processor(
    "csv-profile",
    description="Rows, and of each column its type, nulls, distinct values, least, greatest, mean and most frequent",
    accepts=("text/*", "application/csv", "application/vnd.ms-excel"),
    options=CsvProfileOptions,
    # As measured on 1 GB of ten columns.
    phases={"Looking at the first rows": 1, "Profiling columns": 70, "Counting top values": 29},
    preload=("duckdb",),
)
def csv_profile(job: Job) -> dict[str, Any]:
    """Profiles every column. The whole report is the result file `profile.json` as well.

    Summary: `rows`, and `columns`, a list in the file's order of

    - `name`, `type`: `integer`, `number`, `boolean`, `date`, `timestamp`, `time` or `text`;
    - `nulls`: how many values are empty;
    - `distinct`: how many different values there are, as they are written; exact below 50, else within a few percent;
    - `min`, `max`: of the type; dates and times in ISO form, without an offset; null where all values are empty;
    - `mean`: of numbers, else null;
    - `top`: `{"value", "count"}`, the most frequent first, exactly counted. In a column of 50 different values or more
      they are found by a sketch, which of many that are about as frequent may miss some, and a value that comes once
      is none of them.

    A text longer than 80 characters is cut, and counts as what is left of it. A summary that would be too large for a
    task, of thousands of columns, is `shortened`: its `top`s are empty and its last columns may be missing. Raises
    BadInput for what is no CSV, and MemoryError.
    """
    options: CsvProfileOptions = job.options
    job.phase("Looking at the first rows", unit="columns")
    separator = "\t" if options.delimiter == "\\t" else options.delimiter
    dialect = find_dialect(Path(job.input_path), separator, options.header)
    if (found := len(dialect.names)) > TABLE_COLUMNS:
        raise BadInput(f"It has {found} columns; at most {TABLE_COLUMNS} are profiled. Split it by columns.")
    with closing(CsvTable(job, dialect)) as table:
        result = _profile(job, table, options.top_values)
    report = {
        "filename": job.filename,
        "size_bytes": job.size_bytes,
        "delimiter": dialect.separator,
        "header": dialect.header,
        **result,
    }
    with job.create_output("profile.json", "application/json") as file:
        file.write(json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False).encode())
    return _summary(result)


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(result)) <= SUMMARY_BYTES:
        return result
    columns, left_bytes = [], SUMMARY_BYTES
    for column in result["columns"]:
        short = {**column, "top": []}
        if (left_bytes := left_bytes - len(json.dumps(short))) < 0:
            break
        columns.append(short)
    return {"rows": result["rows"], "columns": columns, "shortened": True}


def _profile(job: Job, table: CsvTable, top_values: int) -> dict[str, Any]:
    names = table.dialect.names
    size = min(MOST_COLUMNS, max(16, job.memory_bytes // 2 // COLUMN_BYTES))
    groups = [range(first, min(first + size, len(names))) for first in range(0, len(names), size)]

    possible: dict[int, list[Kind]] = {}
    for group in groups:
        _, fits = table.ask({n: _fits(n) for n in group}, sample_rows=SAMPLE_ROWS)
        for n in group:
            filled, *fitting = fits[n]
            possible[n] = [kind for kind, fit in zip(KINDS, fitting, strict=True) if fit == filled]
        job.progress_to(len(possible), len(names))

    rows, columns = 0, []
    candidates: dict[int, list[str]] = {}
    job.phase("Profiling columns", unit="bytes")
    for progress, group in _passes(job, groups):
        rows, figures = table.ask({n: _figures(n, possible[n]) for n in group}, progress)
        for n in group:
            column, candidates[n] = _column(names[n], rows, figures[n], possible[n])
            columns.append(column)

    job.phase("Counting top values", unit="bytes")
    for progress, group in _passes(job, groups if top_values else []):
        wanted = {f"top{n}": candidates[n] for n in group}
        _, counts = table.ask({n: _counts(n) for n in group}, progress, wanted)
        for n in group:
            columns[n]["top"] = _top(counts[n][0], candidates[n], top_values)
    return {"rows": rows, "columns": columns}


def _passes(job: Job, groups: Sequence[range]) -> Iterator[tuple[Callable[[float], None], range]]:
    """Each group with what is to be told of the share of its pass that is done: all the passes' bytes are one count."""
    total = job.size_bytes * len(groups)
    for index, group in enumerate(groups):
        yield partial(_progress, job, job.size_bytes * index, total), group
        job.progress_to(job.size_bytes * (index + 1), total)


def _progress(job: Job, before: int, total: int, share: float) -> None:
    job.progress_to(before + int(job.size_bytes * share), total)


def _fits(n: int) -> Question:
    """How many values there are, and how many fit each kind."""
    return Question([f"count(c{n})", *(f"count({kind.value.format(c=f'c{n}')})" for kind in KINDS)])


def _figures(n: int, kinds: Sequence[Kind]) -> Question:
    typed = [(f"v{n}_{index}", kind) for index, kind in enumerate(kinds)]
    return Question(
        (
            *(f"count(c{n})", f"approx_count_distinct(c{n})", f"approx_top_k(s{n}, {CANDIDATES})"),
            *(f"min(s{n})", f"max(s{n})", *(sql for value, kind in typed for sql in kind.figures(value))),
        ),
        (_short(n), *(f"{kind.value.format(c=f'c{n}')} AS {value}" for value, kind in typed)),
    )


def _counts(n: int) -> Question:
    return Question([f"histogram_exact(s{n}, $top{n})"], [_short(n)])


def _short(n: int) -> str:
    """One character more than is shown, so that `cut` sees what to cut. Asking for the length first spares a quarter of
    the pass's time."""
    return f"CASE WHEN strlen(c{n}) <= {TEXT_CHARACTERS} THEN c{n} ELSE left(c{n}, {TEXT_CHARACTERS + 1}) END AS s{n}"


def _column(name: str, rows: int, figures: Sequence[Any], kinds: Sequence[Kind]) -> tuple[dict[str, Any], list[str]]:
    """A column of the summary from what was asked by `_figures`, and the candidates for its top values."""
    filled, distinct, candidates, least, greatest, *rest = figures
    kind, low, high, mean = "text", least, greatest, None
    for one, (fitting, *values) in zip(kinds, zip(*[iter(rest)] * 4, strict=True), strict=True):
        if filled and fitting == filled:
            kind, (low, high, mean) = one.name, values
            break
    candidates = candidates or []
    # Fewer than could be found are all there are, unless one was cut and stands for several.
    if len(candidates) < CANDIDATES and all(len(value) <= TEXT_CHARACTERS for value in candidates):
        distinct = len(candidates)
    column = {"name": name, "type": kind, "nulls": rows - filled, "distinct": min(distinct, filled)}
    return column | {"min": _plain(low), "max": _plain(high), "mean": _plain(mean), "top": []}, candidates


def _top(counts: Mapping[str, int], candidates: Sequence[str], top_values: int) -> list[dict[str, Any]]:
    least = 2 if len(candidates) == CANDIDATES else 1
    found = sorted((-counts[value], value) for value in candidates if counts[value] >= least)
    return [{"value": cut(value), "count": -count} for count, value in found[:top_values]]


def _plain(value: Any) -> Any:
    """What JSON can say."""
    if isinstance(value, str):
        return cut(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
