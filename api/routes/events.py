"""The event stream of a task: `GET /tasks/{id}/events`, and the tutorial's own path for the same."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from api.dependencies import TaskStreamDep

router = APIRouter(tags=["events"])

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The stream. Also as application/x-ndjson or text/plain, by Accept.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "The end has been seen; EventSource stops"},
}


@router.get("/tasks/{task_id}/events", response_class=Response, responses=_STREAM, summary="Watch a task")
@router.get("/task-progress/{task_id}", response_class=Response, responses=_STREAM, tags=["tutorial"])
async def task_events(stream: TaskStreamDep) -> Any:
    """The snapshot at once, then each event, until the terminal one. With `Last-Event-ID`: every event after it."""
    return stream
