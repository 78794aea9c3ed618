"""Which bytes of a file were asked for (RFC 9110, section 14), and the frame around several pieces of it.

Nothing a client sends here is an error but a range behind the end: what is not understood is ignored, as the RFC wants,
and the whole file is the answer. What is answered never overlaps, so that a short request cannot ask for a file many
times over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headway.shared.errors import RangeNotSatisfiable

#: A reader of a PDF or a Parquet file asks for a dozen at once; who asks for more than this gets the whole file.
MAX_RANGES: Final = 64

_SPEC: Final = re.compile(r"(\d*)[ \t]*-[ \t]*(\d*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes from `start` to before `end`."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def content_range(self, size_bytes: int) -> str:
        return f"bytes {self.start}-{self.end - 1}/{size_bytes}"


def parse_ranges(header: str, size_bytes: int) -> list[Piece] | None:
    """The pieces to send, in the order asked for, those that overlap merged; None: no range that counts, send it all.

    Raises RangeNotSatisfiable where no byte that was asked for exists. Of an empty file no range can be told, so it is
    sent whole: some clients put a Range on every request.
    """
    unit, equals, value = header.partition("=")
    specs = [spec.strip() for spec in value.split(",") if spec.strip()]
    if unit.strip().lower() != "bytes" or not equals or not 0 < len(specs) <= MAX_RANGES:
        return None
    pieces = []
    for spec in specs:
        matched = _SPEC.fullmatch(spec)
        if matched is None or matched[0].strip() == "-":
            return None
        first, last = (_number(digits) if digits else None for digits in matched.groups())
        if first is None:
            assert last is not None
            start, end = max(0, size_bytes - last), size_bytes
        else:
            if last is not None and last < first:
                return None
            start, end = first, size_bytes if last is None else min(last + 1, size_bytes)
        if start < end:
            pieces.append(Piece(start, end))
    if size_bytes == 0:
        return None
    if not pieces:
        raise RangeNotSatisfiable(f"The file has {size_bytes} bytes, and none of those that were asked for.")
    return _merged(pieces)


def _number(digits: str) -> int:
    # int() refuses thousands of digits with an error; nothing is that long, so all such numbers are the same.
    return int(digits) if len(digits) < 20 else int(digits.lstrip("0")[:30] or "0")


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Those that overlap as one, which stands where the first of them was asked for."""
    order: list[int] = []
    merged: list[Piece] = []
    for index, piece in sorted(enumerate(pieces), key=lambda pair: pair[1].start):
        if merged and piece.start < merged[-1].end:
            merged[-1] = Piece(merged[-1].start, max(merged[-1].end, piece.end))
            order[-1] = min(order[-1], index)
        else:
            merged.append(piece)
            order.append(index)
    return [piece for _, piece in sorted(zip(order, merged, strict=True), key=lambda pair: pair[0])]


def framed(pieces: Sequence[Piece], size_bytes: int, content_type: str, boundary: str) -> list[bytes | Piece]:
    """The body of a `multipart/byteranges` answer: what stands between the pieces, and the pieces themselves."""
    body: list[bytes | Piece] = []
    for piece in pieces:
        head = f"Content-Type: {content_type}\r\nContent-Range: {piece.content_range(size_bytes)}\r\n\r\n"
        separator = "\r\n" if body else ""
        body += [f"{separator}--{boundary}\r\n{head}".encode("ascii"), piece]
    return [*body, f"\r\n--{boundary}--\r\n".encode("ascii")]
