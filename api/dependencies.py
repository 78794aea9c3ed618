"""What routes ask for, as annotated aliases: the state, who is asking, the task that may be read, the event stream.

What can refuse a request (401, 404, 204) is decided here, before a response begins.
"""

from __future__ import annotations

import hmac
import re
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query, Request
from starlette.responses import Response

from api.lifespan import State
from api.listeners import Listener
from api.sse import EventStreamResponse, choose_encoder
from shared.errors import NotAllowed, UnknownTask
from shared.models import ANYONE, OwnerId, Task, TaskId
from shared.redis import AWAY


def get_state(request: Request) -> State:
    state: State = request.state.headway
    return state


StateDep = Annotated[State, Depends(get_state)]


def get_owner(state: StateDep, authorization: Annotated[str | None, Header()] = None) -> OwnerId:
    """Whose tasks this request may see. In open mode everything belongs to everybody."""
    api_keys = state.settings.api_keys
    if not api_keys:
        return ANYONE
    scheme, _, key = (authorization or "").partition(" ")
    found = None
    for owner, expected in api_keys.items():  # all of them, so that the time tells nothing
        if hmac.compare_digest(expected.get_secret_value().encode(), key.strip().encode()):
            found = owner
    if scheme.lower() != "bearer" or found is None:
        raise NotAllowed
    return found


OwnerDep = Annotated[OwnerId, Depends(get_owner)]


def get_task_id(task_id: Annotated[str, Path(description="The id that the POST answered with")]) -> TaskId:
    """What cannot be an id is as unknown as one that is not known, and never becomes part of a key."""
    if not re.fullmatch(r"[0-9a-f]{32}", task_id):
        raise UnknownTask
    return TaskId(task_id)


TaskIdDep = Annotated[TaskId, Depends(get_task_id)]


async def get_task(state: StateDep, task_id: TaskIdDep, owner: OwnerDep) -> Task:
    return await state.feed.task(task_id, owner)


TaskDep = Annotated[Task, Depends(get_task)]


def get_last_event_id(
    last_event_id_header: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
    last_event_id: Annotated[
        str | None, Query(description="As the Last-Event-ID header, for a first connection; the header wins")
    ] = None,
) -> int | None:
    """The version a client has seen. What is not a number of ours is what a client of another server sends: ignored,
    so that it gets the snapshot, which is always true."""
    given = last_event_id if last_event_id_header is None else last_event_id_header
    if given is None or not re.fullmatch(r"[0-9]{1,15}", given.strip()):
        return None
    return int(given)


LastEventIdDep = Annotated[int | None, Depends(get_last_event_id)]


def stream_of(request: Request, state: State, listener: AbstractAsyncContextManager[Listener]) -> EventStreamResponse:
    """The listener's stream, in the format the client asks for."""
    return EventStreamResponse(
        listener,
        choose_encoder(request.headers.get("accept", "")),
        heartbeat_seconds=state.settings.heartbeat_seconds,
        send_timeout_seconds=state.settings.send_timeout_seconds,
    )


async def get_task_stream(
    request: Request, state: StateDep, task_id: TaskIdDep, owner: OwnerDep, after: LastEventIdDep
) -> Response | EventStreamResponse:
    """The stream of one task, or 204 where its end has been seen. An unknown task raises. While Redis is away nothing
    can be decided, so the stream is opened and told the truth when it is back (EventSource gives up on a 503)."""
    try:
        task = await state.feed.task(task_id, owner)
    except AWAY:
        pass
    else:
        if task.status.is_terminal and after is not None and after >= (task.ended_version or task.version):
            return Response(status_code=204)
    return stream_of(request, state, state.relay.listen(task_id, owner, after))


TaskStreamDep = Annotated[Any, Depends(get_task_stream)]
