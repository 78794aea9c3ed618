"""`/openapi.json`: what FastAPI finds in the routes, and what it cannot see, because the routes read bodies and send
answers by themselves.

A route declares its answers with `answer`, `stream`, `problems`, and its request with `body` and `parameters`. What
every route can answer (no key, another site, too many requests, a Redis that is away) follows from its policy and is
added here. All of it is read once, when the document is asked for; a request costs nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from headway.api.access.identity import COOKIE, Policy, Stated
from headway.api.access.origin_check import SAFE_METHODS
from headway.api.problems import (
    FULL,
    LONG_HEADERS,
    MALFORMED,
    MEDIA_TYPE,
    PROBLEMS,
    REDIS_REFUSED,
    SLOW_HEADERS,
    UNEXPECTED,
    WRONG_METHOD,
)
from headway.api.problems import Problem as Kind
from headway.api.schemas import Problem
from headway.shared import errors
from headway.shared.errors import HeadwayError

Responses = dict[int | str, dict[str, Any]]
Schema = dict[str, Any]

JSON: Final = "application/json"
BINARY: Final[Schema] = {"type": "string", "format": "binary"}
TEXT: Final[Schema] = {"type": "string"}

DESCRIPTION: Final = """\
A task is submitted, watched and fetched. Every error is `application/problem+json` (RFC 9457).

The event streams (`…/events`) are Server-Sent Events; `Accept: application/x-ndjson` gives one JSON object a line,
`Accept: text/plain` lines for people. An event without a name is a whole state, which replaces the one before it.
"""

#: Referred to by name, and so to be among the components.
_models: dict[str, tuple[type[BaseModel], JsonSchemaMode]] = {}


def reference(model: type[BaseModel], mode: JsonSchemaMode = "serialization") -> Schema:
    known, _ = _models.setdefault(model.__name__, (model, mode))
    assert known is model, f"two schemas are called {model.__name__}"
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def header(description: str, schema: Schema = TEXT, *, always: bool = True) -> Schema:
    """A header of an answer. `always`: no answer of this status goes without it."""
    return {"description": description, "schema": schema, "required": always}


def answer(
    description: str,
    content: type[BaseModel] | Mapping[str, Schema] | None = None,
    headers: Mapping[str, Schema] | None = None,
) -> dict[str, Any]:
    """JSON of a model, a schema for each media type, or no body."""
    described: dict[str, Any] = {"description": description}
    if isinstance(content, type):
        content = {JSON: reference(content)}
    if content is not None:
        described["content"] = {media_type: {"schema": schema} for media_type, schema in content.items()}
    if headers:
        described["headers"] = dict(headers)
    return described


def stream(description: str, *events: type[BaseModel]) -> dict[str, Any]:
    """An event stream, in its three formats. Those who read the schema take a stream for its text or for its events one
    by one, so it says both."""
    told: Schema = {"contentMediaType": JSON, "contentSchema": {"anyOf": [reference(event) for event in events]}}
    lines: Schema = {**TEXT, "contentMediaType": "application/x-ndjson"}
    return answer(
        description, {"text/event-stream": server_sent(told), "application/x-ndjson": lines, "text/plain": TEXT}
    )


def server_sent(told: Schema) -> Schema:
    """`told`: what else is known of the data of an event."""
    event = {
        "type": "object",
        "required": ["data"],
        "properties": {
            "id": TEXT,
            "event": {**TEXT, "description": "The name; none, or `message`, of a state"},
            "data": {**TEXT, **told},
            "retry": {"type": "integer", "minimum": 0},
        },
    }
    return {"anyOf": [{**TEXT, "description": "The whole"}, event]}


RETRY_AFTER: Final = "Retry-After"
_WAIT: Final = {"type": "integer", "minimum": 0}
_HEADERS: Final[dict[int, dict[str, Schema]]] = {
    401: {"WWW-Authenticate": header("Bearer")},
    405: {"Allow": header("The methods that this path takes")},
    416: {"Content-Range": header("`bytes */SIZE`")},
    429: {RETRY_AFTER: header("Seconds", _WAIT)},
    503: {RETRY_AFTER: header("Seconds", _WAIT, always=False)},
}


def problems(*raised: type[HeadwayError]) -> Responses:
    """The answers to the errors that a route raises; what every route can answer need not be named."""
    return _described([PROBLEMS[error] for error in raised])


def _described(kinds: Iterable[Kind]) -> Responses:
    found: dict[int | str, list[Kind]] = {}
    for kind in kinds:
        if kind not in found.setdefault(kind.status, []):
            found[kind.status].append(kind)
    return {status: _problem(int(status), kinds) for status, kinds in found.items()}


def _problem(status: int, kinds: Iterable[Kind]) -> dict[str, Any]:
    described = "; ".join(f"{kind.title} (`{kind.type}`)" for kind in kinds)
    return answer(described, {MEDIA_TYPE: reference(Problem)}, _HEADERS.get(status))


def wrong_method_answer() -> Responses:
    """For a route that sees to its methods by itself."""
    return _described([WRONG_METHOD])


def together(*parts: Responses) -> Responses:
    """One answer for each status: what is said twice of one is joined."""
    joined: Responses = {}
    for part in parts:
        for status, described in part.items():
            if (known := joined.get(status)) is None:
                joined[status] = dict(described)
                continue
            known["description"] = "; ".join(dict.fromkeys((known["description"], described["description"])))
            known["content"] = known.get("content", {}) | described.get("content", {})
            known["headers"] = _either(known.get("headers", {}), described.get("headers", {}))
    return joined


def _either(one: dict[str, Schema], other: dict[str, Schema]) -> dict[str, Schema]:
    """The headers of one answer or the other: only what both always have is always there."""
    always = {name for name in one.keys() & other.keys() if one[name]["required"] and other[name]["required"]}
    return {name: told | {"required": name in always} for name, told in (other | one).items()}


def body(content: Mapping[str, Schema], *, required: bool = True) -> dict[str, Any]:
    """For `openapi_extra`: a body that the route reads by itself."""
    described = {media_type: {"schema": schema} for media_type, schema in content.items()}
    return {"requestBody": {"required": required, "content": described}}


def parameters(**asked: Schema) -> dict[str, Any]:
    """For `openapi_extra`: headers that the route reads by itself, `_` for `-` in their names."""
    return {"parameters": [one | {"name": name.replace("_", "-"), "in": "header"} for name, one in asked.items()]}


def asked(description: str, schema: Schema = TEXT, *, required: bool = False) -> Schema:
    return {"description": description, "schema": schema, "required": required}


def operation_id(route: APIRoute) -> str:
    """What a generated client calls it: the name of the function; HEAD beside GET has one of its own."""
    return f"head_{route.name}" if route.methods == {"HEAD"} else route.name


# Every route's.

#: Said by the connection, before there is a request (api/serving/deadlines.py), or by what is around all routes.
_ALWAYS: Final = (MALFORMED, SLOW_HEADERS, LONG_HEADERS, UNEXPECTED, FULL)
_ELSEWHERE: Final = (PROBLEMS[errors.Forbidden], PROBLEMS[errors.ForeignHost])
_STOPPING: Final = PROBLEMS[errors.Stopping]

_SECURITY: Final = {
    "key": {"type": "http", "scheme": "bearer", "description": "A key of `HEADWAY_API_KEYS`, or a token of your login"},
    "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "The cookie of `POST /session`"},
    "taskToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "`token` of the answer to `POST /tasks`: reads that one task",
    },
    "producerToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "`producer_token` of the answer to `POST /tasks`: reports on that one task",
    },
}
_GOOD_FOR: Final[dict[Policy, tuple[str, ...]]] = {
    Policy.PUBLIC: (),
    Policy.OWNER: ("key", "session"),
    Policy.READER: ("key", "session", "taskToken"),
    Policy.PRODUCER: ("key", "session", "producerToken"),
}


def _by_policy(policy: Policy, method: str, has_body: bool) -> Iterator[Kind]:
    yield from _ALWAYS
    yield _STOPPING
    yield from _ELSEWHERE
    if policy is not Policy.PUBLIC:
        yield PROBLEMS[errors.NotAllowed]
        yield PROBLEMS[errors.NotWithToken]
    if policy is not Policy.PUBLIC or method not in SAFE_METHODS:
        yield PROBLEMS[errors.TooMany]
        yield PROBLEMS[errors.RedisAway]
        yield PROBLEMS[errors.NoDescriptors]
        yield REDIS_REFUSED
    if policy in (Policy.READER, Policy.PRODUCER):
        yield PROBLEMS[errors.UnknownTask]
    if has_body:
        yield PROBLEMS[errors.TooSlow]
        yield PROBLEMS[errors.UploadCut]


def complete(document: dict[str, Any], routes: Iterable[Stated], *, open_mode: bool) -> dict[str, Any]:
    """FastAPI's document with the answers, schemas and ways to sign in that it does not know of."""
    policies = {(method, stated.path): stated.policy for stated in routes for method in stated.methods or ()}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            policy = policies[method.upper(), path] or Policy.OWNER
            _complete_operation(operation, method.upper(), policy, open_mode)
    components = document.setdefault("components", {})
    _, defined = models_json_schema(list(_models.values()), ref_template="#/components/schemas/{model}")
    components["schemas"] = _without_null_defaults(components.get("schemas", {}) | defined["$defs"])
    components["securitySchemes"] = _SECURITY
    _drop_unused(document)
    return document


