"""Inputs and results on disk, shared by the API and the workers: whole or absent, never half.

    DATA/tasks/{task_id}/input-{random}      what was uploaded; the task's state names the one that counts
    DATA/tasks/{task_id}/result-{attempt}/…  what the attempt made
    DATA/partial/…                           what is still being written; nothing reads it

A file is written under `partial/`, fsynced and renamed. No name from outside is ever part of a path but a result's,
which is checked. Disk work runs in threads, so the event loop never waits for a disk.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import mimetypes
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shared.errors import BadInput, SettingsError, StorageFull, UnknownFile
from shared.models import TaskId

#: Written and hashed in a thread this much at a time: large enough that the hop costs nothing beside the disk.
CHUNK_BYTES = 1024 * 1024

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def full_disk_is_said() -> Iterator[None]:
    """Turns the operating system's "no space left" into StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull from error
        raise


@dataclass(frozen=True, slots=True)
class StoredFile:
    #: Its name in the task's folder: two uploads of one task never write over each other.
    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredResult:
    name: str
    size_bytes: int
    content_type: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Partial:
    """Something under `partial/`: an upload on its way in, or the scratch folder of an attempt."""

    path: Path
    task_id: TaskId
    #: None for an upload.
    attempt: int | None
    size_bytes: int
    #: Since it was last written to, by this machine's clock.
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class TaskFolder:
    task_id: TaskId
    #: Since a file was put into it.
    idle_seconds: float


_PARTIAL = re.compile(r"([0-9a-f]{32})-(input|[0-9]+)-[0-9a-f]+")


class Upload:
    """One file on its way in. Leave it by `commit`, or by `abort`, after which nothing of it is left."""

    def __init__(self, partial: Path, final: Path) -> None:
        self._partial = partial
        self._final = final
        self._committed = False
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._pending = bytearray()
        self._writing: asyncio.Task[None] | None = None
        self.size_bytes = 0

    async def write(self, data: bytes) -> None:
        """Takes the bytes; they are written behind, one chunk at a time, while the next one arrives."""
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
            await asyncio.shield(self._writing)
            self._writing = None

    def _write_now(self, chunk: bytearray) -> None:
        with full_disk_is_said():
            if self._file is None:
                self._partial.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._partial.open("xb", buffering=0)
            view = memoryview(chunk)
            while view:
                view = view[self._file.write(view) :]
        self._hash.update(chunk)

    async def commit(self) -> StoredFile:
        """Fsyncs and renames into place. From here on the file is there, whatever dies."""
        await self._flush()
        await self._settle()
        await asyncio.to_thread(self._commit_now)
        self._committed = True
        return StoredFile(self._final.name, self.size_bytes, self._hash.hexdigest())

    def _commit_now(self) -> None:
        assert self._file is not None
        with full_disk_is_said():
            os.fsync(self._file.fileno())
            self._file.close()
            self._final.parent.mkdir(parents=True, exist_ok=True)
            self._partial.replace(self._final)
            _fsync_folder(self._final.parent)

    async def abort(self) -> None:
        """Removes what was written, the committed file too: nobody was told of it."""
        if self._writing is not None:
            with suppress(Exception):
                await asyncio.shield(self._writing)
        await asyncio.to_thread(self._abort_now)

    def _abort_now(self) -> None:
        if self._file is not None:
            self._file.close()
        self._partial.unlink(missing_ok=True)
        if self._committed:
            self._final.unlink(missing_ok=True)
            with suppress(OSError):
                self._final.parent.rmdir()


