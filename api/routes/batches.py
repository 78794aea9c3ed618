"""A batch's roll-up: counts by status, one honest progress, the time left. It is kept in the same step as its tasks, so
looking at it costs the same for two files and for two thousand."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.batch_listener import batch_has_ended
from api.dependencies import LastEventIdDep, OwnerDep, StateDep, stream_of
from api.intake import BATCH_ID
from api.routes.events import STREAM
from shared.errors import UnknownTask
from shared.redis import AWAY

router = APIRouter(tags=["batches"])


def get_batch_id(batch_id: str) -> str:
    """What cannot be a batch's id is as unknown as one that is not known."""
    if not re.fullmatch(BATCH_ID, batch_id):
        raise UnknownTask("There is no such batch.")
    return batch_id


BatchIdDep = Annotated[str, Depends(get_batch_id)]


@router.get("/batches/{batch_id}", summary="The roll-up of a batch")
async def get_batch(state: StateDep, owner: OwnerDep, batch_id: BatchIdDep) -> dict[str, Any]:
    """`total`, `counts` by status, `progress` (an ended task counts as 100, however it ended), `eta_seconds`, and
    `status`: `active`, or `ended` when every task has."""
    rollup: dict[str, Any] = json.loads((await state.feed.batch(owner, batch_id)).data)
    here = f"/batches/{batch_id}"
    return rollup | {"links": {"self": here, "events": f"{here}/events", "tasks": f"/tasks?batch_id={batch_id}"}}


@router.get("/batches/{batch_id}/events", response_class=Response, responses=STREAM, summary="Watch a batch")
async def batch_events(
    request: Request, state: StateDep, owner: OwnerDep, batch_id: BatchIdDep, after: LastEventIdDep
) -> Any:
    """The roll-up whenever a count changes or the whole moves by a tenth of a percent; ends when every task has."""
    try:
        rollup = await state.feed.batch(owner, batch_id)
    except AWAY:
        pass
    else:
        if after is not None and after >= rollup.version and batch_has_ended(rollup):
            return Response(status_code=204)
    return stream_of(request.scope, state, state.relay.listen_to_batch(owner, batch_id, after))
