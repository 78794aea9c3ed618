"""The words of the domain: a task, its states, its events, its result. Pure data, no I/O.

A task is kept in Redis as a hash whose values are JSON texts (see shared/tasks/progress.py); `Task.from_fields` reads
one.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, NewType, NotRequired
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from typing_extensions import TypedDict

TaskId = NewType("TaskId", str)
OwnerId = NewType("OwnerId", str)

#: The owner of every task in open mode, where no keys are set.
ANYONE = OwnerId("anyone")


def own_batch(first: TaskId) -> str:
    """The batch of a pipeline for which none was named, by its first task."""
    return f"pipeline-{first[:16]}"


def is_owner_name(name: str) -> bool:
    """What may be one: it becomes part of keys of Redis, whose parts a colon divides."""
    return re.fullmatch(r"[A-Za-z0-9_.@|+-]{1,64}", name) is not None


#: A message or a log line longer than this is cut: with every character escaped it still fits an event.
TEXT_CHARACTERS: Final = 500


def new_task_id() -> TaskId:
    """An id of 128 random bits in hex: nobody guesses another's."""
    return TaskId(secrets.token_hex(16))


def utc_now() -> datetime:
    return datetime.now(UTC)


def rfc3339(at: datetime) -> str:
    """RFC 3339 in UTC with milliseconds and a Z: `2026-11-22T13:40:25.123Z`."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def waiting(not_before: datetime | None) -> str:
    """The message of a task that waits for its turn."""
    if not_before is None or not_before <= utc_now():
        return "Waiting for a worker"
    return f"Waiting until {rfc3339(not_before)}"


Time = Annotated[
    datetime,
    PlainSerializer(rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]


class Status(StrEnum):
    """Where a task is. It moves down this list only; a retry starts it again at `queued`."""

    UPLOADING = "uploading"  #: announced; bytes are awaited or arriving
    QUEUED = "queued"  #: whole on disk, waiting for a worker
    PROCESSING = "processing"  #: a worker has it
    COMPLETED = "completed"  #: terminal: the result is safe on disk
    FAILED = "failed"  #: terminal: `error` says why
    CANCELLED = "cancelled"  #: terminal: somebody asked for it

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
ACTIVE = frozenset(Status) - TERMINAL


class ErrorType(StrEnum):
    """Why a task failed: a closed set, documented in docs/reference.md."""

    BAD_INPUT = "bad_input"  #: the file or its options are not what the processor takes
    TIMEOUT = "timeout"  #: one attempt ran longer than HEADWAY_TASK_TIMEOUT_SECONDS
    MEMORY = "memory"  #: it needed more than HEADWAY_TASK_MEMORY_BYTES
    WORKER_LOST = "worker_lost"  #: its workers kept dying, HEADWAY_MAX_ATTEMPTS times
    PROCESSOR_ERROR = "processor_error"  #: the processor raised or crashed
    STORAGE_FULL = "storage_full"  #: the disk had no room for the result
    LOST = "lost"  #: Redis came back without the task


#: The message of a resumable upload of which nothing more comes at present.
UPLOAD_CUT = "The upload was cut off; waiting for the rest"


class TaskError(BaseModel):
    type: ErrorType
    message: str
    retryable: bool


class FieldError(BaseModel):
    """One thing wrong in a request: `field` is where, `message` what to do."""

    field: str
    message: str


class ResultFile(BaseModel):
    name: str
    size_bytes: int
    content_type: str
    sha256: str
    url: str


class Result(BaseModel):
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    summary: dict[str, Any]
    files: list[ResultFile]
    truncated: bool = Field(
        default=False,
        description="true in an event, and in a list, for which it is too long; `GET /tasks/{id}` has the whole of it",
    )


class Checkpoint(BaseModel):
    """Where the next attempt goes on, should this one be lost: what the processor gave, and the bar at that moment."""

    state: Any
    progress: float


class Producer(BaseModel):
    """What is known of the outside producer that runs a task. Phases as a processor's: name to weight."""

    lease_seconds: float
    #: How long it may be until its first report; None: as any other.
    waits_seconds: float | None = None
    phases: dict[str, float] = Field(default_factory=dict)
    #: The phase it is in; what those before it have taken of the whole, 0 to 1, and what this one takes.
    phase: str | None = None
    spent: float = 0.0
    share: float = 1.0
    #: Of the newest reports that had one, oldest first: one that is sent again counts once.
    seqs: list[int] = Field(default_factory=list)


class InputOf(TypedDict):
    """Whose file a task takes: the input of another task; with `file` a result of it by its name; with `result` its
    only result, or its input where it has none."""

    task_id: str
    file: NotRequired[str]
    result: NotRequired[bool]


class Live(BaseModel):
    """Result files that may be read while they are written: their names, and the scratch folder of the attempt."""

    folder: str
    names: list[str]


class Webhook(BaseModel):
    """Who is told of a task's end. progress.lua reads its JSON text, so the fields stay in this order."""

    #: The receiver: a digest of the URL's origin, a point, and one of the URL.
    to: str
    #: Of TERMINAL, those that are told.
    events: list[str]
    url: str


