"""`/pipelines`: a chain of tasks, each with the result of the one before it as its file, made in one step."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from headway.api.answers import FORM_PROBLEMS, SUBMITTED_HEADERS, IdempotencyKey
from headway.api.dependencies import OwnerDep, RootPathDep, StateDep
from headway.api.openapi import JSON, answer, body, problems, reference, together
from headway.api.schemas import Pipeline, PipelineForm
from headway.api.submission import PipelineRequest, announce_pipeline, submit_form
from headway.api.uploads.idempotency import Claim
from headway.shared.errors import TooMany, UnknownTask, UnsupportedType
from headway.shared.tasks.models import Status, Task
from headway.shared.tasks.representation import represent, rooted

router = APIRouter(tags=["tasks"])


@router.post(
    "/pipelines",
    status_code=202,
    summary="Submit a chain of tasks",
    operation_id="submit_pipeline",
    responses=together(
        {
            201: answer("Announced: send the file to links.upload of the first task", Pipeline, SUBMITTED_HEADERS),
            202: answer("The first is queued, the others wait", Pipeline, SUBMITTED_HEADERS),
        },
        FORM_PROBLEMS,
        problems(UnknownTask, TooMany),
    ),
    openapi_extra=body(
        {
            JSON: reference(PipelineRequest, "validation"),
            "multipart/form-data": reference(PipelineForm, "validation"),
        }
    ),
)
async def submit(
    request: Request, state: StateDep, owner: OwnerDep, root: RootPathDep, _: IdempotencyKey = None
) -> Any:
    """All of its tasks or none, with one bar: that of their batch. Each step takes the only result of the one before
    it, or the one that its `file` names, or the input of a step that has no results. Where one fails, those behind it
    do."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    made: list[Task] = []

    async def make(claim: Claim) -> Task:
        if media_type == "multipart/form-data":
            return await submit_form(request, state, owner, claim, made=made)
        if media_type == "application/json":
            return await announce_pipeline(request, state, owner, claim, made)
        raise UnsupportedType

    def show(first: Task) -> JSONResponse:
        here = f"/batches/{first.batch_id}"
        links = {"self": here, "events": f"{here}/events", "tasks": f"/tasks?batch_id={first.batch_id}"}
        shown = {"batch_id": first.batch_id, "tasks": [represent(task) for task in made], "links": links}
        return JSONResponse(shown, 201 if first.status is Status.UPLOADING else 202, {"Location": here})

    return _rooted(await state.idempotency.once(request, owner, make, show), root)


def _rooted(made: Response, root: str) -> Response:
    if not root:
        return made
    shown = json.loads(bytes(made.body))
    if "tasks" in shown:
        shown = rooted({**shown, "tasks": [rooted(task, root) for task in shown["tasks"]]}, root)
    headers = {name: value for name, value in made.headers.items() if not name.startswith("content-")}
    headers["location"] = root + headers["location"]
    return JSONResponse(shown, made.status_code, headers)
