"""One look at every byte of a text: how its characters are written, how its lines end, and how many there are.

It is quick, because it only counts bytes. The number of rows is a count of its own, beside the reader's: where the two
do not agree, the table is read again row by row (table_rows.py), and is never completed with the wrong number.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import filetype

from headway.shared.errors import BadInput

HEAD_BYTES: Final = 1024 * 1024
PIECE_BYTES: Final = 4 * 1024 * 1024

#: Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: No text has these, whatever its encoding, but the NUL that some programs leave in a value.
_CONTROLS: Final = bytes(set(range(1, 32)) - set(b"\t\n\r\f\x1a\x1b"))
#: cp1252 says nothing of these, latin-1 does.
_NOT_IN_CP1252: Final = b"\x81\x8d\x8f\x90\x9d"
_HIGH: Final = bytes(range(128, 256))
_ASCII: Final = bytes(range(32, 127)) + b"\t\r\n"
_LETTERS: Final = bytes(range(65, 91)) + bytes(range(97, 123))

#: A text of a Latin alphabet has fewer letters than one in three that are not ASCII.
FOREIGN_SHARE: Final = 0.33

_QUOTED: Final = re.compile(b'"[^"]*"')
_NO_MARKS: Final = bytes(set(range(256)) - set(b'"\n'))


@dataclass(frozen=True, slots=True)
class Scan:
    """`encoding` is Python's name, `guessed` whether nothing but the bytes says so. `plain`: UTF-8, lines that end in
    one way, none of them blank, each quote closed. `lines` are those outside of quotes, the last one without an end
    included, and true of a plain text only, as `end` is, what lines end in."""

    encoding: str
    guessed: bool
    plain: bool
    lines: int
    nuls: int
    end: str = "\\n"


def scan(path: Path, given: str | None, progress: Callable[[int], None]) -> Scan:
    """`given` is the encoding that is said. `progress` is called with the bytes that were read. Raises BadInput for an
    empty file, for what is no text, and where no guess at its encoding is safe."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head.strip():
        raise BadInput("The file is empty. Send a table with at least a header.")
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if given is not None:
        if given not in ("utf-8", "utf-8-sig"):
            return Scan(given, guessed=False, plain=False, lines=0, nuls=0)
        return _of_utf_8(path, progress, given=True)
    if marked is not None and marked != "utf-8-sig":
        return Scan(marked, guessed=False, plain=False, lines=0, nuls=0)
    if wide := _unmarked_utf_16(head):
        return Scan(wide, guessed=True, plain=False, lines=0, nuls=0)
    _check_text(head)
    return _of_utf_8(path, progress, given=False)


def _of_utf_8(path: Path, progress: Callable[[int], None], *, given: bool) -> Scan:
    decoder = codecs.getincrementaldecoder("utf-8")()
    ends = returns = both = nuls = lines = read = 0
    inside = blank = accents = False
    wrong: tuple[int, bytes] | None = None  # the line that is not UTF-8, and what is around it
    undefined = False
    last = b"\n"
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            if piece.endswith(b"\r"):
                piece += file.read(1)
            if wrong is None:
                try:
                    if not piece.isascii():
                        accents = bool(decoder.decode(piece)) or accents
                    elif decoder.getstate()[0]:
                        decoder.decode(piece)
                except UnicodeDecodeError as error:
                    cut = len(error.object) - len(piece)
                    at = max(0, error.start - cut)
                    wrong = ends + piece.count(b"\n", 0, at) + 1, piece
                    accents = accents or not piece[:at].isascii()
            if wrong is not None:
                undefined = undefined or any(byte in piece for byte in _NOT_IN_CP1252)
            ends += (here := piece.count(b"\n"))
            returns += piece.count(b"\r")
            both += piece.count(b"\r\n")
            nuls += piece.count(b"\0")
            joined = last + piece[:2]
            blank = blank or b"\n\n" in piece or b"\n\r\n" in piece or joined.startswith((b"\n\n", b"\n\r\n"))
            if inside or b'"' in piece:
                marks = _QUOTED.sub(b"", (b'"' if inside else b"") + piece.translate(None, _NO_MARKS))
                before, quote, _ = marks.partition(b'"')
                lines, inside = lines + before.count(b"\n"), bool(quote)
            else:
                lines += here
            last = piece[-1:]
            read += len(piece)
            progress(read)
    if wrong is None and decoder.getstate()[0]:
        wrong = ends + 1, b""
    even = returns == both and (returns == 0 or both == ends)
    encoding, guessed = "utf-8-sig", False
    if wrong is not None:
        encoding, guessed = _guess(*wrong, accents=accents, given=given, undefined=undefined), True
    plain = wrong is None and even and not blank and not inside
    return Scan(encoding, guessed, plain, lines + (last != b"\n"), nuls, "\\r\\n" if returns else "\\n")


def _guess(line: int, around: bytes, *, accents: bool, given: bool, undefined: bool) -> str:
    """Raises BadInput where a guess would be likely to be wrong."""
    if given:
        raise BadInput(f"Line {line} is not UTF-8 text, which the option `encoding` says. Name another one there.")
    if accents:
        raise BadInput(
            f"Line {line} is not UTF-8 text, and others are. Save the file as UTF-8, or name what all of it is written "
            "in by the option `encoding`, such as cp1252."
        )
    high = len(around) - len(around.translate(None, _HIGH))
    letters = len(around) - len(around.translate(None, _LETTERS))
    if high > 8 and high > FOREIGN_SHARE * (high + letters):
        raise BadInput(
            f"Line {line} is not UTF-8 text, and too much of it is in another alphabet for a guess. Name how it is "
            "written by the option `encoding`, such as cp1251, gb18030 or shift_jis, or save it as UTF-8."
        )
    return "latin-1" if undefined else "cp1252"


def _unmarked_utf_16(head: bytes) -> str | None:
    """UTF-16 without its mark: every second byte of plain letters is NUL."""
    even, odd = head[0:4096:2], head[1:4096:2]
    if len(odd) < 4:
        return None
    for first, second, name in ((even, odd, "utf-16-le"), (odd, even, "utf-16-be")):
        plain = len(first) - len(first.translate(None, _ASCII))
        if second.count(0) > 0.6 * len(second) and plain > 0.6 * len(first):
            return name
    return None


def _check_text(head: bytes) -> None:
    start = head[:4096]
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
        text = True
    except UnicodeDecodeError:
        text = False
    controls = len(start) - len(start.translate(None, _CONTROLS))
    nuls = start.count(0)
    if (text or not controls) and controls <= 0.1 * len(start) and (nuls < 4 or nuls <= 0.1 * len(start)):
        return
    # Asked only about what is no text: to filetype a CSV whose first column is "BMI" is a bitmap.
    kind = filetype.guess(head[:8192])  # type: ignore[no-untyped-call]
    what = f"a file of the type {kind.mime}" if kind else "a binary file"
    raise BadInput(f"This is {what}, not a table. Send a CSV, JSON Lines, Parquet or an .xlsx.")
