"""The data directory: shared/files/storage.py's place of files on a disk that API and workers share.

    DATA/tasks/{task_id}/input-{random}      what was uploaded; the task's state names the one that counts
    DATA/tasks/{task_id}/result-{attempt}-{claim}/…  what the attempt made
    DATA/partial/…                           what is still being written; nothing reads it
    DATA/partial/{task_id}-upload/…          an upload that comes in pieces (shared/files/upload_folder.py)

A file is written under `partial/`, fsynced and renamed. Disk work runs in threads; what may go wrong there is named in
shared/files/disk.py. The two folders are made at the start and never again: where they have gone, a disk is not
mounted, and files must not be written to what lies under it.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import secrets
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from headway.shared.errors import BadInput, SettingsError, StorageFull, UnknownFile, UploadBusy
from headway.shared.files.disk import (
    STORAGE_FAULTS,
    change_on_disk,
    disk_faults,
    on_disk,
    told_by_the_system,
)
from headway.shared.files.outputs import is_being_written, take_outputs
from headway.shared.files.storage import (
    CHUNK_BYTES,
    Partial,
    StoredFile,
    StoredObject,
    StoredResult,
    TaskFolder,
    attempt_of,
    check_result_name,
    copied,
)
from headway.shared.files.trees import remove_whole
from headway.shared.files.upload_folder import TAKEN_OVER, UploadFolder
from headway.shared.logging import get_logger
from headway.shared.tasks.models import TaskId

log = get_logger(__name__)
T = TypeVar("T")

#: Results that are hashed and folders that are removed at once: each may take minutes.
LARGE_AT_ONCE: Final = 8
#: Entries of a folder that one hop to a thread reads.
_LISTED: Final = 500
#: Read at once for a digest: soon done, so that whoever waits for it is not kept.
_SEEN_BYTES: Final = 64 * CHUNK_BYTES

_PARTIAL = re.compile(r"([0-9a-f]{32})-(input|[0-9]+)-[0-9a-f]+")
_UPLOAD = re.compile(r"([0-9a-f]{32})-upload")
_Entry = tuple[os.DirEntry[str], os.stat_result]


#: What is left free where no setting says it: little enough for a small disk, enough for Redis and logs on a large one.
_RESERVE_SHARE: Final = 0.01
_RESERVE_BYTES: Final = 256 * 1024**2


class _CannotLink(Exception):
    """The file system has no second names for a file, or not for this one."""


class DirectoryStorage:
    """A headway.shared.files.storage.Storage."""

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

    async def check(self) -> None:
        await on_disk(self._check_now)

    def _check_now(self) -> None:
        self._is_there()
        with tempfile.TemporaryFile(dir=self._partial):
            check_capacity(self._partial, 0, self._reserve_bytes)

    def _is_there(self) -> None:
        """A file that is not there may never have been. Where the whole place has gone, nobody can say."""
        for folder in (self._tasks, self._partial):
            (folder / ".").stat()  # a file in its place has no `.`

    async def check_capacity(self, size_bytes: int) -> None:
        await on_disk(check_capacity, self._partial, size_bytes, self._reserve_bytes)

    # Inputs.

    def upload(self, task_id: TaskId) -> DirectoryUpload:
        name = _input_name()
        partial, final = self._partial / f"{task_id}-{name}", self._tasks / task_id / name
        return DirectoryUpload(partial, final, reserve_bytes=self._reserve_bytes)

    async def resume(self, task_id: TaskId) -> ResumedUpload:
        final = self._tasks / task_id / _input_name()
        return await ResumedUpload.take(self._upload_folder(task_id), final, self._reserve_bytes)

    async def received(self, task_id: TaskId) -> int:
        size_bytes, _ = await on_disk(self._size_and_time, task_id)
        return size_bytes

    def _size_and_time(self, task_id: TaskId) -> tuple[int, float]:
        found = self._upload_folder(task_id).size_and_time()
        if not found[0]:
            self._is_there()
        return found

    async def discard_upload(self, task_id: TaskId) -> None:
        await change_on_disk(self._upload_folder(task_id).discard)

    def _upload_folder(self, task_id: TaskId) -> UploadFolder:
        return UploadFolder(self._partial / f"{task_id}-upload", self._partial / f"{task_id}-input-0")

    async def input(self, task_id: TaskId, name: str | None) -> DiskFile:
        return await on_disk(self._found, self._input_path(task_id, name))

    def _found(self, path: Path) -> DiskFile:
        try:
            return DiskFile.at(path)
        except UnknownFile:
            self._is_there()
            raise

    async def take_over(self, content: StoredObject, task_id: TaskId, sha256: str) -> StoredFile:
        """By a second name for it, where the file system has those."""
        assert isinstance(content, DiskFile)
        name = _input_name()
        try:
            await change_on_disk(self._link, content.path, self._tasks / task_id / name)
        except _CannotLink:
            return await copied(content, self.upload(task_id))
        return StoredFile(name, content.size_bytes, sha256)

    def _link(self, path: Path, final: Path) -> None:
        final.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            os.link(path, final, follow_symlinks=False)
        except FileNotFoundError:
            raise UnknownFile from None
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise _CannotLink from None
            raise
        _fsync_folder(final.parent)

    @asynccontextmanager
    async def local_input(self, task_id: TaskId, name: str | None) -> AsyncIterator[Path]:
        path = self._input_path(task_id, name)
        await on_disk(self._found, path)
        yield path

    def _input_path(self, task_id: TaskId, name: str | None) -> Path:
        return self._tasks / task_id / (name or "input")

    # Results.

    async def scratch(self, task_id: TaskId, attempt: int) -> Path:
        await self.check_capacity(0)
        folder = self.new_scratch(task_id, attempt)
        await on_disk(folder.mkdir, 0o700)
        return folder

    def new_scratch(self, task_id: TaskId, attempt: int) -> Path:
        """A name for one that is not made yet."""
        return self._partial / f"{task_id}-{attempt}-{secrets.token_hex(4)}"

    async def open_growing(self, scratch: str, name: str) -> int:
        if not re.fullmatch(r"[0-9a-f]{32}-\d+-[0-9a-f]{8}", scratch):
            raise UnknownFile
        try:
            path = self._partial / scratch / check_result_name(name)
        except BadInput:
            raise UnknownFile from None
        return await on_disk(_open_file, path)

    async def discard(self, scratch: Path) -> None:
        await self._in_thread(remove_whole, scratch)

    async def take(
        self, scratch: Path, names: Mapping[str, str | None], kept: Path, check: Callable[[int], None]
    ) -> list[StoredResult]:
        """headway.shared.files.outputs.take_outputs, in a thread that ends soon when this is cancelled."""
        stop = threading.Event()

        def take() -> list[StoredResult]:
            self._is_there()
            return take_outputs(scratch, names, kept, check=check, stop=stop)

        return await self._in_thread(take, stop=stop)

    async def _in_thread(self, function: Callable[..., T], *args: Any, stop: threading.Event | None = None) -> T:
        """In one of the threads for what a stranger made large, which others do not wait for. A thread does not stop
        by itself, and whoever tidies up next must find all that it does done. Raises STORAGE_FAULTS."""

        def in_the_thread() -> T:
            with disk_faults():
                return function(*args)

        working = asyncio.get_running_loop().run_in_executor(self._threads, in_the_thread)
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
        folder: str,
        scratch: Path,
        names: Mapping[str, str | None],
        check: Callable[[int], None] = lambda _: None,
    ) -> list[StoredResult]:
        kept = self.new_scratch(task_id, attempt_of(folder) or 0)
        try:
            found = await self.take(scratch, names, kept, check)
            if found:
                await self._in_thread(self._into_place, kept, self._tasks / task_id / folder)
        finally:
            await asyncio.shield(self.tidy_up(kept))
        await self.tidy_up(scratch)
        return found

    def _into_place(self, kept: Path, final: Path) -> None:
        final.parent.mkdir(mode=0o700, exist_ok=True)
        remove_whole(final)
        kept.replace(final)
        _fsync_folder(final.parent)

    async def tidy_up(self, scratch: Path) -> None:
        """As `discard`, where nothing hangs on it: what cannot be removed is the sweeper's."""
        try:
            await self.discard(scratch)
        except STORAGE_FAULTS as error:
            log.warning("scratch folder left", reason=str(error), **told_by_the_system(error))

    async def discard_results(self, task_id: TaskId, folder: str) -> None:
        await self._in_thread(self._remove_tree, self._tasks / task_id / folder)

    async def discard_earlier_results(self, task_id: TaskId, attempt: int) -> None:
        for entry in await on_disk(_names_in, self._tasks / task_id):
            if (made_by := attempt_of(entry)) is not None and made_by < attempt:
                await self.discard_results(task_id, entry)

    def _remove_tree(self, folder: Path) -> None:
        self._is_there()
        remove_whole(folder)

    async def result(self, task_id: TaskId, folder: str, name: str) -> DiskFile:
        try:
            path = self._tasks / task_id / folder / check_result_name(name)
        except BadInput:
            raise UnknownFile from None
        return await on_disk(self._found, path)

    # Removing.

    async def delete(self, task_id: TaskId) -> None:
        await self._in_thread(self._remove_tree, self._tasks / task_id)
        await self.discard_upload(task_id)

    async def partials(self) -> AsyncIterator[Partial]:
        now = await on_disk(_clock_of, self._partial)
        async for entry, found in _entries(self._partial):
            if (name := _PARTIAL.fullmatch(entry.name)) is not None:
                attempt = None if name[2] == "input" else int(name[2])
                yield Partial(entry.path, TaskId(name[1]), attempt, found.st_size, now - found.st_mtime)
            elif (name := _UPLOAD.fullmatch(entry.name)) is not None:
                task_id = TaskId(name[1])
                size_bytes, written = await on_disk(self._upload_folder(task_id).size_and_time)
                yield Partial(entry.path, task_id, None, size_bytes, now - max(written, found.st_mtime))

    async def task_folders(self) -> AsyncIterator[TaskFolder]:
        now = await on_disk(_clock_of, self._partial)
        async for entry, found in _entries(self._tasks):
            if re.fullmatch(r"[0-9a-f]{32}", entry.name):
                entries = await on_disk(_names_in, Path(entry.path))
                yield TaskFolder(TaskId(entry.name), now - found.st_mtime, entries)

    async def remove(self, partial: Partial) -> bool:
        path = Path(partial.name)
        if _UPLOAD.fullmatch(path.name):
            await self.discard_upload(partial.task_id)
            return True
        if partial.attempt is not None:
            await self.discard(path)
            return True
        return await change_on_disk(_remove_unless_written, path)

    async def remove_entry(self, task_id: TaskId, entry: str) -> None:
        path = self._tasks / task_id / entry
        if entry.startswith("result-"):
            await self._in_thread(self._remove_tree, path)
        else:
            await change_on_disk(path.unlink, missing_ok=True)


