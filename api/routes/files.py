"""Downloads: a result, an input, a file of HEADWAY_FILES_DIR. How they are sent is said in api/attachment.py."""

from __future__ import annotations

import mimetypes
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.attachment import Attachment, Show
from api.dependencies import OwnerDep, ReadTaskDep, StateDep
from api.lifespan import State
from shared.errors import UnknownFile
from shared.models import Task
from shared.redis import AWAY, RedisError
from shared.storage import StoredObject

router = APIRouter(tags=["files"])

TransferQuery = Annotated[bool, Query(description="Show the download's progress on the task's stream")]


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


def transfer_of(state: State, task: Task, name: str) -> Show:
    """Sends `transfer` events: the progress of somebody's download to everybody who watches."""

    async def show(sent: int, total: int) -> None:
        progress = round(100 * sent / total, 2) if total else 100.0
        data = {"file": name, "sent": sent, "total": total, "progress": progress}
        with suppress(RedisError, *AWAY):  # the download does not depend on who is watching
            await state.publisher.tell(task, "transfer", data)

    return show


@router.head("/tasks/{task_id}/files/{name}", include_in_schema=False)
@router.get("/tasks/{task_id}/files/{name}", response_class=Response)
async def result_file(state: StateDep, task: ReadTaskDep, name: str, transfer: TransferQuery = False) -> Attachment:
    """A file of the result, once the task has completed."""
    file = next((file for file in task.result.files if file.name == name), None) if task.result else None
    if file is None:
        raise UnknownFile
    content = await state.storage.result(task.task_id, task.attempt, name)
    show = transfer_of(state, task, name) if transfer else None
    return attachment(state, content, name=name, content_type=file.content_type, sha256=file.sha256, show=show)


@router.head("/tasks/{task_id}/input", include_in_schema=False)
@router.get("/tasks/{task_id}/input", response_class=Response)
async def input_file(state: StateDep, task: ReadTaskDep, transfer: TransferQuery = False) -> Attachment:
    """The file as it was uploaded."""
    name, sha256 = task.filename, task.input_sha256
    if sha256 is None or name is None:
        raise UnknownFile("The file has not arrived, or the task has none.")
    content = await state.storage.input(task.task_id, task.input_name)
    show = transfer_of(state, task, name) if transfer else None
    return attachment(state, content, name=name, content_type=task.content_type, sha256=sha256, show=show)


@router.head("/download/{filename}", include_in_schema=False)
@router.get("/download/{filename}", response_class=Response, tags=["tutorial"])
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
