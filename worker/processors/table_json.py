"""JSON Lines, or a JSON array of objects, written as a table: a column for each name that any object has.

A value keeps what it is: a text that looks like a number is no number here, because JSON has numbers. A list or an
object within is the JSON that it is. A name that is missing, null and an empty text are all no value.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headway.shared.errors import BadInput

#: Names in all objects together, more of which are data rather than names.
MOST_NAMES: Final = 10_000
#: One object, in characters.
OBJECT_CHARACTERS: Final = 16 * 1024 * 1024
PIECE_CHARACTERS: Final = 256 * 1024

_SPACE: Final = " \t\r\n"
#: What a column whose texts are all texts may still be.
_OF_TEXT: Final = frozenset(
    f"{kind}{order}" for kind in ("date", "timestamp") for order in ("", "_dots", "_dmy", "_mdy", "_utc")
) | {"time"}


@dataclass(frozen=True, slots=True)
class Written:
    names: tuple[str, ...]
    rows: int
    only: dict[int, frozenset[str]]
    bad_rows: int


def kind_of(head: str) -> str | None:
    """`lines`, `array`, or None for what does not look like JSON. Raises BadInput for JSON that is no table."""
    text = head.lstrip("\ufeff" + _SPACE)
    if not text.startswith(("{", "[")):
        return None
    first = text.partition("\n")[0].strip()
    decoder = json.JSONDecoder()
    try:
        if text.startswith("{"):
            found, end = decoder.raw_decode(text)
            if "\n" not in text[:end] or text[end:].lstrip(_SPACE).startswith("{"):
                return "lines"
            raise BadInput(
                "This is one JSON document, not a table. Send JSON Lines, one object a line, or a JSON array of "
                "objects."
            )
        found, end = decoder.raw_decode(text[1:].lstrip(_SPACE))
    except (ValueError, RecursionError) as error:
        if first in ("{", "[", "[{", "{}", "[]") or first.startswith(('{"', '[{"', "[[")):
            line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
            raise BadInput(f"The file looks like JSON, and is none in line {line}. Send JSON Lines or a CSV.") from None
        return None
    if isinstance(found, dict):
        return "array"
    if first.endswith("]") and not isinstance(found, (int, float, str)):
        raise BadInput("This is JSON, but not of objects: a table needs names. Send JSON Lines, one object a line.")
    try:
        decoder.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    raise BadInput("This is JSON, but not of objects: a table needs names. Send JSON Lines, one object a line.")


def write(
    source: Path, encoding: str, target: Path, *, skip_bad: bool, notes: list[str], progress: Callable[[int], None]
) -> Written:
    """Reads the file twice: for the names and what their values are, then for the values. Raises BadInput."""
    seen: dict[str, set[type]] = {}
    bad = 0
    for line, found in _values(source, encoding, progress):
        if not isinstance(found, dict):
            if not skip_bad:
                raise BadInput(
                    f"Line {line} is no JSON object{f': {found}' if isinstance(found, ValueError) else ''}. Mend it, "
                    "or leave such lines out and have them counted by the option `on_bad_rows`: skip."
                )
            bad += 1
            if bad == 1:
                notes.append(f"Left out: line {line}, which is no JSON object.")
            continue
        for name, value in found.items():
            seen.setdefault(name, set()).add(type(value))
        if len(seen) > MOST_NAMES:
            raise BadInput(f"The objects have more than {MOST_NAMES:,} different names by line {line}: no table has.")
    if bad > 1:
        notes.append(f"Left out {bad:,} lines that are no JSON object.")
    if not seen:
        raise BadInput("There is no JSON object with a name in the file. Send JSON Lines, one object a line.")
    names, rows = tuple(seen), 0
    with target.open("w", encoding="utf-8", errors="replace", newline="") as file:
        put = csv.writer(file, lineterminator="\r\n").writerow
        for _, found in _values(source, encoding, progress):
            if isinstance(found, dict):
                put([_text(found.get(name)) for name in names])
                rows += 1
    return Written(names, rows, {n: _kinds(seen[name] - {type(None)}) for n, name in enumerate(names)}, bad)


def _kinds(types: set[type]) -> frozenset[str]:
    if types <= {int, float}:
        return frozenset({"integer", "number"})
    if types == {bool}:
        return frozenset({"boolean"})
    return _OF_TEXT if types == {str} else frozenset()


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _values(source: Path, encoding: str, progress: Callable[[int], None]) -> Iterator[tuple[int, Any]]:
    """Each value with its line; a ValueError in place of one that is none, in a file of lines."""
    with source.open("rb") as raw:
        head = raw.read(1024 * 1024).decode(encoding, "replace")
    if head.lstrip("\ufeff" + _SPACE).startswith("["):
        yield from _of_array(source, encoding, progress)
        return
    with source.open("rb") as raw, io.TextIOWrapper(raw, encoding, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if len(line) > OBJECT_CHARACTERS:
                raise BadInput(f"Line {number} is longer than {OBJECT_CHARACTERS:,} characters, too much for a row.")
            if not number % 1000:
                progress(raw.tell())
            if line.strip(_SPACE + "\ufeff"):
                yield number, _value(line)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        return ValueError("it is nested too deeply")
    except ValueError as error:
        return ValueError(getattr(error, "msg", "a number has too many digits"))


def _of_array(source: Path, encoding: str, progress: Callable[[int], None]) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder()
    with source.open("rb") as raw, io.TextIOWrapper(raw, encoding, newline="") as file:
        text = file.read(PIECE_CHARACTERS).lstrip("\ufeff" + _SPACE)[1:]
        line, ended = 1, False
        while True:
            text = text.lstrip(_SPACE)
            if text.startswith("]"):
                return
            try:
                value, end = decoder.raw_decode(text)
                rest = text[end:].lstrip(_SPACE)
                # A number may go on in the next piece, and so may the array.
                whole = ended or rest.startswith((",", "]"))
            except (ValueError, RecursionError):
                whole = False
                if ended or len(text) > OBJECT_CHARACTERS:
                    raise BadInput(
                        f"The JSON array is damaged or cut short near line {line}. Send the whole of it again."
                    ) from None
            if not whole:
                more = file.read(PIECE_CHARACTERS)
                ended = not more
                text += more
                progress(raw.tell())
                continue
            line += text.count("\n", 0, end)
            yield line, value
            if not rest.startswith((",", "]")):
                raise BadInput(f"The JSON array is damaged or cut short near line {line}. Send the whole of it again.")
            text = rest.removeprefix(",")
