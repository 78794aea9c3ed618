"""An attempt's results, taken out of the folder that a stranger wrote: measured, then moved, then read.

Each is opened by its name alone, never through a link, and must be a plain file with no second name. It is moved into a
folder that no child has ever seen, and only then hashed; where somebody still has it open for writing, which the kernel
says (a lease, fcntl(2)), what counts is a copy. So what was hashed is what is served. All of it is blocking; `stop`
is looked at between two chunks and ends it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mimetypes
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from headway.shared.errors import BadInput, HeadwayError
from headway.shared.files.storage import CHUNK_BYTES, StoredResult, check_result_name
from headway.shared.files.trees import size_of

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE_MODE: Final = 0o600
_HOLE: Final = bytes(CHUNK_BYTES)


class Stopped(HeadwayError):
    """Nobody wants the results any more."""


def take_outputs(
    scratch: Path,
    names: Mapping[str, str | None],
    kept: Path,
    *,
    check: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> list[StoredResult]:
    """Moves the outputs, name to content type, from `scratch` to `kept`, a new folder on the same disk, hashed and
    fsynced. `check` is asked with their size in bytes before one is read. Raises BadInput, Stopped, what `check` does.
    """
    stop = stop or threading.Event()
    with _folder(scratch) as theirs:
        check(sum(size_of(_plain(name, theirs)) for name in names))
        kept.mkdir(mode=0o700)
        found = []
        with _folder(kept) as ours:
            for name, content_type in names.items():
                os.rename(name, name, src_dir_fd=theirs, dst_dir_fd=ours)
                size_bytes, digest = _read(name, ours, stop)
                guessed = content_type or mimetypes.guess_type(name)[0] or "application/octet-stream"
                found.append(StoredResult(name, size_bytes, guessed, digest))
            os.fsync(ours)
    return found


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _plain(name: str, folder: int) -> os.stat_result:
    """Raises BadInput where it is no file of its own."""
    try:
        found = os.stat(check_result_name(name), dir_fd=folder, follow_symlinks=False)
    except OSError:
        raise BadInput(f"The processor named an output that it did not write: {name!r}.") from None
    _check(found, name)
    return found


def _check(found: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise BadInput(f"The processor named an output that it did not write: {name!r}.")
    if found.st_nlink != 1:
        raise BadInput(f"The processor named an output that is also another file: {name!r}.")


def _read(name: str, folder: int, stop: threading.Event) -> tuple[int, str]:
    file = _open(name, folder)
    try:
        found = os.fstat(file)
        _check(found, name)
        os.fchmod(file, _FILE_MODE)
        if is_being_written(file, where_unknown=True):
            return _copy(file, found.st_size, name, folder, stop)
        digest = hashlib.sha256()
        for data in _chunks(file, found.st_size, stop):
            digest.update(data)
        os.fsync(file)
        return found.st_size, digest.hexdigest()
    finally:
        os.close(file)


def _open(name: str, folder: int) -> int:
    try:
        return os.open(name, _READ, dir_fd=folder)
    except PermissionError:  # its maker took the right to read it away, and we own it; a link is refused above
        os.chmod(name, _FILE_MODE, dir_fd=folder)
        return os.open(name, _READ, dir_fd=folder)


def is_being_written(file: int, *, where_unknown: bool = False) -> bool:
    """Whether anybody has it open for writing; `where_unknown` where the kernel does not say. `file` is open for
    reading alone."""
    try:
        # Whoever opens it while we hold the lease is told to us by a signal, which must be none that ends us.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except AttributeError:
        return where_unknown
    except OSError as error:
        return True if error.errno == errno.EAGAIN else where_unknown
    return False


def _copy(file: int, size_bytes: int, name: str, folder: int, stop: threading.Event) -> tuple[int, str]:
    """A file of the same name in its place, which nobody but us has open."""
    digest = hashlib.sha256()
    os.unlink(name, dir_fd=folder)
    copy = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE, dir_fd=folder)
    try:
        copied = 0
        for data in _chunks(file, size_bytes, stop):
            digest.update(data)
            if data != _HOLE:  # a hole stays one
                view = memoryview(data)
                at = copied
                while view:
                    count = os.pwrite(copy, view, at)
                    at, view = at + count, view[count:]
            copied += len(data)
        os.ftruncate(copy, copied)
        os.fsync(copy)
    finally:
        os.close(copy)
    return copied, digest.hexdigest()


def _chunks(file: int, size_bytes: int, stop: threading.Event) -> Iterator[bytes]:
    at = 0
    while at < size_bytes:
        if stop.is_set():
            raise Stopped
        data = os.pread(file, min(CHUNK_BYTES, size_bytes - at), at)
        if not data:
            raise BadInput("An output became shorter while it was read.")
        yield data
        at += len(data)
