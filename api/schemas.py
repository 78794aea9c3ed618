"""What the API answers, as schemas for `/openapi.json`. No answer is made from them; the tests hold every real answer
to them (tests/described.py).

A task, its result and its error are described from `headway.shared.tasks.models`, so that a new field cannot be
forgotten here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from headway.api.uploads.multipart_upload import BATCH_ID
from headway.shared.tasks import models
from headway.shared.tasks.models import FieldError, InputOf, Result, Status, TaskError, Time

TaskPath = Annotated[str, Field(examples=["/tasks/6f1c0b4e9a7d4c52a7e0d8a3c1b2f4e6"])]
Count = Annotated[int, Field(ge=0)]
#: 0 to 100.
Percent = Annotated[float, Field(ge=0, le=100)]


def _without_default(schema: dict[str, Any]) -> None:
    """For a field that may be absent: pydantic takes that for a default, which a client would fill in."""
    schema.pop("default", None)


def _always_complete(schema: dict[str, Any]) -> None:
    """Every task is told with these, whatever of them has a default."""
    there = schema.get("properties", {})
    always = [name for name in there if name in models.Task.model_fields]
    schema["required"] = list(dict.fromkeys([*schema.get("required", []), *always]))


class Links(TypedDict):
    self: TaskPath
    events: Annotated[str, Field(description="The task's event stream")]
    cancel: NotRequired[Annotated[str, Field(description="Where the task has not ended")]]
    retry: NotRequired[Annotated[str, Field(description="Where the task can be run again")]]
    input: NotRequired[Annotated[str, Field(description="The file as it was uploaded, once it is whole")]]
    upload: NotRequired[Annotated[str, Field(description="Where the file of an announced task is sent")]]
    progress: NotRequired[Annotated[str, Field(description="Where the outside producer of a task reports")]]
    complete: NotRequired[Annotated[str, Field(description="Where it says that it is done")]]
    attempts: NotRequired[Annotated[str, Field(description="Where it begins again, as the next attempt")]]
    fail: NotRequired[Annotated[str, Field(description="Where it says that it has failed")]]


Links.__doc__ = "Paths that lead somewhere in the task's present state."


class Task(models.Task):
    """A task. Sizes in bytes, durations in seconds, times in UTC. `progress` is 0 to 100 over the whole of the work;
    `done` of `total` `unit`s is the count inside the phase `step` of `total_steps`."""

    #: What may be absent is so: links, tokens.
    model_config = ConfigDict(json_schema_serialization_defaults_required=False, json_schema_extra=_always_complete)

    progress: Percent
    links: Links
    input_of: InputOf | None
    filename_as_sent: Annotated[str | None, Field(description="The name as it was sent, where `filename` is another")]
    partial: Annotated[Any, Field(description="What the processor shows before its result is there")]


class FormFields(BaseModel):
    """What a form may have beside its processor."""

    file: Annotated[bytes | SkipJsonSchema[None], Field(description="Not for a processor that needs none")] = None
    options: Annotated[str | SkipJsonSchema[None], Field(description="A JSON object, as text")] = None
    batch_id: Annotated[str | SkipJsonSchema[None], Field(pattern=f"^{BATCH_ID}$")] = None
    priority: Annotated[
        int | SkipJsonSchema[None], Field(ge=0, le=9, description="Among your own tasks the highest goes first")
    ] = None
    not_before: Annotated[
        str | SkipJsonSchema[None],
        Field(description="RFC 3339: the task waits until then", json_schema_extra={"format": "date-time"}),
    ] = None
    sha256: Annotated[
        str | SkipJsonSchema[None],
        Field(pattern="^[0-9a-fA-F]{64}$", description="Of the file, in hex; another file is refused"),
    ] = None
    webhook: Annotated[
        str | SkipJsonSchema[None],
        Field(description='Who is told of the end: `{"url", "events"?}` as JSON text, as in the JSON form'),
    ] = None


class Submission(FormFields):
    """A file and what is to be done with it, as a form."""

    processor: str


class PipelineForm(FormFields):
    """A file and the steps that it goes through, as a form."""

    steps: Annotated[str, Field(description='`[{"processor", "options"?, "file"?}, …]` as JSON text')]


class StartForm(FormFields):
    """The tutorial's form."""

    processor: Annotated[str | SkipJsonSchema[None], Field(description="`checksum`, where none is named")] = None


