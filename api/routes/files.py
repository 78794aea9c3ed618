"""Downloads: a result, an input, a file of HEADWAY_FILES_DIR. How they are sent is said in
api/downloads/attachment.py."""

from __future__ import annotations

import mimetypes
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Query
from starlette.responses import Response

from headway.api.dependencies import OwnerDep, ReadTaskDep, StateDep
from headway.api.downloads.attachment import Attachment, Show, disposition
from headway.api.downloads.generated_download import GeneratedDownload
from headway.api.downloads.growing_file import growing
from headway.api.lifespan import State
from headway.api.openapi import BINARY, answer, asked, header, parameters, problems, together
from headway.api.uploads.tus import http_date
from headway.shared.errors import (
    InvalidRequest,
    PreconditionFailed,
    RangeNotSatisfiable,
    StorageAway,
    StorageFull,
    UnknownFile,
    UnknownTask,
)
from headway.shared.files.storage import StoredObject, results_folder
from headway.shared.redis.client import AWAY, RedisError
from headway.shared.tasks.models import Task, utc_now

router = APIRouter(tags=["files"])

#: It has the type that it was uploaded or made with, or that its name stands for. The first is for generated clients.
_CONTENT: Final = {"application/octet-stream": BINARY, "*/*": BINARY}
_TAGS: Final = {
    "ETag": header("Strong: the SHA-256 of the content. Absent where the file changes while it is read", always=False),
    "Last-Modified": header("When it was written"),
    "Accept-Ranges": header("`bytes`"),
}
_HEADERS: Final = _TAGS | {
    "Content-Disposition": header("`attachment`, with the file's name"),
    "Repr-Digest": header("The SHA-256 of the content (RFC 9530)", always=False),
}
DOWNLOAD: Final = together(
    {
        200: answer("The whole file", _CONTENT, _HEADERS),
        206: answer(
            "One range, or several as `multipart/byteranges`",
            _CONTENT,
            _HEADERS | {"Content-Range": header("Of one range: `bytes FIRST-LAST/SIZE`", always=False)},
        ),
        304: answer("The client has it", None, _TAGS),
    },
    problems(UnknownFile, PreconditionFailed, RangeNotSatisfiable, StorageAway, StorageFull),
)
OF_A_TASK: Final = together(DOWNLOAD, problems(UnknownTask, InvalidRequest))
CONDITIONS: Final = parameters(
    Range=asked("`bytes=FIRST-LAST`, or several; up to 64"),
    If_Range=asked("The range counts for this strong tag or date alone; else the whole file is sent"),
    If_None_Match=asked("304 for one of these tags"),
    If_Match=asked("412 for any other tag"),
    If_Modified_Since=asked("304 where it has not changed since"),
    If_Unmodified_Since=asked("412 where it has changed since"),
)

TransferQuery = Annotated[bool, Query(description="Show the download's progress on the task's stream")]

FollowQuery = Annotated[bool, Query(description="Of a task that has not ended: what is written, while it is")]


def attachment(
    state: State,
    content: StoredObject,
    *,
    name: str,
    content_type: str | None,
    sha256: str | None,
    show: Show | None = None,
) -> Attachment:
    timeout = state.settings.send_timeout_seconds
    return Attachment(
        content,
        name=name,
        content_type=content_type,
        sha256=sha256,
        send_timeout_seconds=timeout,
        show=show,
        count=state.metrics.tally.downloaded,
    )


def _followed(state: State, task: Task, name: str) -> Response:
    response = GeneratedDownload(
        growing(state, task, name),
        filename="",
        media_type=mimetypes.guess_type(name)[0] or "application/octet-stream",
        send_timeout_seconds=state.settings.send_timeout_seconds,
        count=state.metrics.tally.downloaded,
    )
    response.headers["Content-Disposition"] = disposition(name)
    response.headers["Last-Modified"] = http_date(utc_now())
    response.headers["Accept-Ranges"] = "none"
    return response


def transfer_of(state: State, task: Task, name: str) -> Show:
    """Sends `transfer` events: the progress of somebody's download to everybody who watches."""

    async def show(sent: int, total: int) -> None:
        progress = round(100 * sent / total, 2) if total else 100.0
        data = {"file": name, "sent": sent, "total": total, "progress": progress}
        with suppress(RedisError, *AWAY):  # the download does not depend on who is watching
            await state.publisher.tell(task, "transfer", data)

    return show


@router.head("/tasks/{task_id}/files/{name}", response_class=Response, responses=OF_A_TASK, openapi_extra=CONDITIONS)
@router.get("/tasks/{task_id}/files/{name}", response_class=Response, responses=OF_A_TASK, openapi_extra=CONDITIONS)
async def result_file(
    state: StateDep, task: ReadTaskDep, name: str, transfer: TransferQuery = False, follow: FollowQuery = False
) -> Response:
    """A file of the result, once the task has completed; with `follow` before, as far as it is written, and what comes
    to the end. Where the task does not complete, the connection is cut."""
    if follow and not task.status.is_terminal:
        return _followed(state, task, name)
    file = next((file for file in task.result.files if file.name == name), None) if task.result else None
    if file is None:
        raise UnknownFile
    if (produced := task.produced.get(name)) is not None:
        content = await state.storage.input(task.task_id, produced.stored)
    else:
        content = await state.storage.result(task.task_id, task.results_name or results_folder(task.attempt), name)
    show = transfer_of(state, task, name) if transfer else None
    return attachment(state, content, name=name, content_type=file.content_type, sha256=file.sha256, show=show)


@router.head("/tasks/{task_id}/input", response_class=Response, responses=OF_A_TASK, openapi_extra=CONDITIONS)
@router.get("/tasks/{task_id}/input", response_class=Response, responses=OF_A_TASK, openapi_extra=CONDITIONS)
async def input_file(state: StateDep, task: ReadTaskDep, transfer: TransferQuery = False) -> Attachment:
    """The file as it was uploaded."""
    name, sha256 = task.filename, task.input_sha256
    if sha256 is None or name is None:
        raise UnknownFile("The file has not arrived, or the task has none.")
    content = await state.storage.input(task.task_id, task.input_name)
    show = transfer_of(state, task, name) if transfer else None
    return attachment(state, content, name=name, content_type=task.content_type, sha256=sha256, show=show)


@router.head(
    "/download/{filename}", response_class=Response, responses=DOWNLOAD, openapi_extra=CONDITIONS, tags=["tutorial"]
)
@router.get(
    "/download/{filename}", response_class=Response, responses=DOWNLOAD, openapi_extra=CONDITIONS, tags=["tutorial"]
)
async def offered_file(state: StateDep, _: OwnerDep, filename: str) -> Attachment:
    """A file of HEADWAY_FILES_DIR."""
    content, sha256 = await state.digests.of(_offered(state.settings.files_dir, filename))
    guessed, encoding = mimetypes.guess_type(filename)
    # `text/csv` would be wrong for `a.csv.gz`: nobody is told to unpack it.
    content_type = guessed if encoding is None else None
    return attachment(state, content, name=filename, content_type=content_type, sha256=sha256)


def _offered(folder: Path, filename: str) -> Path:
    """Raises UnknownFile for what is not a name of a file directly in the folder."""
    if "/" in filename or "\\" in filename or "\0" in filename or filename.startswith("."):
        raise UnknownFile
    return folder.absolute() / filename
