"""The processor `extract`: what is in an archive, listed and unpacked, whatever the archive would like to happen.

Each file is a result under one plain name: `a/b.txt` is `a__b.txt`, and the second of a name is numbered. Of more than
500 files nobody wants 500 links, so they are one result then, `files.zip`, not compressed, with their folders. Nothing
is written outside of this task's folder: symbolic links, devices and paths that lead elsewhere are left out, counted
and told, and so is what macOS adds for itself. A hard link is a copy, an absolute path is taken below the folder.
An archive within the archive is unpacked as the file it is.

Sizes are counted as the bytes come, see archive_stream.py, so a bomb ends as BadInput at the limits of the options.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic import Field

from headway.shared.errors import BadInput
from headway.shared.tasks.processors import Job, Options, processor
from headway.worker.processors.archive_members import (
    BLOCK_BYTES,
    LeftOut,
    Member,
    ends_as_zip,
    is_tar,
    tar_members,
    zip_members,
)
from headway.worker.processors.archive_names import below
from headway.worker.processors.archive_stream import PIECE_BYTES, Packing, Stream, packing_of, too_large
from headway.worker.processors.result_names import plain_name
from headway.worker.processors.unpacked_files import LISTING, Unpacked, UnpackedFiles

GIBIBYTE: Final = 1024**3

#: Of the summary, which is kept in Redis. The rest is in the result `listing.json`.
LISTED_FILES: Final = 1000
LISTED_BYTES: Final = 256 * 1024
NAME_CHARACTERS: Final = 200

#: A small file may unpack to this much, whatever its ratio: a table of zeros is no bomb.
ALWAYS_BYTES: Final = 16 * 1024 * 1024

#: What a tar has besides its files: a header and its padding, and some for longer names.
MEMBER_BYTES: Final = 4096

#: Members that are left out are told one by one up to here, and by their number after it.
TOLD: Final = 20

#: What is an archive and cannot be unpacked here, by its first bytes.
OTHERS: Final = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"MSCF": "a Windows cabinet",
    b"!<arch>\n": "a Unix archive (.deb, .a)",
    b"\x1f\x9d": "packed by compress (.Z)",
    b"LZIP": "packed by lzip",
}

#: Office's documents are zips too, which the content tells apart.
ACCEPTS: Final = (
    *("application/zip", "application/x-tar", "application/gzip", "application/x-bzip2", "application/x-xz"),
    *("application/zstd", "application/epub+zip"),
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    *(f"application/vnd.oasis.opendocument.{kind}" for kind in ("text", "spreadsheet", "presentation")),
    # A zip that unpacks itself is a program; the rest are told what to send instead, better than by a list of types.
    *(
        "application/x-msdownload",
        "application/x-executable",
        "application/x-7z-compressed",
        "application/x-rar-compressed",
    ),
    *("application/vnd.ms-cab-compressed", "application/x-unix-archive", "application/x-deb", "application/x-compress"),
    *("application/x-lzip", "application/java-archive"),
)


class ExtractOptions(Options):
    """How much an archive may unpack to. The smaller of `max_bytes` and `max_ratio` counts."""

    max_bytes: int = Field(default=GIBIBYTE, ge=1, le=64 * GIBIBYTE, description="bytes of all files together")
    max_ratio: int = Field(
        default=100, ge=1, le=10_000, description="how many times the archive's size; 16 MiB are always allowed"
    )
    max_files: int = Field(default=10_000, ge=1, le=100_000, description="files, folders and links")


@processor(
    "extract",
    description="Lists and unpacks a zip, a tar, or what is packed by gzip, bzip2, xz or zstd",
    accepts=ACCEPTS,
    options=ExtractOptions,
    phases={"Unpacking": 1},
    preload=("tarfile", "zipfile", "bz2", "lzma"),
)
def extract(job: Job) -> dict[str, Any]:
    """Unpacks the archive, or raises BadInput and leaves nothing.

    Summary: `format` (`zip`, `tar`, `tar.gz`, `gz`, …); `files` and `bytes`, of what was unpacked; `skipped`, how many
    members were left out, `left_out` why, counted; `notes`, a sentence for each thing that was left out, changed or
    guessed; `listing`, of each file its `name` in the archive, `size_bytes`, and `file`, the result that has it. A
    listing of more than 1000 files is cut, and whole in the result `listing.json`.
    """
    options: ExtractOptions = job.options
    most_bytes = min(options.max_bytes, max(ALWAYS_BYTES, options.max_ratio * job.size_bytes))
    job.phase("Unpacking", total=job.size_bytes, unit="bytes")
    left_out, notes = Counter[LeftOut](), _Notes()
    with job.open_input() as raw, UnpackedFiles(job) as files:
        kind, members = _members(job, raw, most_bytes)
        counted = _Counted(job, raw, most_bytes)
        for number, member in enumerate(members, start=1):
            why = member.left_out
            if why is None and member.copy_of is not None and not files.has(below(member.copy_of)):
                why = LeftOut.HARD_LINK
            if why is not None:
                left_out[why] += 1
                if why is not LeftOut.MACOS and left_out.total() - left_out[LeftOut.MACOS] <= TOLD:
                    job.log(f"Left out, because it is {why}: {_cut(member.name)}", "warning")
            elif not member.folder:
                name = notes.name_of(member)
                copied = None if member.copy_of is None else files.pieces_of(below(member.copy_of))
                files.add(number, name, counted.pieces(member.pieces if copied is None else copied))
            job.progress_to(raw.tell())
        notes.left_out(left_out)
        for note in notes.said():
            job.log(note, "warning")
        found = files.finish()
    job.progress_to(job.size_bytes)
    return {
        "format": kind,
        "files": len(found),
        "bytes": sum(file.size_bytes for file in found),
        "skipped": left_out.total(),
        "left_out": {why.name.lower(): number for why, number in left_out.items()},
        "notes": notes.said(),
        "listing": _listing(job, found),
    }


class _Notes:
    """What was changed or guessed of the names, and what was left out, for the summary and the log."""

    def __init__(self) -> None:
        self._guessed, self._absolute, self._unnamed = Counter[str](), 0, 0
        self._left_out: Counter[LeftOut] = Counter()

    def name_of(self, member: Member) -> str:
        """The member's name below the folder of the results."""
        if member.guessed:
            self._guessed[member.guessed] += 1
        name = below(member.name)
        if not name.strip("./\\ "):
            self._unnamed += 1
            return ""
        self._absolute += name != member.name
        return name

    def left_out(self, counts: Counter[LeftOut]) -> None:
        self._left_out = counts

    def said(self) -> list[str]:
        said = [
            f"Nothing says how the names of {_files(number)} are written; they were read as {encoding}, which is a "
            "guess."
            for encoding, number in self._guessed.items()
        ]
        if self._absolute:
            said.append(f"The absolute paths of {_files(self._absolute)} were taken below the folder of the results.")
        if self._unnamed:
            said.append(f"There is no name for {_files(self._unnamed)}: the result is `file`.")
        if macos := self._left_out[LeftOut.MACOS]:
            said.append(f"Left out {_files(macos)} that macOS adds for itself, such as ._names and .DS_Store.")
        if rest := self._left_out.total() - macos:
            whys = ", ".join(
                f"{why} ({number:,})" for why, number in self._left_out.items() if why is not LeftOut.MACOS
            )
            said.append(f"Left out {_files(rest, 'member')}: {whys}.")
        return said


