"""What an outside producer says of its task: reports, results, the end. `POST /tasks` makes the task
(api/routes/tasks.py)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.responses import JSONResponse

from headway.api.access.identity import check_processor, most_upload_bytes, with_producer_token
from headway.api.answers import ONE_TASK
from headway.api.dependencies import (
    OwnerDep,
    ProducedTaskDep,
    ProducingDep,
    RootPathDep,
    StateDep,
    TaskIdPath,
    get_state,
    get_task_id,
)
from headway.api.lifespan import State
from headway.api.openapi import BINARY, JSON, answer, body, problems, reference, together
from headway.api.problems import answer_to
from headway.api.producing.reports import MOST_REPORTS, MOST_REPORTS_OF_MANY, Attempt, NamedReport, Report
from headway.api.schemas import Reported, ReportedTasks, TakenOver
from headway.api.serving.small_body import SmallBody
from headway.api.submission import field_errors
from headway.api.uploads.capacity_check import check_capacity
from headway.api.uploads.multipart_upload import (
    body_of,
    check_length,
    clean_content_type,
    declared_length,
    invalid,
    store_raw,
)
from headway.shared.errors import (
    BadInput,
    Conflict,
    HeadwayError,
    InvalidRequest,
    NearlyFull,
    NotWithToken,
    QuotaFull,
    Refused,
    StorageAway,
    StorageFull,
    TooLarge,
    UnknownTask,
)
from headway.shared.files.disk import STORAGE_FAULTS
from headway.shared.files.storage import check_result_name
from headway.shared.json_text import text_of
from headway.shared.redis.client import AWAY
from headway.shared.tasks.models import OwnerId, ProducedFile, Status, Task, TaskId
from headway.shared.tasks.representation import represent

#: The bodies of these are small; that of a result is not.
router = APIRouter(tags=["producers"], route_class=SmallBody)
results = APIRouter(tags=["producers"])

M = TypeVar("M", bound=BaseModel)
_REPORT: Final = TypeAdapter(Report)
_REPORTS: Final = TypeAdapter(Annotated[list[Report], Field(min_length=1, max_length=MOST_REPORTS)])
_OF_MANY: Final = TypeAdapter(Annotated[list[NamedReport], Field(min_length=1, max_length=MOST_REPORTS_OF_MANY)])


def _json(summary: dict[str, Any]) -> dict[str, Any]:
    try:
        text_of(summary)
    except (ValueError, RecursionError):
        raise ValueError("must be JSON: no NaN, no Infinity") from None
    return summary


class Completion(BaseModel):
    """The work is done. `summary` is shown as the task's result."""

    model_config = ConfigDict(extra="forbid")

    attempt: Attempt
    summary: Annotated[dict[str, Any], AfterValidator(_json)] = Field(default_factory=dict)


class TakeOver(BaseModel):
    """The producer begins again. `attempt`: the one that it had; where the task is at another by now, it is refused."""

    model_config = ConfigDict(extra="forbid")

    attempt: Attempt | None = None


class ReportedError(BaseModel):
    """What went wrong. `retryable`: the same work may well succeed another time."""

    model_config = ConfigDict(extra="forbid")

    message: Annotated[str, Field(min_length=1, description="Cut to 500 characters")]
    retryable: Annotated[bool, Field(strict=True)] = False


class Failure(BaseModel):
    """The work has failed."""

    model_config = ConfigDict(extra="forbid")

    attempt: Attempt
    error: ReportedError


ENDED: Final = together({200: ONE_TASK}, problems(UnknownTask, Conflict, InvalidRequest, TooLarge))


def _read(adapter: TypeAdapter[Any], text: bytes) -> Any:
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise field_errors(error) from None


