"""`/tasks`: submit or announce, list, look, cancel, retry, delete."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from contextlib import suppress
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse

from headway.api.access.identity import check_processor, with_producer_token, with_token
from headway.api.answers import CHANGED, FORM_PROBLEMS, ONE_TASK, SUBMITTED_HEADERS, IdempotencyKey
from headway.api.cancelling import cancel_task
from headway.api.dependencies import OwnerDep, ReadTaskDep, RootPathDep, StateDep, TaskDep, TaskIdDep
from headway.api.lifespan import State
from headway.api.openapi import JSON, answer, body, problems, reference, together
from headway.api.root_path import rooted_answer
from headway.api.schemas import Submission, SubmittedTask, TaskList
from headway.api.submission import Announcement, ProducerTask, announce, submit_form
from headway.api.uploads.idempotency import Claim
from headway.api.uploads.multipart_upload import (
    BATCH_ID,
    invalid,
)
from headway.shared.errors import (
    Conflict,
    InvalidRequest,
    NearlyFull,
    StorageAway,
    StorageFull,
    UnknownTask,
    UnsupportedType,
)
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY
from headway.shared.tasks.models import Status, Task, TaskId
from headway.shared.tasks.representation import represent
from headway.shared.webhooks.outbox import MOST_NOTICES, Outbox

log = get_logger(__name__)

router = APIRouter(tags=["tasks"])

#: Rows looked at for one page of a filtered list; a page may end early with a cursor to go on from.
SCAN_ROWS: Final = 5000


ANNOUNCED: Final = {"anyOf": [reference(Announcement, "validation"), reference(ProducerTask, "validation")]}


class TaskPage(BaseModel):
    tasks: list[dict[str, Any]]
    next_cursor: str | None


@router.post(
    "/tasks",
    status_code=202,
    summary="Submit a file, or announce one, or the work of an outside producer",
    operation_id="submit_task",
    responses=together(
        {
            201: answer(
                "Announced: send the file to links.upload; or `processing`, by an outside producer",
                *(SubmittedTask, SUBMITTED_HEADERS),
            ),
            202: answer("Queued", SubmittedTask, SUBMITTED_HEADERS),
        },
        FORM_PROBLEMS,
        problems(UnknownTask),
    ),
    openapi_extra=body({"multipart/form-data": reference(Submission, "validation"), JSON: ANNOUNCED}),
)
async def submit(
    request: Request, state: StateDep, owner: OwnerDep, root: RootPathDep, _: IdempotencyKey = None
) -> Any:
    """Multipart: the file with its processor; answers 202 when it is stored and queued. JSON: announces a file, whose
    stream can be watched before its first byte is sent; answers 201. With `producer` the task is `processing` at once,
    and whoever holds its `producer_token` reports on it."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()

    async def make(claim: Claim) -> Task:
        if media_type == "multipart/form-data":
            task = await submit_form(request, state, owner, claim)
        elif media_type == "application/json":
            task = await announce(request, state, owner, claim)
        else:
            raise UnsupportedType
        with suppress(*AWAY):  # it is queued, whoever can say where
            task = await state.line.placed(task)
        return task

    def show(task: Task) -> JSONResponse:
        status_code = 201 if task.status is Status.UPLOADING or task.producer is not None else 202
        return JSONResponse(represent(task), status_code, {"Location": f"/tasks/{task.task_id}"})

    made = rooted_answer(await state.idempotency.once(request, owner, make, show), root)
    return await with_producer_token(await with_token(made, state, request.scope), state, request.scope)


