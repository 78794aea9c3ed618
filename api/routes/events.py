"""The event streams: of one task, `GET /tasks/{id}/events` (and the tutorial's own path for it), and of many on one
connection, `GET /events`."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from headway.api.answers import SEEN
from headway.api.dependencies import AliveDep, LastEventIdDep, OwnerDep, StateDep, TaskStreamDep, get_task_id, stream_of
from headway.api.openapi import problems, stream, together
from headway.api.schemas import AliveEvent, DeletedEvent, GapEvent, LogEvent, NoteEvent, TaskState, TransferEvent
from headway.api.uploads.multipart_upload import BATCH_ID, invalid
from headway.shared.errors import InvalidRequest, TooMany, UnknownTask
from headway.shared.redis.client import AWAY
from headway.shared.tasks.owner_feed import Scope

router = APIRouter(tags=["events"])

STREAM: Final = together(
    {
        200: stream(
            "The states of the task, and its events",
            TaskState,
            LogEvent,
            NoteEvent,
            TransferEvent,
            GapEvent,
            AliveEvent,
        )
    },
    SEEN,
    problems(UnknownTask, TooMany),
)
STREAM_OF_MANY: Final = together(
    {
        200: stream(
            "The states of the tasks, and their events",
            *(TaskState, LogEvent, NoteEvent, TransferEvent, GapEvent, DeletedEvent, AliveEvent),
        )
    },
    SEEN,
    problems(UnknownTask, InvalidRequest, TooMany),
)
#: Named tasks of one connection; more are watched as a batch, or all.
NAMED_TASKS: Final = 200


@router.get(
    "/tasks/{task_id}/events",
    response_class=Response,
    responses=STREAM,
    summary="Watch a task",
    operation_id="watch_task",
)
@router.get(
    "/task-progress/{task_id}",
    response_class=Response,
    responses=STREAM,
    summary="Watch a task, the tutorial's way",
    operation_id="task_progress",
    tags=["tutorial"],
)
async def task_events(stream: TaskStreamDep) -> Any:
    """The snapshot at once, then each event, until the terminal one. With `Last-Event-ID`: every event after it."""
    return stream


@router.get(
    "/events",
    response_class=Response,
    responses=STREAM_OF_MANY,
    summary="Watch many tasks on one connection",
    operation_id="watch_tasks",
)
async def many_events(
    request: Request,
    state: StateDep,
    owner: OwnerDep,
    after: LastEventIdDep,
    task: Annotated[list[str], Query(description="Tasks to watch; the stream ends when all of them have")] = [],  # noqa: B006
    batch_id: Annotated[str | None, Query(pattern=f"^{BATCH_ID}$")] = None,
    alive: AliveDep = None,
) -> Any:
    """The state of each task at once, then every event of each, with its `task_id`. With neither `task` nor `batch_id`,
    all of the owner's. Ids are the feed's own; after any reconnect each task's true state arrives."""
    if task and batch_id is not None:
        raise invalid("batch_id", "name tasks or a batch, not both")
    if len(task) > NAMED_TASKS:
        raise invalid("task", f"{len(task)} tasks are named; at most {NAMED_TASKS}, or watch a batch")
    named = frozenset(get_task_id(one) for one in task)
    scope = Scope(named or None, batch_id)
    if named:
        try:
            found = await state.relay.owner_feed.named(owner, named)
        except AWAY:
            pass  # told when it is back, as the stream of one task
        else:
            if found.gone:
                raise UnknownTask(f"There is no task {min(found.gone)}.")
            if after is not None and found.changed_at <= after <= found.number and found.ended == named:
                return Response(status_code=204)
    return stream_of(request.scope, state, state.relay.listen_to_owner(owner, scope, after))
