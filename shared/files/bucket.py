"""A bucket of an S3-compatible object storage: shared/files/storage.py's place of files for machines that share no
disk.

    PREFIX/tasks/{task_id}/input-{random}             what was uploaded; the task's state names the one that counts
    PREFIX/tasks/{task_id}/result-{attempt}-{claim}/… what the attempt made
    PREFIX/partial/{task_id}-input/…                  the bytes of an upload that comes in pieces, until it is whole
    DATA/partial/{task_id}-{attempt}-…                on the worker's own disk: an attempt's output, and its input

An object appears when its upload is completed, so there is nothing to rename. What works on a disk is the directory's
(shared/files/directory.py).
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headway.shared.errors import BadInput, StorageAway, UnknownFile
from headway.shared.files.bucket_uploads import BucketUpload, PiecesUpload, listed, part_bytes_for, story
from headway.shared.files.directory import DirectoryStorage
from headway.shared.files.disk import disk_faults, on_disk
from headway.shared.files.own_disk import OwnDisk
from headway.shared.files.s3 import Bucket, check_endpoint
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
from headway.shared.settings import Settings
from headway.shared.tasks.models import TaskId

if TYPE_CHECKING:
    from obstore import ObjectMeta

#: A request is answered after this long, with a word of what is wrong.
REQUEST_PATIENCE_SECONDS: Final = 3
#: An attempt waits for a bucket that restarts: its work is worth more than the wait.
ATTEMPT_PATIENCE_SECONDS: Final = 60
#: The start says what is wrong after two or three of these.
CHECK_SECONDS: Final = 5
#: Younger than this is never old; and a clock that was asked so lately has not moved.
ASK_CLOCK_SECONDS: Final = 30.0
#: What an attempt that failed may take to remove what it had kept.
TIDY_SECONDS: Final = 2

#: Results are many small files or few large ones: the small ones go several at once.
SMALL_BYTES: Final = CHUNK_BYTES
SMALL_AT_ONCE: Final = 8

_TASK = re.compile(r"tasks/([0-9a-f]{32})/.+")
_PIECE = re.compile(r"partial/([0-9a-f]{32})-input/[0-9]+-([0-9]+)(-.*)?")


#: S3's most for one copy.
COPIED_BYTES: Final = 5 * 1024**3


class BucketStorage:
    """A headway.shared.files.storage.Storage."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.storage_url
        self._part_bytes = part_bytes_for(settings.max_upload_bytes)
        self._local = DirectoryStorage(settings.data_dir, settings.disk_reserve_bytes)
        #: How far the bucket's clock is ahead of ours, and when it was asked.
        self._clock_ahead = 0.0
        self._asked_clock = float("-inf")
        self._disk = OwnDisk(settings.data_dir.absolute() / "partial")

    @cached_property
    def _bucket(self) -> Bucket:
        return Bucket(self._url, patience_seconds=REQUEST_PATIENCE_SECONDS)

    @cached_property
    def _patient(self) -> Bucket:
        return Bucket(self._url, patience_seconds=ATTEMPT_PATIENCE_SECONDS)

    @cached_property
    def _probe(self) -> Bucket:
        return Bucket(self._url, patience_seconds=0, call_seconds=CHECK_SECONDS)

    def prepare(self) -> None:
        check_endpoint()
        self._local.prepare()
        self._disk.remove_what_is_nobodys()
        self._probe.check(f"partial/probe-{secrets.token_hex(4)}")

    async def check(self) -> None:
        async for _ in self._probe.pages("partial/probe"):
            return

    async def check_capacity(self, size_bytes: int) -> None:
        """A bucket does not say how much fits; it says StorageFull when something does not."""

    # Inputs.

    def upload(self, task_id: TaskId) -> BucketUpload:
        return BucketUpload(self._bucket, f"tasks/{task_id}/input-{secrets.token_hex(8)}", self._part_bytes)

    async def resume(self, task_id: TaskId) -> PiecesUpload:
        folder = _pieces_folder(task_id)
        return PiecesUpload(self._bucket, folder, self.upload(task_id), await listed(self._bucket, folder))

    async def received(self, task_id: TaskId) -> int:
        pieces = story(await listed(self._bucket, _pieces_folder(task_id)))
        return pieces[-1].end if pieces else 0

    async def discard_upload(self, task_id: TaskId) -> None:
        await self._bucket.delete_folder(_pieces_folder(task_id))

    async def input(self, task_id: TaskId, name: str | None) -> BucketFile:
        return await BucketFile.at(self._bucket, _input_key(task_id, name))

    async def take_over(self, content: StoredObject, task_id: TaskId, sha256: str) -> StoredFile:
        """The bucket copies it by itself, up to the size that it does in one go."""
        assert isinstance(content, BucketFile)
        if content.size_bytes > COPIED_BYTES:
            return await copied(content, self.upload(task_id))
        name = f"input-{secrets.token_hex(8)}"
        await self._patient.copy(content.key, f"tasks/{task_id}/{name}")
        return StoredFile(name, content.size_bytes, sha256)

    @asynccontextmanager
    async def local_input(self, task_id: TaskId, name: str | None) -> AsyncIterator[Path]:
        file = await BucketFile.at(self._patient, _input_key(task_id, name))
        # Beside the attempt's scratch folder and named like it, so that what is left of both is removed alike.
        attempt = await asyncio.to_thread(self._disk.newest_attempt, task_id)
        folder = await self.scratch(task_id, attempt)
        try:
            await self._local.check_capacity(file.size_bytes)
            path = folder / "input"
            with disk_faults(path):
                await asyncio.to_thread(path.touch)
                await self._patient.download(file.key, file.size_bytes, path)
            yield path
        finally:
            await asyncio.shield(self._local.discard(folder))

    # Results.

    async def scratch(self, task_id: TaskId, attempt: int) -> Path:
        await on_disk(self._disk.occupy)
        return await self._local.scratch(task_id, attempt)

    async def open_growing(self, scratch: str, name: str) -> int:
        raise UnknownFile("What a worker writes is seen when it is in the bucket.")

    async def discard(self, scratch: Path) -> None:
        await self._local.discard(scratch)

    async def keep_results(
        self,
        task_id: TaskId,
        folder: str,
        scratch: Path,
        names: Mapping[str, str | None],
        check: Callable[[int], None] = lambda _: None,
    ) -> list[StoredResult]:
        kept = self._local.new_scratch(task_id, attempt_of(folder) or 0)
        try:
            found = await self._local.take(scratch, names, kept, check)
            await self._keep_all(task_id, folder, kept, found)
        finally:
            await asyncio.shield(self._local.tidy_up(kept))
        await self._local.tidy_up(scratch)
        return found

    async def _keep_all(self, task_id: TaskId, folder: str, kept: Path, found: list[StoredResult]) -> None:
        small = asyncio.Semaphore(SMALL_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as group:
                for file in found:
                    await small.acquire()
                    keeping = group.create_task(self._keep(task_id, folder, kept, file))
                    keeping.add_done_callback(lambda _: small.release())
                    if file.size_bytes > SMALL_BYTES:
                        await asyncio.wait([keeping])
        except BaseException as error:
            await asyncio.shield(self._forget_results(task_id, folder))
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise

    async def _keep(self, task_id: TaskId, folder: str, kept: Path, result: StoredResult) -> None:
        key, path = _result_key(task_id, folder, result.name), kept / result.name
        content_type = result.content_type if re.fullmatch(r"[\x20-\x7e]{1,200}", result.content_type) else None
        if result.size_bytes <= SMALL_BYTES:
            await self._patient.put(key, await on_disk(path.read_bytes), content_type)
            return
        parts = self._patient.begin(key, part_bytes_for(result.size_bytes), content_type)
        try:
            # Opened here, not in a thread: what a thread opens for somebody who was cancelled is closed by nobody.
            with disk_faults(path), path.open("rb", buffering=0) as file:
                while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                    await parts.write(data)
            await parts.finish()
        except BaseException:
            await asyncio.shield(parts.abort())
            raise

    async def _forget_results(self, task_id: TaskId, folder: str) -> None:
        """Where the bucket is away they stay, unseen, until the task goes."""
        with suppress(StorageAway, TimeoutError):
            async with asyncio.timeout(TIDY_SECONDS):
                await self.discard_results(task_id, folder)

    async def discard_results(self, task_id: TaskId, folder: str) -> None:
        await self._bucket.delete_folder(f"tasks/{task_id}/{folder}")

    async def discard_earlier_results(self, task_id: TaskId, attempt: int) -> None:
        async for page in self._bucket.pages(f"tasks/{task_id}"):
            found = {meta["path"]: attempt_of(meta["path"].split("/")[2]) for meta in page}
            earlier = [path for path, made_by in found.items() if made_by is not None and made_by < attempt]
            if earlier:
                await self._bucket.delete(earlier)

    async def result(self, task_id: TaskId, folder: str, name: str) -> BucketFile:
        try:
            key = _result_key(task_id, folder, check_result_name(name))
        except BadInput:
            raise UnknownFile from None
        return await BucketFile.at(self._bucket, key)

    # Removing.

    async def delete(self, task_id: TaskId) -> None:
        await self._bucket.delete_folder(f"tasks/{task_id}")
        await self.discard_upload(task_id)

    async def partials(self) -> AsyncIterator[Partial]:
        """Those in the bucket, and those on the disk of this machine."""
        async for name, task_id, pieces in self._folders("partial", _PIECE):
            ends = (_PIECE.fullmatch(piece["path"]) for piece in pieces)
            received = max(int(end[2]) for end in ends if end is not None)
            yield Partial(name, task_id, None, received, await self._idle_seconds(pieces))
        async for partial in self._local.partials():
            yield partial

    async def task_folders(self) -> AsyncIterator[TaskFolder]:
        async for _, task_id, files in self._folders("tasks", _TASK):
            entries = frozenset(meta["path"].split("/")[2] for meta in files)
            yield TaskFolder(task_id, await self._idle_seconds(files), entries)

    async def _idle_seconds(self, files: list[ObjectMeta]) -> float:
        """By the bucket's clock, which is asked where ours says that nobody touched them for long: it may be hours off,
        and what is asked costs a request."""
        newest = max(meta["last_modified"].timestamp() for meta in files)
        if time.time() - newest < ASK_CLOCK_SECONDS:
            return time.time() - newest
        if time.monotonic() - self._asked_clock > ASK_CLOCK_SECONDS:
            await self._bucket.put("partial/clock", b"", None)
            meta = await self._bucket.head("partial/clock")
            self._clock_ahead = meta["last_modified"].timestamp() - time.time()
            self._asked_clock = time.monotonic()
        return time.time() + self._clock_ahead - newest

    async def _folders(self, place: str, ours: re.Pattern[str]) -> AsyncIterator[tuple[str, TaskId, list[ObjectMeta]]]:
        """The folders of a place with what is in each: a listing has one after the other."""
        name, task_id = "", TaskId("")
        files: list[ObjectMeta] = []
        async for page in self._bucket.pages(place):
            for meta in page:
                if (found := ours.fullmatch(meta["path"])) is None:
                    continue
                folder = "/".join(meta["path"].split("/")[:2])
                if folder != name:
                    if files:
                        yield name, task_id, files
                    name, task_id, files = folder, TaskId(found[1]), []
                files.append(meta)
        if files:
            yield name, task_id, files

    async def remove(self, partial: Partial) -> bool:
        if Path(partial.name).is_absolute():
            return await self._local.remove(partial)
        await self._bucket.delete_folder(partial.name)
        return True

    async def remove_entry(self, task_id: TaskId, entry: str) -> None:
        if entry.startswith("result-"):
            await self._bucket.delete_folder(f"tasks/{task_id}/{entry}")
        else:
            await self._bucket.delete([_input_key(task_id, entry)])


@dataclass(frozen=True, slots=True)
class BucketFile:
    """A headway.shared.files.storage.StoredObject."""

    bucket: Bucket
    key: str
    size_bytes: int
    modified_at: float
    path: None = None

    @classmethod
    async def at(cls, bucket: Bucket, key: str) -> BucketFile:
        """Raises UnknownFile."""
        meta = await bucket.head(key)
        return cls(bucket, key, meta["size"], meta["last_modified"].timestamp())

    def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        return self.bucket.read(self.key, start, end)


def _input_key(task_id: TaskId, name: str | None) -> str:
    return f"tasks/{task_id}/{name or 'input'}"


def _result_key(task_id: TaskId, folder: str, name: str) -> str:
    return f"tasks/{task_id}/{folder}/{name}"


def _pieces_folder(task_id: TaskId) -> str:
    return f"partial/{task_id}-input"
