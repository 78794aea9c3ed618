"""`/openapi.json` is what the API does: a valid document in which every route is, and every answer of a walk over them.

Beside this walk, every answer that any test of this project receives is held to it (tests/described.py). These tests
see to the answers that no other test asks for, and to the checker itself.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from headway.api.access.identity import policies_of
from headway.api.app import create_app
from headway.api.problems import MEDIA_TYPE
from headway.shared.settings import Settings
from headway.shared.tasks.models import ErrorType, OwnerId, Status
from tests import described
from tests.processes import Platform, RedisServer
from tests.streams import frames_of, opened
from tests.waiting import wait_for

KEY: Final = "the-secret-key-of-alice-4711"
ALICE: Final = {"Authorization": f"Bearer {KEY}"}
TUS: Final = {"Tus-Resumable": "1.0.0"}
PIECE: Final = TUS | {"Content-Type": "application/offset+octet-stream"}
#: The same as what they are an alias of, or no operation.
ALIASES: Final = {"/uploads/", "/static"}
NAMED: Final = {
    *("Task", "TaskList", "SubmittedTask", "Result", "ResultFile", "TaskError", "Links", "TaskState", "Batch", "Note"),
    *("Problem", "FieldError", "Processor", "Session", "Health", "Readiness", "Announcement", "NoteList"),
}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in described.document()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_the_document_is_valid_openapi_3_1() -> None:
    document = described.document()
    assert document["openapi"].startswith("3.1")
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []
    assert NAMED - document["components"]["schemas"].keys() == set()


def test_every_route_is_described() -> None:
    there = {(method, path) for method, path, _ in operations()}
    routes = {
        (method, stated.path)
        for stated in policies_of(create_app(Settings()))
        if stated.path not in ALIASES
        for method in stated.methods or ()
    }
    assert routes - there == {("OPTIONS", "/uploads/{task_id}")}


def test_every_answer_has_a_schema_and_every_error_is_a_problem() -> None:
    names = set()
    for method, path, operation in operations():
        assert operation["operationId"] not in names
        names.add(operation["operationId"])
        for status, answer in operation["responses"].items():
            content = answer.get("content", {})
            assert all(media.get("schema") for media in content.values()), (method, path, status)
            if status >= "400":
                assert content[MEDIA_TYPE]["schema"] == {"$ref": "#/components/schemas/Problem"}
            elif "application/json" in content and path != "/openapi.json":
                assert "$ref" in content["application/json"]["schema"], (method, path, status)
        for media in operation.get("requestBody", {}).get("content", {}).values():
            assert media["schema"], (method, path)


def test_what_a_task_is_is_told_to_the_last_field() -> None:
    schemas = described.document()["components"]["schemas"]
    assert set(schemas["Task"]["required"]) == set(schemas["Task"]["properties"])
    assert schemas["Status"]["enum"] == list(Status)
    assert schemas["ErrorType"]["enum"] == list(ErrorType)
    assert schemas["Task"]["properties"]["finished_at"]["anyOf"][0]["format"] == "date-time"
    assert "owner" not in schemas["Task"]["properties"]


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (418, b"{}", "does not describe"),
        (200, b"{}", "'task_id' is a required property"),
        (200, b'{"surprise": 1}', "'surprise' was unexpected"),
    ],
)
def test_an_answer_that_is_not_described_fails_whatever_test_receives_it(
    status: int, body: bytes, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(described, "_looked_at", Counter())  # other tests may have had their share of this answer
    headers = described.OURS | {"Content-Type": "application/json"}
    answer = httpx.Response(status, headers=headers, content=body)
    with (
        httpx.Client(transport=httpx.MockTransport(lambda _: answer)) as client,
        pytest.raises(AssertionError, match=why),
    ):
        client.get("http://headway/tasks/abc")


@pytest.fixture(scope="module", params=["open", "keyed"])
def walked(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Platform, httpx.Client]]:
    """A platform, and a client that may everything there."""
    keys = {"HEADWAY_API_KEYS": json.dumps({"alice": KEY})} if request.param == "keyed" else {}
    signed = {"HEADWAY_WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    with Platform(tmp_path_factory.mktemp(request.param), redis_server.fresh_url(), **keys, **signed) as platform:
        (platform.files_dir / "offered.txt").write_text("offered")
        platform.start_worker()
        platform.start_api()
        with httpx.Client(base_url=platform.url, headers=ALICE if keys else {}) as client:
            yield platform, client


def test_the_document_says_who_may_use_a_route(walked: tuple[Platform, httpx.Client]) -> None:
    _, client = walked
    document = client.get("/openapi.json").json()
    expected = create_app(Settings(api_keys={OwnerId("alice"): KEY} if client.headers.get("authorization") else {}))
    assert document == json.loads(json.dumps(expected.openapi()))
    need: list[dict[str, list[str]]] = [{"key": []}, {"session": []}]
    if "authorization" not in client.headers:
        need.insert(0, {})
    assert document["paths"]["/tasks"]["get"]["security"] == need
    assert need[-1:] == document["paths"]["/tasks"]["get"]["security"][-1:]
    assert {"taskToken": []} in document["paths"]["/tasks/{task_id}"]["get"]["security"]


def test_every_answer_of_a_walk_over_all_routes_is_as_described(walked: tuple[Platform, httpx.Client]) -> None:
    platform, client = walked
    seen: set[tuple[str, str, int]] = set()

    def ask(method: str, path: str, status: int, **more: Any) -> httpx.Response:
        answer = client.request(method, path, **more)  # and tests/described.py looks at it
        assert answer.status_code == status, answer.text
        found = described.operation_of(method, answer.request.url.path)
        assert found is not None, path
        seen.add((method, found[0], status))
        return answer

    file = {"file": ("a.txt", b"one two three")}
    form = {"processor": "compress", "batch_id": "walk", "webhook": '{"url": "https://hooks.invalid/"}'}
    task = ask("POST", "/tasks", 202, data=form, files=file, headers={"Idempotency-Key": "walk"}).json()
    again = ask("POST", "/tasks", 202, data=form, files=file, headers={"Idempotency-Key": "walk"})
    assert again.headers["idempotency-replayed"] == "true"
    assert ("token" in task) == ("authorization" in client.headers)
    here = f"/tasks/{task['task_id']}"
    done = wait_for("it is done", lambda: (found := client.get(here).json())["finished_at"] and found, seconds=60)
    assert done is not None
    ask("GET", here, 200)
    [made] = done["result"]["files"]
    for path in (made["url"], f"{here}/input", "/download/offered.txt"):
        tag = ask("GET", path, 200).headers["etag"]
        for method in ("GET", "HEAD"):
            ask(method, path, 206, headers={"Range": "bytes=1-2"})
            ask(method, path, 206, headers={"Range": "bytes=0-0,3-4"})
            ask(method, path, 416, headers={"Range": "bytes=999-"})
            ask(method, path, 304, headers={"If-None-Match": tag})
            ask(method, path, 412, headers={"If-Match": '"other"'})
    ask("GET", f"{here}/files/nothing", 404)
    ask("GET", f"{here}/input?transfer=1", 200)
    ask("GET", f"{here}/input?transfer=x", 422)
    for media_type in ("text/event-stream", "application/x-ndjson", "text/plain"):
        ask("GET", f"{here}/events", 200, headers={"Accept": media_type})
        ask("GET", f"/task-progress/{task['task_id']}", 200, headers={"Accept": media_type})
    ask("GET", f"{here}/events", 204, headers={"Last-Event-ID": "999999999"})
    told = ask("GET", f"/events?task={task['task_id']}", 200).text
    last = told.rpartition("\nid: ")[2].partition("\n")[0]
    ask("GET", f"/events?task={task['task_id']}", 204, headers={"Last-Event-ID": last})
    ask("GET", "/events?task=a&batch_id=b", 422)
    ask("GET", "/batches/walk", 200)
    ask("GET", "/batches/walk/events", 200)
    ask("GET", "/batches/none", 404)
    ask("POST", "/batches/walk/cancel", 202)
    ask("POST", f"{here}/notes", 201, json={"author": "a", "text": "b"})
    ask("POST", f"{here}/notes", 422, json={"author": "a"})
    ask("GET", f"{here}/notes", 200)
    [notice] = ask("GET", f"{here}/webhooks", 200).json()["webhooks"]
    ask("POST", f"{here}/webhooks/{notice['id']}/resend", 202)
    ask("POST", f"{here}/webhooks/none/resend", 404)
    taken = {"processor": "checksum", "input": {"task_id": task["task_id"]}}
    ask("GET", ask("POST", "/tasks", 202, json=taken).json()["links"]["self"], 200)
    ask("POST", "/tasks", 404, json={"processor": "checksum", "input": {"task_id": "0" * 32}})
    steps: list[dict[str, Any]] = [{"processor": "checksum"}, {"processor": "compress"}]
    ask("POST", "/pipelines", 202, json={"steps": steps, "input": {"task_id": task["task_id"]}})
    ask("POST", "/pipelines", 202, data={"steps": json.dumps(steps)}, files=file)
    ask("POST", "/pipelines", 201, json={"steps": steps, "filename": "a", "size_bytes": 1})
    ask("POST", "/pipelines", 422, json={"steps": []})
    ask("POST", "/pipelines", 415, content=b"x", headers={"Content-Type": "text/plain"})
    ask("POST", "/tasks", 422, json={"processor": "rehearsal", "webhook": {"url": "none"}})
    ask("POST", f"{here}/cancel", 409)
    ask("POST", f"{here}/retry", 409)
    ask("GET", "/tasks?limit=1", 200)
    ask("GET", "/tasks?limit=0", 422)
    ask("GET", "/tasks.csv", 200)
    ask("HEAD", "/tasks.csv", 200)
    ask("DELETE", here, 204)
    ask("DELETE", here, 404)

    announced = ask("POST", "/tasks", 201, json={"processor": "checksum", "filename": "b", "size_bytes": 3}).json()
    upload = announced["links"]["upload"]
    ask("DELETE", announced["links"]["self"], 409)
    ask("PUT", upload, 422, content=b"four")
    ask("PUT", upload, 400, content=b"abc", headers={"Upload-Checksum": "none"})
    ask("PUT", upload, 200, content=b"abc")
    ask("PUT", upload, 409, content=b"abc")
    wait_for("it is done", lambda: client.get(announced["links"]["self"]).json()["finished_at"], seconds=60)
    failing = {"processor": "rehearsal", "options": {"steps": 2, "step_seconds": 0, "fail_at": 1}}
    failed = ask("POST", "/tasks", 202, json=failing).json()["links"]["self"]
    wait_for("it has failed", lambda: client.get(failed).json()["error"], seconds=60)
    ask("GET", failed, 200)
    ask("POST", f"{failed}/retry", 202)
    long = ask("POST", "/tasks", 202, json={"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 999}})
    ask("POST", long.json()["links"]["cancel"], 202)
    for body, status in (({"processor": "none"}, 422), ({"processor": "checksum", "size_bytes": 1 << 52}, 422)):
        ask("POST", "/tasks", status, json=body)
    ask("POST", "/tasks", 413, json={"processor": "checksum", "filename": "x", "size_bytes": 1 << 52})
    ask("POST", "/tasks", 415, content=b"x", headers={"Content-Type": "text/plain"})

    produced = ask("POST", "/tasks", 201, json={"producer": "cron", "total": 3}).json()["links"]
    ask("POST", "/tasks", 422, json={"producer": "cron", "total": -3})
    ask("PATCH", produced["progress"], 200, json=[{"attempt": 1, "seq": 1, "done": 1, "log": ["a"]}, {"attempt": 1}])
    ask("PATCH", produced["progress"], 422, json={"attempt": 1, "done": -1})
    ask("PATCH", produced["progress"], 413, content=b"x" * 70_000)
    ask("PUT", f"{produced['self']}/results/a.txt", 200, content=b"abc")
    ask("PUT", f"{produced['self']}/results/.a", 422, content=b"abc")
    ask("POST", produced["complete"], 422, json={"attempt": 0})
    ask("POST", produced["complete"], 200, json={"attempt": 1, "summary": {"a": 1}})
    ask("PATCH", produced["progress"], 409, json={"attempt": 1, "done": 1})
    ask("GET", f"{produced['self']}/files/a.txt", 200)
    produced = ask("POST", "/tasks", 201, json={"producer": "cron"}).json()["links"]
    ask("POST", produced["fail"], 200, json={"attempt": 1, "error": {"message": "no"}})
    ask("POST", produced["fail"], 409, json={"attempt": 1, "error": {"message": "no"}})
    ask("POST", produced["attempts"], 422, json={"attempt": 0})
    ask("POST", produced["attempts"], 409, json={"attempt": 2})
    again = ask("POST", produced["attempts"], 201).json()
    ask("POST", produced["fail"], 409, json={"attempt": 1, "error": {"message": "no"}})
    said = {"task_id": again["task_id"], "attempt": 2, "done": 1, "checkpoint": {"row": 1}}
    ask("PATCH", "/tasks/progress", 200, json=[said, {"task_id": "0" * 32, "attempt": 1}])
    ask("PATCH", "/tasks/progress", 422, json=[{"attempt": 1}])
    ask("POST", produced["attempts"], 201, json={"attempt": 2})

    described_as = {"filename": "c", "processor": "checksum"}
    metadata = ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in described_as.items())
    ask("OPTIONS", "/uploads", 204)
    ask("POST", "/uploads", 412)
    ask("POST", "/uploads", 400, headers=TUS)
    ask("POST", "/uploads", 422, headers=TUS | {"Upload-Length": "1"})
    asked = TUS | {"Upload-Length": "4", "Upload-Metadata": metadata}
    place = ask("POST", "/uploads", 201, headers=asked).headers["location"]
    ask("HEAD", place, 200, headers=TUS | {"Headway-Want-Digest": "1"})
    ask("PATCH", place, 415, headers=TUS)
    ask("PATCH", place, 400, headers=PIECE)
    ask("PATCH", place, 409, headers=PIECE | {"Upload-Offset": "2"}, content=b"x")
    ask(
        "PATCH",
        place,
        409,
        headers=PIECE | {"Upload-Offset": "0", "Headway-Upload-Digest": "x" * 43 + "="},
        content=b"",
    )
    wrong = base64.b64encode(b"\0" * 20).decode()
    ask("PATCH", place, 460, headers=PIECE | {"Upload-Offset": "0", "Upload-Checksum": f"sha1 {wrong}"}, content=b"x")
    ask("PATCH", place, 413, headers=PIECE | {"Upload-Offset": "0"}, content=b"12345")
    ask("PATCH", place, 204, headers=PIECE | {"Upload-Offset": "0"}, content=b"12")
    ask("POST", place, 405, headers=TUS)
    ask("POST", place, 200, headers=TUS | {"X-HTTP-Method-Override": "HEAD"})
    override = {"X-HTTP-Method-Override": "PATCH", "Upload-Offset": "2"}
    ask("POST", place, 204, headers=PIECE | override, content=b"34")
    ask("POST", "/uploads", 201, headers=PIECE | asked, content=b"whole"[:4])
    begun = ask("POST", "/uploads", 201, headers=asked).headers["location"]
    ask("DELETE", begun, 204, headers=TUS)
    ask("HEAD", begun, 410, headers=TUS)

    ask("GET", "/processors", 200)
    for verb in ("pause", "resume"):
        ask("POST", f"/processors/compress/{verb}", 200)
        ask("POST", f"/processors/none/{verb}", 404)
    ask("GET", "/session", 200)
    ask("POST", "/session", 200, json={"key": KEY})
    ask("POST", "/session", 422, json={})
    ask("POST", "/session", 413, content=b"x" * 70_000)
    ask("DELETE", "/session", 204)
    client.cookies.clear()
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics", "/stream-numbers"):
        ask("GET", path, 200, timeout=60)
    ask("GET", "/metrics", 200, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    ask("GET", "/sse-updates?seconds=1", 200)
    ask("GET", "/sse-updates?seconds=x", 422)
    for method in ("GET", "HEAD"):
        ask(method, "/download-large-csv?rows=3", 200)
        ask(method, "/download-large-csv?rows=x", 422)
        ask(method, "/download/none", 404)
    ask("POST", "/process-file", 202)
    ask("POST", "/process-file", 202, files=file)
    # What is refused in front of every route.
    for method, path, _ in operations():
        asked_path = path.replace("{task_id}", "0" * 32).replace("{batch_id}", "b").replace("{name}", "n")
        asked_path = asked_path.replace("{filename}", "f").replace("{webhook_id}", "w")
        if method not in ("GET", "HEAD", "OPTIONS"):
            ask(method, asked_path, 403, headers={"Sec-Fetch-Site": "cross-site"})
        if "authorization" in client.headers and ("GET", path) not in PUBLIC and path != "/session":
            refused = httpx.request(method, f"{platform.url}{asked_path}")
            assert refused.status_code == 401, (method, path)

    succeeded = {(method, path) for method, path, status in seen if status < 400}
    assert {(method, path) for method, path, _ in operations()} - succeeded == set()


PUBLIC: Final = {("GET", path) for path in ("/", "/healthz", "/readyz")}


def test_what_streams_send_is_as_described(walked: tuple[Platform, httpx.Client]) -> None:
    platform, client = walked
    headers = {"Authorization": client.headers["authorization"]} if "authorization" in client.headers else {}
    options = {"steps": 3, "step_seconds": 0.1}
    task = client.post("/tasks", json={"processor": "rehearsal", "options": options, "batch_id": "told"}).json()
    note = client.post(f"{task['links']['self']}/notes", json={"author": "a", "text": "b"})
    assert note.status_code == 201
    by_name = {"": "TaskState", "log": "LogEvent", "note": "NoteEvent", "transfer": "TransferEvent", "gap": "GapEvent"}
    for path, unnamed in (
        (task["links"]["events"], "TaskState"),
        (f"/events?task={task['task_id']}", "TaskState"),
        ("/batches/told/events", "BatchState"),
    ):
        with opened(f"{platform.url}{path}", **headers) as stream:
            frames = list(frames_of(stream))
        assert frames
        for frame in frames:
            schema = {"$ref": f"#/components/schemas/{by_name[frame.name] if frame.name else unnamed}"}
            assert described.wrong_in(frame.data, schema) == [], frame