class DirectoryUpload:
    """A headway.shared.files.storage.Upload that comes in one piece: to pause it is to leave it to the sweeper."""

    def __init__(self, partial: Path, final: Path, reserve_bytes: int | None = None) -> None:
        self._partial = partial
        self._final = final
        self._reserve_bytes = reserve_bytes
        self._committed = False
        self._file: int | None = None
        #: Of all that was written; None where earlier bytes were not seen, so the file is read at the end.
        self._hash = hashlib.sha256()
        self._seen_bytes = 0
        self._pending = bytearray()
        self._writing: asyncio.Task[None] | None = None
        #: A write failed, so that what came after it has no place.
        self._broken = False
        self._written = 0
        self.size_bytes = 0

    async def write(self, data: bytes) -> None:
        self._pending += data
        self.size_bytes += len(data)
        if len(self._pending) >= CHUNK_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        await self._settle()
        chunk, self._pending = self._pending, bytearray()
        if chunk and not self._broken:
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
        try:
            with disk_faults(self._partial):
                file = self._opened()
                check_capacity(file, len(chunk), self._reserve_bytes)
                view = memoryview(chunk)
                while view:
                    count = os.pwrite(file, view, self._written)
                    self._written += count
                    view = view[count:]
        except BaseException:
            self._broken = True
            raise
        if self._seen_bytes == self._written - len(chunk):
            self._hash.update(chunk)
            self._seen_bytes = self._written

    def _opened(self) -> int:
        if self._file is None:
            self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._file

    async def rewind(self, size_bytes: int) -> None:
        with suppress(StorageFull):  # what did not fit is forgotten with the rest
            await self._settle()
        if size_bytes < self._written:
            await change_on_disk(self._cut_now, size_bytes)
            self._pending.clear()
        else:
            del self._pending[size_bytes - self._written :]
        self.size_bytes = self._written + len(self._pending)

    def _cut_now(self, size_bytes: int) -> None:
        os.ftruncate(self._opened(), size_bytes)
        self._written = size_bytes
        if self._seen_bytes > size_bytes:
            self._hash, self._seen_bytes = hashlib.sha256(), 0

    async def pause(self) -> None:
        try:
            await self._flush()
            await self._settle()
        finally:
            await change_on_disk(self._close)

    async def commit(self) -> StoredFile:
        await self._flush()
        await self._settle()
        while self._seen_bytes < self._written:
            await change_on_disk(self._see_some)
        await change_on_disk(self._commit_now)
        return StoredFile(self._final.name, self.size_bytes, self._hash.hexdigest())

    def _see_some(self) -> None:
        """Reads what other pieces brought: the digest is that of what lies on the disk."""
        end = min(self._seen_bytes + _SEEN_BYTES, self._written)
        while self._seen_bytes < end:
            data = os.pread(self._opened(), min(CHUNK_BYTES, end - self._seen_bytes), self._seen_bytes)
            if not data:
                raise UnknownFile("What came before is gone. Send the file again.")
            self._hash.update(data)
            self._seen_bytes += len(data)

    def _commit_now(self) -> None:
        with disk_faults(self._partial):
            os.fsync(self._opened())
            self._close()
            self._place()
            self._committed = True
            _fsync_folder(self._final.parent)

    def _place(self) -> None:
        self._final.parent.mkdir(mode=0o700, exist_ok=True)
        self._partial.replace(self._final)

    async def abort(self) -> None:
        """A disk that cannot be used keeps what it has; the sweeper finds it."""
        if self._writing is not None:
            with suppress(Exception):  # whoever waited for it was told
                await asyncio.shield(self._writing)
        try:
            await change_on_disk(self._abort_now)
        except STORAGE_FAULTS as error:
            log.warning("upload not removed", reason=str(error), **told_by_the_system(error))

    def _abort_now(self) -> None:
        self._close()
        self._partial.unlink(missing_ok=True)
        if self._committed:
            self._final.unlink(missing_ok=True)
            with suppress(OSError):  # another file of the task is in it
                self._final.parent.rmdir()

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)


