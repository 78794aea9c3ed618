"""Files as people have them, made from a seed: tables, archives and pictures, each with what is truly in it.

The lists are the same for the same seed, on every machine: 1,100 files. What is true of a file is known before it is
written; tests/contract/test_corpus.py asks independent tools as well.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import openpyxl
from PIL import Image

SEED: Final = 20240131
TABLES, ARCHIVES, PICTURES = 780, 200, 120

WORDS: Final = (
    "Oslo",
    "Málaga",
    "a, b",
    'say "hi"',
    "x;y",
    "two\nlines",
    "Ünïcödé",
    "O'Hara",
    "  kept",
    "日本",
    "tab\there",
)
LATIN: Final = ("Oslo", "Málaga", "café", "O'Hara", "plain", "Größe")
NULLS: Final = ("NA", "NULL", "n/a", "-", "#N/A")


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` are texts as they stand in the table; `types` what they are."""

    name: str
    make: Callable[[], bytes]
    names: list[str]
    types: list[str]
    rows: list[list[str]]
    nulls: list[int]
    options: dict[str, Any] = field(default_factory=dict)
    #: How Python's csv reads it: encoding, delimiter, lines above and below the table. None for what is no CSV.
    plainly: tuple[str, str, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Archive:
    name: str
    data: bytes
    members: dict[str, bytes]
    left_out: int


@dataclass(frozen=True, slots=True)
class Picture:
    name: str
    data: bytes


def tables(seed: int = SEED) -> list[Table]:
    return [_table(number, random.Random(f"{seed} table {number}")) for number in range(TABLES)]


def archives(seed: int = SEED) -> list[Archive]:
    return [_archive(number, random.Random(f"{seed} archive {number}")) for number in range(ARCHIVES)]


def pictures(seed: int = SEED) -> list[Picture]:
    return [_picture(number, random.Random(f"{seed} picture {number}")) for number in range(PICTURES)]


def _values(kind: str, chance: random.Random, rows: int, words: tuple[str, ...]) -> list[str]:
    day = datetime.date(2020, 1, 1)
    days = [day + datetime.timedelta(days=chance.randrange(1500)) for _ in range(rows)]
    if kind in ("date_dmy", "date_mdy"):
        days[0] = datetime.date(2021, 3, 28)  # so that the values say which it is
    made: dict[str, Callable[[int], str]] = {
        "integer": lambda n: str(chance.randrange(-999, 100_000)),
        "number": lambda n: f"{chance.uniform(-9, 999):.3f}",
        "boolean": lambda n: chance.choice(("true", "false", "TRUE")),
        "date": lambda n: days[n].isoformat(),
        "date_dmy": lambda n: f"{days[n].day}/{days[n].month}/{days[n].year}",
        "date_mdy": lambda n: f"{days[n].month}/{days[n].day}/{days[n].year}",
        "timestamp": lambda n: f"{days[n]} {chance.randrange(24):02}:{chance.randrange(60):02}:00",
        "zip": lambda n: f"{chance.randrange(100_000):05}" if n else "00501",
        "text": lambda n: chance.choice(words),
    }
    return [made[kind](n) for n in range(rows)]


SHOWN: Final = {"date_dmy": "date", "date_mdy": "date", "zip": "text"}


def _table(number: int, chance: random.Random) -> Table:
    form = chance.choice(("csv",) * 9 + ("jsonl", "json", "xlsx", "csv.gz"))
    encoding = chance.choice(("utf-8",) * 4 + ("utf-8-sig", "utf-16", "cp1252")) if form == "csv" else "utf-8"
    columns, count = chance.choice((1, 2, 3, 4, 8, 60)), chance.choice((1, 2, 5, 40, 900))
    words: tuple[str, ...] = LATIN if encoding == "cp1252" else WORDS
    kinds = [
        chance.choice(("integer", "number", "boolean", "date", "date_dmy", "date_mdy", "timestamp", "zip", "text"))
        for _ in range(columns)
    ]
    if form in ("jsonl", "json", "xlsx"):
        kinds = [kind if kind in ("integer", "number", "zip", "text") else "text" for kind in kinds]
    if columns == 1 or encoding == "cp1252":
        kinds[0] = "text"
        words = tuple(word for word in words if word.isprintable() and not set(word) & set(",;|\t\"'"))
    names = [f"{chance.choice(('name', 'city', 'größe', 'Total (€)', 'x y'))} {n}" for n in range(columns)]
    if encoding == "cp1252":
        names = [name.replace("€", "$") for name in names]
    made = [_values(kind, chance, count, words) for kind in kinds]
    nulls = [0] * columns
    for n, kind in enumerate(kinds):
        for row in range(count):
            if columns > 1 and count > 2 and row and chance.random() < 0.1:
                word = chance.choice(NULLS) if kind not in ("text", "zip") and form.startswith("csv") else ""
                made[n][row], nulls[n] = word, nulls[n] + 1
    rows = [list(row) for row in zip(*made, strict=True)]
    types = [SHOWN.get(kind, kind) for kind in kinds]
    parts: dict[str, Any] = {"names": names, "types": types, "rows": rows, "nulls": nulls}
    if form in ("jsonl", "json", "xlsx"):
        write = {"jsonl": _jsonl, "json": _json, "xlsx": _xlsx}[form]
        return Table(f"{number}.{form}", partial(write, names, kinds, rows), **parts)
    return _written(number, chance, form, encoding, parts)


def _written(number: int, chance: random.Random, form: str, encoding: str, parts: dict[str, Any]) -> Table:
    several = len(parts["names"]) > 1
    delimiter = chance.choice((",", ",", ";", "\t", "|")) if several else ","
    end = chance.choice(("\n", "\n", "\r\n"))
    quoting: Any = csv.QUOTE_ALL if chance.random() < 0.2 else csv.QUOTE_MINIMAL
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow(parts["names"])
    writer.writerows(parts["rows"])
    text, above, below = out.getvalue(), 0, 0
    if several and len(parts["rows"]) > 1 and len(parts["names"]) > 2:
        before = chance.choice(("", "", "", "Monthly report", "# made by us", f"sep={delimiter}", "Report\n\nby us"))
        if before:
            text, above = end.join((*before.split("\n"), text)), before.count("\n") + 1
        if chance.random() < 0.15:
            text, below = f"{text}{end}Source: us{end}", 2
    if chance.random() < 0.15 and not below:
        text += end * 2
    if chance.random() < 0.1:
        text = text.rstrip("\r\n") if "\n\n" not in text and not below else text
    data = text.encode(encoding)
    if form == "csv.gz":
        data = gzip.compress(data, mtime=0)
    plainly = (encoding, delimiter, above, below) if form == "csv" else None
    return Table(f"{number}.{form}", lambda: data, plainly=plainly, **parts)


def _typed(kind: str, text: str) -> Any:
    return None if text == "" else int(text) if kind == "integer" else float(text) if kind == "number" else text


def _objects(names: list[str], kinds: list[str], rows: list[list[str]]) -> list[dict[str, Any]]:
    return [dict(zip(names, map(_typed, kinds, row), strict=True)) for row in rows]


def _jsonl(names: list[str], kinds: list[str], rows: list[list[str]]) -> bytes:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in _objects(names, kinds, rows)).encode()


