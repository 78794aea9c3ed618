"""The one table from an error to a status and a problem+json type (RFC 9457), the framework's own errors included.

A body is `{"type", "title", "status", "detail"}`, with `errors`, a list of `{"field", "message"}`, for a bad request.
Nothing else of an error reaches a client: no traceback, no path, no argument. What is the server's own fault is logged
here, once, with the request that met it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from headway.api.serving.counted_log import counted_line
from headway.shared import errors
from headway.shared.descriptors import out_of_descriptors
from headway.shared.files.disk import told_by_the_system
from headway.shared.logging import get_logger
from headway.shared.redis.client import RedisError, why_away
from headway.shared.tasks.models import FieldError

log = get_logger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
#: What a client is told to wait for a Redis that is away: a restart takes about this long. For a request that is under
#: way too.
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
    errors.BadHeader: Problem(400, "bad-header", "A header is not what the protocol asks for"),
    errors.TooSlow: Problem(408, "too-slow", "The body came too slowly"),
    errors.UploadGone: Problem(410, "upload-gone", "The upload is gone"),
    errors.UploadBusy: Problem(423, "upload-busy", "Another request writes to this upload"),
    errors.WrongTusVersion: Problem(412, "wrong-tus-version", "Another version of tus is spoken here"),
    errors.ChecksumMismatch: Problem(460, "checksum-mismatch", "The piece is not what its checksum says"),
    errors.AnotherFile: Problem(409, "another-file", "The upload is another file's"),
    errors.NotTheAnnouncedFile: Problem(422, "not-the-announced-file", "This is not the file that was announced"),
    errors.Stopping: Problem(503, "stopping", "The server is being stopped"),
    errors.UploadCut: Problem(400, "upload-cut", "The upload was cut off"),
    errors.KeyReused: Problem(422, "key-reused", "The Idempotency-Key belongs to another request"),
    errors.KeyInUse: Problem(409, "key-in-use", "A request with this Idempotency-Key is under way"),
    errors.UnknownTask: Problem(404, "unknown-task", "There is no such task"),
    errors.UnknownProcessor: Problem(404, "unknown-processor", "There is no such processor"),
    errors.NotYours: Problem(403, "not-yours", "This is for who has a key of the platform"),
    errors.UnknownFile: Problem(404, "unknown-file", "There is no such file"),
    errors.PreconditionFailed: Problem(412, "precondition-failed", "The file is not the one that was asked for"),
    errors.RangeNotSatisfiable: Problem(416, "range-not-satisfiable", "The file has no such bytes"),
    errors.Conflict: Problem(409, "conflict", "The task is not in a state that allows this"),
    errors.NotAllowed: Problem(401, "not-allowed", "A key is needed"),
    errors.Forbidden: Problem(403, "forbidden", "The request comes from another site"),
    errors.ForeignHost: Problem(403, "foreign-host", "The request names another host"),
    errors.NotWithToken: Problem(403, "not-with-token", "The token is not for this"),
    errors.NoPolicy: Problem(403, "no-policy", "The route is closed"),
    errors.TooMany: Problem(429, "too-many", "Too many at once"),
    errors.StorageFull: Problem(507, "storage-full", "The disk is full"),
    errors.QuotaFull: Problem(507, "quota-full", "Your files hold as much as they may"),
    errors.NearlyFull: Problem(503, "redis-nearly-full", "Redis has room for what was taken, and for no more"),
    errors.StorageAway: Problem(503, "storage-away", "The storage of the files is away"),
    errors.NoDescriptors: Problem(503, "no-descriptors", "The server can open nothing more"),
    errors.RedisAway: Problem(503, "redis-away", "Redis is away"),
    errors.Refused: Problem(409, "conflict", "The task is not in a state that allows this"),
}
#: What Redis says of one command: a permission that is missing, a key that is not ours. Somebody has to see to it.
REDIS_REFUSED: Final = Problem(503, "redis-refused", "Redis refused a command")
#: Those that pass by themselves, or when somebody has seen to it.
_PASSING: Final = (
    *(errors.KeyInUse, errors.UploadBusy, errors.Stopping),
    *(errors.StorageAway, errors.NoDescriptors, errors.RedisAway, errors.NearlyFull),
)
#: Those that an operator is to hear of: with each answer, because nobody else says them.
_LOGGED: Final = (errors.StorageAway, errors.NoDescriptors, errors.StorageFull)
#: Before there is a request (api/serving/deadlines.py).
MALFORMED: Final = Problem(400, "malformed", "The request is not HTTP")
SLOW_HEADERS: Final = Problem(408, "slow-headers", "The request's headers came too slowly")
LONG_HEADERS: Final = Problem(431, "long-headers", "The request's headers are too long")
FULL: Final = Problem(503, "full", "There are too many connections")
WRONG_METHOD: Final = Problem(405, "method-not-allowed", "Method Not Allowed")
_WRONG_METHOD: Final = "This path does not take that method; the Allow header lists those it does."
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


def wrong_method(allow: str) -> Response:
    """For a route that sees to its methods by itself. `allow`: those that it takes."""
    return problem_response(WRONG_METHOD, _WRONG_METHOD, headers={"Allow": allow})


def install(app: FastAPI) -> None:
    """Registers the handlers for everything that can be raised."""
    app.add_exception_handler(errors.HeadwayError, _known)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(RedisError, _known)
    app.add_exception_handler(OSError, _system)
    app.add_exception_handler(Exception, _unexpected)


async def _known(request: Request, error: Exception) -> Response:
    answer = answer_to(error, request.scope)
    return answer if answer is not None else await _unexpected(request, error)


async def _system(request: Request, error: Exception) -> Response:
    """An OSError that nobody made one of ours: a mistake, but for descriptors, which run out anywhere."""
    if not out_of_descriptors(error):
        return await _unexpected(request, error)
    ours = errors.NoDescriptors()
    ours.__cause__ = error
    return await _known(request, ours)


def answer_to(error: Exception, scope: Scope | None = None) -> Response | None:
    """What is told of an error of ours, or of what Redis refuses; None for any other, and for one that never meets a
    request. `scope` is the request's, for the log."""
    if isinstance(error, RedisError):
        why = why_away(error)
        _log(scope, "redis refused a command", why)
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return problem_response(REDIS_REFUSED, f"{why}. Somebody has to see to it.", headers=headers)
    for ancestor in type(error).__mro__:
        if (problem := PROBLEMS.get(ancestor)) is not None:
            headers = {"WWW-Authenticate": _challenge(scope)} if problem.status == 401 else {}
            if problem.status == 408:
                headers["Connection"] = "close"
            if isinstance(error, _PASSING):
                headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
            if isinstance(error, errors.TooMany):
                headers["Retry-After"] = str(error.retry_after_seconds)
            field_errors = error.errors if isinstance(error, errors.InvalidRequest) else ()
            detail = str(error)
            if isinstance(error, errors.Refused):
                detail = f"The task is {error.status}." if error.status else "There is no such task any more."
            if isinstance(error, errors.RedisAway):
                detail = f"{error}. Try again in a moment."
            if isinstance(error, _LOGGED) and not isinstance(error, errors.QuotaFull):
                _log(scope, problem.type.replace("-", " "), str(error), **told_by_the_system(error))
            return problem_response(problem, detail, field_errors=field_errors, headers=headers)
    return None


