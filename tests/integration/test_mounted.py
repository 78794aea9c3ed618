"""Headway mounted in an application of FastAPI or Starlette, under uvicorn and, where they are installed, gunicorn and
hypercorn: links stay under the mount, two do not disturb each other, streams end with the outer application."""

from __future__ import annotations

import importlib.util
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import HeadwayProcess, Platform, RedisServer, free_port
from tests.streams import assert_true_story, frames_of, opened
from tests.waiting import wait_for

#: By name: the module that is run, and its arguments; `{app}` is the application's function.
SERVERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "uvicorn": ("uvicorn", ("--factory", "--port", "{port}", "tests.integration.mounted_apps:{app}")),
    "gunicorn": (
        "gunicorn",
        ("-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}", "tests.integration.mounted_apps:{app}()"),
    ),
    # Its own worker processes, which it has unless told so, get no signal: nobody can tell their streams to end.
    "hypercorn": ("hypercorn", ("-w", "0", "-b", "127.0.0.1:{port}", "tests.integration.mounted_apps:{app}()")),
}
EVERY = tuple(SERVERS)


@pytest.fixture(scope="module")
def platforms(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Platform, Platform]]:
    """The workers of the two platforms, whose APIs are mounted."""
    folder = tmp_path_factory.mktemp("mounted")
    with (
        Platform(folder / "one", redis_server.fresh_url()) as one,
        Platform(folder / "two", redis_server.fresh_url()) as two,
    ):
        one.start_worker()
        two.start_worker()
        yield one, two


@contextmanager
def served(
    server: str, app: str, platforms: tuple[Platform, Platform], folder: Path
) -> Iterator[tuple[str, HeadwayProcess]]:
    """The application's address and process. Skips where the server is not installed."""
    module, arguments = SERVERS[server]
    for needed in (module, *(["uvicorn_worker"] if module == "gunicorn" else [])):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    one, two = platforms
    port = free_port()
    env = {"MOUNTED_IN": str(one.folder.parent), "REDIS_ONE": one.redis_url, "REDIS_TWO": two.redis_url}
    argv = [argument.format(port=port, app=app) for argument in arguments]
    with HeadwayProcess(argv, env=env, log=folder / f"{server}-{app}.log", module=module) as process:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.code is None, process.log
            return is_alive(url)

        wait_for(f"{server} answers", answers)
        yield url, process


