"""A table as duckdb sees it: read as it streams by, with a true count of the bytes, and nothing else done.

No text from outside becomes SQL: columns are numbered, and a path, a separator or a value is a parameter. The
connection can open this one file, write the results that it is given, load no extension, and change none of this. How
the table is laid out is told to duckdb, and never found by it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from headway.shared.errors import BadInput
from headway.worker.processors.table_types import Kind

#: As often as progress is sampled.
POLL_SECONDS: Final = 0.05

#: duckdb wants its buffers larger than a row.
LINE_BYTES: Final = 6 * 1024 * 1024
BUFFER_BYTES: Final = 8 * 1024 * 1024

TWO_THREADS_BYTES: Final = 512 * 1024 * 1024

#: The ends of lines are said too: left to find them, the reader takes one within a value for them.
_CSV: Final = (
    "read_csv($path, auto_detect = false, compression = 'none', delim = $separator, quote = '\"', escape = '\"', "
    "header = $header, columns = $columns, new_line = '{end}', "
    f"max_line_size = {LINE_BYTES}, buffer_size = {BUFFER_BYTES})"
)


class NotSimple(Exception):
    """A CSV that looked simple is not: duckdb finds fault with it, or finds another number of rows than there are."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from: `sql` gives the columns `c0`, `c1`, …, all text, NULL where a value is empty. `rows` are as
    counted without duckdb. `simple`: as the sender wrote it, so that what is wrong with it is not known yet."""

    path: Path
    sql: str
    values: Mapping[str, Any]
    names: tuple[str, ...]
    rows: int
    simple: bool = False
    #: Spaces around a number are no part of it.
    padded: bool = False
    #: Words that are NULL in every column; without them the usual ones are known where a column has a type.
    nulls: tuple[str, ...] | None = None
    #: The only kinds that a column may have, by their keys; of a column that is not here, any.
    only: Mapping[int, frozenset[str]] = field(default_factory=dict)

    def kinds_of(self, n: int, kinds: Sequence[Kind]) -> list[Kind]:
        return [kind for kind in kinds if kind.key in self.only[n]] if n in self.only else list(kinds)

    def typed(self, n: int) -> str:
        """What is looked at for a type."""
        return f"trim(c{n})" if self.padded else f"c{n}"


def csv_source(
    path: Path, separator: str, names: tuple[str, ...], rows: int, *, header: bool, end: str = "\\r\\n", **more: Any
) -> Source:
    columns = {f"c{n}": "VARCHAR" for n in range(len(names))}
    values = {"separator": separator, "header": header, "columns": columns}
    return Source(path, _CSV.format(end=end), values, names, rows, **more)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a column: SQL aggregates over it, and over what is `derived` from it row by row, as `x AS name`.

    To derive a thing once and name it, rather than to say it in each aggregate, halves the time duckdb takes to plan.
    """

    aggregates: Sequence[str]
    derived: Sequence[str] = ()


def connect(memory_bytes: int, paths: Sequence[str], *, threads: int | None = None, writes: bool = False) -> Any:
    """A connection that can open those paths and nothing else. Whoever opens it closes it."""
    # Here and not above: it takes a quarter of a second, and the API, which lists processors, has no use for it.
    import duckdb

    if threads is None:
        # A second thread halves the time, but has buffers of its own, and a small limit has no room for them.
        threads = min(2, os.cpu_count() or 1) if memory_bytes >= TWO_THREADS_BYTES else 1
    config: dict[str, str | bool | int | float | list[str]] = {
        # What duckdb counts is not all it takes: the other half is for sketches, threads, Python.
        "memory_limit": f"{memory_bytes // 2}B",
        "threads": threads,
        "temp_directory": "",
        "autoload_known_extensions": False,
        "autoinstall_known_extensions": False,
        "allow_community_extensions": False,
    }
    if writes:
        # One thread writes the rows in their order, needs no buffers to bring them back into it, and is as fast.
        config["preserve_insertion_order"] = threads > 1
    if int(duckdb.__version__.split(".")[0]) >= 2:
        config["async_threads"] = 1  # of eight, which is its own choice, the stacks alone count as 64 MiB
    connection = duckdb.connect(":memory:", config=config)
    for setting in ("enable_progress_bar = true", "enable_progress_bar_print = false", "progress_bar_time = 0"):
        connection.execute(f"SET {setting}")
    connection.execute("SET allowed_paths = $paths", {"paths": list(paths)})
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


