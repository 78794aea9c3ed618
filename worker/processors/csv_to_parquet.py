"""The processor `csv-to-parquet`: a CSV as Parquet with typed columns, in memory that does not grow with its rows.

duckdb reads the file twice: once to find the type which every value of a column fits, once to write. A type is only
given where nothing is lost by it: `007`, a number of twenty digits or a time with an offset stay text, as they are.
Both passes have a true count of bytes; the types are a checkpoint, so an attempt that goes on from it reads once.

How the file is read is csv_table.py's. The connection that writes can open the input and its one output, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from headway.shared.errors import BadInput
from headway.shared.tasks.processors import Job, Options, processor
from headway.worker.processors.csv_dialect import Dialect, find_dialect
from headway.worker.processors.csv_table import SOURCE, CsvTable, Question, plain_errors
from headway.worker.processors.result_names import stem

#: The first rows rule types out, so that the pass over the whole file tries few of them.
SAMPLE_ROWS: Final = 1000

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

_DATE: Final = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME: Final = "[0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?"
#: In order: a column has the first type which all of its values fit, written in a way that the type gives back.
TYPES: Final = {
    "BIGINT": "-?(0|[1-9][0-9]{0,18})",
    "DOUBLE": "[-+]?(0|[1-9][0-9]{0,14})?([.]0*[0-9]{0,17})?([eE][-+]?[0-9]{1,3})?",
    "BOOLEAN": "(?i)true|false",
    "DATE": _DATE,
    "TIMESTAMP": f"{_DATE}[ T]{_TIME}Z?",
    "TIME": _TIME,
}
TEXT: Final = "VARCHAR"

SINGLE, DOUBLE = "'", '"'


class CsvToParquetOptions(Options):
    """How to read the CSV, where what is left out is found out; and how to write the Parquet."""

    delimiter: str | None = Field(
        default=None, pattern=r'^([^"\r\n\x00]|\\t)$', description="the character between two values; \\t is a tab"
    )
    header: bool | None = Field(default=None, description="whether the first row has the names of the columns")
    compression: Literal["zstd", "snappy", "gzip", "uncompressed"] = Field(
        default="zstd", description="how the columns are compressed"
    )
    types: bool = Field(default=True, description="whether to find types; without them every column is text")


@processor(
    "csv-to-parquet",
    description="The CSV as a Parquet file with typed columns",
    accepts=("text/*", "application/csv", "application/vnd.ms-excel"),
    options=CsvToParquetOptions,
    # As measured on 300 MB of ten columns.
    phases={"Looking at the first rows": 1, "Finding types": 40, "Writing Parquet": 59},
    preload=("duckdb",),
)
def csv_to_parquet(job: Job) -> dict[str, Any]:
    """The result file is the input's name with `.parquet` for its ending. Empty values are NULL.

    Summary: `rows`; `columns`, a list of `name` and `type` (`BIGINT`, `DOUBLE`, `BOOLEAN`, `DATE`, `TIMESTAMP`, in
    UTC where the CSV says so, `TIME`, `VARCHAR`), cut after 1000; `size_bytes`, of the Parquet file. The second column
    of a name is `name_2`. Raises BadInput for what is no CSV or has too many columns, and MemoryError.
    """
    options: CsvToParquetOptions = job.options
    job.phase("Looking at the first rows", unit="columns")
    separator = "\t" if options.delimiter == "\\t" else options.delimiter
    dialect = find_dialect(Path(job.input_path), separator, options.header)
    columns = len(dialect.names)
    if columns > (most := max(16, (job.memory_bytes - OTHER_BYTES) // WRITING_BYTES)):
        raise BadInput(
            f"The first row has {columns:,} values, and at most {most:,} columns can be written with the memory that a "
            "task has here. Name the separator as the option `delimiter`, or send fewer columns."
        )
    names = _different(dialect.names)
    path = job.output_path(f"{stem(job.filename, 'table')}.parquet", "application/vnd.apache.parquet")
    with closing(_Table(job, dialect, path)) as table:
        types = _types(job, table) if options.types else [TEXT] * columns
        job.phase("Writing Parquet", unit="bytes")
        rows = table.write(list(zip(names, types, strict=True)), options.compression, partial(_tell, job, 0, 1))
    job.progress_to(job.size_bytes, job.size_bytes)
    listed = [{"name": name, "type": kind} for name, kind in zip(names, types, strict=True)][:LISTED_COLUMNS]
    return {"rows": rows, "columns": listed, "size_bytes": Path(path).stat().st_size}


def _types(job: Job, table: CsvTable) -> list[str]:
    """The type of every column; from the attempt before this one, where it got so far."""
    columns = len(table.dialect.names)
    restored = job.restored if isinstance(job.restored, dict) else {}
    types: list[str] = restored.get("types") or []
    if len(types) == columns and all(kind in (*TYPES, TEXT) for kind in types):
        job.log("Resuming with the types that were found before")
        return types
    size = min(MOST_COLUMNS, max(16, (job.memory_bytes - OTHER_BYTES) // FINDING_BYTES))
    groups = [range(n, min(n + size, columns)) for n in range(0, columns, size)]
    possible: dict[int, list[str]] = {}
    for group in groups:
        _, answers = table.ask({n: _fits(n, list(TYPES)) for n in group}, sample_rows=SAMPLE_ROWS)
        for n in group:
            filled, *fitting = answers[n]
            # A column without a value so far may have any type.
            possible[n] = [kind for kind, fit in zip(TYPES, fitting, strict=True) if fit == filled]
        job.progress_to(len(possible), columns)
    job.phase("Finding types", unit="bytes")
    types = []
    for index, group in enumerate(groups):
        _, answers = table.ask({n: _fits(n, possible[n]) for n in group}, partial(_tell, job, index, len(groups)))
        for n in group:
            filled, *fitting = answers[n]
            fit = (kind for kind, fits in zip(possible[n], fitting, strict=True) if filled and fits == filled)
            types.append(next(fit, TEXT))
        _tell(job, index, len(groups), 1.0)
    job.checkpoint({"types": types})
    return types


def _tell(job: Job, index: int, passes: int, share: float) -> None:
    """All passes' bytes are one count."""
    job.progress_to(job.size_bytes * index + int(job.size_bytes * share), job.size_bytes * passes)


