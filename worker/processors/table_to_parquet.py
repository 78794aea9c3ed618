"""The processor `table-to-parquet`: a table as Parquet with typed columns, in memory that does not grow with its rows.

duckdb reads the table twice: once to find the type which every value of a column fits (table_types.py), once to write.
Both passes have a true count of bytes; the types are a checkpoint, so an attempt that goes on from it reads once. The
result may be a CSV or JSON Lines as well. As many rows are written as there are, or none.

How a file becomes a table is table_input.py's. The connection that writes can open the table and its one output, and
no more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from headway.shared.errors import BadInput
from headway.shared.tasks.processors import Job, processor
from headway.worker.processors.result_names import stem
from headway.worker.processors.table_inference import possible_kinds
from headway.worker.processors.table_input import LOOKING, Read, on_table
from headway.worker.processors.table_options import ACCEPTED, TableOptions
from headway.worker.processors.table_profile import first_misfit
from headway.worker.processors.table_query import Question, Source, Table
from headway.worker.processors.table_types import (
    KINDS,
    NAMED,
    TEXT,
    Fit,
    Guesses,
    Kind,
    choose,
    misfits,
    named_types,
    not_of_type,
)

#: Columns that are looked at in one pass: with more, duckdb plans for longer than a pass takes.
MOST_COLUMNS: Final = 250

#: As measured: what a column costs while its type is found; the least it costs while it is written;
#: what a value of a group of rows costs; and what all else takes, whatever the file.
FINDING_BYTES: Final = 3 * 1024 * 1024
WRITING_BYTES: Final = 400 * 1024
VALUE_BYTES: Final = 512
OTHER_BYTES: Final = 100 * 1024 * 1024

#: Parquet is read a group at a time. duckdb's own choice is the most; fewer rows where there are many columns.
GROUP_ROWS: Final = (2048, 122_880)

#: Of the summary, which may be a megabyte at most.
LISTED_COLUMNS: Final = 1000

SINGLE, DOUBLE = "'", '"'

#: Of each format its media type.
FORMATS: Final = {
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv",
    "jsonl": "application/x-ndjson",
}


class TableToParquetOptions(TableOptions):
    """How to read the table, where what is left out is found out; and how to write it."""

    format: Literal["parquet", "csv", "jsonl"] = Field(
        default="parquet", description="what to write: Parquet, CSV or JSON Lines"
    )
    compression: Literal["zstd", "snappy", "gzip", "uncompressed"] = Field(
        default="zstd", description="how the columns of a Parquet file are compressed"
    )


@processor(
    "table-to-parquet",
    description="The table as a Parquet file with typed columns, or as CSV or JSON Lines",
    accepts=ACCEPTED,
    options=TableToParquetOptions,
    # As measured on 300 MB of ten columns.
    phases={LOOKING: 4, "Finding types": 38, "Writing": 58},
    preload=("duckdb",),
    aliases=("csv-to-parquet",),
)
def table_to_parquet(job: Job) -> dict[str, Any]:
    """The result file is the input's name with `.parquet`, `.csv` or `.jsonl` for its ending. Empty values are NULL.

    Summary: `rows`; `columns`, a list of `name`, `type` (`BIGINT`, `DOUBLE`, `BOOLEAN`, `DATE`, `TIMESTAMP`, in UTC
    where the table says so, `TIME`, `VARCHAR`) and `nulls`, cut after 1000; `size_bytes`, of the result; `read_as`,
    `left_out` and `notes`, see table_input.py. The second column of a name is `name_2`. Raises BadInput for what is no
    table or has too many columns, and MemoryError.
    """
    options: TableToParquetOptions = job.options
    name = f"{stem(job.filename, 'table')}.{options.format}"
    if name == job.filename and options.format == "csv":
        name = f"{stem(job.filename, 'table')}-clean.csv"
    result: dict[str, Any] = on_table(job, options, partial(_convert, job, name))
    for note in result["notes"]:
        job.log(note, "warning")
    job.progress_to(job.size_bytes, job.size_bytes)
    return result


def _convert(job: Job, name: str, source: Source, read: Read) -> dict[str, Any]:
    options: TableToParquetOptions = job.options
    columns = len(source.names)
    if columns > (most := max(16, (job.memory_bytes - OTHER_BYTES) // WRITING_BYTES)):
        raise BadInput(
            f"The first row has {columns:,} values, and at most {most:,} columns can be written with the memory that a "
            "task has here. Name the separator as the option `delimiter`, or send fewer columns."
        )
    path = job.output_path(name, FORMATS[options.format])
    renamed = list[str]()
    with closing(_Conversion(job, source, path)) as table:
        found = table.types()
        names = _different(source.names, renamed)
        job.phase("Writing", unit="bytes")
        rows = table.write(names, found, partial(_tell, job, 0, 1))
    nulls = found.nulls
    listed = [
        {"name": one, "type": kind.sql_type if kind else TEXT, "nulls": nulls[n]}
        for n, (one, kind) in enumerate(zip(names, found.kinds, strict=True))
    ][:LISTED_COLUMNS]
    read.notes += [*found.notes, *renamed]
    return {"rows": rows, "columns": listed, "size_bytes": Path(path).stat().st_size, **read.summary()}


def _tell(job: Job, index: int, passes: int, share: float) -> None:
    """All passes' bytes are one count."""
    job.progress_to(job.size_bytes * index + int(job.size_bytes * share), job.size_bytes * passes)


