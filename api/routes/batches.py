"""A batch's roll-up: counts by status, one honest progress, the time left. It is kept in the same step as its tasks, so
looking at it costs the same for two files and for two thousand. And what is done to all tasks of a batch at once."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from headway.api.answers import SEEN
from headway.api.cancelling import cancel_task
from headway.api.dependencies import AliveDep, LastEventIdDep, OwnerDep, RootPathDep, StateDep, stream_of
from headway.api.lifespan import State
from headway.api.openapi import answer, problems, stream, together
from headway.api.schemas import AliveEvent, Batch, BatchCancellation, BatchState, GapEvent
from headway.api.streams.batch_listener import batch_has_ended
from headway.api.uploads.multipart_upload import BATCH_ID
from headway.shared.errors import Conflict, TooMany, UnknownTask
from headway.shared.redis.client import AWAY
from headway.shared.tasks.models import Task, TaskId
from headway.shared.tasks.representation import rooted

router = APIRouter(tags=["batches"])

#: Tasks that are cancelled at the same time: enough to fill a round trip to Redis, few enough to leave room for others.
AT_ONCE: Final = 20


def get_batch_id(batch_id: str) -> str:
    """What cannot be a batch's id is as unknown as one that is not known."""
    if not re.fullmatch(BATCH_ID, batch_id):
        raise UnknownTask("There is no such batch.")
    return batch_id


BatchIdDep = Annotated[str, Depends(get_batch_id)]


@router.get(
    "/batches/{batch_id}",
    summary="The roll-up of a batch",
    responses=together({200: answer("The roll-up", Batch)}, problems(UnknownTask)),
)
async def get_batch(state: StateDep, owner: OwnerDep, batch_id: BatchIdDep, root: RootPathDep) -> dict[str, Any]:
    """`total`, `counts` by status, `progress` (an ended task counts as 100, however it ended), `eta_seconds`, and
    `status`: `active`, or `ended` when every task has."""
    rollup: dict[str, Any] = json.loads((await state.reader.batch(owner, batch_id)).data)
    here = f"/batches/{batch_id}"
    links = {"self": here, "events": f"{here}/events", "tasks": f"/tasks?batch_id={batch_id}"}
    return rooted(rollup | {"links": links}, root)


@router.get(
    "/batches/{batch_id}/events",
    response_class=Response,
    responses=together(
        {200: stream("The roll-ups", BatchState, GapEvent, AliveEvent)}, SEEN, problems(UnknownTask, TooMany)
    ),
    summary="Watch a batch",
    operation_id="watch_batch",
)
async def batch_events(
    request: Request,
    state: StateDep,
    owner: OwnerDep,
    batch_id: BatchIdDep,
    after: LastEventIdDep,
    alive: AliveDep = None,
) -> Any:
    """The roll-up whenever a count changes or the whole moves by a tenth of a percent; ends when every task has."""
    try:
        rollup = await state.reader.batch(owner, batch_id)
    except AWAY:
        pass
    else:
        if after is not None and after >= rollup.version and batch_has_ended(rollup):
            return Response(status_code=204)
    return stream_of(request.scope, state, state.relay.listen_to_batch(owner, batch_id, after))


@router.post(
    "/batches/{batch_id}/cancel",
    status_code=202,
    summary="Cancel every task of a batch that has not ended",
    responses=together({202: answer("What was done", BatchCancellation)}, problems(UnknownTask)),
)
async def cancel_batch(state: StateDep, owner: OwnerDep, batch_id: BatchIdDep) -> dict[str, Any]:
    """`tasks` of the batch, of them `cancelled` by this request, and `ended` before it came to them. A task that is
    added to the batch meanwhile is not looked at. Where Redis goes away in the middle, ask again."""
    await state.reader.batch(owner, batch_id)  # or it is unknown
    cancelled = ended = 0
    place: tuple[int, TaskId] | None = None
    while page := await state.reader.tasks(owner, limit=AT_ONCE, before=place, batch_id=batch_id):
        outcomes = await _cancel_all(state, [task for task, _ in page])
        cancelled += outcomes.count(True)
        ended += outcomes.count(False)
        place = page[-1][1]
    return {"batch_id": batch_id, "tasks": cancelled + ended, "cancelled": cancelled, "ended": ended}


async def _cancel_all(state: State, tasks: list[Task]) -> list[bool | None]:
    """Of each whether this cancelled it, or it had ended; None for one that was deleted meanwhile."""

    async def cancel(task: Task) -> bool | None:
        if task.status.is_terminal:
            return False
        try:
            await cancel_task(state, task)
        except Conflict:
            return False
        except UnknownTask:
            return None
        return True

    try:
        async with asyncio.TaskGroup() as group:
            cancelling = [group.create_task(cancel(task)) for task in tasks]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [one.result() for one in cancelling]
