"""How a table is laid out in its text: its delimiter, what stands above it, its header. Found in the first megabyte.

Nothing is left out without being told: `notes` has a sentence for each thing that was left out or guessed. A table is
taken as RFC 4180 has it: values quoted by `"`, a quote doubled inside, every row as long as the first.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from headway.shared.errors import BadInput
from headway.worker.processors.table_header import is_header, looks_like_names
from headway.worker.processors.table_options import TableOptions
from headway.worker.processors.table_quotes import split_by_position
from headway.worker.processors.table_scan import HEAD_BYTES

#: Enough rows to tell, also of a table with thousands of columns.
HEAD_ROWS: Final = 1000

SEPARATORS: Final = (",", ";", "\t", "|")
#: Between the values of a table with one column nothing stands, and so nothing that its values have may.
NO_SEPARATOR: Final = "\x1f"
#: How many rows must be of one length for a character to be what separates their values.
EVEN_SHARE: Final = 0.5

#: Longer values are cut, the last character then being an ellipsis.
TEXT_CHARACTERS: Final = 80


@dataclass(frozen=True, slots=True)
class Layout:
    """`above` are the lines before the table's first. `names` has one name a column. `simple`: the reader can take the
    file as it is, from its first line on. `spaced`: a space after each delimiter is no part of a value. `padded`: so
    are spaces around a number."""

    separator: str
    quote: str | None
    above: int
    header: bool
    names: tuple[str, ...]
    spaced: bool = False
    padded: bool = False
    simple: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def shown_separator(self) -> str | None:
        return None if self.separator == NO_SEPARATOR else self.separator


@dataclass(frozen=True, slots=True)
class Row:
    line: int
    values: list[str]

    @property
    def filled(self) -> list[str]:
        return [value for value in self.values if value.strip()]


def find_layout(text: str, whole: bool, options: TableOptions) -> Layout:
    """`text` is the head of the file, `whole` whether it is all of it. What an option says is taken as it is. Raises
    BadInput for what is no table."""
    lines = list(io.StringIO(text, newline=""))
    if not whole and lines:
        lines.pop()
    notes = list[str]()
    above = options.skip_rows
    if above:
        notes.append(f"Left out the first {_lines(above)}, as the option skip_rows says.")
        if above >= len(lines) and whole:
            raise BadInput(f"The file has {len(lines)} lines, and the option skip_rows leaves out {above}.")
    separator = options.separator
    said = re.fullmatch(r'(?i)"?sep=(.)"?\s*', lines[above]) if above < len(lines) else None
    if said:
        separator = separator or said[1]
        above += 1
        notes.append(f"Line {above} says that values are separated by {said[1]!r}, and is no row.")
    below = lines[above:]
    quote = _quote_of(below, options.quote)
    separator = separator or _separator_of(below, quote, whole)
    rows = list(_rows(below, separator, quote, above, whole))
    if not rows:
        raise BadInput(
            "The file is empty. Send a table with at least a header."
            if whole and not "".join(below).strip()
            else "The first row does not end within a megabyte, so this is no table, or a quote is never closed. If "
            "quotes have no meaning in it, say so by the option `quote`: none."
        )
    width = _width_of(rows)
    first = _first_of(rows, width, lines)
    if first:
        note = f"Left out {_lines(rows[first].line - 1 - above)} above the table"
        notes.append(f"{note}, which begins in line {rows[first].line}: {cut(lines[rows[first].line - 2].strip())!r}.")
        above = rows[first].line - 1
    return _layout(rows[first:], width, above, separator, quote, lines, options, notes)


def _layout(
    rows: Sequence[Row],
    width: int,
    above: int,
    separator: str,
    quote: str | None,
    lines: Sequence[str],
    options: TableOptions,
    notes: list[str],
) -> Layout:
    top, *others = [row.values for row in rows]
    first_line = lines[above] if above < len(lines) else ""
    strict = _is_strict(first_line, separator)
    if not strict and quote and (mended := split_by_position(first_line.rstrip("\r\n"), separator, quote)):
        top = mended if len(mended) in (width, len(top)) else top
    row_names = len(top) == width - 1 and len(top) > 1 and sum(len(row) == width for row in others) > 1
    trailing = row_names and not any(row[-1].strip() for row in others if len(row) == width)
    width = len(top) if trailing or not row_names else width
    while len(top) > width and not top[-1].strip():
        top.pop()
    width = max(width, len(top))
    same = [row for row in others if len(row) >= width]
    header = row_names or (is_header(top, same) if options.header == "auto" else options.header == "yes")
    if row_names and not trailing:
        top = ["", *top]
        notes.append("The header has a name less than the rows have values: the first column has none.")
    if not header and options.header == "auto":
        notes.append("No header was found: the first row is taken for values. If it has the names, say header: yes.")
    names = tuple(
        (cut(" ".join(value.split())) if header else "") or f"column_{n}" for n, value in enumerate(top, start=1)
    )
    if header and any(len(value) > TEXT_CHARACTERS for value in top):
        notes.append(f"Names of columns that are longer than {TEXT_CHARACTERS} characters are cut.")
    table = lines[above : above + 50]
    gap = separator + " "
    spaced = separator != NO_SEPARATOR and any(f'{gap}"' in line for line in table)
    padded = any(value != value.strip() and any(c.isdigit() for c in value) for row in same[:100] for value in row)
    simple = above == 0 and quote == '"' and not spaced and len(top) == width and not row_names
    simple = simple and separator.isascii() and strict
    return Layout(separator, quote, above, header, names, spaced, padded, simple, notes)


def _is_strict(line: str, separator: str) -> bool:
    """Whether the first line keeps the rules: what does not is where readers differ most."""
    try:
        next(csv.reader([line], delimiter=separator, strict=True), None)
    except csv.Error:
        return False
    return True


def _quote_of(lines: Sequence[str], given: str | None) -> str | None:
    if given is not None:
        return None if given == "none" else given
    some = [line for line in lines[:20] if line.strip()]
    if some and all(line.startswith("'") and line.rstrip().endswith("'") and "'" in line[1:-1] for line in some):
        return "'"
    return '"'


def _rows(lines: Sequence[str], separator: str, quote: str | None, above: int, whole: bool) -> Iterator[Row]:
    """The first rows that are not blank; without the last one of a text that was cut, which may have been cut too."""
    csv.field_size_limit(HEAD_BYTES)
    reader = csv.reader(
        lines,
        delimiter=separator,
        quotechar=quote,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        skipinitialspace=True,
    )
    last, line = None, 1
    try:
        for number, values in enumerate(reader):
            if last is not None:
                yield last
                last = None
            if any(value.strip() for value in values) or len(values) > 1:
                last = Row(above + line, values)
            line = reader.line_num + 1
            if number > HEAD_ROWS:
                break
    except csv.Error:  # a value longer than the head
        return
    if last is not None and (whole or line <= len(lines)):
        yield last


def _width_of(rows: Sequence[Row]) -> int:
    """The most frequent length; of several the one that comes first."""
    return max(Counter(len(row.values) for row in rows).items(), key=lambda found: found[1])[0]


def _separator_of(lines: Sequence[str], quote: str | None, whole: bool) -> str:
    best, evenness = NO_SEPARATOR, (EVEN_SHARE, 0)
    first = next((line for line in lines if line.strip()), "")
    for separator in SEPARATORS:
        rows = list(_rows(lines, separator, quote, 0, whole))
        if not rows:
            continue
        width = _width_of(rows)
        found = (sum(len(row.values) == width for row in rows) / len(rows), width)
        if width > 1 and found > evenness:
            best, evenness = separator, found
    if best == NO_SEPARATOR:
        # A ragged table is still one, and is refused for its ragged row: not taken for a column of whole lines.
        return next((one for one in SEPARATORS if one in first), NO_SEPARATOR)
    prose = best not in first and all(f"{best} " in line or best not in line for line in lines)
    return NO_SEPARATOR if prose and evenness[1] == 2 else best


def _first_of(rows: Sequence[Row], width: int, lines: Sequence[str]) -> int:
    """Which row is the table's first: titles, comments and blank rows may stand above it."""
    if sum(len(row.values) == width for row in rows) < 2 and width > 1:
        return 0
    for number in range(len(rows) - 1):
        if not _is_above(number, rows, width, lines):
            return number
    return len(rows) - 1


