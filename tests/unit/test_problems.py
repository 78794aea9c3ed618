"""Every error has its status and its body, on every route: RFC 9457, and nothing of the inside."""

from __future__ import annotations

import errno
import inspect
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from redis.exceptions import NoPermissionError, ResponseError
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from headway.api.app import create_app
from headway.api.problems import PROBLEMS, install
from headway.api.submission import draft
from headway.shared import errors
from headway.shared.errors import HeadwayError
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, OwnerId, Result, Status
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from tests.processes import free_port

#: Never raised while a request is answered: they end a start, or an attempt in a worker.
INSIDE: Final = {errors.SettingsError, errors.ExportCut, errors.ProcessorFailure, errors.BadInput}
#: Without keys, by the contract: whether it is alive, the page, and what describes the API.
OPEN: Final = {"/healthz", "/readyz", "/", "/session", "/docs", "/docs/oauth2-redirect", "/openapi.json"}
KEY: Final = "a-key-that-nobody-guesses"
UNKNOWN: Final = "0" * 32
#: An upload of a byte: a.bin, for checksum.
TUS: Final = {
    "Tus-Resumable": "1.0.0",
    "Upload-Length": "1",
    "Upload-Metadata": "filename YS5iaW4=,processor Y2hlY2tzdW0=",
}


def subclasses(of: type[HeadwayError]) -> Iterator[type[HeadwayError]]:
    for found in of.__subclasses__():
        yield found
        yield from subclasses(found)


ALL_ERRORS: Final = [found for found in subclasses(HeadwayError) if found.__module__ == "headway.shared.errors"]


def an_error(kind: type[HeadwayError]) -> HeadwayError:
    return errors.Refused("status", "completed") if kind is errors.Refused else kind()


def routes() -> list[tuple[str, str]]:
    """Every method of every path of the app as it is built, path parameters filled with what is not there."""
    schema = create_app(Settings()).openapi()
    return [
        (method.upper(), re.sub(r"\{\w+\}", UNKNOWN, path))
        for path, methods in schema["paths"].items()
        for method in methods
    ]


ROUTES: Final = routes()
STREAMS: Final = re.compile(r"events$|^/task-progress/|^/sse-updates$|^/stream-numbers$|^/download-large-csv$")


def assert_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail"} <= body.keys() <= {"type", "title", "status", "detail", "errors"}
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert "Traceback" not in answer.text
    return body


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app in this process, with its lifespan. For whole answers; streams want a real server."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        transport = httpx.ASGITransport(with_state, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://headway") as client:
            yield client


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with served(create_app(settings)) as client:
        yield client


@pytest.fixture
async def guarded(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """An API with a key, and a Redis that is away."""
    changes = {
        "redis_url": f"redis://127.0.0.1:{free_port()}/0",
        "api_keys": {OwnerId("alice"): SecretStr(KEY)},
    }
    async with served(create_app(settings.model_copy(update=changes))) as client:
        yield client


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_every_error_of_ours_has_a_status_or_never_meets_a_request(kind: type[HeadwayError]) -> None:
    known = any(ancestor in PROBLEMS for ancestor in inspect.getmro(kind))
    assert known != (kind in INSIDE)


def test_every_error_is_drawn_in_the_tree_at_the_top_of_its_file() -> None:
    drawn = inspect.cleandoc(errors.__doc__ or "")
    assert [kind.__name__ for kind in ALL_ERRORS if not re.search(rf"── {kind.__name__}\b", drawn)] == []


def breaking(error: Exception) -> FastAPI:
    """An app with our handlers whose one route raises."""
    app = FastAPI()
    install(app)

    @app.get("/")
    def broken() -> None:
        raise error

    return app


@pytest.mark.parametrize("kind", [kind for kind in ALL_ERRORS if kind not in INSIDE])
async def test_an_error_that_is_raised_in_a_route_is_answered_as_a_problem(kind: type[HeadwayError]) -> None:
    async with served(breaking(an_error(kind))) as client:
        answer = await client.get("/")
    problem = next(PROBLEMS[ancestor] for ancestor in inspect.getmro(kind) if ancestor in PROBLEMS)
    body = assert_problem(answer, problem.status)
    assert (body["type"], body["title"]) == (f"urn:headway:problem:{problem.type}", problem.title)
    assert ("errors" in body) == (problem.status in (400, 422))
    assert ("www-authenticate" in answer.headers) == (problem.status == 401)


async def test_an_error_nobody_thought_of_tells_nothing_of_the_inside() -> None:
    async with served(breaking(RuntimeError("the password is hunter2, in /etc/secrets"))) as client:
        answer = await client.get("/")
    assert_problem(answer, 500)
    assert "hunter2" not in answer.text
    assert "/etc" not in answer.text


@pytest.mark.parametrize("path", ["/nothing", "/tasks/x/y/z", "/static/nothing.js", "/static/..%2fmain.py", "/%00"])
async def test_a_path_that_is_not_there_is_a_problem(client: httpx.AsyncClient, path: str) -> None:
    assert_problem(await client.get(path), 404)


async def test_the_wrong_method_is_a_problem_that_names_the_right_ones(client: httpx.AsyncClient) -> None:
    for path in sorted({path for _, path in ROUTES}):
        answer = await client.request("TRACE", path)
        assert_problem(answer, 405)
        assert answer.headers["allow"], path


async def test_a_task_or_a_file_that_is_not_there_is_a_problem_on_every_route(client: httpx.AsyncClient) -> None:
    for method, path in ROUTES:
        if UNKNOWN in path and "batches" not in path:
            answer = await client.request(method, path, headers=TUS)
            assert answer.status_code == 404, (method, path, answer.text)
            if method != "HEAD":
                assert_problem(answer, 404)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=501", "status=done", "cursor=x", "cursor=%ff", "processor=" + "x" * 201]
)
async def test_a_query_that_is_wrong_names_its_field(client: httpx.AsyncClient, query: str) -> None:
    body = assert_problem(await client.get(f"/tasks?{query}"), 422)
    assert [error["field"] for error in body["errors"]] == [query.partition("=")[0]]


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {KEY}", KEY, "Bearer", "Bearer \xff"])
async def test_every_route_asks_for_a_key_before_anything_else(
    guarded: httpx.AsyncClient, authorization: str | None
) -> None:
    headers = {} if authorization is None else {b"Authorization": authorization.encode("latin-1")}
    for method, path in ROUTES:
        if path not in OPEN:
            answer = await guarded.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path, answer.text)
            sent = authorization is not None and authorization.startswith("Bearer ")
            assert answer.headers["www-authenticate"] == ('Bearer error="invalid_token"' if sent else "Bearer")
            if method != "HEAD":
                assert_problem(answer, 401)


