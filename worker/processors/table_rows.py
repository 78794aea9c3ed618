"""A text read row by row and written again by the rules, for what the reader of plain tables would get wrong.

Whatever the encoding, the line ends, the quotes: what comes out is UTF-8, separated by commas, quoted where it must be,
without its header, every row as long as the table is wide. Nothing is left out without being counted; a row that does
not fit is BadInput with its line, or counted where the options say that it may be left out.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headway.shared.errors import BadInput
from headway.worker.processors.table_layout import Layout
from headway.worker.processors.table_quotes import split_by_position

#: A longer row is a quote that was never closed, rather than a row.
ROW_BYTES: Final = 4 * 1024 * 1024
#: Bad rows are told one by one up to here, and by their number after it.
TOLD_ROWS: Final = 5
#: Lines below the table, after a blank line, may be notes; more of them are another table.
FOOTER_LINES: Final = 100
#: A row over several lines that is none is read again line by line. So often, and no more: each may be megabytes.
SWALLOWED: Final = 200


class Bent(csv.Error):
    """A row is longer than a row can be."""


@dataclass(slots=True)
class Written:
    """What was written, and what was left out or changed on the way. A line is the first of its kind."""

    rows: int = 0
    blank_lines: int = 0
    bad_rows: int = 0
    footers: int = 0
    trimmed: int = 0
    mended: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def left_out(self) -> dict[str, int]:
        found = {"bad_rows": self.bad_rows, "lines_below": self.footers, "blank_lines": self.blank_lines}
        return {name: number for name, number in found.items() if number}


class _Lines:
    """Lines for a csv.reader, which remembers those of the row it is at, so that they can be read in another way."""

    def __init__(self, lines: Iterable[str], above: int) -> None:
        self._lines = iter(lines)
        self._back = deque[str]()
        self.taken = list[str]()
        self.line = above
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._back.popleft() if self._back else next(self._lines)
        self.line += 1
        self.taken.append(line)
        if len(self.taken) > 1:
            self._size += len(line)
            if self._size > ROW_BYTES:
                raise Bent("too long")
        return line

    def begin(self) -> None:
        if self._size:
            self._size = 0
        self.taken.clear()

    def give_back(self) -> None:
        """All lines of this row but its first are read again."""
        self.line -= len(self.taken) - 1
        self._back.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def rewrite(
    lines: Iterable[str], layout: Layout, path: Path, *, skip_bad: bool, progress: Callable[[], None] = lambda: None
) -> Written:
    """Writes the rows of `lines`, which begin with the file's first, to `path`. Raises BadInput."""
    return _Rewriting(lines, layout, skip_bad=skip_bad, progress=progress).write(path)