def _complete_operation(operation: dict[str, Any], method: str, policy: Policy, open_mode: bool) -> None:
    found = operation["responses"]
    # FastAPI's own for a bad request, where the route does not declare one: it never answers that.
    if JSON in found.get("422", {}).get("content", {}):
        del found["422"]
    for described in found.values():
        content = described.pop("content", {})
        for media in content.values():
            if "$ref" in (schema := media.get("schema", {})):  # beside what it made of the function's annotation
                media["schema"] = {"$ref": schema["$ref"]}
        # What it says of a body that it does not know.
        if content := {media_type: media for media_type, media in content.items() if media.get("schema")}:
            described["content"] = content
    everybodys = _described(_by_policy(policy, method, "requestBody" in operation))
    joined = together(found, {str(status): described for status, described in everybodys.items()})
    operation["responses"] = {status: joined[status] for status in sorted(joined, key=str)}
    operation["security"] = [{name: []} for name in _GOOD_FOR[policy]]
    if open_mode:
        operation["security"].insert(0, {})


def _without_null_defaults(part: Any) -> Any:
    """They say that a field may be left out, which `required` does; generators take them for a value to be sent."""
    if isinstance(part, list):
        return [_without_null_defaults(one) for one in part]
    if isinstance(part, dict):
        kept = {name: value for name, value in part.items() if not (name == "default" and value is None)}
        return {name: _without_null_defaults(value) for name, value in kept.items()}
    return part


def _drop_unused(document: dict[str, Any]) -> None:
    schemas: dict[str, Any] = document["components"]["schemas"]
    used: set[str] = set()
    waiting = list(_references({key: part for key, part in document.items() if key != "components"}))
    while waiting:
        if (name := waiting.pop().rpartition("/")[2]) not in used:
            used.add(name)
            waiting.extend(_references(schemas[name]))
    document["components"]["schemas"] = {name: schemas[name] for name in sorted(used)}


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)
