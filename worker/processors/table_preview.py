"""A first profile of a large table, before the whole of it is read: of its first bytes, and marked as that.

It is made by the same code as the true one, of a file that is the beginning of the input, and shown by `job.partial`.
Whatever goes wrong with it is no word about the file: then there is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from headway.shared.tasks.processors import Job

#: A smaller file is profiled as soon.
LARGE_BYTES: Final = 16 * 1024 * 1024
#: Read in some tenths of a second.
FIRST_BYTES: Final = 1024 * 1024
#: Less than a partial result may have, with room for what says what it is.
SHOWN_BYTES: Final = 15 * 1024


class _FirstBytes:
    """The job of a processor that works on the beginning of the file, and says nothing."""

    def __init__(self, job: Job, path: Path) -> None:
        self._job = job
        self.input_path = str(path)
        self.size_bytes = path.stat().st_size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def phase(self, *_: Any, **__: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def advance(self, *_: Any) -> None: ...

    def progress_to(self, *_: Any) -> None: ...

    def log(self, *_: Any) -> None: ...


def show_first(job: Job, profile: Callable[[Any], dict[str, Any]]) -> None:
    """Shows what `profile` returns for the first bytes of a large file. Raises nothing: what ends the
    profile of the whole is said by that."""
    if job.size_bytes < LARGE_BYTES:
        return
    with suppress(Exception), TemporaryDirectory(prefix="first-") as folder:
        path = Path(folder) / "first"
        with Path(job.input_path).open("rb") as file:
            path.write_bytes(whole_lines(file.read(FIRST_BYTES)))
        job.partial(_fitting(profile(_FirstBytes(job, path)), path.stat().st_size, job.size_bytes))


def whole_lines(head: bytes) -> bytes:
    """Without the line that is cut off. Raises ValueError where there is none."""
    return head[: head.rindex(b"\n") + 1]


def _fitting(result: dict[str, Any], first_bytes: int, size_bytes: int) -> dict[str, Any]:
    """As many columns as there is room for, in the file's order."""
    columns, left_bytes = [], SHOWN_BYTES
    for column in result["columns"]:
        if (left_bytes := left_bytes - len(json.dumps(column)) - 2) < 0:
            break
        columns.append(column)
    shown: dict[str, Any] = {"rows": result["rows"], "columns": columns}
    if len(columns) < len(result["columns"]):
        shown["shortened"] = True
    return {**shown, "first_bytes": first_bytes, "size_bytes": size_bytes}
