"""From a request to a new task: a form with its file, an announced file, the work of an outside producer."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from structlog.contextvars import bind_contextvars

from headway.api.access.identity import check_processor, most_upload_bytes
from headway.api.chain import Chain, Steps, steps_of
from headway.api.lifespan import State
from headway.api.producing.reports import MOST_PHASES, WAITS, Name, Unit, Units, Weight
from headway.api.uploads.capacity_check import check_capacity, reserved
from headway.api.uploads.idempotency import Claim
from headway.api.uploads.input_field import AskedInput, source_of
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
    names_of,
    parse_options,
    read_form,
    too_large,
)
from headway.api.uploads.order import FIRST_COME, Order, clean_time
from headway.api.uploads.receiving import UPLOAD_SHARE, abort_unless_queued
from headway.api.uploads.upload_digests import clean_sha256
from headway.api.uploads.webhook_field import AskedWebhook, webhook_of
from headway.shared.errors import (
    InvalidRequest,
    NotTheAnnouncedFile,
)
from headway.shared.files.storage import StoredFile, Upload
from headway.shared.json_text import text_of
from headway.shared.tasks.line import DEFAULT, HIGHEST, LOWEST
from headway.shared.tasks.models import (
    FieldError,
    OwnerId,
    Producer,
    Status,
    Task,
    TaskId,
    Webhook,
    new_task_id,
    own_batch,
    utc_now,
    waiting,
)
from headway.shared.tasks.progress import WAITS_FOR_ANOTHER
from headway.shared.units import DAY_SECONDS

JSON_BODY_BYTES: Final = 128 * 1024
#: Of a form, beside its file.
FORM_NAMES: Final = ("processor", "options", "batch_id", "priority", "not_before", "sha256", "webhook")


#: An empty one is none; what is refused is said by `clean_batch_id`, in a form's words too.
AskedBatchId = Annotated[str | None, Field(json_schema_extra={"pattern": f"^({BATCH_ID})?$"})]


class Announcement(BaseModel):
    """The JSON form of `POST /tasks`: the file follows by `PUT {links.upload}`."""

    model_config = ConfigDict(extra="forbid")

    processor: str
    filename: str | None = None
    size_bytes: Annotated[int, Field(ge=0, le=2**53)] | None = None
    content_type: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    batch_id: AskedBatchId = None
    priority: Annotated[
        int, Field(ge=LOWEST, le=HIGHEST, strict=True, description="Among your own tasks the highest goes first")
    ] = DEFAULT
    not_before: Annotated[
        str | None, Field(description="RFC 3339: the task waits until then", json_schema_extra={"format": "date-time"})
    ] = None
    webhook: AskedWebhook | None = None
    input: AskedInput | None = None
    #: Of the file, in hex. A file that turns out to be another ends the task as `failed`.
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None


class PipelineRequest(BaseModel):
    """The JSON form of `POST /pipelines`: the steps, and where the file of the first one comes from."""

    model_config = ConfigDict(extra="forbid")

    steps: Steps
    filename: str | None = None
    size_bytes: Annotated[int, Field(ge=0, le=2**53)] | None = None
    content_type: str | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    input: AskedInput | None = None
    batch_id: str | None = None
    webhook: Annotated[AskedWebhook | None, Field(description="Told of the end of the last step")] = None
    priority: Annotated[int, Field(ge=LOWEST, le=HIGHEST, strict=True)] = DEFAULT
    not_before: Annotated[
        str | None, Field(description="RFC 3339: of the first step", json_schema_extra={"format": "date-time"})
    ] = None

    @property
    def first(self) -> Announcement:
        step = self.steps[0]
        others = {name: getattr(self, name) for name in type(self).model_fields if name != "steps"}
        return Announcement(processor=step.processor, options=step.options, **others)


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
    waits_seconds: Annotated[
        float | None,
        Field(
            ge=0.5, le=DAY_SECONDS, allow_inf_nan=False,
            description="It waits elsewhere for its turn: its first report comes within this",
        ),
    ] = None  # fmt: skip
    batch_id: AskedBatchId = None
    webhook: AskedWebhook | None = None

    @property
    def weights(self) -> dict[str, float]:
        return self.phases if isinstance(self.phases, dict) else dict.fromkeys(self.phases or (), 1.0)


def draft(
    processor: str,
    *,
    owner: OwnerId,
    status: Status,
    options: dict[str, Any],
    task_id: TaskId | None = None,
    filename: str | None = None,
    filename_as_sent: str | None = None,
    content_type: str | None = None,
    size_bytes: int | None = None,
    batch_id: str | None = None,
    stored: StoredFile | None = None,
    order: Order = FIRST_COME,
    webhook: Webhook | None = None,
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
        filename_as_sent=filename_as_sent,
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
        queue_position=None,
        starts_in_seconds=None,
        owner=owner,
        progress_base=UPLOAD_SHARE if uploading else 0.0,
        input_name=stored.name if stored else None,
        input_sha256=stored.sha256 if stored else None,
        webhook=webhook,
    )


async def submit_form(
    request: Request,
    state: State,
    owner: OwnerId,
    claim: Claim,
    default_processor: str | None = None,
    made: list[Task] | None = None,
) -> Task:
    """Reads the form, stores the file while it arrives, makes the task. Nothing is left where it raises; but where
    nobody says whether Redis knows the task now, the file is left to the sweeper. With `made` the form is that of a
    pipeline, and its tasks are put there."""
    limit_bytes = most_upload_bytes(request.scope, state)
    check_length(request, limit_bytes)
    if claim.answered:
        await state.redis.ping()  # a Redis that is away is said before the file is sent, not after
    else:
        await state.limits.check_tasks(owner)  # as above
        await check_capacity(state, owner, certain_length(request))
    upload = claim.upload(state.storage)
    if claim.answered:
        return await _make(request, state, owner, claim, default_processor, upload, made)
    least_bytes, most_bytes = certain_length(request) or 0, declared_length(request) or 0
    place = reserved(state, owner, claim.task_id, upload, least_bytes=least_bytes, most_bytes=most_bytes)
    async with place as upload:
        return await _make(request, state, owner, claim, default_processor, upload, made)


async def _make(
    request: Request,
    state: State,
    owner: OwnerId,
    claim: Claim,
    default_processor: str | None,
    upload: Upload,
    made: list[Task] | None,
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
        chain = None if made is None else _chain_of(form)
        task = _asked(request, state, owner, claim, form, default_processor)
        tasks = [task] if chain is None else _chained(task, chain, request, state)
        if made is not None:
            made[:] = tasks
        await claim.settle(*tasks)
        settled = True
        await state.publisher.create_all(tasks)
    except BaseException as error:
        if settled and form.stored is not None:
            await asyncio.shield(abort_unless_queued(state, task.task_id, upload, form.stored, error))
        else:
            await asyncio.shield(upload.abort())
        raise
    return tasks[0]


def _chain_of(form: Form) -> Chain:
    """The form is that of its first step from now on. Raises InvalidRequest."""
    steps = steps_of(form.fields.pop("steps", None))
    form.fields["processor"], form.fields["options"] = steps[0].processor, text_of(steps[0].options)
    return Chain.of(steps)


def _chained(first: Task, chain: Chain, request: Request, state: State) -> list[Task]:
    """All tasks of a pipeline, in one batch. Who is told of the first is told of the last instead."""
    batch_id = first.batch_id or own_batch(first.task_id)
    told = first.webhook if chain.steps else None
    first = first.model_copy(update={"batch_id": batch_id, "webhook": None if chain.steps else first.webhook})
    return chain.told(told).after(first, request, state)


async def announce_pipeline(request: Request, state: State, owner: OwnerId, claim: Claim, made: list[Task]) -> Task:
    """The JSON form. Its tasks are put into `made`."""
    asked = await _read_body(request, state.settings.receive_timeout_seconds)
    try:
        pipeline = PipelineRequest.model_validate_json(bytes(asked))
    except ValidationError as error:
        raise field_errors(error) from None
    chain = Chain.of(pipeline.steps)
    task = await _announced(pipeline.first, request, state, owner, claim)
    made[:] = _chained(task, chain, request, state)
    await _create(made, state, owner, claim)
    return made[0]


async def _create(tasks: list[Task], state: State, owner: OwnerId, claim: Claim) -> None:
    await claim.settle(*tasks)
    await state.limits.check_tasks(owner)
    if tasks[0].status is Status.UPLOADING:
        await state.storage.check_capacity(tasks[0].size_bytes or 0)
    await state.publisher.create_all(tasks)


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
        raise invalid("file", "missing; send the file, with its name, as the form's part named 'file'")
    if unknown := next((field for field in form.fields if field not in FORM_NAMES), None):
        raise invalid(unknown[:80], f"is no field of this form; there are: file, {', '.join(FORM_NAMES)}")
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
        filename_as_sent=form.filename_as_sent,
        content_type=form.content_type,
        batch_id=batch_id,
        stored=form.stored,
        order=order,
        webhook=webhook_of(form.fields.get("webhook"), state.settings),
    )


async def announce(request: Request, state: State, owner: OwnerId, claim: Claim) -> Task:
    announcement = await _read_announcement(request, state.settings.receive_timeout_seconds)
    if isinstance(announcement, ProducerTask):
        check_processor(request.scope, announcement.producer)
        return await _begin(announcement, state, owner, claim)
    task = await _announced(announcement, request, state, owner, claim)
    await _create([task], state, owner, claim)
    return task


async def _announced(announcement: Announcement, request: Request, state: State, owner: OwnerId, claim: Claim) -> Task:
    """The task that is asked for. Raises InvalidRequest, TooLarge, UnknownTask, NotWithToken."""
    check_processor(request.scope, announcement.processor)
    processor = state.registry.get(announcement.processor)
    options = processor.parse_options(announcement.options)
    if announcement.input is not None:
        return await _following(announcement, announcement.input, options, request, state, owner, claim)
    if announcement.filename is None and processor.needs_file:
        raise invalid("filename", f"missing; {processor.name} works on a file")
    limit_bytes = most_upload_bytes(request.scope, state)
    if announcement.size_bytes is not None and announcement.size_bytes > limit_bytes:
        raise too_large(limit_bytes)
    has_file = announcement.filename is not None
    return draft(
        processor.name,
        owner=owner,
        status=Status.UPLOADING if has_file else Status.QUEUED,
        options=options.model_dump(mode="json"),
        task_id=claim.task_id,
        **names_of(announcement.filename),
        content_type=clean_content_type(announcement.content_type),
        size_bytes=announcement.size_bytes,
        batch_id=clean_batch_id(announcement.batch_id),
        order=Order(announcement.priority, clean_time(announcement.not_before)),
        webhook=webhook_of(announcement.webhook, state.settings),
    ).model_copy(update={"declared_sha256": clean_sha256(announcement.sha256)})


async def _following(
    announcement: Announcement,
    asked: AskedInput,
    options: BaseModel,
    request: Request,
    state: State,
    owner: OwnerId,
    claim: Claim,
) -> Task:
    """A task whose file is another's; it waits for that one to end (worker/followers.py)."""
    for name in ("filename", "size_bytes", "content_type", "sha256"):
        if getattr(announcement, name) is not None:
            raise invalid(name, "does not go with `input`: the file is the other task's")
    source = await source_of(asked, request, state, owner)
    return draft(
        announcement.processor,
        owner=owner,
        status=Status.QUEUED,
        options=options.model_dump(mode="json"),
        task_id=claim.task_id,
        filename=clean_filename(asked.file) if asked.file is not None else source.filename,
        batch_id=clean_batch_id(announcement.batch_id),
        order=Order(announcement.priority, clean_time(announcement.not_before)),
        webhook=webhook_of(announcement.webhook, state.settings),
    ).model_copy(update={"input_of": asked.input_of, "message": WAITS_FOR_ANOTHER})


