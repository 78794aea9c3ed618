"""Files that mean harm, or were harmed: the corpus which every processor must survive.

`corpus(seed)` is the same list for the same seed, on every machine; a file is made when it is asked for, and has a few
megabytes whatever it pretends to be (the largest 20). Names are unique; the part before the first dash is the file's
kind. Archives are in poison_archives.py, images in poison_images.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.poison_archives import packed, tars, zips
from tests.poison_images import images

SEED: Final = 20240131

TABLE: Final = ("table-profile", "table-to-parquet")
TEXT: Final = ("text-stats", *TABLE)
ANY: Final = ("checksum", "compress")
ALL: Final = (*ANY, *TEXT, "extract", "image-thumbnails")

Made = Iterator[tuple[str, tuple[str, ...], Callable[[], bytes]]]


@dataclass(frozen=True, slots=True)
class Poison:
    """`suited` are the processors that the file means to harm most; any other must survive it too."""

    name: str
    suited: tuple[str, ...]
    make: Callable[[], bytes]

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        path.write_bytes(self.make())
        return path


def corpus(seed: int = SEED) -> list[Poison]:
    """At least 300 files."""
    found = [
        *(Poison(*made) for make in (_tables, _texts) for made in make(random.Random(f"{seed} {make.__name__}"))),
        *(
            Poison(name, suited, make_one)
            for make, suited in ((zips, ("extract",)), (tars, ("extract",)), (packed, ("extract",)))
            for name, make_one in make(random.Random(f"{seed} {make.__name__}"))
        ),
        *(Poison(name, ("image-thumbnails",), make) for name, make in images(random.Random(f"{seed} images"))),
    ]
    found += [Poison(*made) for made in _strangers(random.Random(f"{seed} strangers"))]
    found += [Poison(*made) for made in _harmed(found, random.Random(f"{seed} harmed"))]
    assert len({one.name for one in found}) == len(found)
    return found


def _is(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _repeated(piece: bytes, times: int, before: bytes = b"", after: bytes = b"") -> bytes:
    return before + piece * times + after


def _tables(chance: random.Random) -> Made:
    million = 1_000_000
    yield "csv-10-million-columns.csv", TEXT, lambda: b"," * (10 * million) + b"\n"
    yield "csv-10-million-named-columns.csv", TEXT, lambda: b"a," * (10 * million) + b"a\n1\n"
    yield "csv-10-million-columns-in-the-second-row.csv", TEXT, lambda: b"a,b\n" + b"," * (10 * million)
    yield "csv-10-million-columns-one-line.csv", TEXT, lambda: b"1," * (10 * million)
    for columns in (300, 2000, 20_000):
        yield f"csv-{columns}-columns.csv", TEXT, partial(_repeated, b",".join([b"1"] * columns) + b"\n", 3)
    for size in (1, 8):
        yield f"csv-one-line-{size}-mib.csv", TEXT, partial(_repeated, b"x", size << 20)
        yield f"csv-one-quoted-value-{size}-mib.csv", TEXT, partial(_repeated, b"x\n", size << 19, b'a,b\n"', b'",1\n')
        yield f"csv-quote-never-closed-{size}-mib.csv", TEXT, partial(_repeated, b"2,3\n", size << 18, b'a,b\n1,"')
    rows = b"".join(b"%d,%d,x\n" % (n, n * n) for n in range(5000))
    for place in (0, 1, 3000):
        lines = rows.split(b"\n")
        for what, line in {
            "nul": b"1,\0,3",
            "ragged-short": b"1,2",
            "ragged-long": b"1,2,3,4",
            "latin-1": b"1,\xe9,3",
            "bad-utf-8": b"1,\xc3\x28,\xff",
            "surrogate": b"1,\xed\xa0\x80,3",
            "open-quote": b'1,"2,3',
            "quote-inside": b'1,2"2,"3"3',
            "lone-cr": b"1,2,3\r4,5,6",
        }.items():
            bent = b"\n".join((*lines[:place], line, *lines[place:]))
            yield f"csv-{what}-at-{place}.csv", TEXT, _is(bent)
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "cp037", "utf-7"):
        yield f"csv-{encoding}.csv", TEXT, _is("näme,wert\nä,1\n".encode(encoding, "replace") * 200)
    for what, data in {
        "only-quotes": b'"' * 9999,
        "odd-quotes": b'"a""",""","\n' * 99,
        "only-commas": b",,,,\n" * 999,
        "only-newlines": b"\n" * 99_999,
        "only-cr": b"\r" * 99_999,
        "mixed-newlines": b"a,b\r\n1,2\n3,4\r5,6\n\r7,8\r\r\n",
        "header-only": b"a,b,c",
        "same-names": b"a,a,A,a_2,a\n1,2,3,4,5\n",
        "empty-names": b",,\n1,2,3\n",
        "sql": b"\"'; DROP TABLE x; --\",b\"\"\n$path,'); COPY x TO 'y'\n",
        "formulas": b"=cmd|' /C calc'!A0,@SUM(1)\n=1+1,2\n",
        "long-name": b"n" * 100_000 + b",b\n1,2\n",
        "long-digits": b"a\n" + b"9" * 100_000 + b"\n",
        "numbers": b"a\n1e999\n-0\nnan\ninf\n0x1f\n1_0\n" + b"0." + b"0" * 400 + b"1\n",
        "dates": b"a\n0000-00-00\n9999-99-99\n290000-01-01\n-1-01-01\n",
        "html": b"<html><body><table><tr><td>1</td></tr></table></body></html>" * 99,
        "json": b'{"a": [1, 2, {"b": null}]}\n' * 99,
        "separators": b",;|\t\n" * 500,
        "nested-json": b"[" * 100_000,
        "bom-only": b"\xef\xbb\xbf",
        "utf-16-bom-only": b"\xff\xfe",
        "dos-end": b"a,b\r\n1,2\r\n\x1a",
    }.items():
        yield f"csv-{what}.csv", TEXT, _is(data)
    yield "csv-random-printable.csv", TEXT, _is(bytes(chance.choices(range(32, 127), k=200_000)))


def _texts(chance: random.Random) -> Made:
    text = ("text-stats",)
    yield "text-one-line.txt", text, lambda: b"x" * (16 * 1024 * 1024)
    yield "text-one-line-of-words.txt", text, lambda: b"word " * (2 * 1024 * 1024)
    yield "text-all-different.txt", text, lambda: b"".join(b"%x " % (n * 7919) for n in range(600_000))
    yield "text-wide-characters.txt", text, lambda: "𝔘nïcödé \u202e\u2028".encode() * 200_000
    yield "text-combining.txt", text, lambda: ("e" + "\u0301" * 9).encode() * 99_999
    for what, mark in {"le": b"\xff\xfe", "be": b"\xfe\xff", "32": b"\xff\xfe\0\0", "8": b"\xef\xbb\xbf"}.items():
        yield f"text-mark-{what}-then-random.txt", text, _is(mark + chance.randbytes(99_999))
    for cut in (1, 2, 3):
        yield f"text-cut-in-a-character-{cut}.txt", text, _is("😀".encode() * 65_536 + "😀".encode()[:cut])
    yield "text-controls.txt", text, _is(bytes(range(1, 32)) * 999)
    yield "text-escape-codes.txt", text, _is(b"\x1b[31mred\x1b[0m\n" * 999)
    yield "text-mostly-text-then-nul.txt", text, lambda: b"text\n" * 300_000 + b"\0" * 9999
    yield "text-bitmap-by-its-first-letters.txt", TEXT, _is(b"BMI,age\n22,40\n")


def _strangers(chance: random.Random) -> Made:
    """What is nothing at all, under every name."""
    endings = (
        "csv",
        "txt",
        "zip",
        "tar",
        "tar.gz",
        "gz",
        "bz2",
        "xz",
        "zst",
        "png",
        "jpg",
        "gif",
        "webp",
        "bmp",
        "tif",
    )
    for ending in endings:
        yield f"empty.{ending}", ALL, _is(b"")
        yield f"random.{ending}", ALL, _is(chance.randbytes(50_000))
        yield f"one-byte.{ending}", ALL, _is(chance.randbytes(1))
    yield "zeros.bin", ALL, lambda: bytes(8 * 1024 * 1024)
    yield "newlines.bin", ALL, lambda: b"\n" * (4 * 1024 * 1024)
    yield "every-byte.bin", ALL, _is(bytes(range(256)) * 4096)
    for what, magic in {
        "pdf": b"%PDF-1.7\n",
        "elf": b"\x7fELF\2\1\1",
        "sqlite": b"SQLite format 3\0",
        "rar": b"Rar!\x1a\7\1\0",
        "7z": b"7z\xbc\xaf\x27\x1c\0\4",
        "script": b"#!/bin/sh\nrm -rf /\n",
        "rtf": b"{\\rtf1 ",
        "postscript": b"%!PS-Adobe-3.0\n",
        "wasm": b"\0asm\1\0\0\0",
    }.items():
        yield f"stranger-{what}.bin", ALL, _is(magic + chance.randbytes(999))


def _harmed(whole: list[Poison], chance: random.Random) -> Made:
    """Good files, and some that are not, cut at every kind of place or with bytes of theirs changed."""
    by_name = {one.name: one for one in whole}
    for name in (
        *("zip-good.zip", "tar-good.tar", "tar-good.tar.gz", "tar-good.tar.xz", "tar-good.tar.bz2", "tar-good.tar.zst"),
        *("packed-good.gz", "packed-good.zst", "image-good.png", "image-good.jpg", "image-good-progressive.jpg"),
        *("image-good.gif", "image-good.webp", "image-good.bmp", "image-good.tif", "image-good.apng"),
    ):
        one = by_name[name]
        data = one.make()
        stem, _, ending = name.partition(".")
        for part in (0.02, 0.3, 0.6, 0.95):
            yield f"cut-{stem}-{part}.{ending}", one.suited, _is(data[: int(len(data) * part)])
        yield f"cut-{stem}-last-byte.{ending}", one.suited, _is(data[:-1])
        yield f"longer-{stem}.{ending}", one.suited, _is(data + chance.randbytes(999))
        for number in range(3):
            bent = bytearray(data)
            for _ in range(4**number):
                bent[chance.randrange(len(bent))] = chance.randrange(256)
            yield f"bent-{stem}-{number}.{ending}", one.suited, _is(bytes(bent))
