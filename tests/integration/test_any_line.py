"""What monitors, polyfills, tracers and pools of connections ask of the API, over real HTTP."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from headway import AsyncClient, Client
from headway.api.access.identity import policies_of
from headway.api.app import create_app
from headway.shared.settings import Settings
from tests.processes import SERVERS, HeadwayProcess, Platform, RedisServer, free_port
from tests.proxies import missing
from tests.streams import frames_of, opened
from tests.waiting import wait_for

KEY: Final = "the-key-of-alice-1234"
ALICE: Final = {"Authorization": f"Bearer {KEY}"}
PAGE: Final = "https://app.example.com"
ROUTES: Final = policies_of(create_app(Settings()))
PATHS: Final = sorted({"/static/headway.js" if stated.path == "/static" else stated.path for stated in ROUTES})


def stated_for(path: str) -> set[str]:
    """What the routes that match a path name: `/tasks/progress` is one of `/tasks/{task_id}` too."""
    matching = [one for one in ROUTES if one.route.path_regex.match(path)]  # type: ignore[attr-defined]
    return {method for one in matching for method in one.methods or {"GET", "HEAD"}}


@pytest.fixture(scope="module")
def keyed(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Its APIs: tuned, and plain uvicorn."""
    keys = {"HEADWAY_API_KEYS": json.dumps({"alice": KEY}), "HEADWAY_CORS_ORIGINS": PAGE}
    with Platform(tmp_path_factory.mktemp("keyed"), redis_server.fresh_url(), **keys) as platform:
        platform.start_worker()
        for server in SERVERS:
            platform.start_api(server=server)
        yield platform


def submitted(url: str, **options: Any) -> str:
    body = {"processor": "rehearsal", "options": {"steps": 2, "step_seconds": 0} | options}
    answer = httpx.post(f"{url}/tasks", json=body, headers=ALICE)
    assert answer.status_code == 202
    return str(answer.json()["task_id"])


@pytest.fixture(scope="module")
def done(keyed: Platform) -> str:
    task_id = submitted(keyed.url)
    with opened(f"{keyed.url}/tasks/{task_id}/events", **ALICE) as answer:
        assert list(frames_of(answer))[-1].status == "completed"
    return task_id


def filled_in(path: str, task_id: str) -> str:
    """With a task that is there; any other parameter, also one to come, names what is not."""
    return re.sub(r"{\w+[^}]*}", "none", path.replace("{task_id}", task_id))