def _files(number: int, what: str = "file") -> str:
    return f"1 {what}" if number == 1 else f"{number:,} {what}s"


class _Counted:
    """Counts what is unpacked over all members, and says how much of the archive has been read."""

    def __init__(self, job: Job, raw: BinaryIO, most_bytes: int) -> None:
        self._job, self._raw, self._most_bytes = job, raw, most_bytes
        self._came = 0

    def pieces(self, of_member: Iterator[bytes]) -> Iterator[bytes]:
        for piece in of_member:
            self._came += len(piece)
            if self._came > self._most_bytes:
                raise too_large(self._most_bytes)
            yield piece
            self._job.progress_to(self._raw.tell())


def _members(job: Job, raw: BinaryIO, most_bytes: int) -> tuple[str, Iterator[Member]]:
    """The archive's kind, told by its content, and its members. Raises BadInput."""
    options: ExtractOptions = job.options
    limits = {"max_files": options.max_files, "max_bytes": most_bytes}
    head = raw.read(BLOCK_BYTES)
    raw.seek(0)
    if not head:
        raise BadInput("The file is empty. Send an archive: .zip, .tar, .tar.gz, .gz, .bz2, .xz or .zst.")
    if other := next((name for magic, name in OTHERS.items() if head.startswith(magic)), None):
        raise BadInput(
            f"This is {other}, which cannot be unpacked here. Unpack it on your machine, and send a .zip, .tar, "
            ".tar.gz or .tar.zst of what is in it."
        )
    packing = packing_of(head)
    if head.startswith((b"PK\3\4", b"PK\5\6")) or (packing is None and not is_tar(head) and ends_as_zip(raw)):
        return "zip", zip_members(Path(job.input_path), raw, memory_bytes=job.memory_bytes, **limits)
    if packing is None and not is_tar(head):
        raise BadInput("This is not an archive that is known here. Send a .zip, .tar, .tar.gz, .gz, .bz2, .xz or .zst.")
    stream = Stream(
        raw,
        packing,
        memory_bytes=job.memory_bytes,
        # A tar has headers too, and members that are left out.
        most_bytes=most_bytes + MEMBER_BYTES * options.max_files,
    )
    if packing is None:
        return "tar", tar_members(stream, **limits)
    if is_tar(stream.peek(BLOCK_BYTES)):
        return f"tar.{packing.name}", tar_members(stream, **limits)
    return packing.name, _only_member(job, packing, stream)


def _only_member(job: Job, packing: Packing, stream: Stream) -> Iterator[Member]:
    name = plain_name(job.filename)
    ending = next((ending for ending in packing.endings if name.lower().endswith(ending)), "")
    name = name[: len(name) - len(ending)] or "file"
    yield Member(name, folder=False, left_out=None, pieces=iter(lambda: stream.read(PIECE_BYTES), b""))


def _listing(job: Job, files: Sequence[Unpacked]) -> list[dict[str, Any]]:
    """What the summary has room for. Where that is not all of it, all of it is a result."""
    listing, left_bytes = [], LISTED_BYTES
    for file in files[:LISTED_FILES]:
        entry = {"name": _cut(file.name), "size_bytes": file.size_bytes, "file": file.file}
        if (left_bytes := left_bytes - len(json.dumps(entry))) < 0:
            break
        listing.append(entry)
    if len(listing) < len(files):
        with job.create_output(LISTING, "application/json") as output:
            output.write(json.dumps([asdict(file) for file in files], indent=1).encode())
    return listing


def _cut(name: str) -> str:
    """As it can be shown and kept: a name in an archive may be any bytes."""
    name = name.encode(errors="replace").decode()
    return name if len(name) <= NAME_CHARACTERS else name[: NAME_CHARACTERS - 1] + "…"
