"""The job contract: what the API puts on arq's queue and the worker takes off it.

The payload is JSON, never pickle, which would be code execution for whoever can write to Redis. It holds the task's id
and nothing else: what the task is stands in its hash, the one truth. A job is enqueued by the script of
shared/progress.py, in the same step that makes the task `queued`, so a task is never queued without its job; the keys
and the payload are arq's own, made by arq's own functions.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from arq.jobs import serialize_job

from shared import keys
from shared.models import TaskId

#: The name arq finds the worker's function by.
PROCESS_FILE = "process_file"

CLOCK_SKEW_MS = 3_600_000

#: A message on keys.CONTROL: there is work.
WAKE = "wake"


def stop_message(task_id: TaskId) -> str:
    """A message on keys.CONTROL: whoever runs this task stops it now."""
    return f"stop {task_id}"


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
    score_ms: int

    @classmethod
    def new(cls, task_id: TaskId, attempt: int) -> JobTicket:
        # arq takes jobs whose score has passed by the worker's clock. An hour back, the order stays, and an API whose
        # clock is ahead of the worker's does not delay a job.
        now_ms = time.time_ns() // 1_000_000 - CLOCK_SKEW_MS
        payload = serialize_job(PROCESS_FILE, (task_id,), {}, None, now_ms, serializer=serialize)
        return cls(keys.job_id(task_id, attempt), payload, now_ms)