@router.get(
    "/tasks",
    summary="List tasks, newest first",
    responses=together({200: answer("A page", TaskList)}, problems(InvalidRequest)),
)
async def list_tasks(
    state: StateDep,
    owner: OwnerDep,
    root: RootPathDep,
    status: Annotated[Status | None, Query()] = None,
    processor: Annotated[str | None, Query(max_length=200)] = None,
    batch_id: Annotated[str | None, Query(pattern=f"^{BATCH_ID}$")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> TaskPage:
    """A page and the cursor of the next one, null at the end. A filtered page may hold fewer than `limit` and still
    have a next one."""
    place = _place(cursor)
    found: list[Task] = []
    looked_at = 0
    while len(found) < limit and looked_at < SCAN_ROWS:
        page = await state.reader.tasks(owner, limit=min(limit, 100), before=place, batch_id=batch_id)
        if not page:
            return TaskPage(tasks=await _represented(state, found, root), next_cursor=None)
        for task, at in page:
            place = at
            looked_at += 1
            wanted = (status is None or task.status is status) and (processor is None or task.processor == processor)
            if wanted:
                found.append(task)
                if len(found) == limit:
                    break
    return TaskPage(tasks=await _represented(state, found, root), next_cursor=_cursor(place))


async def _represented(state: State, tasks: list[Task], root: str) -> list[dict[str, Any]]:
    return [represent(task, root) for task in await asyncio.gather(*map(state.line.placed, tasks))]


def _cursor(place: tuple[int, TaskId] | None) -> str | None:
    return base64.urlsafe_b64encode(f"{place[0]}:{place[1]}".encode()).decode() if place else None


def _place(cursor: str | None) -> tuple[int, TaskId] | None:
    if cursor is None:
        return None
    try:
        created_ms, _, task_id = base64.urlsafe_b64decode(cursor.encode()).decode().partition(":")
    except (binascii.Error, UnicodeError):
        created_ms = task_id = ""
    if not re.fullmatch(r"[0-9]{1,15}", created_ms) or not re.fullmatch(r"[0-9a-f]{32}", task_id):
        raise invalid("cursor", "not one of ours; use next_cursor of the page before")
    return int(created_ms), TaskId(task_id)


@router.get("/tasks/{task_id}", summary="One task", operation_id="get_task", responses={200: ONE_TASK})
async def get_one(state: StateDep, task: ReadTaskDep, root: RootPathDep) -> dict[str, Any]:
    return represent(await state.line.placed(task), root)


@router.post(
    "/tasks/{task_id}/cancel",
    status_code=202,
    summary="Cancel a task that has not ended",
    operation_id="cancel_task",
    responses=CHANGED,
)
async def cancel(state: StateDep, task: TaskDep, root: RootPathDep) -> dict[str, Any]:
    """From this answer on the task is `cancelled`, whatever was running."""
    await cancel_task(state, task)
    return represent(await state.reader.task(task.task_id), root)


@router.post(
    "/tasks/{task_id}/retry",
    status_code=202,
    summary="Run a failed or cancelled task again",
    operation_id="retry_task",
    responses=together(CHANGED, problems(NearlyFull)),
)
async def retry(request: Request, state: StateDep, task: TaskDep, root: RootPathDep) -> dict[str, Any]:
    """The same task, the next attempt. 409 where it has not failed, or where its file never arrived."""
    if task.producer is not None:
        raise Conflict(
            "An outside producer runs this task, so no worker can. The producer begins it again: POST …/attempts."
        )
    check_processor(request.scope, task.processor)
    if task.status.is_terminal and task.filename is not None and task.input_name is None and task.follows is None:
        raise Conflict("The file of this task never arrived whole, so there is nothing to run. Submit it again.")
    state.limits.check_head_room()
    if await Outbox(state.redis).count(task.task_id) >= MOST_NOTICES:
        raise Conflict(f"{MOST_NOTICES} ends of this task have been told to webhooks. Submit it anew.")
    await state.publisher.retry(task)
    return represent(await state.reader.task(task.task_id), root)


@router.delete(
    "/tasks/{task_id}",
    status_code=204,
    summary="Delete an ended task, its files and its history",
    operation_id="delete_task",
    responses=together({204: answer("It is gone")}, problems(UnknownTask, Conflict, StorageAway, StorageFull)),
)
async def delete(state: StateDep, task_id: TaskIdDep, owner: OwnerDep) -> None:
    task = await state.reader.task(task_id, owner)
    await state.publisher.delete(task)
    await asyncio.shield(state.storage.delete(task_id))
    with suppress(*AWAY):  # the sweeper finds nothing to remove
        await state.publisher.files_removed([task_id])
