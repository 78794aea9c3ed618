"""The configurations of docs/proxies.md, as they stand there, in front of a real platform: each promise through each
proxy. The page's table says what is tried here."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from headway import AsyncClient, Client
from tests.integration.stream_clients.processors import telling_platform
from tests.processes import Platform, RedisServer, free_port
from tests.proxies import Kind, missing, running
from tests.streams import assert_true_story, frames_of, opened, watch
from tests.waiting import wait_for

PAGE: Final = (Path(__file__).parents[2] / "docs" / "proxies.md").read_text(encoding="utf-8")
KINDS: Final[tuple[Kind, ...]] = ("nginx", "caddy", "haproxy", "apache", "lighttpd", "varnish")
#: As the fences of the page name them.
FENCES: Final[dict[Kind, str]] = {"varnish": "vcl"}
#: What has to stand beside a recipe to run it on a port of ours.
LISTENING: Final[dict[Kind, str]] = {"apache": "Listen 127.0.0.1:{port}\n"}
PREFIX: Final = "/headway"
STEPS: Final = 4
TUS: Final = {"Tus-Resumable": "1.0.0"}


def recipe(kind: Kind, port: int, host: str) -> str:
    text: str
    (text,) = re.findall(rf"^```{FENCES.get(kind, kind)}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    number = host.partition(":")[2]
    text = text.replace("127.0.0.1:8000", host).replace("127.0.0.1:80", f"127.0.0.1:{port}")
    for quoted in ('"port" => 8000', '.port = "8000"'):
        text = text.replace(quoted, quoted.replace("8000", number))
    assert number in text
    if kind == "caddy":
        text = text.replace("{\n", "{\n  bind 127.0.0.1\n", 1)
    if kind == "haproxy":  # the frame has the same defaults
        text = text[text.index("frontend") :]
    return LISTENING.get(kind, "").format(port=port) + text


@pytest.fixture(scope="module")
def platform(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Its APIs: at the root, and under a prefix."""
    with telling_platform(tmp_path_factory.mktemp("any-proxy"), redis_server.fresh_url()) as platform:
        platform.start_api(HEADWAY_ROOT_PATH=PREFIX)
        yield platform


@pytest.fixture(scope="module")
def urls(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[Kind, str], str]]:
    """By proxy and prefix; one that is not installed has none."""
    with ExitStack() as stack:
        found: dict[tuple[Kind, str], str] = {}
        for kind in KINDS:
            if missing(kind):
                continue
            for prefix, target in zip(("", PREFIX), platform.urls, strict=True):
                port = free_port()
                text = recipe(kind, port, target.removeprefix("http://"))
                folder = tmp_path_factory.mktemp(kind)
                folder.chmod(0o755)
                origin = f"http://127.0.0.1:{port}"
                stack.enter_context(running(kind, folder, text, origin + prefix))
                found[kind, prefix] = origin
        yield found


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, urls: dict[tuple[Kind, str], str]) -> str:
    if why := missing(request.param):
        pytest.skip(why)
    return urls[request.param, ""]


def test_each_event_is_there_before_the_next_one_is_made(platform: Platform, url: str, tmp_path: Path) -> None:
    options = json.dumps({"gate": str(tmp_path), "steps": STEPS})
    task_id = platform.submit("telling", options=options)["task_id"]
    story = []
    try:
        with opened(f"{url}/tasks/{task_id}/events?last_event_id=0") as answer:
            assert answer.headers.get("content-encoding", "identity") == "identity"
            for frame in frames_of(answer):
                story.append(frame)
                if not frame.name and frame.status == "processing":
                    (tmp_path / str(frame.data["step"] + 1)).touch()  # only now may the next step begin
    finally:
        for step in range(1, STEPS + 1):
            (tmp_path / str(step)).touch()
    assert_true_story(story, first=1)
    assert story == watch(platform.url, task_id, last_event_id=0)


def test_a_reconnect_resumes_after_its_last_event_and_stops_at_the_end(platform: Platform, url: str) -> None:
    task_id = platform.submit("telling")["task_id"]
    platform.wait(task_id)
    truth = watch(platform.url, task_id, last_event_id=0)
    assert watch(url, task_id, last_event_id=2) == truth[2:]
    last = {"Last-Event-ID": str(truth[-1].id)}
    assert httpx.get(f"{url}/tasks/{task_id}/events", headers=last).status_code == 204
    assert httpx.get(f"{url}/tasks/{'0' * 32}/events").status_code == 404


def test_heartbeats_pass_and_a_client_that_leaves_is_let_go(platform: Platform, url: str) -> None:
    task_id = platform.submit("telling", options=json.dumps({"gate": "/nowhere", "gates": 1}))["task_id"]

    def streams() -> int:
        return int(httpx.get(f"{platform.url}/readyz").json()["checks"]["relay"]["streams"])

    wait_for("no stream is open", lambda: streams() == 0)
    try:
        with opened(f"{url}/tasks/{task_id}/events") as answer:
            said, pieces = b"", answer.iter_raw()
            while said.count(b"\n:") < 3:
                said += next(pieces)
            assert streams() == 1
        wait_for("the API has let go of the stream", lambda: streams() == 0)
    finally:
        httpx.post(f"{platform.url}/tasks/{task_id}/cancel")


def test_a_page_of_the_proxys_address_may_change_something(url: str) -> None:
    """As a browser asks over plain http, where it does not say whose page it is."""
    body = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0}}
    assert httpx.post(f"{url}/tasks", json=body, headers={"Origin": url}).status_code == 202
    evil = httpx.post(f"{url}/tasks", json=body, headers={"Origin": "http://evil.example.com"})
    assert evil.status_code == 403