class Table:
    """Whoever opens it closes it. `outputs` are the files that may be written."""

    def __init__(
        self, source: Source, memory_bytes: int, *, threads: int | None = None, outputs: Sequence[str] = ()
    ) -> None:
        self.source = source
        self._connection = connect(memory_bytes, [str(source.path), *outputs], threads=threads, writes=bool(outputs))
        # One thread for all queries: each new one would keep memory of its own.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="duckdb")

    def rows_of(self, columns: Sequence[int]) -> str:
        """SQL: those columns, with the words that are said to be no value taken out."""
        nulls = self.source.nulls
        if not nulls:
            return self.source.sql
        named = ", ".join(f"CASE WHEN list_contains($nulls, c{n}) THEN NULL ELSE c{n} END AS c{n}" for n in columns)
        return f"(SELECT {named} FROM {self.source.sql})"  # noqa: S608 - nothing of it is from outside

    def values(self, columns: Sequence[int], sample_rows: int | None = None) -> str:
        """SQL: one row for each value, `n` its column and `c` the text. A question of it costs the same to plan for any
        number of columns."""
        limit = f"LIMIT {sample_rows}" if sample_rows else ""
        listed, numbers = ", ".join(f"c{n}" for n in columns), ", ".join(map(str, columns))
        return (
            f"(SELECT unnest([{numbers}]) AS n, unnest([{listed}]) AS c "  # noqa: S608 - nothing of it is from outside
            f"FROM (SELECT {listed} FROM {self.rows_of(columns)} {limit}))"
        )

    def ask(
        self,
        questions: Mapping[int, Question],
        progress: Callable[[float], None] = lambda share: None,
        values: Mapping[str, Any] | None = None,
        *,
        sample_rows: int | None = None,
    ) -> tuple[int, dict[int, list[Any]]]:
        """The number of rows, and the answers for each column, from one pass over the file or its first rows.

        `values` are those of the questions' own parameters. `progress` is called in this thread with the share that is
        read, 0 to 1. Raises BadInput, NotSimple, also where the number of rows is not that of the source, and
        MemoryError.
        """
        wanted = ", ".join(("count(*)", *(sql for asked in questions.values() for sql in asked.aggregates)))
        # Columns by name, because a limit keeps duckdb from leaving out those of `*` that nobody asked for.
        columns = ", ".join(sql for n, asked in questions.items() for sql in (f"c{n}", *asked.derived))
        limit = f"LIMIT {sample_rows}" if sample_rows else ""
        rows_sql = self.rows_of(list(questions))
        sql = f"SELECT {wanted} FROM (SELECT {columns} FROM {rows_sql} {limit})"  # noqa: S608 - nothing of it is from outside
        rows, *answers = self.run(sql, progress, values)
        if not sample_rows:
            self.check(rows)
        following = iter(answers)
        return rows, {n: [next(following) for _ in asked.aggregates] for n, asked in questions.items()}

    def check(self, rows: int) -> None:
        """Raises where duckdb has read another number of rows than there are: a table is never completed so."""
        if rows != self.source.rows:
            raise NotSimple(f"{rows:,} rows were read, and {self.source.rows:,} counted")

    def run(
        self, sql: str, progress: Callable[[float], None] = lambda share: None, values: Mapping[str, Any] | None = None
    ) -> tuple[Any, ...]:
        """The only row of what `sql` gives."""
        [row] = self.all(sql, progress, values)
        return row

    def all(
        self, sql: str, progress: Callable[[float], None] = lambda share: None, values: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """The rows of what `sql` gives. The source's parameters are among its values."""
        given = {"path": str(self.source.path), **self.source.values, **(values or {})}
        if self.source.nulls:
            given["nulls"] = list(self.source.nulls)
        with plain_errors():
            return self._run(sql, given, progress)

    def _run(self, sql: str, values: dict[str, Any], progress: Callable[[float], None]) -> list[tuple[Any, ...]]:
        # The job is told from the thread that it was handed to, so the query is what runs in another.
        answer = self._thread.submit(lambda: self._connection.execute(sql, values).fetchall())
        try:
            while not wait((answer,), POLL_SECONDS).done:
                progress(max(0.0, self._connection.query_progress()) / 100)
        except BaseException:
            self._connection.interrupt()
            raise
        rows: list[tuple[Any, ...]] = answer.result()
        return rows

    def close(self) -> None:
        self._thread.shutdown()
        self._connection.close()


@contextmanager
def plain_errors() -> Iterator[None]:
    """What duckdb finds wrong, without its words: they name a path on this machine and settings nobody has here."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise MemoryError("the table needs more memory than this task may take") from error
    except duckdb.InternalException as error:
        if "page size out of range" not in str(error):
            raise
        raise MemoryError("there was no memory left to compress a page") from error  # zstd says so by a size
    except duckdb.InvalidInputException as error:
        text = str(error)
        if "CSV" in text:
            raise NotSimple(text) from None
        if "arquet" in text or "thrift" in text.lower() or "magic" in text:
            raise damaged_parquet() from None
        raise
    except duckdb.SerializationException:
        raise damaged_parquet() from None


def damaged_parquet() -> BadInput:
    return BadInput(
        "The Parquet file is damaged or cut short: it cannot be read to its end. Send the whole of it again."
    )
