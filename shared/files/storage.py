"""Inputs and results, shared by the API and the workers: whole or absent, never half. What a place of files offers.

Two places exist, under one suite of tests (tests/contract/test_storage.py): a directory (shared/files/directory.py) and
an S3-compatible bucket (shared/files/bucket.py). An input has a name of its own, which the task's state holds, so that
two uploads of one task never write over each other; so have the results of an attempt, after the claim that made them.
No name from outside is ever part of a path but a result's, which is checked. The event loop never waits for a disk.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headway.shared.errors import BadInput
from headway.shared.tasks.models import TaskId

#: Read, written and hashed this much at a time: large enough that the hop to a thread costs nothing beside the disk.
CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An input that is whole."""

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
    """What is not whole yet: an upload on its way in, or the scratch folder of an attempt."""

    #: Where it is, in the words of the place that keeps it.
    name: str
    task_id: TaskId
    #: None for an upload.
    attempt: int | None
    size_bytes: int
    #: Since it was last written to, by the clock of where it lies.
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class TaskFolder:
    task_id: TaskId
    #: Since a file was put into it.
    idle_seconds: float
    #: The inputs in it, and the folder of each attempt that has results there (`results_folder`).
    entries: frozenset[str]


class StoredObject(Protocol):
    """A whole file that can be read, from any place in it, by many at once."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def modified_at(self) -> float:
        """Seconds since the epoch."""

    @property
    def path(self) -> Path | None:
        """Where it lies on this machine, for whoever sends it without reading it; None where it does not."""

    def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`. Raises UnknownFile where they are gone."""


class Upload(Protocol):
    """One file on its way in. Left by `commit`, by `pause` (if it is to be resumed) or by `abort`."""

    @property
    def size_bytes(self) -> int:
        """What was written, by this and, of a resumed one, by those before it. After `pause`: what is kept."""

    async def write(self, data: bytes) -> None:
        """Takes the bytes; they are written behind while the next ones arrive. Raises StorageFull."""

    async def rewind(self, size_bytes: int) -> None:
        """Forgets what was written after this many bytes."""

    async def pause(self) -> None:
        """Keeps what was written, for `Storage.resume`. Nothing is open afterwards. Once it is left, by whatever, this
        does nothing. Raises UploadBusy where somebody else has resumed it meanwhile; then this one's bytes are gone."""

    async def commit(self) -> StoredFile:
        """Makes the file whole and safe. From here on it is there, whatever dies; where this is broken off, `pause` and
        `abort` undo it. The digest is that of the bytes that are stored. Raises StorageFull, UploadBusy as `pause`."""

    async def abort(self) -> None:
        """Removes what was written, the committed file too: nobody was told of it."""


class ResumableUpload(Upload, Protocol):
    """What `Storage.resume` gives. What was there is this one's: nobody who resumed it before can change it."""

    def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """Of what was there when it was resumed, the bytes from `start` to before `end`. Raises UnknownFile."""

    def origin(self, start: int, end: int) -> Hashable:
        """Where those bytes come from. Two of one task that say the same hold the same bytes there."""


async def copied(content: StoredObject, upload: Upload) -> StoredFile:
    """Byte by byte, into an upload that this ends."""
    try:
        async for data in content.read(0, content.size_bytes):
            await upload.write(data)
        return await upload.commit()
    except BaseException:
        await asyncio.shield(upload.abort())
        raise