@router.patch(
    "/tasks/progress",
    summary="Report on many tasks that outside producers run",
    operation_id="report_many",
    responses=together(
        {200: answer("What the producers are to know", ReportedTasks)},
        problems(InvalidRequest, TooLarge, NearlyFull),
    ),
    openapi_extra=body(
        {
            JSON: {
                "type": "array",
                "items": reference(NamedReport, "validation"),
                "minItems": 1,
                "maxItems": MOST_REPORTS_OF_MANY,
            }
        }
    ),
)
async def report_many(request: Request, state: StateDep, owner: OwnerDep) -> dict[str, Any]:
    """Up to 1,000 reports, each with the `task_id` that it is of, by the owner's key. Those of one task count together
    or not at all; one that is refused is no other task's affair: `problem` says why, as its own request would have."""
    by_task: dict[TaskId, list[Report]] = {}
    for one in _read(_OF_MANY, await request.body()):
        by_task.setdefault(TaskId(one.task_id), []).append(one)
    refused: dict[TaskId, HeadwayError] = {}
    for task_id in by_task if request.scope["headway.identity"].grant.processors is not None else ():
        try:
            check_processor(request.scope, (await state.reader.task(task_id, owner)).processor)
        except (NotWithToken, UnknownTask) as error:
            refused[task_id] = error
    asked = {task_id: said for task_id, said in by_task.items() if task_id not in refused}
    told: dict[TaskId, Any] = dict(zip(asked, await state.producers.report_many(owner, asked), strict=True))
    return {"tasks": [_told(task_id, (told | refused)[task_id]) for task_id in by_task]}


def _told(task_id: TaskId, told: tuple[Status, int] | HeadwayError) -> dict[str, Any]:
    if not isinstance(told, HeadwayError):
        return {"task_id": task_id, **_word(*told)}
    problem = answer_to(told)
    if problem is None:
        raise told
    return {"task_id": task_id, "problem": json.loads(bytes(problem.body))}


def _word(status: Status, version: int) -> dict[str, Any]:
    return {"status": status, "cancelled": status is Status.CANCELLED, "version": version}


@router.patch(
    "/tasks/{task_id}/progress",
    summary="Report on a task that an outside producer runs",
    operation_id="report_progress",
    responses=together(
        {200: answer("What the producer is to know", Reported)},
        problems(UnknownTask, Conflict, InvalidRequest, TooLarge, NearlyFull),
    ),
    openapi_extra=body(
        {
            JSON: {
                "anyOf": [
                    reference(Report, "validation"),
                    {
                        "type": "array",
                        "items": reference(Report, "validation"),
                        "minItems": 1,
                        "maxItems": MOST_REPORTS,
                    },
                ]
            }
        }
    ),
)
async def report(request: Request, task_id: TaskIdPath, owner: ProducingDep) -> dict[str, Any]:
    """One report, or a list of up to 100, which count together or not at all. Each is a sign of life. `cancelled`:
    somebody has cancelled the task, and the work is to stop."""
    state, text = get_state(request), await request.body()
    return await _report(request, state, get_task_id(task_id), owner, text)


async def _report(request: Request, state: State, task_id: TaskId, owner: OwnerId, text: bytes) -> dict[str, Any]:
    try:
        reports: list[Report] = _read(_REPORTS, text) if text.lstrip()[:1] == b"[" else [_read(_REPORT, text)]
    except InvalidRequest:
        await state.reader.task(task_id, owner)  # another's is unknown, whatever is said of it
        raise
    if request.scope["headway.identity"].grant.processors is not None:
        check_processor(request.scope, (await state.reader.task(task_id, owner)).processor)
    return _word(*await state.producers.report(task_id, owner, reports))


@router.post(
    "/tasks/{task_id}/attempts",
    status_code=201,
    summary="The outside producer begins again, as the next attempt",
    operation_id="take_over_task",
    responses=together(
        {201: answer("The task, and what was restored", TakenOver)},
        problems(UnknownTask, Conflict, InvalidRequest, TooLarge, NearlyFull),
    ),
)
async def take_over(
    request: Request, state: StateDep, task: ProducedTaskDep, root: RootPathDep, taken: TakeOver | None = None
) -> Any:
    """For a producer that was restarted: attempt + 1, also after `failed`, and the last checkpoint as `restored`. From
    this answer on the attempt before gets 409. Result files that it has sent are removed. 409 after `completed` or
    `cancelled`."""
    before = await state.producers.take_over(task.task_id, task.owner, taken.attempt if taken is not None else None)
    for file in before.produced.values():
        with suppress(*STORAGE_FAULTS):  # the sweeper finds it
            await state.storage.remove_entry(task.task_id, file.stored)
    now = represent(await state.reader.task(task.task_id), root)
    now["attempt"] = before.attempt + 1  # where somebody was quicker yet, this one is told so by 409
    restored = before.checkpoint.state if before.checkpoint is not None else None
    made = JSONResponse(now | {"restored": restored}, 201)
    return await with_producer_token(made, state, request.scope)


