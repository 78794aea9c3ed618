"""What comes over the wire, typed: a task, a batch, an event. Pure data.

A state event leaves out what never changes, so every field of a Task may be missing; `Client.task` has them all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, TypedDict

TERMINAL: Final = frozenset({"completed", "failed", "cancelled"})


class ResultFile(TypedDict):
    name: str
    size_bytes: int
    content_type: str
    sha256: str
    url: str


class Result(TypedDict, total=False):
    summary: dict[str, Any]
    files: list[ResultFile]
    truncated: bool


class TaskError(TypedDict):
    type: str
    message: str
    retryable: bool


class Task(TypedDict, total=False):
    """A task, or one of its states. Sizes in bytes, durations in seconds, times RFC 3339 in UTC."""

    task_id: str
    processor: str
    filename: str | None
    filename_as_sent: str | None
    size_bytes: int | None
    content_type: str | None
    options: dict[str, Any]
    batch_id: str | None
    priority: int
    not_before: str | None
    status: str
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
    created_at: str
    started_at: str | None
    updated_at: str
    finished_at: str | None
    partial: Any
    input_of: dict[str, Any] | None
    result: Result | None
    error: TaskError | None
    queue_position: int | None
    starts_in_seconds: float | None
    links: dict[str, str]


class Batch(TypedDict, total=False):
    """The roll-up of a batch; `counts` has a number for each status."""

    batch_id: str
    version: int
    status: str
    progress: float
    eta_seconds: float | None
    total: int
    counts: dict[str, int]
    links: dict[str, str]


class BatchCancelled(TypedDict):
    """What cancelling a whole batch did: of its `tasks`, those `cancelled` by it, and those that had `ended`."""

    batch_id: str
    tasks: int
    cancelled: int
    ended: int


class Page(TypedDict):
    tasks: list[Task]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Event:
    """One event: `name` is empty for a state, else `log`, `note`, `transfer`, `gap` or `deleted`. `raw` is its data as
    it came, one line of JSON, `data` the same, read."""

    id: str
    name: str
    raw: str
    data: dict[str, Any]

    @classmethod
    def read(cls, event_id: str, name: str, raw: str) -> Event:
        """Raises ValueError for what is no JSON object."""
        data = json.loads(raw)
        if not isinstance(data, dict):
            raise ValueError("not an object")  # noqa: TRY004 - as what is no JSON at all
        return cls(event_id, "" if name == "message" else name, raw, data)

    @property
    def task_id(self) -> str:
        return str(self.data.get("task_id", ""))

    @property
    def status(self) -> str | None:
        """Of a state; None for a named event."""
        return None if self.name else self.data.get("status")

    @property
    def progress(self) -> float | None:
        """0 to 100, of a state; None for a named event."""
        return None if self.name else self.data.get("progress")

    @property
    def message(self) -> str:
        """What is being done, what the processor logged, what somebody noted."""
        return str(self.data.get("message", self.data.get("text", "")))

    @property
    def is_terminal(self) -> bool:
        """Nothing more happens to this task, unless it is retried."""
        return self.status in TERMINAL

    @property
    def ends_batch(self) -> bool:
        return self.status == "ended"
