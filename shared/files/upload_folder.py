"""The bytes of one upload that comes in pieces, on a disk: a file has one writer, whoever else believes to be it.

    DATA/partial/{task_id}-upload/{birth}             at rest
    DATA/partial/{task_id}-upload/{birth}.{writer}    somebody writes to it

The lock in Redis (api/uploads/upload_lock.py) says who may write, and runs out: a process that was stopped, or a disk
that hangs, goes on writing when it wakes. So a file's name says whose it is. Who takes a file at rest renames it. Who
finds one with a writer takes the name away from that writer, copies what is there and goes on with the copy: what the
old one still writes ends in a file without a name, and it can neither put to rest nor commit what it has no name for.

`birth` stays through all copies, and a file's bytes below the size at which it was taken never change: so two files of
one birth hold the same bytes wherever both have some. All of it is blocking.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from headway.shared.errors import UploadBusy
from headway.shared.files.trees import remove_whole

#: Copied at a time: soon done, so that whoever waits for it is not kept.
COPIED_BYTES: Final = 64 * 1024 * 1024
_READ_BYTES: Final = 1024 * 1024

_FILE: Final = re.compile(r"[0-9a-f]{16}(\.[0-9a-f]{16})?")
#: What `os.copy_file_range` answers where a file system or a kernel does not have it.
_CANNOT_COPY: Final = {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EIO}

TAKEN_OVER: Final = (
    "Another request took this upload over, because this one was silent for too long. Ask for its offset, and go on."
)


class UploadFolder:
    """`older` is where a version before this one kept the file of this upload."""

    def __init__(self, folder: Path, older: Path) -> None:
        self._folder = folder
        self._older = older

    def size_and_time(self) -> tuple[int, float]:
        """Bytes, and when they were last written to; 0 where there are none."""
        while files := self._files():
            with suppress(FileNotFoundError):  # taken, or put to rest, in this moment
                stat = files[0].stat()
                return stat.st_size, stat.st_mtime
        return 0, 0.0

    def _files(self) -> list[Path]:
        """The file of this upload, and what else lies there. Several files are left only by those who were stopped in
        the middle of taking one: each is some writer's own, and the longest comes first."""
        found = []
        with suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                with suppress(FileNotFoundError):
                    found.append((path.stat().st_size, path))
        ours = sorted((one for one in found if _FILE.fullmatch(one[1].name)), reverse=True)
        files = [path for _, path in ours] or ([self._older] if self._older.exists() else [])
        return files + [path for _, path in found if not _FILE.fullmatch(path.name)] if files else []

    def take(self) -> tuple[Path, bool]:
        """The file, empty where there was none, under a name that is the caller's own; and whether it had a writer, so
        that it is to be copied before it is written to."""
        writer = secrets.token_hex(8)
        while True:
            files: list[Path] = self._files()
            found = files[0] if files else None
            name = "" if found in (None, self._older) else files[0].name
            birth = name.partition(".")[0] or secrets.token_hex(8)
            mine = self._folder / f"{birth}.{writer}"
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):  # it, or the folder, went in this moment
                if found is None:
                    os.close(os.open(mine, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_WRONLY, 0o600))
                else:
                    found.rename(mine)
                for other in files[1:]:  # those that were there before: what has come since is somebody's
                    other.unlink(missing_ok=True)
                return mine, "." in name

    def copy_of(self, mine: Path) -> Copy:
        return Copy(mine, self._folder / f"copy-{secrets.token_hex(8)}")

    def replace(self, mine: Path, copy: Path) -> Path:
        """Puts a whole copy in the place of `mine`; its name then. Raises UploadBusy where it is not the caller's."""
        replacing = self._folder / f"{mine.name.partition('.')[0]}.{secrets.token_hex(8)}"
        try:
            copy.rename(replacing)
            mine.unlink()
        except FileNotFoundError:
            replacing.unlink(missing_ok=True)
            raise UploadBusy(TAKEN_OVER) from None
        return replacing

    def rest(self, mine: Path) -> None:
        """The caller writes no more, and has closed it. Raises UploadBusy where it is the caller's no more."""
        try:
            if mine.stat().st_size == 0:
                mine.unlink()
                self._remove_if_empty()
            else:
                mine.rename(self._folder / mine.name.partition(".")[0])
        except FileNotFoundError:
            raise UploadBusy(TAKEN_OVER) from None

    def commit(self, mine: Path, final: Path) -> None:
        """It is whole. Raises UploadBusy where it is the caller's no more."""
        final.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            mine.rename(final)
        except FileNotFoundError:
            raise UploadBusy(TAKEN_OVER) from None
        self._remove_if_empty()

    def bring_back(self, final: Path, mine: Path) -> None:
        """Undoes a commit that nobody was told of."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        final.rename(mine)

    def remove(self, mine: Path) -> None:
        mine.unlink(missing_ok=True)
        self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        with suppress(OSError):
            self._folder.rmdir()

    def discard(self) -> None:
        """All of it, whoever writes."""
        remove_whole(self._folder)
        self._older.unlink(missing_ok=True)


class Copy:
    """A copy on its way. `close` leaves nothing open, nor of the copy what is not in its place."""

    def __init__(self, path: Path, to: Path) -> None:
        self.path = to
        self._from = path
        self._files: list[int] = []
        self._position = 0

    def begin(self) -> int:
        """How many bytes it will have, or more where somebody still writes to what is copied. Raises UploadBusy."""
        try:
            self._files.append(os.open(self._from, os.O_RDONLY | os.O_CLOEXEC))
            self._files.append(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except FileNotFoundError:
            raise UploadBusy(TAKEN_OVER) from None
        return os.fstat(self._files[0]).st_size

    def go_on(self) -> bool:
        """Copies some; False at the end."""
        count = _copy(self._files[0], self._files[1], self._position)
        self._position += count
        return count > 0

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())
        self.path.unlink(missing_ok=True)


def _copy(source: int, target: int, position: int) -> int:
    """Where the file system can, without reading."""
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, COPIED_BYTES, position, position)
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
    data = os.pread(source, _READ_BYTES, position)
    written = 0
    while written < len(data):
        written += os.pwrite(target, memoryview(data)[written:], position + written)
    return written
