"""The tutorial's own paths, on the real machinery: its client works unchanged. (`/task-progress/{id}` is in events.py,
`/download/{filename}` in files.py, `/download-large-csv` in exports.py.)"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import JSONResponse, StreamingResponse

from headway.api.access.identity import check_processor, names_of
from headway.api.answers import FORM_PROBLEMS, SUBMITTED_HEADERS, IdempotencyKey
from headway.api.dependencies import OwnerDep, RootPathDep, StateDep
from headway.api.openapi import TEXT, answer, body, problems, reference, server_sent, together
from headway.api.root_path import rooted_answer
from headway.api.schemas import StartedTask, StartForm
from headway.api.streams.sse import SSE, Comment, EventStreamResponse
from headway.api.submission import draft, submit_form
from headway.api.uploads.idempotency import Claim
from headway.shared.errors import InvalidRequest, TooMany
from headway.shared.tasks.models import Event, Status, Task, rfc3339, utc_now

router = APIRouter(tags=["tutorial"])


@router.post(
    "/process-file",
    status_code=202,
    summary="Start a task the tutorial's way",
    responses=together({202: answer("Started", StartedTask, SUBMITTED_HEADERS)}, FORM_PROBLEMS),
    openapi_extra=body({"multipart/form-data": reference(StartForm, "validation")}, required=False),
)
async def process_file(
    request: Request, state: StateDep, owner: OwnerDep, root: RootPathDep, _: IdempotencyKey = None
) -> Any:
    """With a form: as POST /tasks. With no body: a rehearsal of 10 steps of 2 s."""

    async def make(claim: Claim) -> Task:
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            return await submit_form(request, state, owner, claim, default_processor="checksum")
        check_processor(request.scope, "rehearsal")
        rehearsal = state.registry.get("rehearsal")
        options = rehearsal.parse_options({"steps": 10, "step_seconds": 2}).model_dump(mode="json")
        task = draft(rehearsal.name, owner=owner, status=Status.QUEUED, options=options, task_id=claim.task_id)
        await claim.settle(task)
        await state.limits.check_tasks(owner)
        await state.publisher.create(task)
        return task

    def show(task: Task) -> JSONResponse:
        message = f"{task.filename} is being processed" if task.filename else "Processing started"
        headers = {"Location": f"/tasks/{task.task_id}"}
        return JSONResponse({"task_id": task.task_id, "message": message}, 202, headers)

    return rooted_answer(await state.idempotency.once(request, owner, make, show), root)


@router.get(
    "/stream-numbers",
    response_class=StreamingResponse,
    responses={200: answer("Ten lines", {"text/plain": TEXT})},
)
async def stream_numbers(_: OwnerDep) -> StreamingResponse:
    """`Number: 1` to `Number: 10`, one a second, each sent when it is made."""

    async def numbers() -> AsyncIterator[str]:
        for number in range(1, 11):
            yield f"Number: {number}\n"
            if number < 10:
                await asyncio.sleep(1)

    # Encoded already, for who would compress it otherwise: a proxy, an application that this one is mounted in.
    headers = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no", "Content-Encoding": "identity"}
    return StreamingResponse(numbers(), media_type="text/plain", headers=headers)


class _Clock:
    """A Source: a greeting, then the count and the time each second."""

    def __init__(self, seconds: int | None, state: Any) -> None:
        self._seconds = seconds
        self._relay = state.relay
        self._count = 0
        self._greeted = False
        self._next = asyncio.get_running_loop().time()

    @property
    def newest(self) -> int:
        return self._count

    @property
    def drained(self) -> bool:
        return bool(self._relay.draining)

    async def next(self) -> list[tuple[Event, str | None] | Comment] | None:
        if not self._greeted:
            self._greeted = True
            return [(Event(0, "", b"Connection established"), None)]
        loop = asyncio.get_running_loop()
        while loop.time() < self._next:
            if self.drained:
                return None
            await asyncio.sleep(min(0.2, self._next - loop.time()))
        if self.drained or (self._seconds is not None and self._count >= self._seconds):
            return None
        self._count += 1
        self._next += 1
        data = json.dumps({"count": self._count, "timestamp": rfc3339(utc_now())})
        return [(Event(self._count, "", data.encode()), None)]


@router.get(
    "/sse-updates",
    response_class=Response,
    responses=together(
        {200: answer("A greeting, then the time", {"text/event-stream": server_sent({})})},
        problems(InvalidRequest, TooMany),
    ),
)
async def sse_updates(
    request: Request, state: StateDep, _: OwnerDep, seconds: Annotated[int | None, Query(ge=1, le=86_400)] = None
) -> Any:
    """`Connection established`, then `{"count", "timestamp"}` each second, until the seconds are over."""

    until = request.scope["headway.identity"].expires_at
    if until is not None:  # it ends with what let it in
        seconds = min(seconds or 86_400, max(1, int(until - time.time())))

    @asynccontextmanager
    async def clock() -> AsyncIterator[_Clock]:
        with state.limits.streams.held(*names_of(request.scope)):
            yield _Clock(seconds, state)

    settings = state.settings
    return EventStreamResponse(
        clock(), SSE(), heartbeat_seconds=settings.heartbeat_seconds, send_timeout_seconds=settings.send_timeout_seconds
    )
