"""Medians with their spread, and where a benchmark's tables stand in docs/performance.md."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

PAGE: Final = Path(__file__).parent.parent / "docs" / "performance.md"


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """`median (least–most)`, or the median alone where nothing is spread."""
    middle, least, most = (form.format(value) for value in (median(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least}–{most})"


def machine() -> str:
    """When and on what; the load says how much of it was somebody else's."""
    when = datetime.datetime.now(datetime.UTC).date()
    load = f"a load average of {os.getloadavg()[0]:.1f} at the end"
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"Measured {when}, {os.cpu_count()} noisy cores, {load}, {system}."


def publish(name: str, text: str, *, write: bool) -> None:
    """Prints the tables; with `write`, puts them between the marks of that name in docs/performance.md."""
    print(text)
    if write:
        begin, end = f"<!-- {name}: written by benchmarks/{name}.py -->", f"<!-- {name}: end -->"
        head, found, rest = PAGE.read_text().partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise LookupError(f"docs/performance.md has no place for {name}")
        PAGE.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}")