def test_a_large_file_arrives_by_put_and_by_tus(platform: Platform, url: str) -> None:
    content = bytes(17 * 1024 * 1024)
    body = {"processor": "checksum", "filename": "a.bin", "size_bytes": len(content)}
    task = httpx.post(f"{url}/tasks", json=body).json()
    assert httpx.put(url + task["links"]["upload"], content=content).status_code == 200
    about = {"filename": "b.bin", "processor": "checksum"}
    metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in about.items())
    headers = TUS | {"Upload-Length": str(len(content)), "Upload-Metadata": metadata}
    begun = httpx.post(f"{url}/uploads", headers=headers)
    assert begun.status_code == 201
    headers = TUS | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    piece = httpx.patch(url + begun.headers["location"], headers=headers, content=content)
    assert (piece.status_code, piece.headers["upload-offset"]) == (204, str(len(content)))
    for task_id in (task["task_id"], begun.headers["headway-task-id"]):
        end = platform.wait(task_id)
        assert (end["status"], end["result"]["summary"]["size_bytes"]) == ("completed", len(content))


def test_a_file_is_seen_to_come_while_it_comes(platform: Platform, url: str) -> None:
    """The second half is sent when the stream has told of the first."""
    half = 256 * 1024
    body = {"processor": "checksum", "filename": "slow.bin", "size_bytes": 2 * half}
    task = httpx.post(f"{url}/tasks", json=body).json()
    seen = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield bytes(half)
        assert seen.wait(60), "nothing was told of what had been sent"
        yield bytes(half)

    def look() -> None:
        with opened(f"{url}{task['links']['events']}") as answer:
            for frame in frames_of(answer):
                if 0 < (frame.data.get("done") or 0) < 2 * half:
                    seen.set()

    looking = threading.Thread(target=look)
    looking.start()
    headers = {"Content-Length": str(2 * half)}
    answer = httpx.put(url + task["links"]["upload"], content=pieces(), headers=headers)
    assert answer.status_code == 200
    looking.join(60)
    assert platform.wait(task["task_id"])["status"] == "completed"


def test_what_monitors_ask_is_answered(url: str) -> None:
    for path in ("/", "/healthz", "/readyz"):
        assert httpx.head(url + path).status_code == 200
        assert "GET" in httpx.options(url + path).headers["allow"]


@pytest.mark.parametrize("kind", KINDS)
def test_under_a_prefix_every_address_stays_under_it(urls: dict[tuple[Kind, str], str], kind: Kind) -> None:
    if why := missing(kind):
        pytest.skip(why)
    origin = urls[kind, PREFIX]
    form: dict[str, Any] = {"data": {"processor": "checksum"}, "files": {"file": ("a.txt", b"hello")}}
    answer = httpx.post(f"{origin}{PREFIX}/tasks", headers={"Origin": origin}, **form)
    task = answer.json()
    for link in (answer.headers["location"], *task["links"].values()):
        assert link.startswith(f"{PREFIX}/tasks/")
    with opened(origin + task["links"]["events"]) as stream:
        assert list(frames_of(stream))[-1].status == "completed"
    slash = httpx.get(f"{origin}{PREFIX}/tasks/")
    assert (slash.status_code, slash.headers["location"]) == (307, f"{PREFIX}/tasks")


def test_doctor_finds_no_problem(url: str) -> None:
    command = [sys.executable, "-m", "headway.cli.main", "doctor", "--json", "--idle-seconds", "3", "--url", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["check"] for one in found if one["level"] == "problem"} == set(), done.stdout
    assert {"origin", "progress", "buffering"} <= {one["check"] for one in found if one["level"] == "ok"}


def test_the_pages_table_is_made_of_these_tests() -> None:
    table = PAGE[PAGE.index("| promise |") :].partition("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert tuple(name.lower() for name in rows[0][1:-1]) == KINDS
    for row in rows[2:]:
        assert f"test_{row[-1].strip('`')}" in globals()
        assert set(row[1:-1]) == {"yes"}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_behind_a_proxy_that_holds_streams_back_the_python_client_asks(
    platform: Platform, tmp_path: Path, kind: str
) -> None:
    """lighttpd as it comes. Each kind of watch is told the end."""
    if why := missing("lighttpd"):
        pytest.skip(why)
    port = free_port()
    target = httpx.URL(platform.url)
    inside = f'proxy.server = ("" => (("host" => "127.0.0.1", "port" => {target.port})))'
    running_task = json.dumps({"gate": "/nowhere", "gates": 1})
    task_id = platform.submit("telling", options=running_task, batch_id="held-back")["task_id"]
    other = platform.submit("rehearsal", options='{"steps": 1, "step_seconds": 0}')["task_id"]

    def ended(watch: Any) -> list[Any]:
        """The first state is asked for, so the task is ended only then; what the client holds after that is its own."""
        events = []
        for event in watch:
            events.append(event)
            if len(events) == 1:
                httpx.post(f"{platform.url}/tasks/{task_id}/cancel")
        return events

    async def ended_async(url: str) -> list[Any]:
        events = []
        async with AsyncClient(url) as client:
            async for event in client.watch(task_id):
                events.append(event)
                if len(events) == 1:
                    httpx.post(f"{platform.url}/tasks/{task_id}/cancel")
        return events

    with running("lighttpd", tmp_path / "lighttpd", inside, f"http://127.0.0.1:{port}") as url:
        if kind == "async":
            assert [event.status for event in asyncio.run(ended_async(url)) if not event.name][-1] == "cancelled"
            return
        with Client(url) as client:
            story = ended(client.watch(task_id))
            assert [event.status for event in story if not event.name][-1] == "cancelled"
            assert list(client.watch_batch("held-back"))[-1].ends_batch
            assert {event.task_id for event in client.watch_tasks([task_id, other])} == {task_id, other}