class ProducedFile(BaseModel):
    """A result that an outside producer has sent. `stored` is its name in the storage, where it is as an input is."""

    stored: str
    size_bytes: int
    content_type: str
    sha256: str


#: What a task of an earlier version does not say.
_OF_BEFORE: Final[dict[str, Any]] = {
    "priority": 5,
    "not_before": None,
    "queue_position": None,
    "starts_in_seconds": None,
}


class Task(BaseModel):
    """A task as everybody sees it, without the links, which the API adds.

    Sizes in bytes, durations in seconds, times RFC 3339 in UTC. `progress` is 0 to 100 and covers the whole of the
    work; `done` of `total` `unit`s is the count inside the phase `step` of `total_steps`.
    """

    task_id: TaskId
    processor: str
    filename: str | None
    #: Word for word, where that is another name.
    filename_as_sent: str | None = None
    size_bytes: int | None
    content_type: str | None
    options: dict[str, Any]
    batch_id: str | None
    input_of: InputOf | None = None
    #: Among its owner's own, the highest goes first.
    priority: Annotated[int, Field(ge=0, le=9)]
    not_before: Time | None
    status: Status
    progress: float
    step: int
    total_steps: int
    message: str
    done: int
    total: int | None
    unit: str | None
    rate: float | None
    eta_seconds: float | None
    attempt: int
    version: int
    created_at: Time
    started_at: Time | None
    updated_at: Time
    finished_at: Time | None
    partial: Any = None
    result: Result | None
    error: TaskError | None
    #: Of a task that waits for its turn: 1 is the next one; and when that will be, where it can be said.
    queue_position: int | None
    starts_in_seconds: float | None

    # What only the inside needs: never sent to a client.
    owner: OwnerId = Field(default=ANYONE, exclude=True)
    progress_base: float = Field(default=0.0, exclude=True)
    losses: int = Field(default=0, exclude=True)
    #: How many of its attempts were retries that its processor asked for.
    retried: int = Field(default=0, exclude=True)
    input_name: str | None = Field(default=None, exclude=True)
    input_sha256: str | None = Field(default=None, exclude=True)
    #: Where its results are; None where it has none, or an older worker kept them (headway.shared.files.storage).
    results_name: str | None = Field(default=None, exclude=True)
    #: What whoever announced the file says its SHA-256 is, in hex.
    declared_sha256: str | None = Field(default=None, exclude=True)
    #: Of a resumable upload alone: when it is given up, and what its client said about it, word for word.
    upload_expires_at: Time | None = Field(default=None, exclude=True)
    upload_metadata: str | None = Field(default=None, exclude=True)
    checkpoint: Checkpoint | None = Field(default=None, exclude=True)
    #: None where a worker runs it. And what it has sent, by name.
    producer: Producer | None = Field(default=None, exclude=True)
    produced: dict[str, ProducedFile] = Field(default_factory=dict, exclude=True)
    webhook: Webhook | None = Field(default=None, exclude=True)
    live: Live | None = Field(default=None, exclude=True)
    #: Of `input_of`: the other task had ended before this one was made or retried, so this one does not fail with it.
    source_had_ended: bool = Field(default=False, exclude=True)
    #: The version of the terminal event; transfers may follow it.
    ended_version: int | None = Field(default=None, exclude=True)
    #: The span of its last attempt, or that of its queueing; None where nobody traces.
    traceparent: str | None = Field(default=None, exclude=True)

    @property
    def follows(self) -> TaskId | None:
        """The task whose end this one waits for, or has waited for in vain: its file is to be that one's."""
        return TaskId(self.input_of["task_id"]) if self.input_of is not None and self.input_name is None else None

    @classmethod
    def from_fields(cls, fields: Mapping[bytes, bytes]) -> Task:
        """Reads the hash of shared/tasks/progress.py; `whole_result` stands in where the live one was truncated."""
        texts = [b'"%s":%s' % (name, text) for name, text in fields.items() if name != b"write"]
        return cls.from_values(json.loads(b"{" + b",".join(texts) + b"}"))  # read at once: forty times costs more

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Task:
        """The same, of the values themselves."""
        for name in ("result", "partial"):
            if (whole := values.pop(f"whole_{name}", None)) is not None:
                values[name] = whole
        return cls.model_validate(_OF_BEFORE | values)


def file_url(task_id: TaskId, name: str) -> str:
    """Where a result's file is downloaded."""
    return f"/tasks/{task_id}/files/{quote(name, safe='')}"


BatchId = NewType("BatchId", str)


#: The named event of a task's end for good, on the feeds of its owner.
DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a task: `version` is its SSE id, `name` is empty for a state, `data` one line of ASCII JSON."""

    version: int
    name: str
    data: bytes

    @property
    def is_state(self) -> bool:
        return not self.name

    @property
    def is_terminal(self) -> bool:
        """Whether this event ends the stream. The live state puts `status` third, so a look at the head is enough."""
        return not self.name and any(b'"status":"%s"' % s.encode() in self.data[:160] for s in TERMINAL)


@dataclass(frozen=True, slots=True)
class FeedEvent(Event):
    """An event on the feed of its task's owner: `version` is its number there, `task_version` that in the task."""

    task_id: TaskId
    task_version: int
    batch_id: str
