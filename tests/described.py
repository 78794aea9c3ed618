"""Holds every answer of ours that a test receives by httpx to `/openapi.json`: its status, content type, headers and
body. More strictly than the document says: a field that is not described fails too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from typing import Any, Final

import httpx
from jsonschema import Draft202012Validator

from headway.api.app import create_app
from headway.shared.settings import Settings

#: What an answer of another server in these tests, or of a test's own little app, does not carry.
OURS: Final = {"cross-origin-opener-policy": "same-origin", "referrer-policy": "no-referrer"}
#: Bodies that are looked at of one operation and status: load tests have thousands of the same.
BODIES: Final = 20
#: A path that is no operation of the document, or has not this method.
ELSEWHERE: Final = {400, 401, 403, 404, 405, 408, 410, 429, 431, 500, 503}

Document = dict[str, Any]


@cache
def document() -> Document:
    return create_app(Settings()).openapi()


def closed(schema: Any) -> Any:
    """The schema, in which no object has a field that is not described."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(value) for name, value in schema.items()}
    if isinstance(made.get("properties"), dict) and "additionalProperties" not in made:
        made["additionalProperties"] = False
    return made


@cache
def _validator(text: str) -> Any:
    return Draft202012Validator({"components": closed(document()["components"]), **closed(json.loads(text))})


def wrong_in(value: Any, schema: dict[str, Any]) -> list[str]:
    errors = _validator(json.dumps(schema)).iter_errors(value)
    return [f"{error.json_path}: {error.message[:300]}" for error in errors]


@cache
def _paths() -> list[tuple[re.Pattern[str], str]]:
    """The more literal ones first, as the router has them."""
    paths = sorted(document()["paths"], key=lambda path: path.count("{"))
    return [(re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))), path) for path in paths]


def operation_of(method: str, path: str) -> tuple[str, dict[str, Any]] | None:
    for pattern, template in _paths():
        if pattern.fullmatch(path) and method.lower() in document()["paths"][template]:
            return template, document()["paths"][template][method.lower()]
    return None


_looked_at: Counter[tuple[str, str, int]] = Counter()


def check(request: httpx.Request, answer: httpx.Response, body: bytes | None) -> None:
    """Raises AssertionError. `body` is None where it is a stream, which nobody has read yet."""
    if any(answer.headers.get(name) != value for name, value in OURS.items()):
        return
    if "access-control-request-method" in request.headers:
        return  # a preflight, which is answered in front of every route
    found = operation_of(request.method, request.url.path)
    said = f"{request.method} {request.url.path} answered {answer.status_code}"
    media_type = answer.headers.get("content-type", "").partition(";")[0].strip()
    if found is None:
        if answer.status_code in ELSEWHERE:
            assert media_type == "application/problem+json", f"{said} with {media_type!r}"
        return
    template, operation = found
    described = operation["responses"].get(str(answer.status_code))
    assert described is not None, f"{said}, which /openapi.json does not describe: {body!r:.300}"
    absent = [
        name for name, one in described.get("headers", {}).items() if one["required"] and name not in answer.headers
    ]
    assert not absent, f"{said} without {absent}"
    content = described.get("content")
    if content is None:
        assert not body, f"{said} with a body, which /openapi.json does not describe: {body!r:.300}"
        return
    schema = (content.get(media_type) or content.get("*/*") or {}).get("schema")
    assert schema is not None, f"{said} with {media_type!r}, not one of {list(content)}"
    is_json = media_type == "application/json" or media_type.endswith("+json")
    if body is None or request.method == "HEAD" or not is_json or media_type not in content:
        return
    key = (request.method, template, answer.status_code)
    _looked_at[key] += 1
    if _looked_at[key] <= BODIES:
        wrong = wrong_in(json.loads(body), schema)
        assert not wrong, f"{said}, and /openapi.json describes another body: {wrong}: {body!r:.1000}"


def install() -> None:
    """From here on, for every client of httpx in this process."""
    send, send_async = httpx.Client.send, httpx.AsyncClient.send

    def checked(self: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
        answer = send(self, request, **more)
        check(answer.request, answer, None if more.get("stream") else answer.content)
        return answer

    async def checked_async(self: httpx.AsyncClient, request: httpx.Request, **more: Any) -> httpx.Response:
        answer = await send_async(self, request, **more)
        check(answer.request, answer, None if more.get("stream") else answer.content)
        return answer

    httpx.Client.send = checked  # type: ignore[method-assign]
    httpx.AsyncClient.send = checked_async  # type: ignore[method-assign]