def _challenge(scope: Scope | None) -> str:
    """RFC 6750, section 3: whether a token was sent that is not good (any more), or none."""
    sent = Headers(scope=scope).get("authorization", "") if scope is not None else ""
    return 'Bearer error="invalid_token"' if sent[:7].lower() == "bearer " else "Bearer"


def _log(scope: Scope | None, what: str, reason: str, **fields: str) -> None:
    asked = {"method": scope["method"], "path": scope["path"]} if scope is not None else {}
    log.error(what, reason=reason, **asked, **fields)


def is_refusal(error: Exception) -> bool:
    """Whether it is the framework's word for 401 or 403."""
    return isinstance(error, HTTPException) and error.status_code in (401, 403)


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405 and (methods := getattr(request.app, "methods", None)) is not None:
        headers["Allow"] = methods.allow(request.scope) or headers.get("Allow", "")
    status = HTTPStatus(error.status_code)
    problem = Problem(status, status.phrase.lower().replace(" ", "-"), status.phrase)
    detail = {404: "There is nothing at this path; /docs lists what there is.", 405: _WRONG_METHOD}.get(
        status, str(error.detail)
    )
    return problem_response(problem, detail, headers=headers)


async def _validation(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [
        FieldError(field=".".join(str(part) for part in e["loc"][1:]) or str(e["loc"][0]), message=str(e["msg"]))
        for e in error.errors()
    ]
    detail = "; ".join(f"{e.field}: {e.message}" for e in found[:5])
    return problem_response(PROBLEMS[errors.InvalidRequest], detail, field_errors=found)


async def _unexpected(request: Request, error: Exception) -> Response:
    counted_line(log.error, "request failed", method=request.method, path=request.url.path, exc_info=error)
    return problem_response(UNEXPECTED, "The server's log says what happened.")