def _fits(n: int, kinds: Sequence[str]) -> Question:
    """How many values there are, and how many fit each type."""
    return Question([f"count(c{n})", *(f"count({_value(n, kind)})" for kind in kinds)])


def _value(n: int, kind: str) -> str:
    """A column as its type; NULL for a value that is none of it."""
    return f"TRY_CAST(CASE WHEN regexp_full_match(c{n}, '{TYPES[kind]}') THEN c{n} END AS {kind})"


def _different(names: Sequence[str]) -> list[str]:
    """Each name once, whatever its case: to most who read Parquet `a` and `A` are the same."""
    taken, found = set[str](), []
    for name in names:
        one, number = name, 1
        while one.casefold() in taken:
            number += 1
            one = f"{name}_{number}"
        taken.add(one.casefold())
        found.append(one)
    return found


class _Table(CsvTable):
    """A CSV that can also be written as the one Parquet at `path`."""

    def __init__(self, job: Job, dialect: Dialect, path: str) -> None:
        import duckdb

        self.dialect = dialect
        self._room_bytes = max(16 * 1024 * 1024, job.memory_bytes - OTHER_BYTES)
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{job.memory_bytes // 2}B",
            # One thread writes the rows in their order, needs no buffers to bring them back into it, and is as fast.
            "threads": 1,
            "preserve_insertion_order": False,
            "temp_directory": "",
            "autoload_known_extensions": False,
            "autoinstall_known_extensions": False,
            "allow_community_extensions": False,
        }
        if int(duckdb.__version__.split(".")[0]) >= 2:
            config["async_threads"] = 1  # of eight, which is its own choice, the stacks alone count as 64 MiB
        self._connection = duckdb.connect(":memory:", config=config)
        for setting in ("enable_progress_bar = true", "enable_progress_bar_print = false", "progress_bar_time = 0"):
            self._connection.execute(f"SET {setting}")
        self._connection.execute("SET allowed_paths = $paths", {"paths": [job.input_path, path]})
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="duckdb")
        self._path = path
        self._source = {
            "path": job.input_path,
            "separator": dialect.separator,
            "header": dialect.header,
            "skip": dialect.blank_lines,
            "columns": {f"c{n}": TEXT for n in range(len(dialect.names))},
        }

    def write(self, columns: Sequence[tuple[str, str]], compression: str, progress: Callable[[float], None]) -> int:
        """Writes columns of these names and types, which their values fit. Returns the number of rows. `progress` is
        called in this thread with the share that is done, 0 to 1. Raises BadInput, and MemoryError."""
        # A name and a path cannot be parameters here: each is quoted, its own quotes doubled.
        wanted = ", ".join(f"CAST(c{n} AS {kind}) AS {_quoted(name, DOUBLE)}" for n, (name, kind) in enumerate(columns))
        least, most = GROUP_ROWS
        group_rows = max(least, min(most, self._room_bytes // VALUE_BYTES // len(columns)))
        sql = (
            f"COPY (SELECT {wanted} FROM {SOURCE}) TO {_quoted(self._path, SINGLE)} (FORMAT parquet, "  # noqa: S608
            f"COMPRESSION {compression}, ROW_GROUP_SIZE {group_rows}, ROW_GROUP_SIZE_BYTES {self._room_bytes // 12}, "
            "USE_TMP_FILE false)"
        )
        import duckdb

        try:
            with plain_errors():
                (rows,) = self._run(sql, self._source, progress)
        except duckdb.InternalException as error:
            if "page size out of range" not in str(error):
                raise
            raise MemoryError("there was no memory left to compress a page") from error  # zstd says so by a size
        return int(rows)


def _quoted(text: str, quote: str) -> str:
    return quote + text.replace(quote, quote * 2) + quote
