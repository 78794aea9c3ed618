"""Downloads: a result, an input, a file of HEADWAY_FILES_DIR. Always an attachment, never something to run."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from api.dependencies import OwnerDep, StateDep, TaskDep
from api.lifespan import State
from shared.errors import Refused, UnknownFile
from shared.models import Task
from shared.redis import AWAY

router = APIRouter(tags=["files"])

#: A download is shown this often.
SHOW_SECONDS: Final = 0.1

TransferQuery = Annotated[bool, Query(description="Show the download's progress on the task's stream")]

#: Nothing in a file of a stranger runs with this page's rights, even if it is opened.
_SAFE = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}


def attachment(
    request: Request,
    path: Path,
    *,
    name: str,
    content_type: str | None,
    etag: str,
    show: Callable[[int, int], Awaitable[None]] | None = None,
) -> Response:
    """Ranges and If-Range as FileResponse has them; If-None-Match here. `etag` without its quotes, strong. `show` is
    told the bytes sent and the bytes to send, now and then and at the end."""
    quoted = f'"{etag}"'
    headers = {**_SAFE, "ETag": quoted, "Cache-Control": "private, no-cache"}
    asked = request.headers.get("if-none-match", "")
    if asked.strip() == "*" or quoted in {tag.strip().removeprefix("W/") for tag in asked.split(",")}:
        return Response(status_code=304, headers=headers)
    media_type = content_type or "application/octet-stream"
    if show is not None:
        return _Shown(path, headers=headers, media_type=media_type, filename=name, show=show)
    return FileResponse(path, headers=headers, media_type=media_type, filename=name)


class _Shown(FileResponse):
    """A download whose progress others can watch."""

    def __init__(self, *args: Any, show: Callable[[int, int], Awaitable[None]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._show = show

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = total = 0
        shown_at = 0.0

        async def counted(message: Message) -> None:
            nonlocal sent, total, shown_at
            await send(message)
            if message["type"] == "http.response.start":
                total = int(Headers(raw=message["headers"]).get("content-length", 0))
                return
            sent += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if ended or time.monotonic() - shown_at >= SHOW_SECONDS:
                shown_at = time.monotonic()
                # Shielded: a client that has its last byte leaves, and takes this with it.
                await asyncio.shield(self._show(sent, total))

        # Without the server's own way to send a file by its path: what is not passed through here cannot be counted.
        extensions = {k: v for k, v in scope.get("extensions", {}).items() if k != "http.response.pathsend"}
        await super().__call__({**scope, "extensions": extensions}, receive, counted)


def transfer_of(state: State, task: Task, name: str) -> Callable[[int, int], Awaitable[None]]:
    """Sends `transfer` events: the progress of somebody's download to everybody who watches."""

    async def show(sent: int, total: int) -> None:
        progress = round(100 * sent / total, 2) if total else 100.0
        data = {"file": name, "sent": sent, "total": total, "progress": progress}
        with suppress(Refused, *AWAY):  # the download does not depend on who is watching
            await state.publisher.emit(task.task_id, "transfer", data)

    return show


@router.head("/tasks/{task_id}/files/{name}", include_in_schema=False)
@router.get("/tasks/{task_id}/files/{name}", response_class=FileResponse)
async def result_file(
    request: Request, state: StateDep, task: TaskDep, name: str, transfer: TransferQuery = False
) -> Response:
    """A file of the result, once the task has completed."""
    file = next((file for file in task.result.files if file.name == name), None) if task.result else None
    if file is None:
        raise UnknownFile
    path = (await state.storage.result(task.task_id, task.attempt, name)).path
    assert path is not None
    show = transfer_of(state, task, name) if transfer else None
    return attachment(request, path, name=name, content_type=file.content_type, etag=file.sha256, show=show)


@router.head("/tasks/{task_id}/input", include_in_schema=False)
@router.get("/tasks/{task_id}/input", response_class=FileResponse)
async def input_file(request: Request, state: StateDep, task: TaskDep, transfer: TransferQuery = False) -> Response:
    """The file as it was uploaded."""
    if task.input_sha256 is None or task.filename is None:
        raise UnknownFile("The file has not arrived, or the task has none.")
    path = (await state.storage.input(task.task_id, task.input_name)).path
    assert path is not None
    show = transfer_of(state, task, task.filename) if transfer else None
    etag = task.input_sha256
    return attachment(request, path, name=task.filename, content_type=task.content_type, etag=etag, show=show)


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
