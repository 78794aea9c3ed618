"""The names of an archive's members: from the bytes that a zip has of them, and where each belongs below the results.

A zip says of a name that it is UTF-8, or has it once more as such (0x7075); else any program wrote it in what its
machine used. Then it is UTF-8 if it can be, else the likeliest of GBK, Shift-JIS and cp437, for all names of an archive
alike, and that it is a guess is told. Pure.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Final
from zipfile import ZipInfo

_UTF_8_FLAG: Final = 0x800
_UNICODE_PATH: Final = 0x7075

#: Chinese names are written in GB2312's first level, Japanese ones in kana and kanji; neither has what a Western name
#: would come to: rare characters, and half-width kana.
_GBK: Final = re.compile(rb"(?:[\x00-\x7f]|[\xb0-\xd7][\xa1-\xfe]|[\xa1\xa3][\xa1-\xfe])+")
_SHIFT_JIS: Final = re.compile(rb"(?:[\x00-\x7f]|[\x81-\x84\x88-\x9f\xe0-\xea][\x40-\x7e\x80-\xfc])+")
_KANA: Final = re.compile("[\u3041-\u3096\u30a1-\u30fc]|[\u4e00-\u9fff]{2}")

#: What macOS adds to an archive for itself.
_MACOS: Final = re.compile(r"(?:^|/)(?:__MACOSX(?:/|$)|\._[^/]*$|\.DS_Store$)")


def zip_names(infos: Sequence[ZipInfo]) -> tuple[list[str], str | None]:
    """The name of each member, and the encoding where that is a guess."""
    names = [_certain(info) for info in infos]
    if all(name is not None for name in names):
        return [name or "" for name in names], None
    raw = [_raw(info) for info in infos]
    guess = guessed_encoding([data for data, name in zip(raw, names, strict=True) if name is None])
    return [
        data.decode(guess, "replace") if name is None else name for data, name in zip(raw, names, strict=True)
    ], guess


def guessed_encoding(names: Iterable[bytes]) -> str:
    """Of names that are not UTF-8."""
    names = list(names)
    if all(map(_GBK.fullmatch, names)):
        return "gbk"
    if all(map(_SHIFT_JIS.fullmatch, names)):
        try:
            if _KANA.search("/".join(name.decode("shift_jis") for name in names)):
                return "shift_jis"
        except UnicodeDecodeError:
            pass
    return "cp437"


def _certain(info: ZipInfo) -> str | None:
    if info.flag_bits & _UTF_8_FLAG:
        return info.orig_filename.partition("\0")[0]
    raw = _raw(info)
    if (name := _of_extra(info.extra, raw)) is not None:
        return name
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _raw(info: ZipInfo) -> bytes:
    """zipfile reads a name that says nothing of itself as cp437, in which every byte is a character."""
    return info.orig_filename.encode("utf-8" if info.flag_bits & _UTF_8_FLAG else "cp437").partition(b"\0")[0]


def _of_extra(extra: bytes, raw: bytes) -> str | None:
    """The name in UTF-8 that Info-ZIP's field has, if it is of this name: another program may have changed that."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        data, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and len(data) > 5 and data[0] == 1 and data[1:5] == struct.pack("<L", zlib.crc32(raw)):
            try:
                return data[5:].decode()
            except UnicodeDecodeError:
                return None
    return None


def below(name: str) -> str:
    """An absolute name taken below the folder of the results: without its drive, server and root."""
    return re.sub(r"^(?:[A-Za-z]:)?[/\\]+(?:\?[/\\]+)?(?:[A-Za-z]:[/\\]+)?|^[A-Za-z]:(?=[^/\\])", "", name)


def leads_out(name: str) -> bool:
    return ".." in re.split(r"[/\\]", name)


def is_of_macos(name: str) -> bool:
    return bool(_MACOS.search(name.replace("\\", "/")))
