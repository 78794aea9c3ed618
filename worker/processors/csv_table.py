"""A CSV as duckdb sees it: read as it streams by, with a true count of the bytes, and nothing else done.

No text from outside becomes SQL: columns are numbered, and a path, a separator or a value is a parameter. The
connection can open this one file, write none, load no extension, and change none of this. Its dialect is given, by
csv_dialect.py, and never found by duckdb, which takes a table with one ragged row for a table of one column.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from headway.shared.errors import BadInput
from headway.shared.tasks.processors import Job
from headway.worker.processors.csv_dialect import Dialect, not_utf8

#: As often as progress is sampled.
POLL_SECONDS: Final = 0.05

#: A longer row is a quote that was never closed, rather than a row. duckdb wants its buffers larger than a row.
ROW_BYTES: Final = 4 * 1024 * 1024
BUFFER_BYTES: Final = 8 * 1024 * 1024

TWO_THREADS_BYTES: Final = 512 * 1024 * 1024

SOURCE: Final = (
    "read_csv($path, auto_detect = false, compression = 'none', delim = $separator, quote = '\"', escape = '\"', "
    "header = $header, skip = $skip, columns = $columns, "
    f"max_line_size = {ROW_BYTES}, buffer_size = {BUFFER_BYTES})"
)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a column: SQL aggregates over it, and over what is `derived` from it row by row, as `x AS name`.

    To derive a thing once and name it, rather than to say it in each aggregate, halves the time duckdb takes to plan.
    """

    aggregates: Sequence[str]
    derived: Sequence[str] = ()


class CsvTable:
    """The columns are `c0`, `c1`, …, all text, NULL where a value is empty. Whoever opens it closes it."""

    def __init__(self, job: Job, dialect: Dialect) -> None:
        # Here and not above: it takes a quarter of a second, and the API, which lists processors, has no use for it.
        import duckdb

        self.dialect = dialect
        config: dict[str, str | bool | int | float | list[str]] = {
            # What duckdb counts is not all it takes: the other half is for sketches, threads, Python.
            "memory_limit": f"{job.memory_bytes // 2}B",
            # A second thread halves the time, but has buffers of its own, and a small limit has no room for them.
            "threads": min(2, os.cpu_count() or 1) if job.memory_bytes >= TWO_THREADS_BYTES else 1,
            "temp_directory": "",
            "autoload_known_extensions": False,
            "autoinstall_known_extensions": False,
            "allow_community_extensions": False,
        }
        if int(duckdb.__version__.split(".")[0]) >= 2:
            config["async_threads"] = 1  # of eight, which is its own choice, the stacks alone count as 64 MiB
        self._connection = duckdb.connect(":memory:", config=config)
        self._connection.execute("SET enable_progress_bar = true")
        self._connection.execute("SET enable_progress_bar_print = false")
        self._connection.execute("SET progress_bar_time = 0")
        self._connection.execute("SET allowed_paths = $paths", {"paths": [job.input_path]})
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")
        # One thread for all queries: each new one would keep memory of its own.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="duckdb")
        self._source = {
            "path": job.input_path,
            "separator": dialect.separator,
            "header": dialect.header,
            "skip": dialect.blank_lines,
            "columns": {f"c{n}": "VARCHAR" for n in range(len(dialect.names))},
        }

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
        read, 0 to 1. Raises BadInput, and MemoryError.
        """
        wanted = ", ".join(("count(*)", *(sql for asked in questions.values() for sql in asked.aggregates)))
        # Columns by name, because a limit keeps duckdb from leaving out those of `*` that nobody asked for.
        columns = ", ".join(sql for n, asked in questions.items() for sql in (f"c{n}", *asked.derived))
        limit = f"LIMIT {sample_rows}" if sample_rows else ""
        sql = f"SELECT {wanted} FROM (SELECT {columns} FROM {SOURCE} {limit})"  # noqa: S608 - nothing of it is from outside
        with plain_errors():
            rows, *answers = self._run(sql, {**self._source, **(values or {})}, progress)
        following = iter(answers)
        return rows, {n: [next(following) for _ in asked.aggregates] for n, asked in questions.items()}

    def _run(self, sql: str, values: dict[str, Any], progress: Callable[[float], None]) -> tuple[Any, ...]:
        # The job is told from the thread that it was handed to, so the query is what runs in another.
        answer = self._thread.submit(lambda: self._connection.execute(sql, values).fetchone())
        try:
            while not wait((answer,), POLL_SECONDS).done:
                progress(max(0.0, self._connection.query_progress()) / 100)
        except BaseException:
            self._connection.interrupt()
            raise
        row = answer.result()
        assert row is not None  # an aggregate without groups is one row
        return row

    def close(self) -> None:
        self._thread.shutdown()
        self._connection.close()


@contextmanager
def plain_errors() -> Iterator[None]:
    """Says what duckdb found wrong without its words: they name a path on this machine and settings nobody has here."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise MemoryError("the CSV needs more memory than this task may take") from error
    except duckdb.InvalidInputException as error:
        text = str(error)
        line = int(found[1]) if (found := re.search(r"CSV Error on Line: (\d+)", text)) else None
        if line is None and "CSV" not in text:
            raise
        raise _said(text, line) from None


def _said(text: str, line: int | None) -> BadInput:
    if line is not None and "Invalid unicode" in text:
        return not_utf8(line)
    at = "A line" if line is None else f"Line {line}"
    if found := re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", text):
        more = int(found[2]) > int(found[1])
        return BadInput(
            f"{at} has {'more' if more else 'fewer'} than {found[1]} values, which is what the first row has. Make all "
            "rows as long as the first, or name the separator as the option `delimiter`."
        )
    if "unterminated quote" in text:
        return BadInput(f"{at} opens a quote that is never closed. Close it, or write a quote inside a value twice.")
    if "Maximum line size" in text:
        return BadInput(
            f"{at} is longer than {ROW_BYTES // 1024**2} MiB. Look for a quote that is never closed near it."
        )
    return BadInput(
        f"{at} is no CSV: either lines end in different ways, or a value goes on after its closing quote. Open the "
        "file in a spreadsheet, look at that place, and save it as CSV again."
    )