class SubmittedTask(Task):
    """A task as its submission is answered."""

    token: Annotated[
        str,
        Field(
            description="Reads this one task, as a bearer token. Absent in open mode",
            json_schema_extra=_without_default,
        ),
    ] = ""
    producer_token: Annotated[
        str,
        Field(
            description="Of a task that an outside producer runs: reports on it, as a bearer token",
            json_schema_extra=_without_default,
        ),
    ] = ""


class TaskList(BaseModel):
    """A page of tasks, newest first."""

    tasks: list[Task]
    next_cursor: Annotated[str | None, Field(description="For the next page; null at the end")]


class TaskState(BaseModel):
    """The live state of a task: the data of a stream's unnamed events. Each one replaces the one before it."""

    task_id: str
    version: Annotated[int, Field(description="Rises with each event; the id of the event on the task's own stream")]
    status: Status
    progress: Percent
    step: Count
    total_steps: Count
    message: str
    done: Count
    total: Count | None
    unit: str | None
    rate: Annotated[float | None, Field(description="Units a second, smoothed")]
    eta_seconds: float | None
    attempt: Count
    size_bytes: Count | None
    started_at: Time | None
    updated_at: Time
    finished_at: Time | None
    partial: Annotated[Any, Field(description='As the task\'s; `{"truncated": true}` for one over 8 KiB')]
    result: Result | None
    error: TaskError | None
    queue_position: Annotated[int | None, Field(ge=1, description="Of a task that waits: 1 is the next one")]
    starts_in_seconds: Annotated[float | None, Field(description="About when its turn comes; null: nobody knows")]


class Named(BaseModel):
    """A named event. On a stream of many tasks it says of which it is."""

    task_id: Annotated[str, Field(json_schema_extra=_without_default)] = ""


class LogEvent(Named):
    """`log`: a line that the processor wrote."""

    level: str
    message: str
    at: Time


class NoteEvent(Named):
    """`note`: what somebody said to everybody who watches."""

    author: str
    text: str
    at: Time


class TransferEvent(Named):
    """`transfer`: how far somebody's download with `transfer=1` has come."""

    file: str
    sent: Count
    total: Count
    progress: Percent


class GapEvent(Named):
    """`gap`: events that can no longer be replayed; the state that follows stands for them."""

    first: Annotated[int, Field(alias="from")]
    to: int


class DeletedEvent(BaseModel):
    """`deleted`: the task is gone. On streams of many tasks alone."""

    task_id: str


class AliveEvent(BaseModel):
    """`alive`: a sign of life, for who asked by `?alive=1`. `version`: the newest that is known; null while it is being
    read, or has to be."""

    version: int | None
    heartbeat_seconds: float


class Counts(BaseModel):
    """Tasks of a batch by status."""

    uploading: Count
    queued: Count
    processing: Count
    completed: Count
    failed: Count
    cancelled: Count


class BatchState(BaseModel):
    """The roll-up of a batch."""

    batch_id: str
    version: int
    status: Literal["active", "ended"]
    progress: Annotated[float, Field(ge=0, le=100, description="A task that has ended counts as 100, however it ended")]
    eta_seconds: float | None
    total: Count
    counts: Counts


class BatchLinks(TypedDict):
    """Paths of a batch."""

    self: str
    events: str
    tasks: str


class Batch(BatchState):
    """The roll-up of a batch, with the paths of its tasks and its stream."""

    links: BatchLinks


class Pipeline(BaseModel):
    """A chain of tasks, whose one bar is that of their batch."""

    batch_id: str
    tasks: Annotated[list[Task], Field(description="In their order")]
    links: BatchLinks


class BatchCancellation(BaseModel):
    """What cancelling a batch did."""

    batch_id: str
    tasks: Annotated[Count, Field(description="All that were looked at")]
    cancelled: Annotated[Count, Field(description="Those that this request cancelled")]
    ended: Annotated[Count, Field(description="Those that had ended before")]


class Note(BaseModel):
    """A note on a task. Plain text."""

    task_id: str
    author: str
    text: str
    at: Time
    version: int


class NoteList(BaseModel):
    """The notes that the task's history still holds, oldest first."""

    notes: list[Note]


