"""Files on their way out of an archive: staged one by one, then made results, or one result if they are many.

A staged file is named by its member's place in the archive, so nothing from outside is part of a path. Whoever enters
it leaves no staged file behind. There is no checkpoint: each attempt has a folder of its own, without the files of the
one before it. Disk errors are the operating system's.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from headway.shared.tasks.processors import Job
from headway.worker.processors.result_names import Names, plain_name

#: Of more files than this nobody wants as many links: they are one result, not compressed, with their folders.
SEPARATE_FILES: Final = 500

PACKED: Final = "files.zip"
LISTING: Final = "listing.json"

#: In the working directory, which is the attempt's own output folder. No result's name begins with a dot.
STAGING: Final = ".unpacked"


@dataclass(frozen=True, slots=True)
class Unpacked:
    """`name` is the one in the archive, `file` the result's."""

    name: str
    size_bytes: int
    file: str


class UnpackedFiles:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._staging = Path(STAGING)
        self._staged: list[tuple[str, int, Path]] = []  # name, size, place
        self._packed: list[Unpacked] = []
        self._zip: zipfile.ZipFile | None = None
        self._names = Names(PACKED.casefold(), LISTING)

    def __enter__(self) -> Self:
        self._staging.mkdir(exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()
        shutil.rmtree(self._staging, ignore_errors=True)

    def add(self, number: int, name: str, pieces: Iterable[bytes]) -> None:
        """Writes a member, the `number`th of the archive from 1 on."""
        if len(self._staged) == SEPARATE_FILES:
            self._pack_what_is_staged()
        if self._zip is not None:
            self._pack(name, pieces)
            return
        place = self._staging / str(number)
        with place.open("wb") as file:
            size_bytes = sum(file.write(piece) for piece in pieces)
        self._staged.append((name, size_bytes, place))

    def has(self, name: str) -> bool:
        """Whether a copy of that member can be had: not of what is in the one packed result already."""
        return any(staged == name for staged, _, _ in self._staged)

    def pieces_of(self, name: str) -> Iterator[bytes]:
        place = next(place for staged, _, place in self._staged if staged == name)
        with place.open("rb") as file:
            while piece := file.read(1024 * 1024):
                yield piece

    def finish(self) -> list[Unpacked]:
        """Makes what was added the task's results."""
        if self._zip is not None:
            self._zip.close()
            return self._packed
        found = []
        for name, size_bytes, place in self._staged:
            file = self._names.give(plain_name("/".join(_parts(name))))
            shutil.move(place, self._job.output_path(file))
            found.append(Unpacked(name, size_bytes, file))
        return found

    def _pack_what_is_staged(self) -> None:
        self._zip = zipfile.ZipFile(self._job.output_path(PACKED, "application/zip"), "w")
        self._job.log(f"More than {SEPARATE_FILES} files: they are put into {PACKED}")
        for name, _, place in self._staged:
            with place.open("rb") as file:
                self._pack(name, iter(lambda file=file: file.read(1024 * 1024), b""))  # type: ignore[misc]
            place.unlink()
        self._staged.clear()

    def _pack(self, name: str, pieces: Iterable[bytes]) -> None:
        assert self._zip is not None
        parts = [plain_name(part) for part in _parts(name)]
        entry = zipfile.ZipInfo(self._names.give("/".join(parts) or "file"))  # the date of all is 1980: none is known
        with self._zip.open(entry, "w", force_zip64=True) as file:
            size_bytes = sum(file.write(piece) for piece in pieces)
        self._packed.append(Unpacked(name, size_bytes, PACKED))


def _parts(name: str) -> list[str]:
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