class _Rewriting:
    def __init__(self, lines: Iterable[str], layout: Layout, *, skip_bad: bool, progress: Callable[[], None]) -> None:
        self._layout, self._skip_bad, self._progress = layout, skip_bad, progress
        self._width = len(layout.names)
        self._written = Written()
        self._held = list[tuple[int, int, str]]()  # line, values, text: below a blank line, and perhaps below the table
        self._swallowed = 0
        lines = iter(lines)
        for _ in range(layout.above):
            next(lines, None)
        self._lines = _Lines(lines, layout.above)
        self._rules: dict[str, object] = {
            "delimiter": layout.separator,
            "quotechar": layout.quote,
            "quoting": csv.QUOTE_MINIMAL if layout.quote else csv.QUOTE_NONE,
            "skipinitialspace": layout.spaced,
        }

    def write(self, path: Path) -> Written:
        csv.field_size_limit(ROW_BYTES)
        written = self._written
        with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
            put = csv.writer(file, lineterminator="\r\n").writerow
            for row in self._rows():
                put(row)
                written.rows += 1
                if not written.rows % 10_000:
                    self._progress()
        self._tell()
        return written

    def _rows(self) -> Iterator[list[str]]:
        lines, width, written = self._lines, self._width, self._written
        reader = csv.reader(lines, strict=True, **self._rules)  # type: ignore[arg-type]
        header = self._layout.header
        blank = False  # the line before was, and no row has come since
        while True:
            lines.begin()
            start = lines.line + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                row = self._mended(error, header=header)
                if row is None:
                    self._bad(start, _cause(error, start), None)
                    continue
            if row is None:
                break
            if len(row) != width:
                if _is_blank(row, width):
                    # What is at the very beginning stands above the table.
                    blank = True
                    written.blank_lines += 1
                    continue
                if header:
                    header = False  # its length is the table's, or is one less and then was told
                    continue
                if blank and len(row) < width and len(self._held) < FOOTER_LINES:
                    self._held.append((start, len(row), lines.taken[0].strip()))
                    continue
                trimmed = self._trimmed(row)
                if trimmed is None:
                    self._bad(start, None, row)
                    continue
                row = trimmed
            if self._held:
                self._no_footers()
            blank = False
            if header:
                header = False
                continue
            yield row

    def _trimmed(self, row: list[str]) -> list[str] | None:
        """Without the empty values after the last column: the row ends in delimiters."""
        if len(row) <= self._width or any(value.strip() for value in row[self._width :]):
            return None
        self._written.trimmed += 1
        return row[: self._width]

    def _mended(self, error: csv.Error, *, header: bool) -> list[str] | None:
        """The row of one line whose quotes break the rules, where there is one way to read it."""
        self._give_back()
        line = self._lines.taken[0].rstrip("\r\n")
        if isinstance(error, Bent) or "field larger" in str(error) or self._layout.quote is None:
            return None
        row = split_by_position(line, self._layout.separator, self._layout.quote)
        if row is None or (len(row) != self._width and not header):
            return None
        if not self._written.mended:
            self._written.notes.append(
                f"Line {self._lines.line} has a quote inside a quoted value which is not written twice. It was taken "
                "as a part of the value."
            )
        self._written.mended += 1
        return row

    def _give_back(self) -> None:
        if len(self._lines.taken) > 1:
            self._swallowed += 1
            if self._swallowed > SWALLOWED:
                raise BadInput(
                    f"More than {SWALLOWED} quotes are never closed, the last one in line {self._lines.line} or "
                    "before. If quotes have no meaning in this file, say so by the option `quote`: none."
                )
            self._lines.give_back()

    def _bad(self, line: int, cause: str | None, row: list[str] | None) -> None:
        """Raises BadInput, or counts the row as left out."""
        message = cause or self._ragged(line, len(row or []))
        if not self._skip_bad:
            raise BadInput(message)
        self._give_back()
        self._written.bad_rows += 1
        if self._written.bad_rows <= TOLD_ROWS:
            self._written.notes.append(f"Left out: {message.partition('. ')[0]}.")

    def _ragged(self, line: int, values: int) -> str:
        more = values > self._width
        named = "the header" if self._layout.header else "the first row"
        return (
            f"Line {line} has {'more' if more else 'fewer'} than {self._width} values, which is what {named} has: it "
            f"has {values}. Mend the line, or leave such rows out and have them counted by the option `on_bad_rows`: "
            "skip. If values are separated by another character, name it by the option `delimiter`; if the table "
            "begins further below, by `skip_rows`."
        )

    def _no_footers(self) -> None:
        """The table goes on below lines that are shorter: they are no notes."""
        for line, values, _ in self._held:
            if not self._skip_bad:
                raise BadInput(self._ragged(line, values))
            self._written.bad_rows += 1
            if self._written.bad_rows <= TOLD_ROWS:
                self._written.notes.append(f"Left out: {self._ragged(line, values).partition(':')[0]}.")
        self._held.clear()

    def _tell(self) -> None:
        written = self._written
        if self._held:
            written.footers = len(self._held)
            line, _, text = self._held[0]
            shown = text if len(text) <= 60 else f"{text[:59]}…"
            written.notes.append(
                f"Left out {written.footers:,} line{'s' * (written.footers > 1)} below the table, after a blank line; "
                f"line {line}: {shown!r}."
            )
        if written.bad_rows > TOLD_ROWS:
            written.notes.append(f"Left out {written.bad_rows:,} rows that do not fit, the first {TOLD_ROWS} as told.")
        if written.mended > 1:
            written.notes.append(f"{written.mended:,} rows have such a quote.")
        if written.trimmed:
            rows = "1 row ends" if written.trimmed == 1 else f"{written.trimmed:,} rows end"
            written.notes.append(f"{rows} in delimiters with nothing after them, which are no values.")
        if written.blank_lines:
            lines = "1 blank line is" if written.blank_lines == 1 else f"{written.blank_lines:,} blank lines are"
            written.notes.append(f"{lines} no row.")


def _is_blank(row: list[str], width: int) -> bool:
    """A line without anything; in a table of several columns one of spaces too, and the mark that DOS ends files by."""
    return not row or (len(row) == 1 and width > 1 and not row[0].strip(" \t\x1a\f")) or row == ["\x1a"]


def _cause(error: csv.Error, line: int) -> str:
    text = str(error)
    if isinstance(error, Bent) or "field larger" in text:
        return (
            f"Line {line} begins a row that is longer than {ROW_BYTES // 1024**2} MiB: look for a quote that is "
            "never closed near it. If quotes have no meaning in this file, say so by the option `quote`: none."
        )
    if "unexpected end" in text:
        return (
            f"Line {line} opens a quote that is never closed. Close it, or write a quote inside a value twice. If "
            "quotes have no meaning in this file, say so by the option `quote`: none; to leave the row out and have it "
            "counted, `on_bad_rows`: skip."
        )
    return (
        f"Line {line} breaks the rules of quotes: a value goes on after its closing quote. Write a quote inside a "
        "value twice. If quotes have no meaning in this file, say so by the option `quote`: none; to leave the row out "
        "and have it counted, `on_bad_rows`: skip."
    )