@pytest.fixture(scope="module", params=EVERY)
def outer(
    request: pytest.FixtureRequest, platforms: tuple[Platform, Platform], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with served(request.param, "with_two", platforms, tmp_path_factory.mktemp("outer")) as (url, _):
        yield url


def submitted(url: str) -> dict[str, Any]:
    answer = httpx.post(f"{url}/tasks", data={"processor": "compress"}, files={"file": ("a.txt", b"hello\n" * 999)})
    assert answer.status_code == 202, answer.text
    task: dict[str, Any] = answer.json()
    return task


@pytest.mark.parametrize("mount", ["/one", "/deep/two"])
def test_a_task_its_stream_and_its_result_stay_under_the_mount(outer: str, mount: str) -> None:
    task = submitted(outer + mount)
    links = list(task["links"].values())
    with opened(outer + task["links"]["events"] + "?last_event_id=0") as answer:
        story = list(frames_of(answer))
    assert_true_story(story, first=1)
    assert story[-1].status == "completed"
    with opened(outer + task["links"]["events"], **{"Last-Event-ID": str(story[0].id)}) as answer:
        assert list(frames_of(answer)) == story[1:]
    assert httpx.get(outer + task["links"]["events"], headers={"Last-Event-ID": str(story[-1].id)}).status_code == 204
    assert httpx.get(f"{outer}{mount}/tasks/{'0' * 32}/events").status_code == 404
    links += [file["url"] for file in story[-1].data["result"]["files"]]
    links.append(httpx.post(f"{outer}{mount}/process-file").headers["location"])
    assert [link for link in links if not link.startswith(f"{mount}/")] == []
    assert httpx.get(outer + story[-1].data["result"]["files"][0]["url"]).status_code == 200
    assert httpx.get(f"{outer}{mount}/openapi.json").json()["servers"] == [{"url": mount}]
    assert httpx.get(f"{outer}{mount}").headers["location"].removeprefix(outer) == f"{mount}/"
    assert httpx.get(f"{outer}{mount}/static/headway.js").status_code == 200


def test_a_proxys_prefix_stands_before_the_mount(outer: str) -> None:
    answer = httpx.get(f"{outer}/one/openapi.json", headers={"X-Forwarded-Prefix": "/apps"})
    assert answer.json()["servers"] == [{"url": "/apps/one"}]


def test_two_that_are_mounted_do_not_disturb_each_other_or_the_outer_one(outer: str) -> None:
    one, two = f"{outer}/one", f"{outer}/deep/two"
    before = counted(two)
    task_id = submitted(one)["task_id"]
    assert httpx.get(f"{one}/tasks/{task_id}").status_code == 200
    assert httpx.get(f"{one}/healthz").headers["x-outer"] == "kept"
    assert httpx.get(f"{outer}/healthz").json() == {"state": "kept"}
    assert counted(one) > 0
    assert counted(two) == before
    missed = httpx.get(f"{two}/tasks/{task_id}")
    assert (missed.status_code, missed.json()["type"]) == (404, "urn:headway:problem:unknown-task")


def counted(url: str) -> float:
    """The tasks that were submitted by a form or JSON."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    submits = [line for line in lines if line.startswith("headway_http_requests_total") and 'route="/tasks"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in submits if 'method="POST"' in line)


@pytest.mark.parametrize("server", EVERY)
@pytest.mark.parametrize("app", ["with_two", "with_one", "alone"])
def test_streams_end_whole_when_the_outer_application_is_told_to_stop(
    server: str, app: str, platforms: tuple[Platform, Platform], tmp_path: Path
) -> None:
    mounts = {"with_two": ["/one", "/deep/two"], "with_one": ["/one"], "alone": [""]}[app]
    with served(server, app, platforms, tmp_path) as (url, process):
        last_words: list[bytes] = []
        open_streams = threading.Barrier(len(mounts) + 1)

        def watch(mount: str) -> None:
            body = {"processor": "checksum", "filename": "a.bin", "size_bytes": 5}  # which never comes
            task = httpx.post(f"{url}{mount}/tasks", json=body).json()
            with opened(url + task["links"]["events"]) as answer:
                pieces = answer.iter_raw()
                first = next(pieces)
                open_streams.wait(60)
                last_words.append((first + b"".join(pieces))[-200:])

        watching = [threading.Thread(target=watch, args=(mount,)) for mount in mounts]
        for thread in watching:
            thread.start()
        open_streams.wait(60)
        process.signal(signal.SIGTERM)
        for thread in watching:
            thread.join(60)
        process.wait()
    # A clean end, or reading it would have raised; and the word to come back.
    assert [b"come back" in words for words in last_words] == [True] * len(mounts), last_words


def test_the_application_of_the_page_runs_as_it_stands(platforms: tuple[Platform, Platform], tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")
    (text,) = [
        block for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL) if "app.mount" in block
    ]
    one = platforms[0]
    text = text.replace("redis://127.0.0.1:6379/0", one.redis_url).replace('"data"', repr(str(one.data_dir)))
    (tmp_path / "outer_app.py").write_text(text)
    port = free_port()
    argv = ["--app-dir", str(tmp_path), "--port", str(port), "outer_app:app"]
    with HeadwayProcess(argv, env={}, log=tmp_path / "log", module="uvicorn") as process:
        url = f"http://127.0.0.1:{port}/headway"
        wait_for(f"it answers; its log: {tmp_path}", lambda: process.code is not None or is_alive(url))
        task = submitted(url)
        with opened(url.removesuffix("/headway") + task["links"]["events"]) as answer:
            assert list(frames_of(answer))[-1].status == "completed"


def is_alive(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_where_the_lifespan_was_forgotten_the_first_request_says_so(
    platforms: tuple[Platform, Platform], tmp_path: Path
) -> None:
    with served("uvicorn", "forgotten", platforms, tmp_path) as (url, process):
        assert httpx.get(f"{url}/one/healthz").status_code == 500
        wait_for("the log says it", lambda: "RuntimeError: Headway's lifespan has not been entered" in process.log)
        assert "async with headway.running()" in process.log


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson", "text/plain"])
def test_a_middleware_that_compresses_holds_no_stream_back(
    platforms: tuple[Platform, Platform], tmp_path: Path, accept: str
) -> None:
    """The task waits for its file, so what comes is the stream's beginning alone."""
    with served("uvicorn", "compressing", platforms, tmp_path) as (url, _):
        body = {"processor": "checksum", "filename": "a", "size_bytes": 1}
        task = httpx.post(f"{url}/one/tasks", json=body).json()
        headers = {"Accept": accept, "Accept-Encoding": "gzip"}
        with opened(f"{url}{task['links']['events']}", **headers) as answer:
            assert next(answer.iter_raw())
            assert answer.headers["content-encoding"] == "identity"
        with opened(f"{url}/one/stream-numbers", **headers) as answer:
            assert b"Number: 1\n" in next(answer.iter_raw())
        compressed = httpx.get(f"{url}/one/processors", headers=headers)
        assert compressed.headers["content-encoding"] == "gzip"