class Storage:
    """The data directory. Not a service: it holds nothing open."""

    def __init__(self, data_dir: Path) -> None:
        self._tasks = data_dir.absolute() / "tasks"
        self._partial = data_dir.absolute() / "partial"

    def prepare(self) -> None:
        """Makes the folders. Raises SettingsError where the directory cannot be written."""
        try:
            for folder in (self._tasks, self._partial):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self._partial / f"probe-{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise SettingsError(
                f"HEADWAY_DATA_DIR: {self._tasks.parent} cannot be written ({error.strerror}). "
                "Example: HEADWAY_DATA_DIR=./data"
            ) from None

    def upload(self, task_id: TaskId) -> Upload:
        name = f"input-{secrets.token_hex(8)}"
        return Upload(self._partial / f"{task_id}-{name}", self._tasks / task_id / name)

    def input_path(self, task_id: TaskId, name: str | None) -> Path:
        """Raises UnknownFile."""
        path = self._tasks / task_id / (name or "input")
        if not path.is_file():
            raise UnknownFile("The file has not been uploaded, or is gone.")
        return path

    def scratch(self, task_id: TaskId, attempt: int) -> Path:
        """An empty folder for one attempt's output, on the same file system as the results."""
        folder = self._partial / f"{task_id}-{attempt}-{secrets.token_hex(4)}"
        with full_disk_is_said():
            folder.mkdir(parents=True)
        return folder

    def keep_results(
        self, task_id: TaskId, attempt: int, scratch: Path, names: dict[str, str | None]
    ) -> list[StoredResult]:
        """Moves an attempt's outputs, name to content type, from its scratch folder into their place. Blocking.

        Raises BadInput for a name that is not one plain file in the folder, StorageFull.
        """
        kept = []
        with full_disk_is_said():
            for name, content_type in names.items():
                path = scratch / check_result_name(name)
                if path.is_symlink() or not path.is_file():
                    raise BadInput(f"The processor named an output that it did not write: {name!r}.")
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    os.fsync(file.fileno())
                guessed = content_type or mimetypes.guess_type(name)[0] or "application/octet-stream"
                kept.append(StoredResult(name, path.stat().st_size, guessed, digest))
            for path in scratch.iterdir():
                if path.name not in names:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            if kept:
                final = self._tasks / task_id / f"result-{attempt}"
                final.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(final, ignore_errors=True)
                _fsync_folder(scratch)
                scratch.replace(final)
                _fsync_folder(final.parent)
        return kept

    def discard(self, scratch: Path) -> None:
        """Removes a scratch folder, if it is still there. Blocking."""
        shutil.rmtree(scratch, ignore_errors=True)

    def discard_results(self, task_id: TaskId, attempt: int) -> None:
        """Removes an attempt's results: it was not the one that counts. Blocking."""
        shutil.rmtree(self._tasks / task_id / f"result-{attempt}", ignore_errors=True)

    def result_path(self, task_id: TaskId, attempt: int, name: str) -> Path:
        """Raises UnknownFile."""
        try:
            path = self._tasks / task_id / f"result-{attempt}" / check_result_name(name)
        except BadInput:
            raise UnknownFile from None
        if not path.is_file():
            raise UnknownFile
        return path

    def delete(self, task_id: TaskId) -> None:
        """Removes everything of a task. Blocking."""
        shutil.rmtree(self._tasks / task_id, ignore_errors=True)

    # What the sweeper asks for: every entry, one at a time, so that a large directory is read in pages. Blocking.

    def partials(self) -> Iterator[Partial]:
        """What is not named as ours is not ours to judge, so it is left out."""
        for entry, stat in _entries(self._partial):
            if (name := _PARTIAL.fullmatch(entry.name)) is not None:
                attempt = None if name[2] == "input" else int(name[2])
                yield Partial(Path(entry.path), TaskId(name[1]), attempt, stat.st_size, time.time() - stat.st_mtime)

    def task_folders(self) -> Iterator[TaskFolder]:
        for entry, stat in _entries(self._tasks):
            if re.fullmatch(r"[0-9a-f]{32}", entry.name):
                yield TaskFolder(TaskId(entry.name), time.time() - stat.st_mtime)

    def remove(self, partial: Partial) -> None:
        if partial.attempt is None:
            partial.path.unlink(missing_ok=True)
        else:
            self.discard(partial.path)


def _entries(folder: Path) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # gone since it was listed
                yield entry, entry.stat(follow_symlinks=False)


def check_result_name(name: str) -> str:
    """One plain file name, printable, at most 200 characters: no separator, no leading dot. Raises BadInput."""
    if not re.fullmatch(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,199}", name) or len(os.fsencode(name)) > 255:
        raise BadInput(f"{name[:80]!r} is not a name for a result file: use one plain name without folders.")
    return name


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
