"""The members of an archive in the order of its bytes, each said to be a file, a folder, or why it is left out.

Nothing here writes, follows a link, or believes a size. A zip whose members share bytes is refused before the first of
them is read: that is how a few megabytes are made to stand for petabytes.
"""

from __future__ import annotations

import bz2
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Final

from headway.shared.errors import BadInput
from headway.worker.processors.archive_names import guessed_encoding, is_of_macos, leads_out, zip_names
from headway.worker.processors.archive_stream import (
    DEFLATE,
    PIECE_BYTES,
    Decoder,
    Inflate,
    Stream,
    damaged,
    plain_errors,
    unpack,
)
from headway.worker.processors.archive_stream import zstd as zstd_decoder

#: A zip's list of contents is read whole. An entry has 46 bytes and its name; this is a long name.
ENTRY_BYTES: Final = 512

#: Of the headers of one member of a tar: names and attributes. tarfile reads as much as a header says it has.
HEADER_BYTES: Final = 128 * 1024

BLOCK_BYTES: Final = tarfile.BLOCKSIZE
#: It comes to some megabytes at most.
INFLATE64_BYTES: Final = 4096
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
_ENCRYPTED, _STRONG, _LZMA_HAS_END = 0x1, 0x40, 0x2


@dataclass(frozen=True, slots=True)
class Member:
    """`left_out` says why, or is None. `pieces` are its bytes, to be read before the next member is asked for. A hard
    link has none: it is a copy of the earlier member that `copy_of` names. `guessed` is the encoding of its name, where
    that is a guess."""

    name: str
    folder: bool
    left_out: LeftOut | None
    pieces: Iterator[bytes]
    copy_of: str | None = None
    guessed: str | None = None


class LeftOut(StrEnum):
    """Why a member is left out, as it is said."""

    SYMBOLIC_LINK = "a symbolic link"
    HARD_LINK = "a hard link to what is not there"
    DEVICE = "a device"
    UNKNOWN = "of an unknown kind"
    PATH = "a path out of its folder"
    MACOS = "macOS's own"


def _why_left_out(name: str) -> LeftOut | None:
    if leads_out(name):
        return LeftOut.PATH
    return LeftOut.MACOS if is_of_macos(name) else None


# zip


def zip_members(path: Path, raw: BinaryIO, *, memory_bytes: int, max_files: int, max_bytes: int) -> Iterator[Member]:
    """`raw` is the same file, of which the members are read in order. Raises BadInput."""
    entries = _entries(path, max_files)
    if (declared := sum(info.file_size for info, _ in entries)) > max_bytes:
        raise BadInput(
            f"The archive says that it unpacks to {declared:,} bytes, where {max_bytes:,} are allowed for it. If that "
            "is right, raise the options `max_bytes` and `max_ratio`."
        )
    names, guessed = zip_names([info for info, _ in entries])
    for (info, start), name in zip(entries, names, strict=True):
        left_out = _why_left_out(name)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            left_out = LeftOut.SYMBOLIC_LINK
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            left_out = LeftOut.DEVICE
        # A program of Windows may end a folder's name by a backslash.
        folder = name.endswith("/") or (name.endswith("\\") and info.file_size == 0)
        guess = None if name.isascii() else guessed
        yield Member(name, folder, left_out, _zip_pieces(raw, info, start, memory_bytes), guessed=guess)


def _entries(path: Path, max_files: int) -> list[tuple[zipfile.ZipInfo, int]]:
    """Every entry with the place of its bytes, in order."""
    with path.open("rb") as file:
        _check_list_of_contents(file, max_files)
        with plain_errors(), zipfile.ZipFile(file) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
            contents: int = archive.start_dir
        if len(infos) > max_files:
            raise too_many(max_files)
        if any(info.flag_bits & (_ENCRYPTED | _STRONG) for info in infos):
            raise BadInput("The archive is encrypted. Send it without a password.")
        found, free = [], 0
        for info in infos:
            with plain_errors():
                file.seek(max(0, info.header_offset))
                magic, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            if magic != b"PK\3\4":
                raise damaged()
            start = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
            if start + info.compress_size > contents:
                raise damaged()
            if info.header_offset < free:
                raise BadInput(
                    "Members of the archive share the same bytes, as those of a zip bomb do. Make the archive again."
                )
            free = start + info.compress_size
            found.append((info, start))
    return found


def ends_as_zip(raw: BinaryIO) -> bool:
    """Whether a list of contents is at the end of the file, whatever stands at its beginning."""
    size = raw.seek(0, 2)
    raw.seek(max(0, size - 65_557))
    tail = raw.read()
    raw.seek(0)
    at = tail.rfind(b"PK\5\6")
    return at >= 0 and len(tail) >= at + 22 and tail[at + 20 : at + 22] == struct.pack("<H", len(tail) - at - 22)


