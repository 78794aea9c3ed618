"""The data directory: shared/storage.py's place of files on a disk that API and workers share.

    DATA/tasks/{task_id}/input-{random}      what was uploaded; the task's state names the one that counts
    DATA/tasks/{task_id}/result-{attempt}/…  what the attempt made
    DATA/partial/…                           what is still being written; nothing reads it

A file is written under `partial/`, fsynced and renamed. Disk work runs in threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from shared.errors import BadInput, SettingsError, StorageFull, UnknownFile
from shared.logging import get_logger
from shared.models import TaskId
from shared.outputs import is_being_written, take_outputs
from shared.storage import (
    CHUNK_BYTES,
    Partial,
    StoredFile,
    StoredResult,
    TaskFolder,
    check_result_name,
    full_disk_is_said,
)
from shared.trees import remove_tree

log = get_logger(__name__)
T = TypeVar("T")

#: Results that are hashed and folders that are removed at once: each may take minutes.
LARGE_AT_ONCE: Final = 8
#: Entries of a folder that one hop to a thread reads.
_LISTED: Final = 500

_PARTIAL = re.compile(r"([0-9a-f]{32})-(input|[0-9]+)-[0-9a-f]+")
_Entry = tuple[os.DirEntry[str], os.stat_result]


#: What is left free where no setting says it: little enough for a small disk, enough for Redis and logs on a large one.
_RESERVE_SHARE: Final = 0.01
_RESERVE_BYTES: Final = 256 * 1024**2


class DirectoryStorage:
    """A shared.storage.Storage."""

    def __init__(self, data_dir: Path, reserve_bytes: int | None = None) -> None:
        self._data = data_dir.absolute()
        self._tasks = data_dir.absolute() / "tasks"
        self._partial = data_dir.absolute() / "partial"
        self._reserve_bytes = reserve_bytes

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(LARGE_AT_ONCE, thread_name_prefix="files")

    def prepare(self) -> None:
        try:
            for folder in (self._data, self._tasks, self._partial):
                _make_folder(folder)
                _close_to_others(folder)
            probe = self._partial / f"probe-{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise SettingsError(
                f"HEADWAY_DATA_DIR: {self._data} cannot be written ({error.strerror}). Example: HEADWAY_DATA_DIR=./data"
            ) from None

    async def check_room(self, size_bytes: int) -> None:
        await asyncio.to_thread(check_room, self._partial, size_bytes, self._reserve_bytes)

    # Inputs.

    def upload(self, task_id: TaskId) -> DirectoryUpload:
        name = _input_name()
        partial, final = self._partial / f"{task_id}-{name}", self._tasks / task_id / name
        return DirectoryUpload(partial, final, reserve_bytes=self._reserve_bytes)

    async def resume(self, task_id: TaskId) -> DirectoryUpload:
        received = await self.received(task_id)
        partial, final = self._resumable(task_id), self._tasks / task_id / _input_name()
        return DirectoryUpload(partial, final, received, self._reserve_bytes)

    async def received(self, task_id: TaskId) -> int:
        return await asyncio.to_thread(_size_of, self._resumable(task_id))

    async def stored(self, task_id: TaskId, start: int, end: int) -> AsyncIterator[bytes]:
        file = await asyncio.to_thread(DiskFile.at, self._resumable(task_id))
        async for data in file.read(start, end):
            yield data

    async def discard_upload(self, task_id: TaskId) -> None:
        await asyncio.to_thread(self._resumable(task_id).unlink, missing_ok=True)

    def _resumable(self, task_id: TaskId) -> Path:
        return self._partial / f"{task_id}-input-0"

    async def input(self, task_id: TaskId, name: str | None) -> DiskFile:
        return await asyncio.to_thread(DiskFile.at, self._input_path(task_id, name))

    @asynccontextmanager
    async def local_input(self, task_id: TaskId, name: str | None) -> AsyncIterator[Path]:
        path = self._input_path(task_id, name)
        await asyncio.to_thread(DiskFile.at, path)
        yield path

    def _input_path(self, task_id: TaskId, name: str | None) -> Path:
        return self._tasks / task_id / (name or "input")

    # Results.

    async def scratch(self, task_id: TaskId, attempt: int) -> Path:
        await self.check_room(0)
        folder = self.new_scratch(task_id, attempt)
        with full_disk_is_said():
            await asyncio.to_thread(_make_folder, folder)
        return folder

    def new_scratch(self, task_id: TaskId, attempt: int) -> Path:
        """A name for one that is not made yet."""
        return self._partial / f"{task_id}-{attempt}-{secrets.token_hex(4)}"

    async def discard(self, scratch: Path) -> None:
        await self._in_thread(_remove, scratch)

    async def take(
        self, scratch: Path, names: Mapping[str, str | None], kept: Path, check: Callable[[int], None]
    ) -> list[StoredResult]:
        """shared.outputs.take_outputs, in a thread that ends soon when this is cancelled."""
        stop = threading.Event()

        def take() -> list[StoredResult]:
            with full_disk_is_said():
                return take_outputs(scratch, names, kept, check=check, stop=stop)

        return await self._in_thread(take, stop=stop)

    async def _in_thread(self, function: Callable[..., T], *args: Any, stop: threading.Event | None = None) -> T:
        """In one of the threads for what a stranger made large, which others do not wait for. A thread does not stop
        by itself, and whoever tidies up next must find all that it does done."""
        working = asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            if stop is not None:
                stop.set()
            while not working.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([working])
            working.cancelled() or working.exception()
            raise

    async def keep_results(
        self,
        task_id: TaskId,
        attempt: int,
        scratch: Path,
        names: Mapping[str, str | None],
        check: Callable[[int], None] = lambda _: None,
    ) -> list[StoredResult]:
        kept = self.new_scratch(task_id, attempt)
        try:
            found = await self.take(scratch, names, kept, check)
            if found:
                await self._in_thread(self._into_place, kept, self._result_folder(task_id, attempt))
        finally:
            await asyncio.shield(self.discard(kept))
        await self.discard(scratch)
        return found

    def _into_place(self, kept: Path, final: Path) -> None:
        with full_disk_is_said():
            _make_folder(final.parent)
            _remove(final)
            kept.replace(final)
            _fsync_folder(final.parent)

    async def discard_results(self, task_id: TaskId, attempt: int) -> None:
        await self._in_thread(_remove, self._result_folder(task_id, attempt))

    async def result(self, task_id: TaskId, attempt: int, name: str) -> DiskFile:
        try:
            path = self._result_folder(task_id, attempt) / check_result_name(name)
        except BadInput:
            raise UnknownFile from None
        return await asyncio.to_thread(DiskFile.at, path)

    def _result_folder(self, task_id: TaskId, attempt: int) -> Path:
        return self._tasks / task_id / f"result-{attempt}"

    # Removing.

    async def delete(self, task_id: TaskId) -> None:
        await self._in_thread(_remove, self._tasks / task_id)
        await self.discard_upload(task_id)

    async def partials(self) -> AsyncIterator[Partial]:
        now = await asyncio.to_thread(_clock_of, self._partial)
        async for entry, found in _entries(self._partial):
            if (name := _PARTIAL.fullmatch(entry.name)) is not None:
                attempt = None if name[2] == "input" else int(name[2])
                yield Partial(entry.path, TaskId(name[1]), attempt, found.st_size, now - found.st_mtime)

    async def task_folders(self) -> AsyncIterator[TaskFolder]:
        now = await asyncio.to_thread(_clock_of, self._partial)
        async for entry, found in _entries(self._tasks):
            if re.fullmatch(r"[0-9a-f]{32}", entry.name):
                yield TaskFolder(TaskId(entry.name), now - found.st_mtime)

    async def remove(self, partial: Partial) -> bool:
        path = Path(partial.name)
        if partial.attempt is not None:
            await self.discard(path)
            return True
        return await asyncio.to_thread(_remove_unless_written, path)


class DirectoryUpload:
    """A shared.storage.Upload. Each byte has its own place in the file, so whoever writes it twice changes nothing."""

    def __init__(self, partial: Path, final: Path, received: int = 0, reserve_bytes: int | None = None) -> None:
        self._partial = partial
        self._final = final
        self._reserve_bytes = reserve_bytes
        self._committed = False
        self._file: int | None = None
        #: Of all that was written; None where earlier bytes were not seen, so the file is read at the end.
        self._hash = hashlib.sha256() if received == 0 else None
        self._pending = bytearray()
        self._writing: asyncio.Task[None] | None = None
        self._written = received
        self.size_bytes = received

    async def write(self, data: bytes) -> None:
        self._pending += data
        self.size_bytes += len(data)
        if len(self._pending) >= CHUNK_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        await self._settle()
        chunk, self._pending = self._pending, bytearray()
        self._writing = asyncio.create_task(asyncio.to_thread(self._write_now, chunk))

    async def _settle(self) -> None:
        if self._writing is not None:
            # Shielded, and forgotten only when done: whoever gives up here leaves it to `abort`, which waits for it.
            writing = self._writing
            try:
                await asyncio.shield(writing)
            finally:
                if writing.done():
                    self._writing = None

    def _write_now(self, chunk: bytearray) -> None:
        with full_disk_is_said():
            file = self._opened()
            check_room(self._partial, len(chunk), self._reserve_bytes)
            view = memoryview(chunk)
            while view:
                count = os.pwrite(file, view, self._written)
                self._written += count
                view = view[count:]
        if self._hash is not None:
            self._hash.update(chunk)

    def _opened(self) -> int:
        if self._file is None:
            _make_folder(self._partial.parent)
            self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._file

    async def rewind(self, size_bytes: int) -> None:
        await self._flush()
        await self._settle()
        await asyncio.to_thread(os.ftruncate, self._opened(), size_bytes)
        self._written = self.size_bytes = size_bytes
        self._hash = hashlib.sha256() if size_bytes == 0 else None

    async def pause(self) -> None:
        try:
            await self._flush()
            await self._settle()
        finally:
            await asyncio.to_thread(self._close)

    async def commit(self) -> StoredFile:
        await self._flush()
        await self._settle()
        digest = await asyncio.to_thread(self._commit_now)
        self._committed = True
        return StoredFile(self._final.name, self.size_bytes, digest)

    def _commit_now(self) -> str:
        with full_disk_is_said():
            file = self._opened()
            digest = self._hash.hexdigest() if self._hash is not None else _digest(self._partial)
            os.fsync(file)
            self._close()
            _make_folder(self._final.parent)
            self._partial.replace(self._final)
            _fsync_folder(self._final.parent)
        return digest

    async def abort(self) -> None:
        if self._writing is not None:
            with suppress(Exception):
                await asyncio.shield(self._writing)
        await asyncio.to_thread(self._abort_now)

    def _abort_now(self) -> None:
        self._close()
        self._partial.unlink(missing_ok=True)
        if self._committed:
            self._final.unlink(missing_ok=True)
            with suppress(OSError):
                self._final.parent.rmdir()

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A shared.storage.StoredObject."""

    path: Path
    size_bytes: int
    modified_at: float

    @classmethod
    def at(cls, path: Path) -> DiskFile:
        """Raises UnknownFile. Blocking."""
        try:
            found = path.lstat()
        except OSError:
            raise UnknownFile("The file has not been uploaded, or is gone.") from None
        if not path.is_file() or path.is_symlink():
            raise UnknownFile("The file has not been uploaded, or is gone.")
        return cls(path, found.st_size, found.st_mtime)

    async def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        try:
            file = await asyncio.to_thread(self.path.open, "rb", buffering=0)
        except OSError:
            raise UnknownFile from None
        with file:
            position = start
            while position < end:
                data = await asyncio.to_thread(os.pread, file.fileno(), min(CHUNK_BYTES, end - position), position)
                if not data:
                    raise UnknownFile("The file became shorter while it was read.")
                position += len(data)
                yield data