@router.post(
    "/tasks/{task_id}/complete",
    summary="The outside producer is done",
    operation_id="complete_task",
    responses=ENDED,
)
async def complete(state: StateDep, task: ProducedTaskDep, completion: Completion, root: RootPathDep) -> dict[str, Any]:
    """`completed`, with the summary and the result files that were sent. Once; after the end 409."""
    await state.producers.complete(task.task_id, task.owner, completion.attempt, completion.summary)
    return represent(await state.reader.task(task.task_id), root)


@router.post(
    "/tasks/{task_id}/fail",
    summary="The outside producer has failed",
    operation_id="fail_task",
    responses=ENDED,
)
async def fail(state: StateDep, task: ProducedTaskDep, failure: Failure, root: RootPathDep) -> dict[str, Any]:
    """`failed`, `processor_error`; what was sent of results is removed. Once; after the end 409."""
    error = failure.error
    await state.producers.fail(task.task_id, task.owner, failure.attempt, error.message, retryable=error.retryable)
    return represent(await state.reader.task(task.task_id), root)


@results.put(
    "/tasks/{task_id}/results/{name}",
    summary="Send a result file of a task that an outside producer runs",
    operation_id="put_result",
    responses=together(
        {200: ONE_TASK},
        problems(UnknownTask, Conflict, TooLarge, InvalidRequest, StorageFull, QuotaFull, StorageAway),
    ),
    openapi_extra=body({"application/octet-stream": BINARY}),
)
async def put_result(
    request: Request,
    state: StateDep,
    task: ProducedTaskDep,
    name: str,
    root: RootPathDep,
    attempt: Annotated[int | None, Query(ge=1, description="Of who sends it; another than the task's gets 409")] = None,
) -> dict[str, Any]:
    """The raw body, whole or absent; again under the same name, it takes the place of the one before. It can be
    downloaded once the task has completed. It counts to the owner's quota."""
    task_id, owner = task.task_id, task.owner
    try:
        check_result_name(name)
    except BadInput as error:
        raise invalid("name", str(error)) from None
    task = await state.producers.running(task_id, owner, attempt)
    limit_bytes = most_upload_bytes(request.scope, state)
    check_length(request, limit_bytes)
    await check_capacity(state, owner, declared_length(request))
    if quota_bytes := int(state.settings.owner_quota_bytes):
        limit_bytes = min(limit_bytes, max(0, quota_bytes - await state.reader.stored_bytes(owner)))
    before = await _store(request, state, task, name, limit_bytes)
    if before is not None:
        with suppress(*STORAGE_FAULTS):  # the sweeper finds it
            await state.storage.remove_entry(task_id, before)
    return represent(await state.reader.task(task_id, owner), root)


async def _heard(content: AsyncIterator[bytes], state: State, task: Task) -> AsyncIterator[bytes]:
    """What comes is a sign of life: a large result may take longer than the lease."""
    assert task.producer is not None
    said_at, lease_seconds = float("-inf"), task.producer.lease_seconds
    async for piece in content:
        if time.monotonic() - said_at >= lease_seconds / 3:
            said_at = time.monotonic()
            with suppress(Refused, *AWAY):  # where the task has ended, it is said when the file is there
                await state.publisher.heard(task, lease_seconds=lease_seconds)
        yield piece


async def _store(request: Request, state: State, task: Task, name: str, limit_bytes: int) -> str | None:
    """Returns what the file of that name was stored as before. Nothing is left where it raises, but where nobody says
    whether the task has the file now: then it is left to the sweeper."""
    task_id, owner = task.task_id, task.owner
    upload = state.storage.upload(task_id)
    try:
        content = body_of(request, patience_seconds=state.settings.receive_timeout_seconds)
        try:
            await store_raw(
                _heard(content, state, task), upload, limit_bytes=limit_bytes, count=state.metrics.tally.uploaded
            )
        except TooLarge:
            if limit_bytes < most_upload_bytes(request.scope, state):
                quota_bytes = int(state.settings.owner_quota_bytes)
                raise QuotaFull.of(quota_bytes - limit_bytes, quota_bytes) from None
            raise
        stored = await upload.commit()
    except BaseException:
        await asyncio.shield(upload.abort())
        raise
    content_type = clean_content_type(request.headers.get("content-type")) or "application/octet-stream"
    file = ProducedFile(
        stored=stored.name, size_bytes=stored.size_bytes, content_type=content_type, sha256=stored.sha256
    )
    try:
        return await state.producers.keep(task_id, owner, name, file, attempt=task.attempt)
    except (Conflict, QuotaFull, UnknownTask):
        await asyncio.shield(upload.abort())
        raise