def _json(names: list[str], kinds: list[str], rows: list[list[str]]) -> bytes:
    return json.dumps(_objects(names, kinds, rows), indent=1).encode()


def _xlsx(names: list[str], kinds: list[str], rows: list[list[str]]) -> bytes:
    book: Any = openpyxl.Workbook()  # type: ignore[attr-defined, no-untyped-call]
    book.active.append(names)
    for row in rows:
        book.active.append(list(map(_typed, kinds, row)))
    book.save(out := io.BytesIO())
    return out.getvalue()


def _archive(number: int, chance: random.Random) -> Archive:
    members = {}
    for n in range(chance.choice((1, 3, 12))):
        folder = chance.choice(("", "a/", "a/b c/", "été/", "東京/"))
        members[f"{folder}{chance.choice(('photo', 'Größe', 'naïve', '👨‍👩‍👧'))} {n}.bin"] = chance.randbytes(
            chance.choice((0, 10, 5000))
        )
    added = {"__MACOSX/._x": b"x", ".DS_Store": b"y"} if chance.random() < 0.3 else {}
    out = io.BytesIO()
    if number % 2:
        with zipfile.ZipFile(out, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for name, data in {**members, **added}.items():
                archive.writestr(name, data)
        front = b"#!/bin/sh\nexit\n" if chance.random() < 0.1 else b""
        return Archive(f"{number}.zip", front + out.getvalue(), members, len(added))
    packed = chance.choice(("", "gz", "xz", "bz2"))
    with tarfile.open(fileobj=out, mode=f"w:{packed}") as tar:  # type: ignore[call-overload]
        for name, data in {**members, **added}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return Archive(f"{number}.tar{'.' * bool(packed)}{packed}", out.getvalue(), members, len(added))


def _picture(number: int, chance: random.Random) -> Picture:
    width, height = chance.randrange(1, 300), chance.randrange(1, 300)
    form = chance.choice(("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"))
    mode = chance.choice({"JPEG": ("RGB", "L", "CMYK"), "GIF": ("P", "L"), "BMP": ("RGB",)}.get(form, ("RGB", "RGBA")))
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB").convert(mode)
    more: dict[str, Any] = {}
    if form in ("JPEG", "TIFF", "WEBP", "PNG") and chance.random() < 0.6:
        exif = Image.Exif()
        exif[0x0112] = chance.randrange(1, 9)
        more = {"exif": exif}
    image.save(out := io.BytesIO(), form, **more)
    return Picture(f"{number}.{form.lower()}", out.getvalue())