def _check_list_of_contents(file: BinaryIO, max_files: int) -> None:
    """zipfile reads the list whole, as long as it says that it is, and makes an object of each entry."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 65_557))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise BadInput("The archive ends before its list of contents: a part of it is missing. Send it again.")
    (list_bytes,) = struct.unpack_from("<L", tail, at + 12)
    if list_bytes == 0xFFFFFFFF and (big := tail.rfind(b"PK\6\6", 0, at)) >= 0 and len(tail) >= big + 48:
        (list_bytes,) = struct.unpack_from("<Q", tail, big + 40)
    if list_bytes > ENTRY_BYTES * max_files + 65_536:
        raise too_many(max_files)


def _zip_pieces(raw: BinaryIO, info: zipfile.ZipInfo, start: int, memory_bytes: int) -> Iterator[bytes]:
    raw.seek(start)
    section = _Section(raw, info.compress_size)
    crc = 0
    pieces = iter(lambda: section.read(PIECE_BYTES), b"")
    if info.compress_type != zipfile.ZIP_STORED:
        decoder, data = _zip_decoder(info, section, memory_bytes)
        pieces = unpack(decoder, data, section)  # type: ignore[arg-type]
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
        yield piece
    if crc != info.CRC:
        raise damaged()


def _zip_decoder(info: zipfile.ZipInfo, section: _Section, memory_bytes: int) -> tuple[Decoder, bytes]:
    """The decoder for a member, and what it is to be given first."""
    match info.compress_type:
        case zipfile.ZIP_DEFLATED:
            return Inflate(DEFLATE), b""
        case zipfile.ZIP_BZIP2:
            return bz2.BZ2Decompressor(), b""
        case zipfile.ZIP_LZMA:
            # A zip's header and a file's have the same five bytes; a file's goes on with the size, or "until the end".
            properties = section.read(9)[4:]
            size = b"\xff" * 8 if info.flag_bits & _LZMA_HAS_END else struct.pack("<Q", info.file_size)
            return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=memory_bytes // 4), properties + size
        case 9:
            return Inflate64(), b""
        case 93:
            return zstd_decoder(memory_bytes), b""
        case method:
            raise BadInput(
                f"A member is packed by zip's method {method}, which is not known here. Make the archive again with "
                "the usual one, Deflate."
            )


class Inflate64:
    """Deflate64, which Windows writes of what is large, with the manners of the others. It cannot be asked for less
    than it has, so it is given little at a time."""

    def __init__(self) -> None:
        from inflate64 import Inflater

        self._inner = Inflater()
        self._given = b""
        self.unused_data = b""

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def needs_input(self) -> bool:
        return not self._given

    def decompress(self, data: bytes, max_length: int) -> bytes:
        self._given += data
        now, self._given = self._given[:INFLATE64_BYTES], self._given[INFLATE64_BYTES:]
        return bytes(self._inner.inflate(now))


class _Section:
    """The next `size` bytes of a file."""

    def __init__(self, raw: BinaryIO, size: int) -> None:
        self._raw = raw
        self._left = size

    def read(self, size: int) -> bytes:
        found = self._raw.read(min(size, self._left))
        self._left -= len(found)
        return found


# tar


def is_tar(block: bytes) -> bool:
    """Whether a first block is the header of a tar: its checksum is right."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError, OverflowError):
        return False
    return True


def tar_members(stream: Stream, *, max_files: int, max_bytes: int) -> Iterator[Member]:
    """Raises BadInput. A sparse file is read with its holes."""
    source = _TarSource(stream)
    opened: Any = source  # of what a file has, tarfile uses these three methods to read one
    with plain_errors():
        archive = tarfile.TarFile(fileobj=opened, mode="r", errorlevel=1)
    entries = 0
    while True:
        source.left_bytes = HEADER_BYTES
        with plain_errors():
            info = archive.next()
        if info is None:
            if source.last.strip(b"\0"):
                raise damaged()  # tarfile takes a header that makes no sense for the end
            return
        entries += 1
        if entries > max_files:
            raise too_many(max_files)
        archive.members = []  # type: ignore[attr-defined]  # it would keep every one
        if info.size < 0:
            raise damaged()
        if info.isreg() and info.size > max_bytes:
            raise BadInput(
                f"A member says that it has {info.size:,} bytes, where {max_bytes:,} are allowed for the archive. If "
                "that is right, raise the options `max_bytes` and `max_ratio`."
            )
        source.left_bytes = None
        copy_of = info.linkname if info.islnk() else None
        pieces = iter(()) if info.islnk() else _tar_pieces(archive, info)
        name, guessed = _tar_name(info.name)
        yield Member(name, info.isdir(), _tar_left_out(info), pieces, copy_of and _tar_name(copy_of)[0], guessed)


def _tar_name(name: str) -> tuple[str, str | None]:
    """Bytes that are not UTF-8 come as halves of a surrogate pair; what they are is a guess."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raw = name.encode("utf-8", "surrogateescape")
        guess = guessed_encoding([raw])
        guess = "cp1252" if guess == "cp437" else guess  # a tar comes from Unix, where cp437 never was
        return raw.decode(guess, "replace"), guess
    return name, None


def _tar_left_out(info: tarfile.TarInfo) -> LeftOut | None:
    if info.issym():
        return LeftOut.SYMBOLIC_LINK
    if not (info.isreg() or info.isdir() or info.islnk()):
        return LeftOut.DEVICE if info.isdev() else LeftOut.UNKNOWN
    return _why_left_out(info.name)


def _tar_pieces(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    with plain_errors():
        file = archive.extractfile(info)
        came = 0
        while file is not None and (piece := file.read(PIECE_BYTES)):
            came += len(piece)
            yield piece
        if came != info.size:
            raise damaged()


class _TarSource:
    """A stream as tarfile reads it, with `left_bytes` for headers, or None while it reads a member's own."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.left_bytes: int | None = HEADER_BYTES
        self.last = b""
        self.tell, self.seek = stream.tell, stream.seek

    def read(self, size: int) -> bytes:
        if self.left_bytes is not None:
            self.left_bytes -= size
            if self.left_bytes < 0:
                raise BadInput("A member's header is far longer than any name needs. Make the archive again.")
        self.last = self._stream.read(size)
        return self.last


def too_many(max_files: int) -> BadInput:
    return BadInput(f"The archive has more than {max_files:,} members. If that is right, raise the option `max_files`.")
