"""A resumable upload, piece by piece: what has arrived is kept whatever ends a piece, and the last one queues the task.

Only who holds the upload's lock (api/uploads/upload_lock.py) writes. The bytes in the storage are the truth; the task's
`done` follows them, and is the whole size before the file is made whole, so that between a file that is whole and a
task that is queued nobody is told of an upload without a byte. Where a process dies there, whoever asks next finishes
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.requests import Request

from headway.api.lifespan import State
from headway.api.uploads.multipart_upload import body_of, too_large
from headway.api.uploads.receiving import abort_unless_queued, expiry, queue, receive
from headway.api.uploads.tus import Checksum
from headway.api.uploads.upload_digests import Source, WholeFile
from headway.api.uploads.upload_lock import UploadLock, writing
from headway.shared.errors import (
    AnotherFile,
    Conflict,
    Refused,
    Stopping,
    StorageAway,
    StorageFull,
    UnknownTask,
    UploadBusy,
    UploadGone,
)
from headway.shared.files.storage import ResumableUpload, StoredFile, Upload
from headway.shared.redis.client import AWAY
from headway.shared.tasks.models import UPLOAD_CUT, Status, Task, TaskId, rfc3339


def check_alive(task: Task) -> None:
    """Raises UnknownTask where the file does not come in pieces, UploadGone where it is no longer wanted."""
    if task.upload_expires_at is None:
        raise UnknownTask
    if task.status is Status.CANCELLED or (task.status.is_terminal and task.input_name is None):
        raise UploadGone


def declared_bytes(request: Request) -> int:
    """Of the body; 0 where its length is not said."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdigit() else 0


async def digest_of(state: State, task_id: TaskId) -> tuple[Task, int, str]:
    """The task, the bytes of its file that are safe, and their digest (api/uploads/upload_digests.py). Whoever writes
    is asked to leave: its line may be half open. Raises UnknownTask, UploadGone, UploadBusy."""
    await offset_of(state, task_id)  # finishes what a dead process left
    async with writing(state.redis, task_id, take_over=True) as lock:
        task = await state.reader.task(task_id)
        check_alive(task)
        async with _resumed(state, task, lock) as upload:
            received = _size_of(task) if upload is None else upload.size_bytes
            return task, received, await _prefix(state, task, upload, received, lock)


async def _prefix(state: State, task: Task, upload: ResumableUpload | None, size_bytes: int, lock: UploadLock) -> str:
    """The lock is renewed meanwhile: to read gigabytes takes longer than it lives."""
    async with lock.kept():
        source: Source
        if upload is not None:
            source = upload
        else:
            source = WholeFile(task.input_name or "", await state.storage.input(task.task_id, task.input_name))
        return await state.upload_digests.prefix(task.task_id, source, size_bytes)


@asynccontextmanager
async def _resumed(state: State, task: Task, lock: UploadLock) -> AsyncIterator[ResumableUpload | None]:
    """What has come of the upload, for who holds its lock; None where the file is whole. It is left with the block,
    however that ends."""
    if task.input_name is not None:
        yield None
        return
    async with lock.kept():  # there may be gigabytes to copy
        upload = await state.storage.resume(task.task_id)
    try:
        yield upload
    finally:  # nothing, where it was left in the block
        with suppress(UploadBusy, StorageFull, StorageAway):
            await asyncio.shield(upload.pause())


async def offset_of(state: State, task_id: TaskId) -> tuple[Task, int]:
    """The task, and the bytes of its file that are safe. Raises UnknownTask, UploadGone, UploadBusy."""
    received = await state.storage.received(task_id)  # first: what is made whole meanwhile is seen in the task
    task = await state.reader.task(task_id)
    check_alive(task)
    if task.input_name is not None:
        return task, _size_of(task)
    if _size_of(task) not in (received, task.done):
        return task, received
    async with writing(state.redis, task_id, take_over=False) as lock:
        task = await state.reader.task(task_id)
        check_alive(task)
        async with _resumed(state, task, lock) as upload:
            if upload is None:
                return task, _size_of(task)
            if upload.size_bytes == task.size_bytes:
                await _finish(state, task, upload, lock)
            return task, upload.size_bytes