class ResumedUpload(DirectoryUpload):
    """A headway.shared.files.storage.ResumableUpload: the file is this one's alone (shared/files/upload_folder.py)."""

    def __init__(self, folder: UploadFolder, final: Path, reserve_bytes: int | None) -> None:
        super().__init__(Path(), final, reserve_bytes)
        self._folder = folder
        self._over = False

    @classmethod
    async def take(cls, folder: UploadFolder, final: Path, reserve_bytes: int | None) -> ResumedUpload:
        """Raises StorageFull where there is no room for a copy, UploadBusy."""
        upload = cls(folder, final, reserve_bytes)
        try:
            if await change_on_disk(upload._take_now):
                await upload._copy()
            await change_on_disk(upload._open_now)
        except asyncio.CancelledError:
            with suppress(UploadBusy):
                await asyncio.shield(upload.pause())
            raise
        return upload

    def _take_now(self) -> bool:
        with disk_faults():
            self._partial, had_writer = self._folder.take()
        if had_writer:
            self._over = True  # until it has a copy it is not this one's to put to rest
        return had_writer

    async def _copy(self) -> None:
        copy = self._folder.copy_of(self._partial)
        try:
            with disk_faults():
                check_capacity(self._partial, await change_on_disk(copy.begin), self._reserve_bytes)
                while await change_on_disk(copy.go_on):
                    pass
            self._partial = await change_on_disk(self._folder.replace, self._partial, copy.path)
            self._over = False
        finally:
            await change_on_disk(copy.close)

    def _open_now(self) -> None:
        self._written = self.size_bytes = os.fstat(self._opened()).st_size

    def _opened(self) -> int:
        if self._file is None:
            self._file = self._open(self._partial)
        return self._file

    @staticmethod
    def _open(path: Path) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UploadBusy(TAKEN_OVER) from None

    def origin(self, start: int, end: int) -> str:
        return self._partial.name.partition(".")[0]

    async def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        position = start
        while position < end:
            count = min(CHUNK_BYTES, end - position)
            with disk_faults(self._partial):
                data = await asyncio.to_thread(os.pread, self._opened(), count, position)
            if not data:
                raise UnknownFile("The file became shorter while it was read.")
            position += len(data)
            yield data

    async def pause(self) -> None:
        if self._over:
            return
        try:
            await self._flush()
            await self._settle()
        finally:
            self.size_bytes = self._written
            await change_on_disk(self._rest_now)

    def _rest_now(self) -> None:
        self._close()
        self._over = True
        if self._committed:
            self._committed = False
            self._folder.bring_back(self._final, self._partial)
            with suppress(OSError):
                self._final.parent.rmdir()
        self._folder.rest(self._partial)

    async def commit(self) -> StoredFile:
        stored = await super().commit()
        self._over = True
        return stored

    def _place(self) -> None:
        self._folder.commit(self._partial, self._final)

    def _abort_now(self) -> None:
        self._over = True
        super()._abort_now()
        self._folder.remove(self._partial)


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A headway.shared.files.storage.StoredObject."""

    path: Path
    size_bytes: int
    modified_at: float

    @classmethod
    def at(cls, path: Path) -> DiskFile:
        """Raises UnknownFile, OSError. Blocking."""
        try:
            found = path.lstat()
        except FileNotFoundError:
            raise UnknownFile("The file has not been uploaded, or is gone.") from None
        if not path.is_file() or path.is_symlink():
            raise UnknownFile("The file has not been uploaded, or is gone.")
        return cls(path, found.st_size, found.st_mtime)

    async def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        file = await on_disk(open_to_read, self.path)
        try:
            position = start
            while position < end:
                with disk_faults(self.path):
                    data = await asyncio.to_thread(os.pread, file, min(CHUNK_BYTES, end - position), position)
                if not data:
                    raise UnknownFile("The file became shorter while it was read.")
                position += len(data)
                yield data
        finally:
            os.close(file)


def open_to_read(path: Path) -> int:
    """A descriptor. Raises UnknownFile, also for a link that somebody has put there; OSError. Blocking."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            raise UnknownFile("The file has not been uploaded, or is gone.") from None
        raise


def _open_file(path: Path) -> int:
    """As `open_to_read`, of what a stranger may have put there: a file, and nothing else."""
    file = open_to_read(path)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise UnknownFile


def check_capacity(place: Path | int, size_bytes: int, reserve_bytes: int | None) -> None:
    """Raises StorageFull where so much more would leave less than the reserve on the disk of `place`, a path or a
    descriptor; OSError. Blocking."""
    disk = os.statvfs(place)
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


async def _entries(folder: Path) -> AsyncIterator[_Entry]:
    with (
        ExitStack() as opened
    ):  # whoever is cancelled waits for the thread: what it has opened is closed, and not before
        entries = await change_on_disk(lambda: opened.enter_context(os.scandir(folder)))
        while page := await change_on_disk(_next_page, entries):
            for entry in page:
                yield entry


def _next_page(entries: Iterator[os.DirEntry[str]]) -> list[_Entry]:
    page = []
    for entry in islice(entries, _LISTED):
        with suppress(FileNotFoundError):  # gone since it was listed
            page.append((entry, entry.stat(follow_symlinks=False)))
    return page


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(path.name for path in folder.iterdir())
    except OSError:  # gone since it was listed
        return frozenset()


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