def check_room(place: Path, size_bytes: int, reserve_bytes: int | None) -> None:
    """Raises StorageFull where so much more would leave less than the reserve on the disk of `place`. Blocking."""
    try:
        disk = os.statvfs(place)
    except FileNotFoundError:
        return  # whoever writes here says what is wrong
    if reserve_bytes is None:
        reserve_bytes = min(_RESERVE_BYTES, int(disk.f_blocks * disk.f_frsize * _RESERVE_SHARE))
    if size_bytes + reserve_bytes > disk.f_bavail * disk.f_frsize:
        raise StorageFull


def _make_folder(folder: Path) -> None:
    """For this user alone: what is in it is its owners', and other users of the machine are none."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _close_to_others(folder: Path) -> None:
    """One of before, or one that somebody made. Not a folder that is everybody's, as /tmp is."""
    found = folder.stat()
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) and not found.st_mode & stat.S_ISVTX:
        with suppress(PermissionError):  # another user's, who lets us in
            folder.chmod(found.st_mode & stat.S_IRWXU)


def _clock_of(folder: Path) -> float:
    """The time by the clock that stamps its files, which may be another machine's. Blocking."""
    os.utime(folder)
    return folder.stat().st_mtime


def _remove(folder: Path) -> None:
    """What cannot be removed is said, and stays."""
    errors: list[OSError] = []
    remove_tree(folder, errors.append)
    if errors:
        log.warning("files cannot be removed", folder=folder.name, count=len(errors), reason=errors[0].strerror)


def _remove_unless_written(path: Path) -> bool:
    """Anybody may say that a file is old (utime). Whether somebody writes to it, the kernel says."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:  # no file that we could be writing to
        path.unlink(missing_ok=True)
        return True
    try:
        if is_being_written(file):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(file)


def _input_name() -> str:
    return f"input-{secrets.token_hex(8)}"


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _entries(folder: Path) -> AsyncIterator[_Entry]:
    entries = await asyncio.to_thread(os.scandir, folder)
    with entries:
        while page := await asyncio.to_thread(_next_page, entries):
            for entry in page:
                yield entry


def _next_page(entries: Iterator[os.DirEntry[str]]) -> list[_Entry]:
    page = []
    for entry in islice(entries, _LISTED):
        with suppress(FileNotFoundError):  # gone since it was listed
            page.append((entry, entry.stat(follow_symlinks=False)))
    return page


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
