"""The sha256 of files that others put there and may change (HEADWAY_FILES_DIR), computed once while they stay.

A digest is kept by what the file system says of the file: path, device, inode, size, time of its last change. A file
that changes while it is read has none. One file is read by one thread however many ask for it. Closed by the lifespan:
what is still being read then is given up.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

from headway.shared.cancellation import cancel
from headway.shared.errors import UnknownFile
from headway.shared.files.directory import DiskFile, open_to_read
from headway.shared.files.disk import disk_faults, on_disk

#: Files whose digests are kept: 200 bytes each.
KEPT: Final = 1000
#: Threads that read at once. Others of the pool stay free for those who only need a disk for a moment.
READERS: Final = 2
_CHUNK_BYTES: Final = 1024 * 1024

#: Device, inode, size, time of the last change in nanoseconds.
Identity = tuple[int, int, int, int]


class FileDigests:
    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Path, Identity], str] = OrderedDict()
        self._reading: dict[tuple[Path, Identity], asyncio.Task[str | None]] = {}
        self._readers = asyncio.Semaphore(READERS)
        self._closed = False

    async def __aenter__(self) -> FileDigests:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        await cancel(*self._reading.values())

    async def of(self, path: Path) -> tuple[DiskFile, str | None]:
        """The file, and its digest; None if it was being changed. Raises UnknownFile for what is not a plain file,
        STORAGE_FAULTS."""
        found = await on_disk(_stat_of, path)
        key = path, _identity(found)
        if (digest := self._known.get(key)) is not None:
            self._known.move_to_end(key)
        else:
            if (reading := self._reading.get(key)) is None:
                reading = self._reading[key] = asyncio.create_task(self._read(key), name="digest")
                reading.add_done_callback(lambda done: self._forget(key, done))
            # Shielded: others may wait for it too, and the next who asks wants it done.
            digest = await asyncio.shield(reading)
        return DiskFile(path, found.st_size, found.st_mtime), digest

    def _forget(self, key: tuple[Path, Identity], done: asyncio.Task[str | None]) -> None:
        del self._reading[key]
        if not done.cancelled():
            done.exception()  # told to whoever waited; where nobody did any more, it is nobody's

    async def _read(self, key: tuple[Path, Identity]) -> str | None:
        async with self._readers:
            with disk_faults(key[0]):
                digest = await asyncio.to_thread(self._digest, *key)
        if digest is not None:
            self._known[key] = digest
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return digest

    def _digest(self, path: Path, identity: Identity) -> str | None:
        """None where the file was not the same one, unchanged, from the first byte to the last."""
        digest = hashlib.sha256()
        buffer = bytearray(_CHUNK_BYTES)
        with _opened(path) as file:
            if _identity(os.fstat(file)) != identity:
                return None
            while (size := os.readv(file, [buffer])) and not self._closed:
                digest.update(memoryview(buffer)[:size])
            same = _identity(os.fstat(file)) == identity
        return digest.hexdigest() if same and not self._closed else None


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _stat_of(path: Path) -> os.stat_result:
    try:
        found = path.lstat()
    except (FileNotFoundError, ValueError):
        raise UnknownFile from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UnknownFile from None
        raise
    if not stat.S_ISREG(found.st_mode):
        raise UnknownFile
    return found


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = open_to_read(path)
    try:
        yield file
    finally:
        os.close(file)
