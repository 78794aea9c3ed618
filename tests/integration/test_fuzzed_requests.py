"""Requests that schemathesis makes up from `/openapi.json`, right ones and wrong ones: no input gives a 5xx, and every
answer is one that the document describes. The same requests each time. Some are led to what no schema says: the names
of what there is, and what comes next in an upload. That every operation succeeds too is for
tests/integration/test_schema.py to see.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests import described
from tests.processes import Platform, RedisServer

KEY: Final = "the-secret-key-of-alice-4711"
#: schemathesis cannot know that a piece of an upload is bytes.
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")

#: Of each operation, open and keyed: enough to meet each of its parameters, few enough for a minute in all.
EXAMPLES: Final = 20
CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    unsupported_method,
]
#: Streams without an end, and one that takes its time; tests/integration/test_stream_formats.py reads them.
ENDLESS: Final = {("GET", "/events"), ("GET", "/sse-updates"), ("GET", "/stream-numbers")}
OPERATIONS: Final = sorted(
    (method.upper(), path)
    for path, methods in described.document()["paths"].items()
    for method in methods
    if (method.upper(), path) not in ENDLESS
)


@dataclass(frozen=True)
class Target:
    url: str
    headers: dict[str, str]
    schema: Any
    #: What there is to be asked for, by how a path ends that is about it alone; "" is for all others.
    tasks: dict[str, list[str]]


@pytest.fixture(scope="module", params=["open", "keyed"])
def target(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    keyed = request.param == "keyed"
    env = {"HEADWAY_API_KEYS": json.dumps({"alice": KEY})} if keyed else {}
    headers = {"Authorization": f"Bearer {KEY}"} if keyed else {}
    with Platform(tmp_path_factory.mktemp(request.param), redis_server.fresh_url(), **env) as platform:
        (platform.files_dir / "offered.txt").write_text("offered")
        platform.start_api()
        with httpx.Client(base_url=platform.url, headers=headers) as client:

            def task(**body: Any) -> str:
                answer = client.post("/tasks", json=body)
                assert answer.status_code in (201, 202), answer.text
                return str(answer.json()["task_id"])

            def produced() -> str:
                return task(producer="p", lease_seconds=86_400)

            # Nobody works here, so that nothing changes but by what is asked.
            waiting, cancelled, streamed = (task(processor="rehearsal", batch_id="b") for _ in range(3))
            for ended in (cancelled, streamed):  # one of them for the streams alone: another retries what it finds
                assert client.post(f"/tasks/{ended}/cancel").status_code == 202
            announced, awaited = (task(processor="checksum", filename="a") for _ in range(2))
            tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "9"}
            metadata = {"Upload-Metadata": "filename YS5iaW4=,processor Y2hlY2tzdW0="}
            begun, paused, unwanted = (
                client.post("/uploads", headers=tus | metadata).headers["headway-task-id"] for _ in range(3)
            )
            form = client.post("/tasks", data={"processor": "checksum"}, files={"file": ("a", b"one two three")})
            done, filed = produced(), produced()
            for one in (done, filed):
                assert client.put(f"/tasks/{one}/results/a", content=b"one two three").status_code == 200
                assert client.post(f"/tasks/{one}/complete", json={"attempt": 1, "summary": {}}).status_code == 200
            tasks = {
                "": [waiting, cancelled, announced, begun, done],
                "/events": [streamed],
                "/files/{name}": [filed],
                "/upload": [awaited],
                "/input": [form.json()["task_id"]],
                "PATCH /uploads/{task_id}": [paused],
                "HEAD /uploads/{task_id}": [paused],
                "DELETE /uploads/{task_id}": [unwanted],
                **{end: [produced()] for end in ("/progress", "/complete", "/fail", "/attempts", "/results/{name}")},
            }
            document = client.get("/openapi.json").json()
        schema = schemathesis.openapi.from_dict(document)
        schema.config.update(base_url=platform.url)
        yield Target(platform.url, headers, schema, tasks)


def _known(method: str, path: str, target: Target) -> list[dict[str, str]]:
    """Path parameters that lead to something."""
    if "{task_id}" in path:
        asked = "/events" if path.startswith("/task-progress") else f"{method} {path}"
        tasks = next(tasks for end, tasks in reversed(target.tasks.items()) if asked.endswith(end))
        return [{"task_id": task_id} | ({"name": "a"} if "{name}" in path else {}) for task_id in tasks]
    if "{batch_id}" in path:
        return [] if path.endswith("/events") else [{"batch_id": "b"}]
    return [{"filename": "offered.txt"}] if "{filename}" in path else []


def _lead(case: Any, path: str, target: Target) -> None:
    """What no schema says."""
    body, headers = case.body, case.headers
    if isinstance(body, dict) and path in ("/tasks", "/process-file"):
        for name in ("options", "sha256", "webhook", "phases", "batch_id", "input"):
            body.pop(name, None)
        if "producer" in body:
            body["producer"] = "p"
        else:
            body["processor"] = "checksum" if "file" in body or body.get("filename") else "rehearsal"
    if path.endswith("/fail"):
        case.body = {"attempt": 1, "error": {"message": "x"}}
    if path.endswith("/progress"):
        [task_id] = target.tasks["/progress"]
        case.body = [{"attempt": 1} | ({"task_id": task_id} if path == "/tasks/progress" else {})]
    if path == "/session" and isinstance(body, dict):
        case.body = {"key": KEY}
    if path.startswith("/uploads"):
        for name in ("Upload-Checksum", "Headway-Upload-Digest", "X-HTTP-Method-Override", "Upload-Defer-Length"):
            headers.pop(name, None)
        headers.update({"Tus-Resumable": "1.0.0", "Upload-Length": "2", "Upload-Offset": "0"})
        headers["Upload-Metadata"] = "filename YQ==,processor Y2hlY2tzdW0="
        case.body = b"a" if "{task_id}" in path else b""
    if "Idempotency-Key" in headers:
        headers["Idempotency-Key"] = "key"
    if "Range" in headers:
        for name in ("If-Match", "If-Range", "If-Unmodified-Since"):
            headers.pop(name, None)
        headers["Range"] = "bytes=1-2"


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_whatever_is_asked_is_answered_as_described(target: Target, method: str, path: str) -> None:
    operation = target.schema[path][method]
    strategies = [operation.as_strategy(path_parameters=known) for known in _known(method, path, target)]
    strategies.append(operation.as_strategy())
    if operation.query or operation.headers or operation.body:
        strategies.append(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))

    @examples(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(strategies), is_led=st.booleans())
    def ask(case: Any, is_led: bool) -> None:
        if is_led:
            _lead(case, path, target)
        if "rows" in (case.query or {}) and str(case.query["rows"]).isdigit():
            case.query["rows"] = min(int(case.query["rows"]), 1000)
        case.call_and_validate(headers=target.headers, checks=CHECKS, timeout=30)

    ask()