class _Types:
    """Of each column its kind, None for text, and how many of its values are NULL by it; and what is to be told."""

    def __init__(self, kinds: Sequence[Kind | None], nulls: Sequence[int], notes: Sequence[str]) -> None:
        self.kinds, self.nulls, self.notes = list(kinds), list(nulls), list(notes)

    def state(self) -> dict[str, Any]:
        kinds = [kind.key if kind else None for kind in self.kinds]
        return {"kinds": kinds, "nulls": self.nulls, "notes": self.notes}


class _Conversion(Table):
    """A table that can also be written as the one file at `path`."""

    def __init__(self, job: Job, source: Source, path: str) -> None:
        super().__init__(source, job.memory_bytes, threads=1, outputs=[path])
        self._job, self._path, self._guesses = job, path, Guesses()
        self._options: TableToParquetOptions = job.options
        self._named = named_types(self._options.types, source.names)
        self._words = self._options.null_values is None
        self._room_bytes = max(16 * 1024 * 1024, job.memory_bytes - OTHER_BYTES)

    def types(self) -> _Types:
        """The type of every column; from the attempt before this one, where it got so far."""
        job, columns = self._job, len(self.source.names)
        restored = job.restored if isinstance(job.restored, dict) else {}
        if (before := self._restored(restored)) is not None:
            job.log("Resuming with the types that were found before")
            return before
        size = min(MOST_COLUMNS, max(16, (job.memory_bytes - OTHER_BYTES) // FINDING_BYTES))
        groups = [range(n, min(n + size, columns)) for n in range(0, columns, size)]
        possible = possible_kinds(self, self._named, words=self._words)
        job.phase("Finding types", unit="bytes")
        kinds, nulls = list[Kind | None](), list[int]()
        for index, group in enumerate(groups):
            progress = partial(_tell, job, index, len(groups))
            rows, answers = self.ask({n: self._fits(n, possible[n]) for n in group}, progress)
            for n in group:
                kind, values = self._chosen(n, possible[n], answers[n])
                kinds.append(kind)
                nulls.append(rows - values)
            _tell(job, index, len(groups), 1.0)
        found = _Types(kinds, nulls, self._guesses.notes())
        if len(json.dumps(found.state())) < 60_000:
            job.checkpoint(found.state())
        return found

    def _restored(self, state: dict[str, Any]) -> _Types | None:
        """None for what is not of this table, or of a version before this one."""
        keys, nulls, notes = (state.get(name) for name in ("kinds", "nulls", "notes"))
        columns = len(self.source.names)
        if not (isinstance(keys, list) and isinstance(nulls, list) and len(keys) == len(nulls) == columns):
            return None
        if not all(key is None or key in KINDS for key in keys) or not all(isinstance(one, int) for one in nulls):
            return None
        if not (isinstance(notes, list) and all(isinstance(one, str) for one in notes)):
            return None
        kinds = [(NAMED if n in self._named else KINDS)[key] if key else None for n, key in enumerate(keys)]
        return _Types(kinds, nulls, notes)

    def _fits(self, n: int, kinds: Sequence[Kind]) -> Question:
        """How many values there are, how many fit each type, and how many do not."""
        typed = [(f"v{n}_{index}", kind) for index, kind in enumerate(kinds)]
        counts = [s for value, _ in typed for s in (f"count({value})", misfits(f"c{n}", value, words=self._words))]
        return Question(
            [f"count(c{n})", *counts], [f"{kind.of(self.source.typed(n))} AS {value}" for value, kind in typed]
        )

    def _chosen(self, n: int, kinds: Sequence[Kind], answer: Sequence[int]) -> tuple[Kind | None, int]:
        """The kind, and how many values of the column are not NULL by it."""
        name, fits = self.source.names[n], _read(kinds, answer)
        if n in self._named and fits and fits[0].others:
            row, value = first_misfit(self, n, fits[0].kind, words=self._words)
            raise not_of_type(name, fits[0].kind, fits[0].others, row, value)
        kind, doubtful = choose(fits)
        if doubtful:
            self._guesses.doubtful(name)
        values = next((fit.values for fit in fits if fit.kind is kind), answer[0])
        self._guesses.words(name, answer[0] - values)
        return kind, values

    def write(self, names: Sequence[str], types: _Types, progress: Callable[[float], None]) -> int:
        """Writes all columns, typed, under these names. Returns the number of rows. `progress` is called in this thread
        with the share that is done, 0 to 1. Raises NotSimple, and MemoryError."""
        # A name and a path cannot be parameters here: each is quoted, its own quotes doubled.
        wanted = ", ".join(
            f"{kind.of(self.source.typed(n)) if kind else f'c{n}'} AS {_quoted(name, DOUBLE)}"
            for n, (name, kind) in enumerate(zip(names, types.kinds, strict=True))
        )
        rows_sql = self.rows_of(range(len(names)))
        sql = f"COPY (SELECT {wanted} FROM {rows_sql}) TO {_quoted(self._path, SINGLE)} ({self._how(len(names))})"  # noqa: S608
        (rows,) = self.run(sql, progress)
        self.check(int(rows))
        return int(rows)

    def _how(self, columns: int) -> str:
        if self._options.format == "csv":
            return "FORMAT csv, HEADER true, DELIMITER ',', USE_TMP_FILE false"
        if self._options.format == "jsonl":
            return "FORMAT json, ARRAY false, USE_TMP_FILE false"
        least, most = GROUP_ROWS
        group_rows = max(least, min(most, self._room_bytes // VALUE_BYTES // columns))
        return (
            f"FORMAT parquet, COMPRESSION {self._options.compression}, ROW_GROUP_SIZE {group_rows}, "
            f"ROW_GROUP_SIZE_BYTES {self._room_bytes // 12}, USE_TMP_FILE false"
        )


def _read(kinds: Sequence[Kind], answer: Sequence[int]) -> list[Fit]:
    """What `_fits` asked."""
    return [Fit(kind, *count) for kind, count in zip(kinds, zip(*[iter(answer[1:])] * 2, strict=True), strict=True)]


def _different(names: Sequence[str], notes: list[str]) -> list[str]:
    """Each name once, whatever its case: to most who read Parquet `a` and `A` are the same."""
    taken, found = set[str](), []
    for name in names:
        one, number = name, 1
        while one.casefold() in taken:
            number += 1
            one = f"{name}_{number}"
        taken.add(one.casefold())
        found.append(one)
    renamed = sum(one != name for one, name in zip(found, names, strict=True))
    if renamed:
        columns = "1 column was" if renamed == 1 else f"{renamed:,} columns were"
        notes.append(f"{columns} renamed, such as a_2, because another one has that name.")
    return found


def _quoted(text: str, quote: str) -> str:
    return quote + text.replace(quote, quote * 2) + quote
