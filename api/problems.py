"""The one table from an error to a status and a problem+json type (RFC 9457), the framework's own errors included.

A body is `{"type", "title", "status", "detail"}`, with `errors`, a list of `{"field", "message"}`, for a bad request.
Nothing else of an error reaches a client: no traceback, no path, no argument.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from shared import errors
from shared.logging import get_logger
from shared.models import FieldError
from shared.redis import AWAY, RedisError, why_away

log = get_logger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
#: What a client is told to wait for a Redis that is away: a restart takes about this long.
RETRY_AFTER_SECONDS: Final = 2


@dataclass(frozen=True, slots=True)
class Problem:
    status: int
    type: str
    title: str


#: The nearest class in an error's ancestry counts.
PROBLEMS: Final[dict[type[BaseException], Problem]] = {
    errors.InvalidRequest: Problem(422, "invalid-request", "The request is not what this route takes"),
    errors.TooLarge: Problem(413, "too-large", "The file is too large"),
    errors.UnsupportedType: Problem(415, "unsupported-type", "The content type is not one this route takes"),
    errors.UploadCut: Problem(400, "upload-cut", "The upload was cut off"),
    errors.UnknownTask: Problem(404, "unknown-task", "There is no such task"),
    errors.UnknownFile: Problem(404, "unknown-file", "There is no such file"),
    errors.Conflict: Problem(409, "conflict", "The task is not in a state that allows this"),
    errors.NotAllowed: Problem(401, "not-allowed", "A key is needed"),
    errors.Forbidden: Problem(403, "forbidden", "The request comes from another site"),
    errors.StorageFull: Problem(507, "storage-full", "The disk is full"),
    errors.Refused: Problem(409, "conflict", "The task is not in a state that allows this"),
}
AWAY_PROBLEM: Final = Problem(503, "redis-away", "Redis is away")
UNEXPECTED: Final = Problem(500, "unexpected", "Something went wrong on this server")


def problem_response(
    problem: Problem,
    detail: str,
    *,
    field_errors: Sequence[FieldError] = (),
    headers: dict[str, str] | None = None,
) -> Response:
    body: dict[str, Any] = {
        "type": f"urn:headway:problem:{problem.type}",
        "title": problem.title,
        "status": problem.status,
        "detail": detail,
    }
    if problem.status in (400, 422) or field_errors:
        body["errors"] = [error.model_dump() for error in field_errors]
    return Response(json.dumps(body), problem.status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Registers the handlers for everything that can be raised."""
    app.add_exception_handler(errors.HeadwayError, _ours)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(RequestValidationError, _validation)
    for away in (*AWAY, RedisError):
        app.add_exception_handler(away, _away)
    app.add_exception_handler(Exception, _unexpected)


async def _ours(_: Request, error: Exception) -> Response:
    for ancestor in type(error).__mro__:
        if (problem := PROBLEMS.get(ancestor)) is not None:
            headers = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else {}
            field_errors = error.errors if isinstance(error, errors.InvalidRequest) else ()
            detail = str(error)
            if isinstance(error, errors.Refused):
                detail = f"The task is {error.status}." if error.status else "There is no such task any more."
            return problem_response(problem, detail, field_errors=field_errors, headers=headers)
    return await _unexpected(_, error)


async def _framework(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    problem = Problem(status, status.phrase.lower().replace(" ", "-"), status.phrase)
    detail = {
        404: "There is nothing at this path; /docs lists what there is.",
        405: "This path does not take that method; the Allow header lists those it does.",
    }.get(status, str(error.detail))
    return problem_response(problem, detail, headers=dict(error.headers or {}))


async def _validation(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [
        FieldError(field=".".join(str(part) for part in e["loc"][1:]) or str(e["loc"][0]), message=str(e["msg"]))
        for e in error.errors()
    ]
    detail = "; ".join(f"{e.field}: {e.message}" for e in found[:5])
    return problem_response(PROBLEMS[errors.InvalidRequest], detail, field_errors=found)


async def _away(_: Request, error: Exception) -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return problem_response(AWAY_PROBLEM, f"{why_away(error)}. Try again in a moment.", headers=headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
    return problem_response(UNEXPECTED, "The server's log says what happened.")