class Storage(Protocol):
    """A place of files. Not a service: it holds nothing open between calls. Beside what is said below, everything
    raises headway.shared.files.disk.STORAGE_FAULTS where the place cannot be used."""

    def prepare(self) -> None:
        """Makes the place, and sure that it can be written to. Raises SettingsError. Blocking."""

    async def check(self) -> None:
        """Whether it can be used at present."""

    async def check_capacity(self, size_bytes: int) -> None:
        """Raises StorageFull where so much more would not leave free what HEADWAY_DISK_RESERVE_BYTES keeps."""

    def upload(self, task_id: TaskId) -> Upload:
        """A file that comes in one piece."""

    async def resume(self, task_id: TaskId) -> ResumableUpload:
        """A file that comes in pieces: what earlier ones brought is there. One at a time writes, and whoever calls sees
        to that; where one before still believes that it does, what it writes from here on is nowhere. Must be left.
        Raises StorageFull, UploadBusy where somebody else resumes it in this moment."""

    async def received(self, task_id: TaskId) -> int:
        """The bytes that `resume` would go on from."""

    async def discard_upload(self, task_id: TaskId) -> None:
        """Removes what `resume` would go on from, if anything."""

    async def input(self, task_id: TaskId, name: str | None) -> StoredObject:
        """Raises UnknownFile."""

    async def result(self, task_id: TaskId, folder: str, name: str) -> StoredObject:
        """Of `results_folder`. Raises UnknownFile."""

    async def take_over(self, content: StoredObject, task_id: TaskId, sha256: str) -> StoredFile:
        """Makes a file of this place the input of another task, without sending it anywhere if that can be. `sha256` is
        known of it. Raises UnknownFile, StorageFull."""

    async def open_growing(self, scratch: str, name: str) -> int:
        """A descriptor of a file that is being written in a scratch folder, by the folder's name. Raises UnknownFile,
        also where scratch folders cannot be seen from here."""

    def local_input(self, task_id: TaskId, name: str | None) -> AbstractAsyncContextManager[Path]:
        """The input as a file on this machine for as long as the block lasts. Raises UnknownFile, StorageFull."""

    async def scratch(self, task_id: TaskId, attempt: int) -> Path:
        """An empty folder on this machine for one attempt's output. Raises StorageFull."""

    async def discard(self, scratch: Path) -> None:
        """Removes a scratch folder, if it is still there."""

    async def keep_results(
        self,
        task_id: TaskId,
        folder: str,
        scratch: Path,
        names: Mapping[str, str | None],
        check: Callable[[int], None] = lambda _: None,
    ) -> list[StoredResult]:
        """Moves an attempt's outputs, name to content type, from its scratch folder into `results_folder`. `check` is
        asked with their size in bytes before any is read, in a thread. A cancellation is heeded between two chunks.

        Raises BadInput for a name that is not one plain file in the folder, StorageFull, and what `check` does.
        """

    async def discard_results(self, task_id: TaskId, folder: str) -> None:
        """Removes an attempt's results: it was not the one that counts."""

    async def discard_earlier_results(self, task_id: TaskId, attempt: int) -> None:
        """Removes the results of all attempts before this one."""

    async def delete(self, task_id: TaskId) -> None:
        """Removes everything of a task."""

    # What the sweeper asks for: every entry, in pages, so that a large place is not read at once.

    def partials(self) -> AsyncIterator[Partial]:
        """What is not named as ours is not ours to judge, so it is left out."""

    def task_folders(self) -> AsyncIterator[TaskFolder]: ...

    async def remove(self, partial: Partial) -> bool:
        """Whether it is removed: not where somebody is seen to write to it."""

    async def remove_entry(self, task_id: TaskId, entry: str) -> None:
        """One of TaskFolder.entries."""


def results_folder(attempt: int, claim: str = "") -> str:
    """Where the results of an attempt are, under the claim that it holds: where Redis lost a claim, another worker's
    attempt has the same number. Without a claim: what an older worker kept."""
    return f"result-{attempt}-{claim[:16]}" if claim else f"result-{attempt}"


def attempt_of(entry: str) -> int | None:
    """Whose results an entry of a task's folder is; None where it is no `results_folder`."""
    found = re.fullmatch(r"result-([0-9]{1,9})(?:-[0-9a-f]+)?", entry)
    return int(found[1]) if found else None


def check_result_name(name: str) -> str:
    """One plain file name, printable, at most 200 characters: no separator, no leading dot. Raises BadInput."""
    if not re.fullmatch(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,199}", name) or len(os.fsencode(name)) > 255:
        raise BadInput(f"{name[:80]!r} is not a name for a result file: use one plain name without folders.")
    return name
