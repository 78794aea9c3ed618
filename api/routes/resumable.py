"""`/uploads`: tus 1.0.0, a file in as many pieces as the line breaks it into. An upload is a task from its creation on.

Who asks, which task and how much are checked before a byte of a body is read. What a piece does is
api/uploads/resumable_upload.py's, what the headers say api/uploads/tus.py's.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime
from typing import Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from headway.api.access.grant import Action
from headway.api.access.identity import check_action, check_processor, most_upload_bytes, token_of
from headway.api.cancelling import cancel_task
from headway.api.dependencies import OwnerDep, StateDep, TaskDep
from headway.api.lifespan import State
from headway.api.openapi import (
    BINARY,
    Responses,
    Schema,
    answer,
    asked,
    body,
    header,
    parameters,
    problems,
    together,
    wrong_method_answer,
)
from headway.api.problems import wrong_method
from headway.api.submission import draft
from headway.api.uploads.capacity_check import check_capacity
from headway.api.uploads.multipart_upload import (
    clean_batch_id,
    clean_content_type,
    invalid,
    names_of,
    parse_options,
    too_large,
)
from headway.api.uploads.order import Order
from headway.api.uploads.receiving import expiry
from headway.api.uploads.resumable_upload import check_alive, declared_bytes, digest_of, offset_of, take_piece
from headway.api.uploads.tus import (
    PIECE_TYPE,
    VERSION,
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
from headway.api.uploads.upload_digests import clean_sha256, wanted_prefix
from headway.api.uploads.webhook_field import webhook_of
from headway.shared.errors import (
    AnotherFile,
    BadHeader,
    ChecksumMismatch,
    Conflict,
    InvalidRequest,
    NearlyFull,
    NoDescriptors,
    NotTheAnnouncedFile,
    QuotaFull,
    Refused,
    StorageAway,
    StorageFull,
    TooLarge,
    UnknownFile,
    UnknownTask,
    UnsupportedType,
    UploadBusy,
    UploadGone,
    WrongTusVersion,
)
from headway.shared.redis.client import AWAY
from headway.shared.tasks.models import ErrorType, OwnerId, Status, Task, TaskId

router = APIRouter(tags=["resumable uploads"], route_class=TusRoute)

_spoken = [Depends(check_version)]

_BYTES: Final[Schema] = {"type": "integer", "minimum": 0}
_VERSIONED: Final = {"Tus-Resumable": header(f"`{VERSION}`")}
_SPOKEN: Final = {"Tus_Resumable": asked("The version of tus", {"type": "string", "enum": [VERSION]}, required=True)}
_PLACE: Final = _VERSIONED | {
    "Headway-Task-Id": header("The upload's task"),
    "Upload-Offset": header("The bytes that are safe", _BYTES),
    "Upload-Expires": header("When it is given up, if nothing comes. Absent once all is there", always=False),
}
_CREATED: Final = _PLACE | {
    "Location": header("Where its bytes go"),
    "Headway-Task-Token": header("Reads the task. Absent in open mode", always=False),
}
_STANDING: Final = _PLACE | {
    "Upload-Length": header("The bytes of the whole file", _BYTES),
    "Upload-Metadata": header("As it was sent", always=False),
    "Headway-Upload-Digest": header("Where it was asked for", always=False),
}
_CHECKSUM: Final = asked("`ALGORITHM BASE64` of the body: sha1, md5, sha256 or crc32")
_PIECE: Final = {"Upload_Checksum": _CHECKSUM} | {
    "Upload_Offset": asked("Where the body begins", _BYTES, required=True),
    "Headway_Upload_Digest": asked("Of what stands before the body; with another, nothing changes"),
}
_WANT_DIGEST: Final = {"Headway_Want_Digest": asked("`1`: answer Headway-Upload-Digest too")}
#: What can be wrong with an upload, whatever is asked of it.
_LOST: Final = problems(UnknownTask, UploadGone, WrongTusVersion)
#: And where the last of its bytes are there, so that its task is to be queued.
_QUEUED: Final = problems(UploadBusy, NotTheAnnouncedFile, StorageFull, QuotaFull, StorageAway)
_LOOKED_AT: Final = together({200: answer("Where it stands", None, _STANDING)}, _LOST, _QUEUED, problems(UnknownFile))
_TAKEN: Final = together(
    {204: answer("The bytes are safe", None, _PLACE)},
    _LOST,
    _QUEUED,
    problems(BadHeader, Conflict, AnotherFile, TooLarge, UnsupportedType, ChecksumMismatch),
)
_ENDED: Final = together(
    {204: answer("It is cancelled", None, _VERSIONED)}, _LOST, problems(Conflict, StorageAway, StorageFull)
)
_CAPABILITIES: Final[Responses] = {
    204: answer(
        "What is spoken here",
        None,
        _VERSIONED
        | {name: header("As tus has it") for name in ("Tus-Version", "Tus-Extension", "Tus-Checksum-Algorithm")}
        | {"Tus-Max-Size": header("Bytes", _BYTES)},
    )
}


@router.options(
    "/uploads",
    status_code=204,
    summary="What of tus is spoken here",
    operation_id="get_upload_capabilities",
    responses=_CAPABILITIES,
)
@router.options("/uploads/", include_in_schema=False)
@router.options("/uploads/{task_id}", include_in_schema=False)
async def options(request: Request, state: StateDep, _: OwnerDep) -> Response:
    """What of tus is spoken here."""
    return Response(status_code=204, headers=capabilities(most_upload_bytes(request.scope, state)))


@router.post(
    "/uploads",
    status_code=201,
    dependencies=_spoken,
    summary="Begin a resumable upload",
    operation_id="create_upload",
    responses=together(
        {201: answer("Begun", None, _CREATED)},
        _LOST,
        _QUEUED,
        problems(BadHeader, InvalidRequest, TooLarge, ChecksumMismatch, NearlyFull),
    ),
    openapi_extra=body({PIECE_TYPE: BINARY}, required=False)
    | parameters(
        **_SPOKEN,
        Upload_Length=asked("The bytes of the whole file", _BYTES, required=True),
        Upload_Metadata=asked(
            "`key BASE64,…`: filename, processor, and as wanted filetype, options, batch_id, sha256, priority, "
            "not_before, webhook",
            required=True,
        ),
        Upload_Checksum=_CHECKSUM,
    ),
)
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
    await check_capacity(state, owner, size_bytes)
    await state.publisher.create(task)
    offset = 0
    if first_piece or size_bytes == 0:
        try:
            task, offset = await take_piece(request, state, task.task_id, 0, checksum)
        except BaseException as error:
            await asyncio.shield(_forget(state, task.task_id, error))
            raise
    headers = _headers(task, offset) | {"Location": f"{request.scope.get('root_path', '')}/uploads/{task.task_id}"}
    if (token := await token_of(state, request.scope, task.task_id)) is not None:
        headers["Headway-Task-Token"] = token
    return Response(status_code=201, headers=headers)


@router.head(
    "/uploads/{task_id}",
    dependencies=_spoken,
    summary="How much of it is safe",
    operation_id="get_upload",
    responses=_LOOKED_AT,
    openapi_extra=parameters(**_SPOKEN, **_WANT_DIGEST),
)
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


@router.patch(
    "/uploads/{task_id}",
    status_code=204,
    dependencies=_spoken,
    summary="Send a piece of it",
    operation_id="send_piece",
    responses=_TAKEN,
    openapi_extra=body({PIECE_TYPE: BINARY}) | parameters(**_SPOKEN, **_PIECE),
)
async def piece(request: Request, state: StateDep, task: TaskDep) -> Response:
    """At the last byte the task is `queued`. A piece that is cut off is kept as far as it came."""
    check_alive(task)
    check_type(request)
    check_processor(request.scope, task.processor)
    if (task.size_bytes or 0) > (limit_bytes := most_upload_bytes(request.scope, state)):
        raise too_large(limit_bytes)
    offset, checksum, prefix = bytes_of(request, "Upload-Offset"), Checksum.of(request), wanted_prefix(request.headers)
    task, offset = await take_piece(request, state, task.task_id, offset, checksum, prefix)
    return Response(status_code=204, headers=_headers(task, offset))


@router.delete(
    "/uploads/{task_id}",
    status_code=204,
    dependencies=_spoken,
    summary="Cancel it",
    operation_id="delete_upload",
    responses=_ENDED,
    openapi_extra=parameters(**_SPOKEN),
)
async def terminate(request: Request, state: StateDep, task: TaskDep) -> Response:
    """Cancels the task, whose bytes are freed; one that has ended is deleted with its files."""
    check_alive(task)
    if task.status.is_terminal:
        check_action(request.scope, Action.DELETE)
        await state.publisher.delete(task)
        await state.storage.delete(task.task_id)
    else:
        await cancel_task(state, task)
    return Response(status_code=204)


@router.post(
    "/uploads/{task_id}",
    dependencies=_spoken,
    summary="PATCH, DELETE or HEAD, for who can send GET and POST alone",
    operation_id="override_upload_method",
    responses=together(_LOOKED_AT, _TAKEN, _ENDED, problems(UnknownFile), wrong_method_answer()),
    openapi_extra=body({PIECE_TYPE: BINARY}, required=False)
    | parameters(
        **_SPOKEN,
        **_PIECE | _WANT_DIGEST | {"Upload_Offset": asked("As of PATCH", _BYTES)},
        X_HTTP_Method_Override=asked("`PATCH`, `DELETE` or `HEAD`", required=True),
    ),
)
async def overridden(request: Request, state: StateDep, task: TaskDep) -> Response:
    """For clients behind something that knows GET and POST alone."""
    match request.headers.get("x-http-method-override", "").upper():
        case "PATCH":
            return await piece(request, state, task)
        case "DELETE":
            return await terminate(request, state, task)
        case "HEAD":
            return await head(request, state, task)
    return wrong_method("DELETE, HEAD, OPTIONS, PATCH, POST")


def _drafted(request: Request, state: State, owner: OwnerId) -> Task:
    """The task that the headers ask for. Raises BadHeader, InvalidRequest, TooLarge."""
    if "upload-defer-length" in request.headers:
        raise BadHeader("Upload-Defer-Length is not offered: say the file's size in Upload-Length.")
    size_bytes = bytes_of(request, "Upload-Length")
    limit_bytes = most_upload_bytes(request.scope, state)
    if size_bytes > limit_bytes:
        raise too_large(limit_bytes)
    header = request.headers.get("upload-metadata", "")
    metadata = metadata_of(header)
    if not metadata.get("processor"):
        raise invalid("processor", f"name one of: {', '.join(state.registry.processors)}, in Upload-Metadata")
    check_processor(request.scope, metadata["processor"])
    processor = state.registry.get(metadata["processor"])
    options = processor.parse_options(parse_options(metadata.get("options")))
    if "filename" not in metadata:
        raise invalid("filename", "missing; name the file in Upload-Metadata")
    task = draft(
        processor.name,
        owner=owner,
        status=Status.UPLOADING,
        options=options.model_dump(mode="json"),
        **names_of(metadata["filename"]),
        content_type=clean_content_type(metadata.get("filetype")),
        size_bytes=size_bytes,
        batch_id=clean_batch_id(metadata.get("batch_id")),
        order=Order.of(metadata),
        webhook=webhook_of(metadata.get("webhook"), state.settings),
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
