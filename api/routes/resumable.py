"""`/uploads`: tus 1.0.0, a file in as many pieces as the line breaks it into. An upload is a task from its creation on.

Who asks, which task and how much are checked before a byte of a body is read. What a piece does is api/pieces.py's,
what the headers say api/tus.py's.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.dependencies import OwnerDep, StateDep, TaskDep
from api.identity import token_of
from api.intake import clean_batch_id, clean_content_type, clean_filename, invalid, parse_options, too_large
from api.lifespan import State
from api.pieces import check_alive, declared_bytes, digest_of, offset_of, take_piece
from api.problems import wrong_method
from api.receiving import expiry
from api.room import check_room
from api.routes.tasks import cancel_task, draft
from api.tus import (
    Checksum,
    TusRoute,
    bytes_of,
    capabilities,
    check_type,
    check_version,
    http_date,
    is_piece,
    metadata_of,
    whole_sha256,
)
from api.upload_digests import clean_sha256, wanted_prefix
from shared.errors import BadHeader, NoDescriptors, Refused, StorageAway, StorageFull
from shared.models import ErrorType, OwnerId, Status, Task, TaskId
from shared.redis import AWAY

router = APIRouter(tags=["resumable uploads"], route_class=TusRoute)

_spoken = [Depends(check_version)]


@router.options("/uploads", include_in_schema=False)
@router.options("/uploads/", include_in_schema=False)
@router.options("/uploads/{task_id}", include_in_schema=False)
async def options(state: StateDep, _: OwnerDep) -> Response:
    """What of tus is spoken here."""
    return Response(status_code=204, headers=capabilities(int(state.settings.max_upload_bytes)))


@router.post("/uploads", status_code=201, dependencies=_spoken, summary="Begin a resumable upload")
@router.post("/uploads/", dependencies=_spoken, include_in_schema=False)
async def create(request: Request, state: StateDep, owner: OwnerDep) -> Response:
    """Makes the task, `uploading`, and answers with where its bytes go. A body is its first piece."""
    task = _drafted(request, state, owner)
    size_bytes = task.size_bytes or 0
    first_piece = is_piece(request) and (declared_bytes(request) > 0 or "transfer-encoding" in request.headers)
    checksum = Checksum.of(request) if first_piece else None
    if not first_piece and (whole := whole_sha256(request)) is not None:
        task = task.model_copy(update={"declared_sha256": whole})
    if declared_bytes(request) > size_bytes:
        raise too_large(size_bytes)
    await state.limits.check_tasks(owner)
    await check_room(state, owner, size_bytes)
    await state.publisher.create(task)
    offset = 0
    if first_piece or size_bytes == 0:
        try:
            task, offset = await take_piece(request, state, task.task_id, 0, checksum)
        except BaseException as error:
            await asyncio.shield(_forget(state, task.task_id, error))
            raise
    headers = _headers(task, offset) | {"Location": f"/uploads/{task.task_id}"}
    if (token := token_of(state, owner, task.task_id)) is not None:
        headers["Headway-Task-Token"] = token
    return Response(status_code=201, headers=headers)


@router.head("/uploads/{task_id}", dependencies=_spoken, summary="How much of it is safe")
async def head(request: Request, state: StateDep, task: TaskDep) -> Response:
    """Also while a piece is coming, which it does not disturb. With `Headway-Want-Digest: 1` the answer has the digest
    of what is safe in `Headway-Upload-Digest` (docs/reference.md), and a piece that is coming is ended there."""
    digest: str | None = None
    if request.headers.get("headway-want-digest") == "1":
        task, offset, digest = await digest_of(state, task.task_id)
    else:
        task, offset = await offset_of(state, task.task_id)
    headers = _headers(task, offset, task.upload_expires_at) | {"Upload-Length": str(task.size_bytes)}
    if digest is not None:
        headers["Headway-Upload-Digest"] = digest
    if task.upload_metadata:
        headers["Upload-Metadata"] = task.upload_metadata
    return Response(status_code=200, headers=headers)


@router.patch("/uploads/{task_id}", status_code=204, dependencies=_spoken, summary="Send a piece of it")
async def piece(request: Request, state: StateDep, task: TaskDep) -> Response:
    """At the last byte the task is `queued`. A piece that is cut off is kept as far as it came."""
    check_alive(task)
    check_type(request)
    offset, checksum, prefix = bytes_of(request, "Upload-Offset"), Checksum.of(request), wanted_prefix(request.headers)
    task, offset = await take_piece(request, state, task.task_id, offset, checksum, prefix)
    return Response(status_code=204, headers=_headers(task, offset))


@router.delete("/uploads/{task_id}", status_code=204, dependencies=_spoken, summary="Cancel it")
async def terminate(state: StateDep, task: TaskDep) -> Response:
    """Cancels the task, whose bytes are freed; one that has ended is deleted with its files."""
    check_alive(task)
    if task.status.is_terminal:
        await state.publisher.delete(task)
        await state.storage.delete(task.task_id)
    else:
        await cancel_task(state, task)
    return Response(status_code=204)


@router.post("/uploads/{task_id}", dependencies=_spoken, include_in_schema=False)
async def overridden(request: Request, state: StateDep, task: TaskDep) -> Response:
    """For clients behind something that knows GET and POST alone."""
    match request.headers.get("x-http-method-override", "").upper():
        case "PATCH":
            return await piece(request, state, task)
        case "DELETE":
            return await terminate(state, task)
        case "HEAD":
            return await head(request, state, task)
    return wrong_method("HEAD, PATCH, DELETE, OPTIONS")


def _drafted(request: Request, state: State, owner: OwnerId) -> Task:
    """The task that the headers ask for. Raises BadHeader, InvalidRequest, TooLarge."""
    if "upload-defer-length" in request.headers:
        raise BadHeader("Upload-Defer-Length is not offered: say the file's size in Upload-Length.")
    size_bytes = bytes_of(request, "Upload-Length")
    limit_bytes = int(state.settings.max_upload_bytes)
    if size_bytes > limit_bytes:
        raise too_large(limit_bytes)
    header = request.headers.get("upload-metadata", "")
    metadata = metadata_of(header)
    if not metadata.get("processor"):
        raise invalid("processor", f"name one of: {', '.join(state.registry.processors)}, in Upload-Metadata")
    processor = state.registry.get(metadata["processor"])
    options = processor.parse_options(parse_options(metadata.get("options")))
    if "filename" not in metadata:
        raise invalid("filename", "missing; name the file in Upload-Metadata")
    task = draft(
        processor.name,
        owner=owner,
        status=Status.UPLOADING,
        options=options.model_dump(mode="json"),
        filename=clean_filename(metadata["filename"]),
        content_type=clean_content_type(metadata.get("filetype")),
        size_bytes=size_bytes,
        batch_id=clean_batch_id(metadata.get("batch_id")),
    )
    try:
        declared = clean_sha256(metadata.get("sha256"))
    except ValueError as wrong:
        raise invalid("sha256", str(wrong)) from None
    more = {"upload_expires_at": expiry(), "upload_metadata": header or None, "declared_sha256": declared}
    return task.model_copy(update=more)


def _headers(task: Task, offset: int, expires_at: datetime | None = None) -> dict[str, str]:
    headers = {"Headway-Task-Id": task.task_id, "Upload-Offset": str(offset)}
    if offset != task.size_bytes:
        headers["Upload-Expires"] = http_date(expires_at or expiry())
    return headers


async def _forget(state: State, task_id: TaskId, error: BaseException) -> None:
    """Ends a task whose first piece was cut off with the request that made it: nobody was told where the rest goes."""
    match error:
        case StorageFull():
            error_type, message = ErrorType.STORAGE_FULL, "The disk had no room for the file."
        case StorageAway() | NoDescriptors():
            error_type, message = ErrorType.PROCESSOR_ERROR, f"The file could not be stored. {error}"
        case _:
            error_type, message = ErrorType.BAD_INPUT, "The upload was cut off as it began. Submit it again."
    with suppress(Refused, *AWAY):
        await state.publisher.fail(task_id, error_type, message, allowed=(Status.UPLOADING,))
        await state.storage.discard_upload(task_id)
