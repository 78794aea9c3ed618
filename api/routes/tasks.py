"""`/tasks`: submit or announce, list, look, cancel, retry, delete."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from contextlib import suppress
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from starlette.responses import JSONResponse
from structlog.contextvars import bind_contextvars

from headway.api.access.identity import check_processor, most_upload_bytes, with_producer_token, with_token
from headway.api.dependencies import OwnerDep, ReadTaskDep, RootPathDep, StateDep, TaskDep, TaskIdDep
from headway.api.lifespan import State
from headway.api.openapi import JSON, answer, body, header, problems, reference, together
from headway.api.producing.reports import MOST_PHASES, Name, Unit, Units, Weight
from headway.api.root_path import rooted, rooted_answer
from headway.api.schemas import Submission, SubmittedTask, TaskList
from headway.api.schemas import Task as TaskSchema
from headway.api.uploads.capacity_check import check_capacity, reserved
from headway.api.uploads.idempotency import HEADER, Claim
from headway.api.uploads.multipart_upload import (
    BATCH_ID,
    Form,
    body_of,
    certain_length,
    check_length,
    clean_batch_id,
    clean_content_type,
    clean_filename,
    declared_length,
    invalid,
    parse_options,
    read_form,
    too_large,
)
from headway.api.uploads.order import Order, clean_time
from headway.api.uploads.receiving import UPLOAD_SHARE, abort_unless_queued
from headway.api.uploads.upload_digests import clean_sha256
from headway.shared.errors import (
    Conflict,
    InvalidRequest,
    KeyInUse,
    KeyReused,
    NearlyFull,
    NotTheAnnouncedFile,
    QuotaFull,
    StorageAway,
    StorageFull,
    TooLarge,
    UnknownTask,
    UnsupportedType,
)
from headway.shared.files.disk import STORAGE_FAULTS, told_by_the_system
from headway.shared.files.storage import StoredFile, Upload
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY
from headway.shared.settings import DAY_SECONDS
from headway.shared.tasks.line import DEFAULT, HIGHEST, LOWEST
from headway.shared.tasks.models import (
    FieldError,
    OwnerId,
    Producer,
    Status,
    Task,
    TaskId,
    new_task_id,
    utc_now,
    waiting,
)

log = get_logger(__name__)

router = APIRouter(tags=["tasks"])

JSON_BODY_BYTES: Final = 128 * 1024
#: Rows looked at for one page of a filtered list; a page may end early with a cursor to go on from.
SCAN_ROWS: Final = 5000


#: For the schema; it is read by api/uploads/idempotency.py.
IdempotencyKey = Annotated[str | None, Header(alias=HEADER, description="One task, however often this is sent")]


class Announcement(BaseModel):
    """The JSON form of `POST /tasks`: the file follows by `PUT {links.upload}`."""

    model_config = ConfigDict(extra="forbid")

    processor: str
    filename: str | None = None
    size_bytes: Annotated[int, Field(ge=0, le=2**53)] | None = None
    content_type: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    batch_id: str | None = None
    priority: Annotated[
        int, Field(ge=LOWEST, le=HIGHEST, strict=True, description="Among your own tasks the highest goes first")
    ] = DEFAULT
    not_before: Annotated[
        str | None, Field(description="RFC 3339: the task waits until then", json_schema_extra={"format": "date-time"})
    ] = None
    #: Of the file, in hex. A file that turns out to be another ends the task as `failed`.
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None


SUBMITTED_HEADERS: Final = {
    "Location": header("The task"),
    "Idempotency-Replayed": header("`true`: the first answer to this Idempotency-Key again", always=False),
}
#: What can be wrong with a form, or with a file that comes with it.
FORM_PROBLEMS: Final = problems(
    *(KeyInUse, TooLarge, UnsupportedType, InvalidRequest, KeyReused, NotTheAnnouncedFile),
    *(StorageFull, QuotaFull, StorageAway, NearlyFull),
)
ONE_TASK: Final = answer("The task", TaskSchema)
CHANGED: Final = together({202: ONE_TASK}, problems(UnknownTask, Conflict))


class ProducerTask(BaseModel):
    """The JSON form of `POST /tasks` for work that no worker of ours runs: `producer` names what does."""

    model_config = ConfigDict(extra="forbid")

    producer: Annotated[Name, Field(description="Stands in the task's `processor`")]
    title: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    total: Units | None = None
    unit: Unit | None = None
    phases: Annotated[
        Annotated[list[Name], Field(max_length=MOST_PHASES)]
        | Annotated[dict[Name, Weight], Field(max_length=MOST_PHASES)]
        | None,
        Field(description="Their names in order, or each with its weight"),
    ] = None
    lease_seconds: Annotated[
        float,
        Field(ge=0.5, le=DAY_SECONDS, allow_inf_nan=False, description="Silent for longer, the producer is lost"),
    ] = 30.0
    batch_id: str | None = None

    @property
    def weights(self) -> dict[str, float]:
        return self.phases if isinstance(self.phases, dict) else dict.fromkeys(self.phases or (), 1.0)


ANNOUNCED: Final = {"anyOf": [reference(Announcement, "validation"), reference(ProducerTask, "validation")]}


FIRST_COME: Final = Order()


class TaskPage(BaseModel):
    tasks: list[dict[str, Any]]
    next_cursor: str | None


def represent(task: Task, root: str = "") -> dict[str, Any]:
    """A task as JSON, with the links that lead somewhere in its present state, under `root`."""
    here = f"/tasks/{task.task_id}"
    links = {"self": here, "events": f"{here}/events"}
    if not task.status.is_terminal:
        links["cancel"] = f"{here}/cancel"
    if task.producer is not None:
        if task.status is Status.PROCESSING:
            links |= {name: f"{here}/{name}" for name in ("progress", "complete", "fail")}
    elif task.status in (Status.FAILED, Status.CANCELLED) and (task.filename is None or task.input_name is not None):
        links["retry"] = f"{here}/retry"
    if task.input_name is not None:
        links["input"] = f"{here}/input"
    if task.status is Status.UPLOADING:
        links["upload"] = f"{here}/upload" if task.upload_expires_at is None else f"/uploads/{task.task_id}"
    return rooted(task.model_dump(mode="json") | {"links": links}, root)


def draft(
    processor: str,
    *,
    owner: OwnerId,
    status: Status,
    options: dict[str, Any],
    task_id: TaskId | None = None,
    filename: str | None = None,
    content_type: str | None = None,
    size_bytes: int | None = None,
    batch_id: str | None = None,
    stored: StoredFile | None = None,
    order: Order = FIRST_COME,
) -> Task:
    """A new task, not yet known to Redis."""
    now = utc_now()
    uploading = status is Status.UPLOADING
    task_id = task_id or new_task_id()
    bind_contextvars(task_id=task_id)  # what is logged of this request from here on is about it
    return Task(
        task_id=task_id,
        processor=processor,
        filename=filename,
        size_bytes=stored.size_bytes if stored else size_bytes,
        content_type=content_type,
        options=options,
        batch_id=batch_id,
        status=status,
        progress=0,
        step=0,
        total_steps=0,
        priority=order.priority,
        not_before=order.not_before,
        message="Waiting for the file" if uploading else waiting(order.not_before),
        done=0,
        total=size_bytes if uploading else None,
        unit="bytes" if uploading else None,
        rate=None,
        eta_seconds=None,
        attempt=1,
        version=1,
        created_at=now,
        started_at=None,
        updated_at=now,
        finished_at=None,
        result=None,
        error=None,
        owner=owner,
        progress_base=UPLOAD_SHARE if uploading else 0.0,
        input_name=stored.name if stored else None,
        input_sha256=stored.sha256 if stored else None,
    )


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
            return await submit_form(request, state, owner, claim)
        if media_type == "application/json":
            return await _announce(request, state, owner, claim)
        raise UnsupportedType

    def show(task: Task) -> JSONResponse:
        status_code = 201 if task.status is Status.UPLOADING or task.producer is not None else 202
        return JSONResponse(represent(task), status_code, {"Location": f"/tasks/{task.task_id}"})

    made = rooted_answer(await state.idempotency.once(request, owner, make, show), root)
    return await with_producer_token(await with_token(made, state, request.scope), state, request.scope)


async def submit_form(
    request: Request, state: State, owner: OwnerId, claim: Claim, default_processor: str | None = None
) -> Task:
    """Reads the form, stores the file while it arrives, makes the task. Nothing is left where it raises; but where
    nobody says whether Redis knows the task now, the file is left to the sweeper."""
    limit_bytes = most_upload_bytes(request.scope, state)
    check_length(request, limit_bytes)
    if claim.answered:
        await state.redis.ping()  # a Redis that is away is said before the file is sent, not after
    else:
        await state.limits.check_tasks(owner)  # as above
        await check_capacity(state, owner, certain_length(request))
    upload = claim.upload(state.storage)
    if claim.answered:
        return await _make(request, state, owner, claim, default_processor, upload)
    least_bytes, most_bytes = certain_length(request) or 0, declared_length(request) or 0
    place = reserved(state, owner, claim.task_id, upload, least_bytes=least_bytes, most_bytes=most_bytes)
    async with place as upload:
        return await _make(request, state, owner, claim, default_processor, upload)


async def _make(
    request: Request, state: State, owner: OwnerId, claim: Claim, default_processor: str | None, upload: Upload
) -> Task:
    settled = False
    try:
        form = await read_form(
            request,
            upload,
            limit_bytes=most_upload_bytes(request.scope, state),
            patience_seconds=state.settings.receive_timeout_seconds,
            count=state.metrics.tally.uploaded,
        )
        task = _asked(request, state, owner, claim, form, default_processor)
        await claim.settle(task)
        settled = True
        await state.publisher.create(task)
    except BaseException as error:
        if settled and form.stored is not None:
            await asyncio.shield(abort_unless_queued(state, task.task_id, upload, form.stored, error))
        else:
            await asyncio.shield(upload.abort())
        raise
    return task


def _asked(
    request: Request, state: State, owner: OwnerId, claim: Claim, form: Form, default_processor: str | None
) -> Task:
    """The task that a form asks for. Raises InvalidRequest, NotTheAnnouncedFile."""
    name = form.fields.get("processor") or default_processor
    if not name:
        known = ", ".join(state.registry.processors)
        raise invalid("processor", f"name one of: {known}")
    check_processor(request.scope, name)
    processor = state.registry.get(name)
    options = processor.parse_options(parse_options(form.fields.get("options")))
    batch_id = clean_batch_id(form.fields.get("batch_id"))
    order = Order.of(form.fields)
    if form.stored is None and processor.needs_file:
        raise invalid("file", "missing; send the file as the form's part named 'file'")
    try:
        declared = clean_sha256(form.fields.get("sha256"))
    except ValueError as wrong:
        raise invalid("sha256", str(wrong)) from None
    if form.stored is not None and declared not in (None, form.stored.sha256):
        raise NotTheAnnouncedFile(
            f"This is not the file that was announced: its SHA-256 is {form.stored.sha256}, not {declared}. "
            "Submit the file again."
        )
    return draft(
        processor.name,
        owner=owner,
        status=Status.QUEUED,
        options=options.model_dump(mode="json"),
        task_id=claim.task_id,
        filename=form.filename,
        content_type=form.content_type,
        batch_id=batch_id,
        stored=form.stored,
        order=order,
    )


async def _announce(request: Request, state: State, owner: OwnerId, claim: Claim) -> Task:
    announcement = await _read_announcement(request, state.settings.receive_timeout_seconds)
    if isinstance(announcement, ProducerTask):
        check_processor(request.scope, announcement.producer)
        return await _begin(announcement, state, owner, claim)
    check_processor(request.scope, announcement.processor)
    processor = state.registry.get(announcement.processor)
    options = processor.parse_options(announcement.options)
    if announcement.filename is None and processor.needs_file:
        raise invalid("filename", f"missing; {processor.name} works on a file")
    limit_bytes = most_upload_bytes(request.scope, state)
    if announcement.size_bytes is not None and announcement.size_bytes > limit_bytes:
        raise too_large(limit_bytes)
    has_file = announcement.filename is not None
    task = draft(
        processor.name,
        owner=owner,
        status=Status.UPLOADING if has_file else Status.QUEUED,
        options=options.model_dump(mode="json"),
        task_id=claim.task_id,
        filename=clean_filename(announcement.filename) if announcement.filename is not None else None,
        content_type=clean_content_type(announcement.content_type),
        size_bytes=announcement.size_bytes,
        batch_id=clean_batch_id(announcement.batch_id),
        order=Order(announcement.priority, clean_time(announcement.not_before)),
    ).model_copy(update={"declared_sha256": clean_sha256(announcement.sha256)})
    await claim.settle(task)
    await state.limits.check_tasks(owner)
    if has_file:
        await state.storage.check_capacity(announcement.size_bytes or 0)
    await state.publisher.create(task)
    return task


async def _begin(asked: ProducerTask, state: State, owner: OwnerId, claim: Claim) -> Task:
    """A task that an outside producer runs: `processing` from its first moment on."""
    weights = asked.weights
    options = asked.model_dump(exclude={"producer", "batch_id"}, exclude_none=True)
    task = draft(
        asked.producer,
        owner=owner,
        status=Status.PROCESSING,
        options=options,
        task_id=claim.task_id,
        batch_id=clean_batch_id(asked.batch_id),
    )
    task = task.model_copy(
        update={
            "message": asked.title or "Started",
            "started_at": task.created_at,
            "total": asked.total,
            "unit": asked.unit,
            "total_steps": len(weights),
            "producer": Producer(lease_seconds=asked.lease_seconds, phases=weights),
        }
    )
    await claim.settle(task)
    await state.limits.check_tasks(owner)
    await state.publisher.create(task)
    return task


async def _read_announcement(request: Request, patience_seconds: float) -> Announcement | ProducerTask:
    body = bytearray()
    async for chunk in body_of(request, patience_seconds=patience_seconds):
        body += chunk
        if len(body) > JSON_BODY_BYTES:
            raise InvalidRequest(f"The JSON body is longer than {JSON_BODY_BYTES} bytes.")
    form = ProducerTask if _names_a_producer(body) else Announcement
    try:
        return form.model_validate_json(bytes(body))
    except ValidationError as error:
        raise field_errors(error) from None


def _names_a_producer(body: bytearray) -> bool:
    try:
        found = from_json(bytes(body))
    except ValueError:
        return False
    return isinstance(found, dict) and "producer" in found


def field_errors(error: ValidationError) -> InvalidRequest:
    """What is wrong in a body, field by field."""
    fields = [
        FieldError(field=".".join(map(str, e["loc"])) or "body", message=e["msg"])
        for e in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    detail = "; ".join(f"{found.field}: {found.message}" for found in fields[:5])
    return InvalidRequest(detail, fields)


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
            return TaskPage(tasks=[represent(task, root) for task in found], next_cursor=None)
        for task, at in page:
            place = at
            looked_at += 1
            wanted = (status is None or task.status is status) and (processor is None or task.processor == processor)
            if wanted:
                found.append(task)
                if len(found) == limit:
                    break
    return TaskPage(tasks=[represent(task, root) for task in found], next_cursor=_cursor(place))


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
async def get_one(task: ReadTaskDep, root: RootPathDep) -> dict[str, Any]:
    return represent(task, root)


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


async def cancel_task(state: State, task: Task) -> None:
    """Raises Conflict where it has ended. It is cancelled also where the storage cannot be used: what is there of its
    file is the sweeper's then."""
    await state.publisher.cancel(task)
    if task.upload_expires_at is not None:  # a piece that is still coming removes its own
        try:
            await state.storage.discard_upload(task.task_id)
        except STORAGE_FAULTS as error:
            log.warning("upload left", reason=str(error), **told_by_the_system(error))


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
        raise Conflict("An outside producer runs this task, so no worker can. Begin a new one.")
    check_processor(request.scope, task.processor)
    if task.status.is_terminal and task.filename is not None and task.input_name is None:
        raise Conflict("The file of this task never arrived whole, so there is nothing to run. Submit it again.")
    state.limits.check_head_room()
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