def needs_redis(method: str, path: str) -> bool:
    return not (
        method == "OPTIONS" or path in OPEN or path in ("/processors", "/metrics") or path.startswith("/download/")
    )


@pytest.mark.parametrize(
    ("method", "path"), [route for route in ROUTES if needs_redis(*route) and not STREAMS.search(route[1])]
)
async def test_a_redis_that_is_away_is_a_problem_with_a_time_to_come_back(
    guarded: httpx.AsyncClient, method: str, path: str
) -> None:
    sent: dict[str, Any] = {"headers": {"Authorization": f"Bearer {KEY}"} | TUS}
    if path in ("/tasks", "/process-file") and method == "POST":
        sent |= {"files": {"file": ("a", b"x")}, "data": {"processor": "checksum"}}
    if path == "/tasks/progress":
        sent["json"] = [{"task_id": UNKNOWN, "attempt": 1, "done": 1}]
    if path == "/pipelines":
        sent["json"] = {"steps": [{"processor": "rehearsal"}, {"processor": "rehearsal"}]}
    if path.startswith("/processors/"):
        path = path.replace(UNKNOWN, "checksum")
    answer = await guarded.request(method, path, **sent)
    assert answer.status_code == 503, answer.text
    assert answer.headers["retry-after"]
    if method != "HEAD":
        assert "HEADWAY_REDIS_URL" in assert_problem(answer, 503)["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example.com"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Authorization": f"Bearer {KEY}"},
    ],
)
async def test_another_site_changes_nothing(guarded: httpx.AsyncClient, headers: dict[str, str]) -> None:
    for method, path in ROUTES:
        if method not in ("GET", "HEAD", "OPTIONS"):
            assert_problem(await guarded.request(method, path, headers=headers), 403)


@pytest.mark.parametrize(
    ("processor", "options"), [("checksum", '{"\\ud800": 1}'), ("rehearsal", '{"steps": "\\ud800"}')]
)
async def test_half_a_character_in_what_was_sent_is_no_error_of_ours(
    client: httpx.AsyncClient, processor: str, options: str
) -> None:
    fields = {"processor": processor, "options": options}
    assert_problem(await client.post("/tasks", data=fields, files={"file": ("a", b"x")}), 422)


def test_the_routes_of_these_tests_are_all_there_are() -> None:
    assert {("POST", "/tasks"), ("GET", f"/tasks/{UNKNOWN}"), ("GET", f"/tasks/{UNKNOWN}/events")} <= set(ROUTES)


async def test_half_a_character_that_a_processor_wrote_does_not_break_the_task(
    client: httpx.AsyncClient, redis_client: RedisClient, settings: Settings
) -> None:
    """As `surrogateescape` makes them of a name in a zip, or of a CSV in another encoding."""
    publisher, reader = Publisher(redis_client, settings), Reader(redis_client)
    task = draft("rehearsal", owner=ANYONE, status=Status.QUEUED, options={})
    await publisher.create(task)
    assert await publisher.claim(task.task_id, reader) is not None
    await publisher.complete(task.task_id, Result(summary={"name": "caf\udce9.csv"}, files=[]), attempt=1)
    for path in (f"/tasks/{task.task_id}", "/tasks"):
        answer = await client.get(path)
        assert answer.status_code == 200, (path, answer.text)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), "WRONGTYPE"),
        (NoPermissionError("this user has no permissions to run the 'evalsha' command"), "NOPERM"),
        (ResponseError('Command # 1 (SET a SECRET) of pipeline caused error: ("WRONGTYPE Operation",)'), "WRONGTYPE"),
    ],
)
async def test_what_redis_refuses_is_not_redis_being_away_and_is_logged(error: Exception, code: str) -> None:
    with capture_logs() as logs:
        async with served(breaking(error)) as client:
            answer = await client.get("/")
    body = assert_problem(answer, 503)
    assert body["type"] == "urn:headway:problem:redis-refused"
    assert code in body["detail"]
    assert [(line["event"], line["log_level"], line["path"]) for line in logs] == [
        ("redis refused a command", "error", "/")
    ]
    assert "SECRET" not in answer.text + str(logs)


async def test_a_redis_without_descriptors_for_it_is_told_with_its_number() -> None:
    error = errors.NoDescriptorsForRedis()
    error.__cause__ = ConnectionError()
    error.__cause__.__context__ = OSError(errno.EMFILE, "Too many open files")
    with capture_logs() as logs:
        async with served(breaking(error)) as client:
            body = assert_problem(await client.get("/"), 503)
    assert body["type"] == "urn:headway:problem:no-descriptors"
    assert logs[0]["errno"] == "EMFILE"
