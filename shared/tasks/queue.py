"""The job contract: what the API puts on arq's queue and the worker takes off it.

The payload is JSON, never pickle, which would be code execution for whoever can write to Redis. It holds the task's id
and, where traces are on, the span that queued it, and nothing else: what the task is stands in its hash, the one truth.
A job is enqueued by the script of shared/tasks/progress.py, in the same step that makes the task `queued`, so a task is
never queued without its job; the keys and the payload are arq's own, made by arq's own functions.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from arq.jobs import serialize_job

from headway.shared import keys
from headway.shared.tasks.models import TaskId
from headway.shared.tracing import TRACEPARENT

#: The name arq finds the worker's function by.
PROCESS_FILE = "process_file"

#: A worker says that it is alive three times a lease. One that missed this many leases is not counted.
SILENT_LEASES = 3

#: Of the payload. Names may come without a new version where a worker that takes no notice of them does no harm. A
#: worker leaves a job of a newer version than its own to those that know it.
VERSION = 1
_OUR_VERSION = b'{"v":%d,' % VERSION

_STOP = re.compile(rb"stop ([0-9a-f]{32})")
JOB_ID_CHARACTERS = 200

#: A message on keys.CONTROL: there is work.
WAKE = "wake"


def stop_message(task_id: TaskId) -> str:
    """A message on keys.CONTROL: whoever runs this task stops it now."""
    return f"stop {task_id}"


def stopped_by(message: bytes) -> TaskId | None:
    """The task that a message on keys.CONTROL stops; None for WAKE. Raises ValueError for what is neither."""
    if message == WAKE.encode():
        return None
    if (found := _STOP.fullmatch(message)) is None:
        raise ValueError("a message that nobody of ours sent")
    return TaskId(found[1].decode())


def is_job_id(name: bytes) -> bool:
    """Whether a member of the queue may be a job at all, of whatever version: short, and text."""
    try:
        return len(name.decode()) <= JOB_ID_CHARACTERS
    except UnicodeDecodeError:
        return False


def serialize(value: dict[str, Any]) -> bytes:
    """arq's job_serializer. Exceptions, which arq would put in a result, are not kept: results are ours."""
    return json.dumps(value, default=repr, separators=(",", ":")).encode()


def deserialize(data: bytes) -> dict[str, Any]:
    """arq's job_deserializer."""
    value = json.loads(data)
    if not isinstance(value, dict):
        raise TypeError("a job's payload is a JSON object")
    return value


@dataclass(frozen=True, slots=True)
class JobTicket:
    """What the script needs to put one attempt of a task on the queue."""

    job_id: str
    payload: bytes
    #: By the clock of Redis, in ms; None: it is due.
    due_ms: int | None = None

    @classmethod
    def new(
        cls, task_id: TaskId, attempt: int, traceparent: str | None = None, not_before: datetime | None = None
    ) -> JobTicket:
        now_ms = time.time_ns() // 1_000_000
        # Beside arq's own names, so that a worker of before there were traces takes no notice.
        traced = {} if traceparent is None else {TRACEPARENT: traceparent}
        payload = serialize_job(
            *(PROCESS_FILE, (task_id,), {}, None, now_ms),
            serializer=lambda job: serialize({"v": VERSION, **job, **traced}),
        )
        due_ms = None if not_before is None else int(not_before.timestamp() * 1000)
        return cls(keys.job_id(task_id, attempt), payload, due_ms if due_ms and due_ms > now_ms else None)

    @property
    def wait_seconds(self) -> int:
        """How long it is until it is due."""
        return 0 if self.due_ms is None else max(0, self.due_ms // 1000 - int(time.time()))


def traceparent_of(payload: bytes) -> str | None:
    """Of a job's payload; None where there is none, as in those of before there were traces."""
    if TRACEPARENT.encode() not in payload:
        return None
    value = deserialize(payload).get(TRACEPARENT)
    return value if isinstance(value, str) else None


def is_newer(payload: bytes) -> bool:
    """A job of a later Headway, which this one might get wrong. What cannot be read at all is not."""
    if payload.startswith(_OUR_VERSION):
        return False
    try:
        version = deserialize(payload).get("v", VERSION)
    except (ValueError, TypeError, RecursionError):
        return False
    return not isinstance(version, int) or version > VERSION
