"""What routes ask for, as annotated aliases: the state, who is asking, the task that may be read, the event stream.

What can refuse a request (401, 404, 204) is decided here, before a response begins.
"""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query, Request
from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.types import Scope

from headway.api.access.identity import Identity, Policy, check_processor, names_of, states
from headway.api.lifespan import State
from headway.api.streams.listeners import Listener
from headway.api.streams.sse import EventStreamResponse, choose_encoder
from headway.api.streams.stream_slot import StreamSlot
from headway.shared.errors import NotWithToken, UnknownTask
from headway.shared.redis.client import AWAY
from headway.shared.tasks.models import OwnerId, Task, TaskId


def get_state(request: Request) -> State:
    state: State = request.state.headway
    return state


# Dependencies are coroutines even where they wait for nothing: FastAPI sends a plain function to a thread, which costs
# a request more than everything else here.


async def _get_state(request: Request) -> State:
    return get_state(request)


StateDep = Annotated[State, Depends(_get_state)]


async def get_root_path(request: Request) -> str:
    """What comes before every path that an answer names (api/root_path.py); mostly empty."""
    root_path: str = request.scope.get("root_path", "")
    return root_path


RootPathDep = Annotated[str, Depends(get_root_path)]


async def get_identity(request: Request) -> Identity | None:
    """As api/access/identity.py found it; None on a public route alone."""
    identity: Identity | None = request.scope["headway.identity"]
    return identity


IdentityDep = Annotated[Identity | None, Depends(get_identity)]


@states(Policy.OWNER)
async def get_owner(identity: IdentityDep) -> OwnerId:
    """Whose tasks this request may see and change. In open mode everything belongs to everybody."""
    assert identity is not None
    if identity.task_id is not None:
        raise NotWithToken
    return identity.owner


OwnerDep = Annotated[OwnerId, Depends(get_owner)]


@states(Policy.READER)
async def get_reader(identity: IdentityDep) -> OwnerId:
    """As `get_owner`, for a route that reads one task: its token is enough, and leads to no other."""
    assert identity is not None
    return identity.owner


ReaderDep = Annotated[OwnerId, Depends(get_reader)]


@states(Policy.PRODUCER)
async def get_producing(request: Request) -> OwnerId:
    """As `get_owner`, for a route by which a producer reports on its task: its token is enough there. Producers report
    all the time, and each dependency more costs as much as a field of the task."""
    identity: Identity | None = request.scope["headway.identity"]
    assert identity is not None
    if identity.task_id is not None and not identity.produces:
        raise NotWithToken
    return identity.owner


ProducingDep = Annotated[OwnerId, Depends(get_producing)]


def get_task_id(task_id: str) -> TaskId:
    """What cannot be an id is as unknown as one that is not known, and never becomes part of a key."""
    if not re.fullmatch(r"[0-9a-f]{32}", task_id):
        raise UnknownTask
    return TaskId(task_id)


TaskIdPath = Annotated[str, Path(description="The id that the POST answered with")]


async def _get_task_id(task_id: TaskIdPath) -> TaskId:
    return get_task_id(task_id)


TaskIdDep = Annotated[TaskId, Depends(_get_task_id)]


async def get_task(state: StateDep, task_id: TaskIdDep, owner: OwnerDep) -> Task:
    return await state.reader.task(task_id, owner)


TaskDep = Annotated[Task, Depends(get_task)]


async def get_read_task(state: StateDep, task_id: TaskIdDep, owner: ReaderDep) -> Task:
    return await state.reader.task(task_id, owner)


ReadTaskDep = Annotated[Task, Depends(get_read_task)]


async def get_produced_task(request: Request, state: StateDep, task_id: TaskIdDep, owner: ProducingDep) -> Task:
    """Whatever runs it: that a worker does is said by api/producing/producers.py. Raises NotWithToken."""
    task = await state.reader.task(task_id, owner)
    check_processor(request.scope, task.processor)
    return task


ProducedTaskDep = Annotated[Task, Depends(get_produced_task)]


async def get_last_event_id(
    last_event_id_header: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
    last_event_id: Annotated[
        str | None, Query(description="As the Last-Event-ID header, for a first connection; the header wins")
    ] = None,
    last_event_id_of_polyfills: Annotated[
        str | None, Query(alias="lastEventId", description="The same, as polyfills of EventSource name it")
    ] = None,
) -> int | None:
    """The version a client has seen. What is not a number of ours is what a client of another server sends: ignored,
    so that it gets the snapshot, which is always true."""
    return version_seen(last_event_id_header, last_event_id, last_event_id_of_polyfills)


def version_seen(*told: str | None) -> int | None:
    """By the first of these that is there."""
    given = next((one for one in told if one is not None), None)
    if given is None or not re.fullmatch(r"[0-9]{1,15}", given.strip()):
        return None
    return int(given)


LastEventIdDep = Annotated[int | None, Depends(get_last_event_id)]


AliveDep = Annotated[
    str | None,
    Query(description="`1`: signs of life are events, `alive`, with the newest version that is known"),
]


def _wants_alive(scope: Scope) -> bool:
    query: bytes = scope.get("query_string", b"")
    return b"alive=" in query and QueryParams(query).get("alive", "") in ("1", "true")


def stream_of(scope: Scope, state: State, listener: AbstractAsyncContextManager[Listener]) -> EventStreamResponse:
    """The listener's stream, in the format the client asks for."""
    stream_slot = StreamSlot(listener, state, scope["headway.identity"], names_of(scope))
    return EventStreamResponse(
        stream_slot,
        choose_encoder(
            Headers(scope=scope).get("accept", ""),
            scope.get("root_path", ""),
            state.settings.heartbeat_seconds if _wants_alive(scope) else None,
        ),
        heartbeat_seconds=state.settings.heartbeat_seconds,
        send_timeout_seconds=state.settings.send_timeout_seconds,
        carry=state.relay.carry,
        on_slow=stream_slot.slow,
    )


async def get_task_stream(
    request: Request, state: StateDep, task_id: TaskIdDep, _: ReaderDep, after: LastEventIdDep, alive: AliveDep = None
) -> Response:
    return await open_task_stream(request.scope, state, task_id, after)


async def open_task_stream(scope: Scope, state: State, task_id: TaskId, after: int | None) -> Response:
    """The stream of one task, or 204 where its end has been seen. An unknown task raises. While Redis is away nothing
    can be decided, so the stream is opened and told the truth when it is back (EventSource gives up on a 503)."""
    owner = scope["headway.identity"].owner
    try:
        ended_version = await state.reader.ended_version(task_id, owner)
    except AWAY:
        pass
    else:
        if ended_version is not None and after is not None and after >= ended_version:
            return Response(status_code=204)
    return stream_of(scope, state, state.relay.listen(task_id, owner, after))


TaskStreamDep = Annotated[Any, Depends(get_task_stream)]
