"""The last word of a task that Redis no longer knows, told to whoever watches it: `failed`, `lost`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shared.feed import text_of
from shared.models import ErrorType, Event, Status, TaskId, rfc3339, utc_now


def lost_event(task_id: TaskId, version: int, last: Event | None = None) -> Event:
    """The end of a task that Redis no longer knows while somebody watches it; `last` is the state they saw."""
    seen = json.loads(last.data) if last is not None else {}
    message = "Redis came back without this task. Submit the file again."
    now = rfc3339(utc_now())
    unknown: Sequence[str] = ("total", "unit", "rate", "eta_seconds", "size_bytes", "started_at", "result")
    state: dict[str, Any] = {
        "task_id": task_id,
        "version": version,
        "status": Status.FAILED,
        "progress": seen.get("progress", 0),
        "step": 0,
        "total_steps": 0,
        "message": message,
        "done": 0,
        "attempt": seen.get("attempt", 1),
        **dict.fromkeys(unknown),
        "updated_at": now,
        "finished_at": now,
        "error": {"type": ErrorType.LOST, "message": message, "retryable": False},
    }
    return Event(version, "", text_of(state).encode())
