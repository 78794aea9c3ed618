"""The last word of a task that Redis no longer knows, told to whoever watches it: `failed`, `lost`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from headway.shared.json_text import text_of
from headway.shared.tasks.models import ErrorType, Event, Status, TaskId, rfc3339, utc_now

_MESSAGE: Final = "Redis came back without this task. Submit the file again."
_UNKNOWN: Final[Sequence[str]] = (
    "total",
    "unit",
    "rate",
    "eta_seconds",
    "size_bytes",
    "started_at",
    "partial",
    "result",
    "queue_position",
    "starts_in_seconds",
)


def lost_event(task_id: TaskId, version: int, last: Event | None = None) -> Event:
    """The end of a task that Redis no longer knows while somebody watches it; `last` is the state they saw."""
    seen = json.loads(last.data) if last is not None else {}
    return Event(version, "", _text(task_id, version, seen.get("progress", 0), seen.get("attempt", 1)).encode())


def lost_text() -> str:
    """The same for any task: `"<TASK>"`, `"<VERSION>"`, `"<PROGRESS>"` and `"<ATTEMPT>"` stand for its JSON texts."""
    return _text("<TASK>", "<VERSION>", "<PROGRESS>", "<ATTEMPT>")


def _text(task_id: str, version: Any, progress: Any, attempt: Any) -> str:
    now = rfc3339(utc_now())
    state: dict[str, Any] = {
        "task_id": task_id,
        "version": version,
        "status": Status.FAILED,
        "progress": progress,
        "step": 0,
        "total_steps": 0,
        "message": _MESSAGE,
        "done": 0,
        "attempt": attempt,
        **dict.fromkeys(_UNKNOWN),
        "updated_at": now,
        "finished_at": now,
        "error": {"type": ErrorType.LOST, "message": _MESSAGE, "retryable": False},
    }
    return text_of(state)