async def take_piece(
    request: Request, state: State, task_id: TaskId, offset: int, checksum: Checksum | None, prefix: str | None = None
) -> tuple[Task, int]:
    """Adds the request's body to the upload; returns the task and the bytes that are safe now. `prefix` is the digest
    of what the client has before `offset` (api/uploads/upload_digests.py): where it is not that of what is stored,
    nothing changes.

    Raises UnknownTask, UploadGone, UploadBusy, Conflict (another offset), AnotherFile, NotTheAnnouncedFile, TooLarge,
    ChecksumMismatch, StorageFull, TooSlow, UploadCut, Stopping and AWAY. A piece with a checksum that did not come to
    its end is taken back: nobody can say whether it is right. Of any other all is kept that came.
    """
    async with writing(state.redis, task_id, take_over=True) as lock:
        task = await state.reader.task(task_id)  # as it is now that nobody else writes
        check_alive(task)
        async with _resumed(state, task, lock) as upload:
            received = _size_of(task) if upload is None else upload.size_bytes
            if offset != received:
                raise Conflict(f"The upload stands at {received} bytes, not at {offset}. Go on from there.")
            if prefix is not None and prefix != await _prefix(state, task, upload, received, lock):
                raise AnotherFile
            if offset + declared_bytes(request) > _size_of(task):
                raise too_large(_size_of(task))
            if upload is None:
                return task, received
            await state.storage.check_capacity(declared_bytes(request))
            try:
                await _receive(request, state, task, upload, lock, checksum)
            except BaseException as error:
                await asyncio.shield(_keep(state, task, upload, error, offset if checksum is not None else None))
                raise _told(error) from None
            if upload.size_bytes == task.size_bytes:
                await _finish(state, task, upload, lock)
            else:
                await asyncio.shield(_pause(state, task, upload, "Receiving the file"))
            return task, upload.size_bytes


async def _receive(
    request: Request, state: State, task: Task, upload: Upload, lock: UploadLock, checksum: Checksum | None
) -> None:
    async def guard() -> None:
        await lock.keep()
        if state.relay.draining:
            raise Stopping

    body = body_of(request, patience_seconds=state.settings.receive_timeout_seconds)
    if checksum is not None:
        body = checksum.seeing(body)
    await receive(body, state, task, upload, limit_bytes=_size_of(task), guard=guard)


async def _finish(state: State, task: Task, upload: Upload, lock: UploadLock) -> None:
    """Makes the file whole and queues its task, if it is the file that was announced."""
    stored: StoredFile | None = None
    try:
        async with lock.kept():
            fields = {"message": "Making the file safe", "done": upload.size_bytes, "rate": None}
            await state.publisher.change(task.task_id, fields, allowed=(Status.UPLOADING,))
            stored = await upload.commit()
            await queue(state, task, stored)
    except BaseException as error:
        if stored is None:
            await asyncio.shield(_keep(state, task, upload, error, None))
        else:
            await asyncio.shield(abort_unless_queued(state, task.task_id, upload, stored, error))
        raise _told(error) from None


async def _keep(state: State, task: Task, upload: Upload, error: BaseException, back_to: int | None) -> None:
    """Ends a piece that did not end well: all that came is kept, unless the task takes no bytes any more."""
    if isinstance(error, Refused | UnknownTask):
        await upload.abort()
        return
    # A disk that is full has told so already, and what did not fit on it is the client's to send again. Where somebody
    # else has the upload, its bytes are theirs to tell of.
    with suppress(StorageFull, UploadBusy):
        if back_to is not None:
            await upload.rewind(back_to)
        await _pause(state, task, upload, UPLOAD_CUT)


async def _pause(state: State, task: Task, upload: Upload, message: str) -> None:
    full: StorageFull | None = None
    try:
        await upload.pause()
    except StorageFull as error:
        full = error
    with suppress(Refused, *AWAY):
        fields = {"message": message, "done": upload.size_bytes, "rate": None, "upload_expires_at": rfc3339(expiry())}
        await state.publisher.change(task.task_id, fields, allowed=(Status.UPLOADING,))
    if full is not None:
        raise full


def _told(error: BaseException) -> BaseException:
    """What the client is told."""
    if isinstance(error, Refused):
        return UnknownTask() if error.reason == "unknown" else UploadGone()
    return error


def _size_of(task: Task) -> int:
    """Upload-Length: every resumable upload has one."""
    return task.size_bytes or 0
