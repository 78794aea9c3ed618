"""The file of an announced task: `PUT {links.upload}`, the raw body, shown on the task's stream while it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request

from headway.api.access.identity import check_processor, most_upload_bytes
from headway.api.answers import ONE_TASK
from headway.api.dependencies import StateDep, TaskDep
from headway.api.lifespan import State
from headway.api.openapi import BINARY, asked, body, parameters, problems, together
from headway.api.uploads.capacity_check import reserved
from headway.api.uploads.multipart_upload import body_of, check_length, declared_length, invalid, too_large
from headway.api.uploads.receiving import Guard, abort_unless_queued, not_the_announced, queue, receive
from headway.api.uploads.tus import Checksum
from headway.api.uploads.upload_digests import declared_sha256
from headway.shared.errors import (
    BadHeader,
    ChecksumMismatch,
    Conflict,
    InvalidRequest,
    NoDescriptors,
    NotTheAnnouncedFile,
    QuotaFull,
    Refused,
    Stopping,
    StorageAway,
    StorageFull,
    TooLarge,
    TooSlow,
    UnknownTask,
    UploadCut,
)
from headway.shared.files.storage import StoredFile, Upload
from headway.shared.redis.client import AWAY
from headway.shared.tasks.models import Status, Task
from headway.shared.tasks.representation import represent

router = APIRouter(tags=["uploads"])


@router.put(
    "/tasks/{task_id}/upload",
    summary="Send the file of an announced task, as the raw body",
    operation_id="upload_file",
    responses=together(
        {200: ONE_TASK},
        problems(BadHeader, UnknownTask, Conflict, TooLarge, InvalidRequest, NotTheAnnouncedFile),
        problems(StorageFull, QuotaFull, StorageAway),
    ),
    openapi_extra=body({"application/octet-stream": BINARY})
    | parameters(
        Repr_Digest=asked("`sha-256=:BASE64:` of the file (RFC 9530); another file is refused"),
        Content_Digest=asked("The same"),
        Upload_Checksum=asked("`ALGORITHM BASE64` of the file: sha1, md5, sha256 or crc32"),
    ),
)
async def put_upload(request: Request, state: StateDep, task: TaskDep) -> dict[str, Any]:
    """The bytes received show on the task's stream while they arrive; at the end the task is `queued`."""
    check_processor(request.scope, task.processor)
    if task.status is not Status.UPLOADING:
        raise Conflict(f"The task is {task.status}: its file has arrived or is no longer wanted.")
    if task.upload_expires_at is not None:
        raise Conflict(f"The file of this task comes in pieces, by tus: send them to /uploads/{task.task_id}.")
    limit_bytes = most_upload_bytes(request.scope, state)
    declared = request.headers.get("content-length", "")
    if task.size_bytes is not None:
        if task.size_bytes > limit_bytes:
            raise too_large(limit_bytes)
        limit_bytes = task.size_bytes
        if declared.isdigit():
            _check_size(task.size_bytes, int(declared))
    check_length(request, limit_bytes)
    checksum = Checksum.of(request)
    if (declared_digest := declared_sha256(request.headers)) is not None:
        if task.declared_sha256 not in (None, declared_digest):
            raise BadHeader("The SHA-256 in the header is not the one that the task was announced with.")
        task = task.model_copy(update={"declared_sha256": declared_digest})
    await state.storage.check_capacity(int(declared) if declared.isdigit() else 0)

    async def guard() -> None:
        with suppress(*AWAY):
            now = await state.reader.task(task.task_id)
            if now.status is not Status.UPLOADING:
                raise Refused("status", now.status)

    body = body_of(request, patience_seconds=state.settings.receive_timeout_seconds)
    if checksum is not None:
        body = checksum.seeing(body)
    place = reserved(
        state, task.owner, task.task_id, state.storage.upload(task.task_id), most_bytes=_expected(request, task)
    )
    async with place as upload:
        await _take(body, state, task, upload, limit_bytes, guard)
    return represent(await state.reader.task(task.task_id), request.scope.get("root_path", ""))


async def _take(
    body: AsyncIterator[bytes], state: State, task: Task, upload: Upload, limit_bytes: int, guard: Guard
) -> None:
    stored: StoredFile | None = None
    try:
        await receive(body, state, task, upload, limit_bytes=limit_bytes, guard=guard)
        _check_size(task.size_bytes, upload.size_bytes)
        stored = await upload.commit()
        await queue(state, task, stored)
    except BaseException as error:
        if stored is None:
            await asyncio.shield(upload.abort())
        else:
            await asyncio.shield(abort_unless_queued(state, task.task_id, upload, stored, error))
        await _tell(state, task, error)
        raise


def _expected(request: Request, task: Task) -> int:
    """What will come, of a file that was announced without its size; one with a size has its place."""
    return (declared_length(request) or 0) if task.size_bytes is None else 0


async def _tell(state: State, task: Task, error: BaseException) -> None:
    """What the task says of an upload that did not come to its end. Raises what the client is told instead."""
    match error:
        case Refused():
            raise Conflict(f"The task is {error.status}: its file is no longer wanted.") from None
        case ChecksumMismatch():
            raise await not_the_announced(state, task, "it is not what its Upload-Checksum says") from None
        case UploadCut() | TooSlow() | Stopping() | QuotaFull():
            fields = {"message": "The upload was cut off; send the file again", "done": 0, "rate": None}
            with suppress(Refused, *AWAY):
                await state.publisher.change(task.task_id, fields, allowed=(Status.UPLOADING,))
        case StorageFull() | StorageAway() | NoDescriptors():
            fields = {"message": f"The file could not be stored. {error}", "done": 0, "rate": None}
            with suppress(Refused, *AWAY):
                await state.publisher.change(task.task_id, fields, allowed=(Status.UPLOADING,))


def _check_size(announced: int | None, sent: int) -> None:
    if announced not in (None, sent):
        raise invalid("size_bytes", f"{announced} bytes were announced and {sent} were sent; announce the true size")
