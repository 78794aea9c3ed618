"""How a CSV is written: its separator, its header, the names of its columns. Found in the first megabyte.

What is no CSV at all is told here, before anything slower looks at it, in a sentence that says what to do. A CSV is
taken as RFC 4180 has it: values quoted by `"`, a quote doubled inside, UTF-8, every row as long as the first.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import filetype

from headway.shared.errors import BadInput

#: Enough rows to tell, also of a table with thousands of columns.
HEAD_BYTES: Final = 1024 * 1024
HEAD_ROWS: Final = 1000

SEPARATORS: Final = (",", ";", "\t", "|")

#: Longer values are cut, the last character then being an ellipsis.
TEXT_CHARACTERS: Final = 80

#: Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """`names` has one name a column, as the header has it; `blank_lines` come before the first row."""

    separator: str
    header: bool
    names: tuple[str, ...]
    blank_lines: int


def find_dialect(path: Path, separator: str | None, header: bool | None) -> Dialect:
    """Reads the head of the file; what is given is taken as it is. Raises BadInput for what is no CSV."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        whole = not file.read(1)
    text = _text_of(head, whole)
    if not text.strip():
        raise BadInput("The file is empty. Send a CSV with at least a header.")
    if separator is None:
        separator = max(SEPARATORS, key=lambda one: _evenness(_rows(text, one, whole)))
    rows = _rows(text, separator, whole)
    blank_lines = next((number for number, row in enumerate(rows) if row), None)
    if blank_lines is None:
        raise BadInput(
            "The first row does not end within a megabyte, so this is not a CSV, or a quote is never closed."
        )
    first, *others = rows[blank_lines:]
    if header is None:
        header = _is_header(first, others)
    names = (cut(value.strip() if header else "") or f"column_{number}" for number, value in enumerate(first, start=1))
    return Dialect(separator, header, tuple(names), blank_lines)


def cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 1] + "…"


def _text_of(head: bytes, whole: bool) -> str:
    if not head:
        raise BadInput("The file is empty. Send a CSV with at least a header.")
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            raise BadInput(
                f"The file is {encoding} text. Save it as UTF-8 (in Excel: “CSV UTF-8”), then send it again."
            )
    if b"\0" in head:
        raise _no_text(head)
    try:
        # A character that the megabyte's end has cut in two is left out, not an error.
        return codecs.getincrementaldecoder("utf-8-sig")().decode(head, final=whole)
    except UnicodeDecodeError as error:
        if any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head[:4096]):
            raise _no_text(head) from None
        raise not_utf8(head.count(b"\n", 0, error.start) + 1) from None


def not_utf8(line: int) -> BadInput:
    return BadInput(
        f"Line {line} is not UTF-8 text. Save the file as UTF-8 (in Excel: “CSV UTF-8”), then send it again."
    )


def _no_text(head: bytes) -> BadInput:
    # Asked only about what is no text: to filetype a CSV whose first column is "BMI" is a bitmap.
    kind = filetype.guess(head[:8192])  # type: ignore[no-untyped-call]
    what = f"a file of the type {kind.mime}" if kind else "a binary file"
    return BadInput(f"This is {what}, not a CSV. Send it as text, with values separated by commas.")


def _rows(text: str, separator: str, whole: bool) -> list[list[str]]:
    """The first rows; without the last one of a text that was cut, which may have been cut too."""
    csv.field_size_limit(HEAD_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows: list[list[str]] = []
    for row in reader:
        rows.append(row)
        if len(rows) > HEAD_ROWS:
            return rows
    return rows if whole else rows[:-1]


def _evenness(rows: Sequence[Sequence[str]]) -> tuple[float, int]:
    """How much the rows look like a table: the share that is as long as the first, then that length."""
    filled = [row for row in rows if row]
    if not filled or len(filled[0]) < 2:
        return (0.0, 0)
    return (sum(len(row) == len(filled[0]) for row in filled) / len(filled), len(filled[0]))


def _is_header(first: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names what comes below: it has no numbers, or one where the column has something else."""
    numbers = [_is_number(value) for value in first]
    if not any(numbers):
        return True
    below = [[row[index] for row in others if index < len(row) and row[index]] for index in range(len(first))]
    return any(
        values and not number and all(map(_is_number, values)) for values, number in zip(below, numbers, strict=True)
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
