"""Archives that mean harm: bombs, overlaps, links, lies and names, for `tests/poison.py`."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: What a bomb unpacks to: more than any limit of a test, little enough to be made in a moment.
BOMB_BYTES: Final = 64 * 1024 * 1024
_ZEROS: Final = bytes(1024 * 1024)

Made = Iterator[tuple[str, Callable[[], bytes]]]

#: Names that a member had better not have.
NAMES: Final = {
    "up": "../../evil.txt",
    "up-inside": "a/../../evil.txt",
    "absolute": "/etc/evil.txt",
    "windows": "..\\..\\evil.txt",
    "drive": "C:\\evil.txt",
    "dots": "....//..../x",
    "only-dots": "..",
    "dot": ".",
    "hidden": ".bashrc",
    "ours": "files.zip",
    "staging": ".unpacked/1",
    "listing": "listing.json",
    "long": "n" * 5000 + ".txt",
    "deep": "d/" * 2000 + "x",
    "controls": "a\x01\x1f\x7f\nb",
    "turned": "exe\u202egpj.txt",
    "wide": "😀" * 300,
    "spaces": "   ",
    "device": "NUL",
    "dash": "-rf",
    "quotes": "\"';<script>.html",
}


def _is(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def _zip_bomb(method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive, archive.open("bomb", "w") as file:
        for _ in range(BOMB_BYTES // len(_ZEROS)):
            file.write(_ZEROS)
    return out.getvalue()


def _lying(data: bytes, at: int, form: str, value: int) -> bytes:
    """A zip whose list of contents has another `value` at `at` of every entry."""
    bent, place = bytearray(data), data.find(b"PK\1\2")
    while place >= 0:
        struct.pack_into(form, bent, place + at, value)
        place = data.find(b"PK\1\2", place + 4)
    return bytes(bent)


def _overlapping(count: int) -> bytes:
    """Every entry of the list is the same member, as in the smallest of zip bombs."""
    one = _zip({"a": _ZEROS})
    first, last = one.index(b"PK\1\2"), one.index(b"PK\5\6")
    entries = one[first:last] * count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count % 65536, count % 65536, len(entries), first, 0)
    return one[:first] + entries + end


def _nested(data: bytes, levels: int) -> bytes:
    for level in range(levels):
        data = _zip({f"{level}-{n}.zip": data for n in range(4)})
    return data


def zips(chance: random.Random) -> Made:
    plain = _zip({"a.txt": b"hello" * 999, "b/c.txt": b"x" * 9999, "b/d.bin": chance.randbytes(9999)})
    yield "zip-good.zip", _is(plain)
    methods = {"stored": 0, "deflated": 8, "bzip2": 12, "lzma": 14}
    for what, method in methods.items():
        if method:
            yield f"zip-bomb-{what}.zip", partial(_zip_bomb, method)
            small = _lying(_zip({"a": _ZEROS * 32}, method), 24, "<L", 10)
            yield f"zip-bomb-that-says-10-bytes-{what}.zip", _is(small)
        yield f"zip-wrong-crc-{what}.zip", _is(_lying(_zip({"a": b"hello" * 99}, method), 16, "<L", 1))
    for levels in (2, 6):
        yield f"zip-nested-{levels}.zip", partial(_nested, _zip({"a": _ZEROS}), levels)
    for count in (2, 1000, 60_000):
        yield f"zip-overlapping-{count}.zip", partial(_overlapping, count)
    yield "zip-many-files.zip", lambda: _zip({f"{n}.txt": b"x" for n in range(700)}, 0)
    yield "zip-too-many-files.zip", lambda: _zip({f"{n}/": b"" for n in range(12_000)}, 0)
    for what, name in NAMES.items():
        yield f"zip-name-{what}.zip", _is(_zip({name: b"evil", "good.txt": b"good"}))
    for value in (0xA1FF, 0x61B6, 0x21B6, 0x11B6, 0xC1B6, 0xF1FF):
        yield f"zip-mode-{value:x}.zip", _is(_lying(_zip({"link": b"/etc/passwd"}), 38, "<L", value << 16))
    for what, (at, form, value) in {
        "encrypted": (8, "<H", 1),
        "strongly-encrypted": (8, "<H", 0x41),
        "unknown-method": (10, "<H", 97),
        "deflate64": (10, "<H", 9),
        "zstd-that-is-none": (10, "<H", 93),
        "lzma-that-is-none": (10, "<H", 14),
        "says-4-gb": (24, "<L", 0xFFFFFFFE),
        "packed-4-gb": (20, "<L", 0xFFFFFFFE),
        "zip64-without": (24, "<L", 0xFFFFFFFF),
        "offset-behind": (42, "<L", 0xFFFFFF00),
        "offset-zip64": (42, "<L", 0xFFFFFFFF),
        "long-name-length": (28, "<H", 0xFFFF),
        "bad-utf-8-name": (8, "<H", 0x800),
        "version": (6, "<H", 0xFFFF),
    }.items():
        yield f"zip-{what}.zip", _is(_lying(_zip({"\xe9": b"hello" * 99}), at, form, value))
    yield "zip-empty.zip", _is(_zip({}))
    yield "zip-same-name.zip", _is(plain.replace(b"b/c.txt", b"b/d.bin").replace(b"a.txt", b"A.TXT"))
    yield "zip-without-end.zip", _is(plain[:-22])
    yield "zip-only-end.zip", _is(plain[-22:])
    yield "zip-end-says-4-gb.zip", _is(plain[:-10] + b"\xff" * 8 + plain[-2:])
    yield "zip-with-a-comment.zip", _is(plain[:-2] + struct.pack("<H", 5) + b"PK\5\6\0")
    yield "zip-after-junk.zip", _is(b"PK\3\4" + chance.randbytes(999) + plain)
    yield "zip-as-an-office-document.docx", _is(_zip({"[Content_Types].xml": b"", "word/x.xml": b""}))


def _tar(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _member(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def _special(name: str, kind: bytes, target: str = "", **headers: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, target, headers
    return info


def _says(size: int, kind: bytes = tarfile.REGTYPE, data: bytes = b"") -> bytes:
    """A header that says there is so much, and what is there."""
    info = tarfile.TarInfo("liar")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT) + data


def _bomb(pack: Callable[[bytes], bytes], header: bytes = b"") -> bytes:
    return pack(header + bytes(BOMB_BYTES + 1024))


def tars(chance: random.Random) -> Made:
    good = _tar(_member("a.txt", b"hello" * 999), _member("b/c.bin", chance.randbytes(20_000)))
    yield "tar-good.tar", _is(good)
    for ending, pack in PACK.items():
        yield f"tar-good.tar.{ending}", _is(pack(good))
        yield f"tar-bomb.tar.{ending}", partial(_bomb, pack, _says(BOMB_BYTES))
        yield f"tar-of-zeros.tar.{ending}", _is(pack(bytes(10_240)))
        yield f"tar-skipped-bomb.tar.{ending}", partial(_bomb, pack, _says(BOMB_BYTES, b"Z"))
    for what, name in NAMES.items():
        yield f"tar-name-{what}.tar", _is(_tar(_member(name, b"evil"), _member("good.txt", b"good")))
    yield "tar-name-not-utf-8.tar", _is(_tar(_member("\udcff\udc80", b"evil"), format=tarfile.GNU_FORMAT))
    for what, kind in {
        "symlink": tarfile.SYMTYPE,
        "hard-link": tarfile.LNKTYPE,
        "character-device": tarfile.CHRTYPE,
        "block-device": tarfile.BLKTYPE,
        "fifo": tarfile.FIFOTYPE,
        "unknown": b"Q",
    }.items():
        through = _tar(_special("x", kind, "/etc"), _member("x/passwd", b"evil"), _special("y", kind, "../../z"))
        yield f"tar-{what}.tar", _is(through)
        yield f"tar-{what}.tar.gz", _is(gzip.compress(through, mtime=0))
    yield "tar-link-to-itself.tar", _is(_tar(_special("x", tarfile.SYMTYPE, "x"), _special("y", tarfile.LNKTYPE, "y")))
    yield "tar-many-files.tar.gz", lambda: gzip.compress(_tar(*(_member(f"{n}/f", b"x") for n in range(700))))
    yield (
        "tar-too-many.tar.gz",
        lambda: gzip.compress(_tar(*(_special(str(n), tarfile.DIRTYPE) for n in range(12_000)))),
    )
    yield "tar-same-name.tar", _is(_tar(*(_member(name, b"x") for name in ("a", "A", "a", "./a", "a-2"))))
    yield "tar-says-8-gb.tar", _is(_says(8**11 - 1))
    yield "tar-says-8-eb.tar", _is(_says(2**63))
    yield "tar-says-less-than-nothing.tar", _is(_says(-1024))
    yield "tar-says-back-to-itself.tar", _is(_says(-512, b"Z") * 3)
    yield "tar-long-name-8-gb.tar", _is(_says(8**11 - 1, tarfile.GNUTYPE_LONGNAME))
    yield "tar-long-name-1-mib.tar", _is(_says(1 << 20, tarfile.GNUTYPE_LONGNAME, b"n" * (1 << 20)) + good)
    yield "tar-long-names-for-ever.tar", _is(_says(1, tarfile.GNUTYPE_LONGNAME, b"n" * 512) * 5000)
    yield "tar-attributes-for-ever.tar", _is(_says(10, tarfile.XHDTYPE, b"10 a=bcd\n".ljust(512, b"\0")) * 5000)
    yield "tar-attributes-of-digits.tar", _is(_says(60_000, tarfile.XHDTYPE, b"1" * 60_416) + good)
    for what, value in {"huge": "9" * 30, "negative": "-5", "text": "x", "eb": str(2**62)}.items():
        for key in ("size", "GNU.sparse.size", "GNU.sparse.realsize", "GNU.sparse.map", "mtime"):
            bent = _tar(_special("x", tarfile.REGTYPE, **{key: value, "GNU.sparse.major": "1"}))
            yield f"tar-attribute-{key}-{what}.tar", _is(bent)
    for number in range(6):
        bent_block = bytearray(good)
        bent_block[chance.randrange(512)] ^= 0xFF
        yield f"tar-bent-header-{number}.tar", _is(bytes(bent_block))


PACK: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}


def packed(chance: random.Random) -> Made:
    text = b"hello, " * 9999
    for ending, pack in PACK.items():
        yield f"packed-good.{ending}", _is(pack(text))
        yield f"packed-bomb.{ending}", partial(_bomb, pack)
        twice = pack(pack(bytes(16 << 20)))
        yield f"packed-nested.{ending}.{ending}", _is(pack(twice))
        yield f"packed-empty.{ending}", _is(pack(b""))
        yield f"packed-many-streams.{ending}", _is(pack(b"x") * 9999)
        yield f"packed-many-empty-streams.{ending}", _is(pack(b"") * 99_999)
        yield f"packed-then-zeros.{ending}", _is(pack(text) + bytes(1 << 20))
        yield f"packed-then-half-a-magic.{ending}", _is(pack(text) + pack(text)[:3])
        yield f"packed-header-only.{ending}", _is(pack(text)[:10])
        yield f"packed-wrong-end.{ending}", _is(pack(text)[:-4] + b"\1\2\3\4")
        yield f"packed-a-zip.{ending}", _is(pack(_zip({"a": b"x"})))
        yield f"packed-random.{ending}", _is(pack(text)[:6] + chance.randbytes(9999))
    big_window = lzma.compress(b"x", check=lzma.CHECK_CRC32, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}])
    place = big_window.index(b"\x21\x01") + 2  # LZMA2's dictionary: 40 is 4 GiB; its checksum is wrong then, as it may
    yield "packed-4-gb-window.xz", _is(big_window[:place] + b"\x28" + big_window[place + 1 :])
    yield "packed-2-gb-window.zst", _is(b"\x28\xb5\x2f\xfd\0\xa8" + b"\3\0\0x" * 99)
    yield "packed-skippable-4-gb.zst", _is(b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + bytes(999))
    name = b"n" * (4 << 20)
    yield "packed-name-without-end.gz", _is(b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + name)