class WebhookTry(BaseModel):
    """One POST to a webhook's receiver."""

    at: Time
    status_code: Annotated[int | None, Field(description="Of the answer; null where there was none")]
    error: Annotated[str | None, Field(description="What went wrong; null where it was taken")]
    seconds: float


class Notice(BaseModel):
    """One end of a task, told to one receiver."""

    id: Annotated[str, Field(description="The `webhook-id`, the same at each try")]
    type: Literal["task.completed", "task.failed", "task.cancelled"]
    url: Annotated[str | None, Field(description="null for the platform's own receiver")]
    status: Annotated[
        Literal["pending", "delivered", "gone", "given_up"],
        Field(description="gone: the receiver answered 410. given_up: all tries failed"),
    ]
    created_at: Time
    next_try_at: Annotated[Time | None, Field(description="null where none is to come")]
    tries: Annotated[list[WebhookTry], Field(description="The last 50, oldest first")]


class NoticeList(BaseModel):
    """What was sent of a task's ends."""

    webhooks: list[Notice]


class ProcessorRetries(BaseModel):
    """When a failed attempt is tried again by itself."""

    max: Annotated[int, Field(ge=0, description="How many more attempts a task gets")]
    backoff_seconds: Annotated[float, Field(ge=0, description="The wait before the first; it doubles with each")]


class Processor(BaseModel):
    """What can be done with a file here."""

    name: str
    description: str
    accepts: Annotated[list[str], Field(description="Media types, `*` allowed")]
    needs_file: bool
    options: Annotated[dict[str, Any], Field(description="The JSON Schema of its options")]
    paused: Annotated[
        bool | None, Field(description="None of its tasks is started; null: Redis is away, so nobody knows")
    ]
    concurrency: Annotated[int | None, Field(ge=1, description="How many of its tasks run at once; null: no limit")]
    timeout_seconds: Annotated[float | None, Field(description="Of one attempt; null: as the settings have it")]
    memory_bytes: Annotated[int | None, Field(description="Of one attempt; null: as the settings have it")]
    retries: Annotated[ProcessorRetries | None, Field(description="null: never by itself")]
    alias_of: Annotated[
        str | None, Field(description="This is a former name, which goes on to work; the name of today")
    ] = None


class ProcessorList(BaseModel):
    """The processors of this installation."""

    processors: list[Processor]


class Session(BaseModel):
    """Who is asking, and until when."""

    owner: Annotated[str | None, Field(description="null in open mode, where nobody is asked")]
    expires_at: Annotated[Time | None, Field(description="null for who comes with a key")]


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"]


class Check(BaseModel):
    """One of the things that the platform needs, with a reason."""

    model_config = ConfigDict(extra="allow")

    ok: bool
    reason: str


class Checks(TypedDict):
    redis: Check
    relay: Check
    workers: Check
    storage: Check


class Readiness(BaseModel):
    """Whether the platform can do its work, and why."""

    status: Literal["ready", "degraded"]
    version: str
    heartbeat_seconds: float
    checks: Checks


class Unreadiness(BaseModel):
    """Redis or the relay is not well; `checks` says why."""

    status: Literal["unready"]
    checks: Checks


class Problem(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(description="What kind of error", examples=["urn:headway:problem:unknown-task"])]
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: Annotated[str, Field(description="What to do about this one")]
    errors: Annotated[
        list[FieldError],
        Field(description="Of a bad request: what is wrong where", json_schema_extra=_without_default),
    ] = []


class Reported(BaseModel):
    """What a producer is to know after a report. `cancelled`: the work is to stop, and the report did not count."""

    status: Status
    cancelled: bool
    version: int


class ReportedTask(TypedDict):
    """The same of one task among many: what there is to know, or the problem that its report had."""

    task_id: str
    status: NotRequired[Status]
    cancelled: NotRequired[bool]
    version: NotRequired[int]
    problem: NotRequired[Problem]


class ReportedTasks(BaseModel):
    """In the order in which the tasks were first named."""

    tasks: list[ReportedTask]


class TakenOver(Task):
    """A task whose producer has begun again: `attempt` is its own from now on."""

    restored: Annotated[Any, Field(description="The last checkpoint; null where there is none")]
    producer_token: Annotated[
        str,
        Field(description="Reports on it, as the one before, which stays good", json_schema_extra=_without_default),
    ] = ""


class StartedTask(BaseModel):
    """The tutorial's answer: the id to watch, and a word."""

    task_id: str
    message: str
