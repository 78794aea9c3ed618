"""A task's end on stdout, for people: one line of what happened, the result's summary, its files.

It knows no processor: a summary is any JSON object. Values stand beside their names, lists of objects are tables. Plain
text, so that a pipe gets the same as a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import typer

from headway.cli.bar import counted, duration, size
from headway.cli.exits import complain, printable
from headway.client.calls import Address

if TYPE_CHECKING:
    from headway import Batch, Task

#: A cell longer than this is cut in a table, where it would push the others off the screen; values alone are whole.
CELL_CHARACTERS: Final = 24
TABLE_ROWS: Final = 40


def print_end(task: Task, url: str, *, brief: bool = False) -> None:
    """The result to stdout, or with `brief`, for one of several, its first line; a failure's reason
    to stderr."""
    for line in list(end_lines(task, url))[: 1 if brief else None]:
        typer.echo(printable(line))
    if error := task.get("error"):
        again = f" It may work again: headway retry {task['task_id']}" if error.get("retryable") else ""
        whose = f"{task.get('filename') or task['task_id']}: " if brief else ""
        complain(f"{whose}{error.get('type')}: {error.get('message')}{again}")


def print_batch_end(batch: Batch) -> None:
    typer.echo(printable(f"{batch.get('status')}  batch {batch.get('batch_id')}  {counted(batch)}"))


def end_lines(task: Task, url: str) -> Iterator[str]:
    took = _took(task)
    what = task.get("filename") or task.get("processor") or ""
    yield "  ".join(part for part in (task["status"], what, took, f"task {task['task_id']}") if part)
    address, result = Address(url, None), task.get("result") or {}
    yield from summary_lines(result.get("summary") or {})
    for file in result.get("files") or ():
        yield f"  {file['name']}  {size(file['size_bytes'])}  {address.at(file['url'])}"


def summary_lines(summary: dict[str, Any]) -> Iterator[str]:
    tables = {name: value for name, value in summary.items() if _is_table(value)}
    values = {name: value for name, value in summary.items() if name not in tables}
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        yield f"  {name:<{width}}  {_text(value)}"
    for name, rows in tables.items():
        yield f"  {name}:"
        yield from (f"    {line}" for line in table_of_objects(rows))


def table_of_objects(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The plain values of each object; what is nested inside stays in --json."""
    names = list(dict.fromkeys(k for row in rows for k, v in row.items() if not isinstance(v, (dict, list))))
    cells = [[_clip(_text(row.get(name))) for name in names] for row in rows[:TABLE_ROWS]]
    yield from table(names, cells)
    if len(rows) > TABLE_ROWS:
        yield f"… and {len(rows) - TABLE_ROWS} more; --json has them all"


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their widest cell."""
    whole = [list(names), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in whole) for i in range(len(names))]
    for row in whole:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _text(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return str(value)
        case float():
            return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.1f}"
        case str():
            return value.replace("\n", " ")
        case _:
            return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def _clip(text: str) -> str:
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def _took(task: Task) -> str:
    started, finished = task.get("started_at"), task.get("finished_at")
    if not started or not finished:
        return ""
    seconds = (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()
    return f"in {duration(max(0.0, seconds))}"
