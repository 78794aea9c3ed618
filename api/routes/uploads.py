"""The file of an announced task: `PUT {links.upload}`, the raw body, shown on the task's stream while it arrives."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request

from api.dependencies import StateDep, TaskDep
from api.intake import body_of, check_length, invalid
from api.receiving import queue, receive
from api.routes.tasks import represent
from shared.errors import Conflict, InvalidRequest, Refused, Stopping, TooSlow, UploadCut
from shared.models import Status
from shared.redis import AWAY

router = APIRouter(tags=["uploads"])


@router.put("/tasks/{task_id}/upload", summary="Send the file of an announced task, as the raw body")
async def put_upload(request: Request, state: StateDep, task: TaskDep) -> dict[str, Any]:
    """The bytes received show on the task's stream while they arrive; at the end the task is `queued`."""
    if task.status is not Status.UPLOADING:
        raise Conflict(f"The task is {task.status}: its file has arrived or is no longer wanted.")
    if task.upload_expires_at is not None:
        raise Conflict(f"The file of this task comes in pieces, by tus: send them to /uploads/{task.task_id}.")
    limit_bytes = int(state.settings.max_upload_bytes)
    declared = request.headers.get("content-length", "")
    if task.size_bytes is not None:
        limit_bytes = task.size_bytes
        if declared.isdigit() and int(declared) != task.size_bytes:
            raise _wrong_size(task.size_bytes, int(declared))
    check_length(request, limit_bytes)
    await state.storage.check_room(int(declared) if declared.isdigit() else 0)

    async def guard() -> None:
        with suppress(*AWAY):
            now = await state.feed.task(task.task_id)
            if now.status is not Status.UPLOADING:
                raise Refused("status", now.status)

    upload = state.storage.upload(task.task_id)
    body = body_of(request, patience_seconds=state.settings.receive_timeout_seconds)
    queued = False
    try:
        await receive(body, state, task, upload, limit_bytes=limit_bytes, guard=guard)
        if task.size_bytes not in (None, upload.size_bytes):
            assert task.size_bytes is not None
            raise _wrong_size(task.size_bytes, upload.size_bytes)
        await queue(state, task, await upload.commit())
        queued = True
    except Refused as refused:
        raise Conflict(f"The task is {refused.status}: its file is no longer wanted.") from None
    except (UploadCut, TooSlow, Stopping):
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


def _wrong_size(expected: int, got: int) -> InvalidRequest:
    return invalid("size_bytes", f"{expected} bytes were announced and {got} were sent; announce the true size")
