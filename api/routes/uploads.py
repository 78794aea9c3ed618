"""The file of an announced task: `PUT {links.upload}`, the raw body, shown on the task's stream while it arrives."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any, Final

from fastapi import APIRouter, Request

from api.dependencies import StateDep, TaskDep
from api.intake import check_length, invalid, store_raw
from api.lifespan import State
from api.routes.tasks import UPLOAD_SHARE, represent
from shared.cancellation import heed_cancellation
from shared.errors import Conflict, InvalidRequest, Refused, UploadCut
from shared.models import Status, Task
from shared.redis import AWAY
from shared.storage import Upload

router = APIRouter(tags=["uploads"])

#: Bytes received are shown this often: as often as an eye follows, however fast the line.
SHOW_SECONDS: Final = 0.1
#: A whole file on disk is not given up because Redis restarts in that moment.
ENQUEUE_PATIENCE_SECONDS: Final = 15.0


@router.put("/tasks/{task_id}/upload", summary="Send the file of an announced task, as the raw body")
async def put_upload(request: Request, state: StateDep, task: TaskDep) -> dict[str, Any]:
    """The bytes received show on the task's stream while they arrive; at the end the task is `queued`."""
    if task.status is not Status.UPLOADING:
        raise Conflict(f"The task is {task.status}: its file has arrived or is no longer wanted.")
    limit_bytes = int(state.settings.max_upload_bytes)
    declared = request.headers.get("content-length", "")
    if task.size_bytes is not None:
        limit_bytes = task.size_bytes
        if declared.isdigit() and int(declared) != task.size_bytes:
            raise _wrong_size(task.size_bytes, int(declared))
    check_length(request, limit_bytes)
    upload = state.storage.upload(task.task_id)
    queued = False
    try:
        await _receive(request, state, task, upload, limit_bytes)
        if task.size_bytes not in (None, upload.size_bytes):
            assert task.size_bytes is not None
            raise _wrong_size(task.size_bytes, upload.size_bytes)
        stored = await upload.commit()
        fields = {
            "size_bytes": stored.size_bytes,
            "done": stored.size_bytes,
            "total": stored.size_bytes,
            "progress": UPLOAD_SHARE,
            "input_name": stored.name,
            "input_sha256": stored.sha256,
        }
        async with asyncio.timeout(ENQUEUE_PATIENCE_SECONDS):
            await state.patient_publisher.enqueue(task, fields)
        queued = True
    except Refused as refused:
        raise Conflict(f"The task is {refused.status}: its file is no longer wanted.") from None
    except UploadCut:
        with suppress(Refused, *AWAY):
            await state.publisher.change(
                task.task_id,
                {"message": "The upload was cut off; send the file again", "done": 0, "rate": None},
                allowed=(Status.UPLOADING,),
            )
        raise
    finally:
        if not queued:
            await asyncio.shield(upload.abort())
    return represent(await state.feed.task(task.task_id))


async def _receive(request: Request, state: State, task: Task, upload: Upload, limit_bytes: int) -> None:
    """Stores the body, and shows it beside that, so that Redis never slows a line down and a line that stalls is seen
    where it stands. Raises Refused where the task was cancelled meanwhile."""
    try:
        async with asyncio.TaskGroup() as group:
            showing = group.create_task(_show(state, task, upload), name="show upload")
            await store_raw(request, upload, limit_bytes=limit_bytes)
            showing.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _show(state: State, task: Task, upload: Upload) -> None:
    started, shown, base = time.monotonic(), 0, task.progress
    while True:
        heed_cancellation()
        await asyncio.sleep(SHOW_SECONDS)
        received = upload.size_bytes
        if received == shown:
            continue
        shown = received
        share = UPLOAD_SHARE * received / task.size_bytes if task.size_bytes else 0
        fields = {
            "message": "Receiving the file",
            "done": received,
            "progress": max(base, round(share, 2)),
            "rate": round(received / (time.monotonic() - started), 1),
        }
        # The upload goes on without Redis: what the file is worth does not depend on who is watching.
        with suppress(*AWAY):
            await state.publisher.change(task.task_id, fields, allowed=(Status.UPLOADING,))


def _wrong_size(expected: int, got: int) -> InvalidRequest:
    return invalid("size_bytes", f"{expected} bytes were announced and {got} were sent; announce the true size")
