"""Downloads: a result, an input, a file of HEADWAY_FILES_DIR. Always an attachment, never something to run."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from api.dependencies import OwnerDep, StateDep, TaskDep
from shared.errors import UnknownFile

router = APIRouter(tags=["files"])

#: Nothing in a file of a stranger runs with this page's rights, even if it is opened.
_SAFE = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}


def attachment(request: Request, path: Path, *, name: str, content_type: str | None, etag: str) -> Response:
    """Ranges and If-Range as FileResponse has them; If-None-Match here. `etag` without its quotes, strong."""
    quoted = f'"{etag}"'
    headers = {**_SAFE, "ETag": quoted, "Cache-Control": "private, no-cache"}
    asked = request.headers.get("if-none-match", "")
    if asked.strip() == "*" or quoted in {tag.strip().removeprefix("W/") for tag in asked.split(",")}:
        return Response(status_code=304, headers=headers)
    return FileResponse(path, headers=headers, media_type=content_type or "application/octet-stream", filename=name)


@router.head("/tasks/{task_id}/files/{name}", include_in_schema=False)
@router.get("/tasks/{task_id}/files/{name}", response_class=FileResponse)
async def result_file(request: Request, state: StateDep, task: TaskDep, name: str) -> Response:
    """A file of the result, once the task has completed."""
    file = next((file for file in task.result.files if file.name == name), None) if task.result else None
    if file is None:
        raise UnknownFile
    path = await asyncio.to_thread(state.storage.result_path, task.task_id, task.attempt, name)
    return attachment(request, path, name=name, content_type=file.content_type, etag=file.sha256)


@router.head("/tasks/{task_id}/input", include_in_schema=False)
@router.get("/tasks/{task_id}/input", response_class=FileResponse)
async def input_file(request: Request, state: StateDep, task: TaskDep) -> Response:
    """The file as it was uploaded."""
    if task.input_sha256 is None or task.filename is None:
        raise UnknownFile("The file has not arrived, or the task has none.")
    path = await asyncio.to_thread(state.storage.input_path, task.task_id, task.input_name)
    return attachment(request, path, name=task.filename, content_type=task.content_type, etag=task.input_sha256)


@router.head("/download/{filename}", include_in_schema=False)
@router.get("/download/{filename}", response_class=FileResponse, tags=["tutorial"])
async def offered_file(request: Request, state: StateDep, _: OwnerDep, filename: str) -> Response:
    """A file of HEADWAY_FILES_DIR."""
    path = await asyncio.to_thread(_offered, state.settings.files_dir, filename)
    etag = await asyncio.to_thread(_digest, path)
    return attachment(request, path, name=path.name, content_type=None, etag=etag)


def _offered(folder: Path, filename: str) -> Path:
    """Raises UnknownFile for all that is not a plain file directly in the folder."""
    if "/" in filename or "\\" in filename or "\0" in filename or filename.startswith("."):
        raise UnknownFile
    path = folder / filename
    try:
        if path.is_symlink() or not path.is_file():
            raise UnknownFile
    except OSError:
        raise UnknownFile from None
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