def asked(url: str, method: str, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    """Without following, and to the end: what has a body, or goes on, hangs here, and fails."""
    return httpx.request(method, url + path, headers=headers, timeout=30)


@pytest.mark.parametrize("server", range(len(SERVERS)), ids=SERVERS)
@pytest.mark.parametrize("path", PATHS)
def test_every_path_answers_options_and_names_all_its_methods(
    keyed: Platform, done: str, path: str, server: int
) -> None:
    url = keyed.urls[server]
    filled = filled_in(path, done)
    stated = stated_for(filled)
    wanted = stated | {"OPTIONS"} | ({"HEAD"} if "GET" in stated else set())
    answer = asked(url, "OPTIONS", filled, ALICE)
    assert (answer.status_code, answer.content) == (204, b"")
    if "OPTIONS" not in stated:
        assert set(answer.headers["allow"].split(", ")) == wanted
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - wanted:
        refused = asked(url, method, filled, ALICE)
        assert (refused.status_code, set(refused.headers["allow"].split(", "))) == (405, wanted), method


@pytest.mark.parametrize("server", range(len(SERVERS)), ids=SERVERS)
@pytest.mark.parametrize("path", [path for path in PATHS if "GET" in stated_for(path)])
def test_head_is_the_get_without_its_body_and_ends_at_once(keyed: Platform, done: str, path: str, server: int) -> None:
    """A stream's and an endless table's too."""
    filled = keyed.urls[server], filled_in(path, done)
    with httpx.stream("GET", "".join(filled), headers=ALICE, timeout=30) as get:
        status, kind = get.status_code, get.headers.get("content-type")
    head = asked(filled[0], "HEAD", filled[1], ALICE)
    assert (head.status_code, head.headers.get("content-type"), head.content) == (status, kind, b"")


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/static/headway.js"])
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_who_has_no_key_asks_whether_it_is_there(keyed: Platform, path: str, method: str) -> None:
    answer = asked(keyed.url, method, path)
    assert answer.status_code == (200 if method == "HEAD" else 204)
    assert asked(keyed.url, "DELETE", path).status_code == 405
    assert asked(keyed.url, method, "/tasks").status_code == 401
    assert asked(keyed.url, method, "/nothing", ALICE).status_code == 404


def test_a_head_of_a_stream_takes_no_place_among_the_streams(keyed: Platform, done: str) -> None:
    for _ in range(20):
        assert asked(keyed.url, "HEAD", "/events", ALICE).status_code == 200
    wait_for("no stream is open", lambda: httpx.get(f"{keyed.url}/readyz").json()["checks"]["relay"]["streams"] == 0)


def idle_seconds(url: str, at_most: float) -> float:
    """How long a connection that has had its answer is kept open, at most so long."""
    with closing(socket.create_connection(("127.0.0.1", httpx.URL(url).port or 80))) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(65_536).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        sock.settimeout(at_most)
        try:
            while sock.recv(65_536):
                pass
        except TimeoutError:
            return at_most
        return time.monotonic() - began


def test_an_idle_connection_outlives_a_proxys_pool_and_the_setting_is_heeded(
    keyed: Platform, redis_server: RedisServer, tmp_path: Path
) -> None:
    assert Settings().keep_alive_seconds >= 75
    assert idle_seconds(keyed.url, 8) == 8  # uvicorn's own are 5
    with Platform(tmp_path, redis_server.fresh_url(), HEADWAY_KEEP_ALIVE_SECONDS="1") as platform:
        platform.start_api()
        assert idle_seconds(platform.url, 60) < 60


def test_the_id_that_polyfills_send_resumes_as_ours_does(keyed: Platform, done: str) -> None:
    def ids(query: str, **headers: str) -> list[int]:
        with opened(f"{keyed.url}/tasks/{done}/events?{query}", **ALICE, **headers) as answer:
            return [frame.id for frame in frames_of(answer)]

    assert ids("lastEventId=0") == ids("last_event_id=0") != []
    assert ids("lastEventId=0&last_event_id=2") == ids("last_event_id=2")
    assert ids("lastEventId=0", **{"Last-Event-ID": "2"}) == ids("last_event_id=2")
    with opened(f"{keyed.url}/events?lastEventId=0", **ALICE) as answer:
        assert next(frames_of(answer)).data["task_id"] == done


@pytest.mark.parametrize("header", ["traceparent", "cache-control", "x-datadog-trace-id", "baggage, sentry-trace"])
def test_a_preflight_with_a_tracers_or_a_polyfills_header_is_answered(keyed: Platform, header: str) -> None:
    asking = {"Origin": PAGE, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": header}
    answer = asked(keyed.url, "OPTIONS", "/events", asking)
    assert answer.status_code == 200, answer.text
    assert header in answer.headers["access-control-allow-headers"]
    elsewhere = asked(keyed.url, "OPTIONS", "/events", asking | {"Origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in elsewhere.headers


@pytest.mark.parametrize("prefix", ["", "/deep/headway"])
@pytest.mark.parametrize("path", ["/tasks/", "/tasks/?limit=1", "/processors/"])
def test_a_slash_too_many_leads_back_to_the_same_host_scheme_and_prefix(
    keyed: Platform, prefix: str, path: str
) -> None:
    headers = (
        ALICE | {"X-Forwarded-Proto": "https", "Host": "inner:1"} | ({"X-Forwarded-Prefix": prefix} if prefix else {})
    )
    answer = asked(keyed.url, "GET", path, headers)
    bare, _, query = path.partition("?")
    assert answer.status_code == 307
    assert answer.headers["location"] == prefix + bare.rstrip("/") + (f"?{query}" if query else "")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_more_tasks_than_an_address_has_room_for_are_watched_as_one(own_platform: Platform, kind: str) -> None:
    own_platform.start_worker()
    own_platform.start_api()
    body = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0}}
    with httpx.Client(base_url=own_platform.url) as http:
        ids = [http.post("/tasks", json=body).json()["task_id"] for _ in range(320)]

    async def ended() -> set[str]:
        async with AsyncClient(own_platform.url) as client:
            return {event.task_id async for event in client.watch_tasks(ids) if event.is_terminal}

    if kind == "async":
        assert asyncio.run(ended()) == set(ids)
        return
    with Client(own_platform.url) as client:
        events = list(client.watch_tasks(ids))
        assert {event.task_id for event in events if event.is_terminal} == set(ids)
        assert list(client.watch_tasks(ids, last_event_id=max(int(event.id) for event in events if event.id))) == []


@pytest.mark.skipif(missing("openssl") is not None, reason="there is no openssl here")
def test_a_certificate_of_ones_own_is_trusted_on_this_machine_too(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [tmp_path / name for name in ("cert.pem", "key.pem")]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days"]
    make += ["2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*make, "-out", made[0], "-keyout", made[1]], check=True, capture_output=True)
    tls = {"UVICORN_SSL_CERTFILE": str(made[0]), "UVICORN_SSL_KEYFILE": str(made[1])}
    with Platform(tmp_path / "platform", redis_server.fresh_url()) as platform:
        port = free_port()
        process = platform.start_api(server="uvicorn", wait=False, port=port, **tls)
        trusting = ssl.create_default_context(cafile=str(made[0]))

        def answers() -> bool:
            assert process.code is None, process.log
            try:
                return httpx.get(f"https://localhost:{port}/healthz", verify=trusting).status_code == 200
            except httpx.TransportError:
                return False

        wait_for("the API answers over TLS", answers)
        command = ["-m", "headway.cli.main", "tasks", "--json", "--url", f"https://localhost:{port}"]
        env = {name: value for name, value in os.environ.items() if name != "SSL_CERT_FILE"}
        refused = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)
        assert (refused.returncode, "certificate" in refused.stderr.lower()) == (3, True)
        env["SSL_CERT_FILE"] = str(made[0])
        trusted = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)
        assert (trusted.returncode, trusted.stderr) == (0, "")


@pytest.mark.parametrize("server", ["uvicorn", "gunicorn"])
def test_a_server_that_recycles_itself_ends_its_streams_whole_and_exits(
    redis_server: RedisServer, tmp_path: Path, server: str
) -> None:
    """After so many requests, without a signal."""
    with Platform(tmp_path, redis_server.fresh_url()) as platform:
        port = free_port()
        arguments = ["--port", str(port), "--limit-max-requests", "60", "api.main:app"]
        if server == "gunicorn":
            if any(importlib.util.find_spec(name) is None for name in ("gunicorn", "uvicorn_worker")):
                pytest.skip("gunicorn is not installed")
            arguments = ["-k", "uvicorn_worker.UvicornWorker", "-b", f"127.0.0.1:{port}", "--max-requests", "60"]
            arguments.append("api.main:app")
        env = {"HEADWAY_REDIS_URL": platform.redis_url, "HEADWAY_DATA_DIR": str(platform.data_dir)}
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.code is None, process.log
            try:
                return httpx.get(f"{url}/healthz").status_code == 200
            except httpx.TransportError:
                return False

        with HeadwayProcess(arguments, env=env, log=tmp_path / "log", module=server) as process:
            wait_for("it answers", answers)
            body = {"processor": "checksum", "filename": "a", "size_bytes": 1}
            task = httpx.post(f"{url}/tasks", json=body).json()
            with opened(url + task["links"]["events"]) as answer:
                pieces = answer.iter_raw()
                said = next(pieces)
                for _ in range(70):
                    with suppress(httpx.TransportError):
                        httpx.get(f"{url}/healthz")
                said += b"".join(pieces)  # raises where the end is not a whole one
            assert re.search(rb"\nretry: \d+\n: the server is restarting", said)
            if server == "uvicorn":
                assert process.wait() == 0