async def _begin(asked: ProducerTask, state: State, owner: OwnerId, claim: Claim) -> Task:
    """A task that an outside producer runs: `processing` from its first moment on."""
    weights = asked.weights
    options = asked.model_dump(exclude={"producer", "batch_id", "webhook", "waits_seconds"}, exclude_none=True)
    task = draft(
        asked.producer,
        owner=owner,
        status=Status.PROCESSING,
        options=options,
        task_id=claim.task_id,
        batch_id=clean_batch_id(asked.batch_id),
        webhook=webhook_of(asked.webhook, state.settings),
    )
    task = task.model_copy(
        update={
            "message": asked.title or ("Started" if asked.waits_seconds is None else WAITS),
            "started_at": task.created_at if asked.waits_seconds is None else None,
            "total": asked.total,
            "unit": asked.unit,
            "total_steps": len(weights),
            "producer": Producer(lease_seconds=asked.lease_seconds, phases=weights, waits_seconds=asked.waits_seconds),
        }
    )
    await claim.settle(task)
    await state.limits.check_tasks(owner)
    await state.publisher.create(task)
    return task


async def _read_body(request: Request, patience_seconds: float) -> bytearray:
    body = bytearray()
    async for chunk in body_of(request, patience_seconds=patience_seconds):
        body += chunk
        if len(body) > JSON_BODY_BYTES:
            raise InvalidRequest(f"The JSON body is longer than {JSON_BODY_BYTES} bytes.")
    return body


async def _read_announcement(request: Request, patience_seconds: float) -> Announcement | ProducerTask:
    body = await _read_body(request, patience_seconds)
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