def _is_above(number: int, rows: Sequence[Row], width: int, lines: Sequence[str]) -> bool:
    row, following = rows[number], rows[number + 1]
    filled = row.filled
    below = [one.values for one in rows[number + 1 :] if len(one.values) == width]
    comment = lines[row.line - 1].startswith("#")
    if width == 1:
        return comment and lines[row.line - 1].startswith("# ")
    if not filled:
        return len(row.values) <= width
    if len(row.values) < width:
        if comment or len(row.values) < width - 1 or len(row.values) == 1:
            return True
        return bool(looks_like_names(following.values)) and is_header(below[0], below[1:]) and _has_numbers(below[1:])
    if len(row.values) > width:
        return False
    if comment and lines[row.line - 1].startswith("# "):
        return looks_like_names(following.values) and _has_numbers(below[1:])
    if len(filled) > 1 or not row.values[0].strip():
        return False
    # `Report,,`: a title that a spreadsheet has filled up.
    names = next((one for one in below[:5] if len([v for v in one if v.strip()]) > 1), None)
    return names is not None and looks_like_names(names) and _has_numbers(below)


def _has_numbers(rows: Sequence[Sequence[str]]) -> bool:
    return any(re.fullmatch(r"[-+]?[\d.,]*\d", value.strip()) for row in rows for value in row)


def cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 1] + "…"


def _lines(number: int) -> str:
    return "1 line" if number == 1 else f"{number:,} lines"
