"""Every stream in every format, on both servers: of what has ended, of what runs, of nothing, behind a gap, drained."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import httpx
import pytest

from tests.processes import SERVERS, Platform, RedisServer, Server
from tests.streams import frames_of, opened

#: {task} and {batch} are the task's id and its batch's. The last one has no history, so no gap either.
STREAMS: Final = (
    *("/tasks/{task}/events", "/task-progress/{task}", "/events?task={task}", "/events?batch_id={batch}", "/events"),
    "/batches/{batch}/events",
)
FORMATS: Final = ("text/event-stream", "application/x-ndjson", "text/plain")
EVERY: Final = [(stream, accept) for stream in STREAMS for accept in FORMATS]
#: What opens an end, of a task and of a batch.
ENDS: Final = ("completed", "ended")
#: Enough that the history below is trimmed.
STEPS: Final = '{"steps": 40, "step_seconds": 0}'
HISTORY: Final = {"HEADWAY_HISTORY_LENGTH": "10"}

_LINE = re.compile(r"(?:\d\d:\d\d:\d\d| {8})  *\d+\.\d %  (\w+) .*")


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Server:
    chosen: Server = request.param
    return chosen


@pytest.fixture(scope="module")
def platform(server: Server, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    url = redis_server.fresh_url()
    with Platform(tmp_path_factory.mktemp("platform"), url, **HISTORY) as started:
        started.start_worker()
        started.start_api(server=server)
        yield started


@pytest.fixture(scope="module")
def ended(platform: Platform) -> str:
    """A task that has ended, in the batch `ended`."""
    task_id: str = platform.submit("rehearsal", options=STEPS, batch_id="ended")["task_id"]
    platform.wait(task_id, "completed")
    return task_id


def announced(platform: Platform, batch: str) -> tuple[str, str]:
    """A task whose file has yet to come, and where to."""
    body = {"filename": "x", "size_bytes": 1, "content_type": "text/plain", "processor": "checksum", "batch_id": batch}
    answer = httpx.post(f"{platform.url}/tasks", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["task_id"], platform.url + answer.json()["links"]["upload"]


def told(answer: httpx.Response, accept: str) -> Iterator[tuple[str, str]]:
    """Of each event its name and its status, whatever the format; each line has to be one of the format's."""
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"{accept}; charset=utf-8"
    if accept == "text/event-stream":
        for frame in frames_of(answer):
            yield frame.name, str(frame.data.get("status", ""))
        return
    for line in answer.iter_lines():
        if accept == "application/x-ndjson" and line:
            data = json.loads(line)
            assert isinstance(data["version"], int)
            yield data.get("event", ""), data.get("status", "")
        elif line and (state := _LINE.fullmatch(line)):
            yield "", state[1]
        elif line:
            assert re.fullmatch(r" +\(events \d+ to \d+ can no longer be replayed\)", line), line
            yield "gap", ""


def ends_by_itself(stream: str) -> bool:
    return not stream.startswith("/events") or "task=" in stream


def assert_comes_to_its_end(stream: str, events: Iterator[tuple[str, str]]) -> None:
    for name, status in events:
        if not name and status in ENDS:
            break
    else:
        pytest.fail("the stream ended without an end to tell")
    if ends_by_itself(stream):
        assert list(events) == []


@pytest.mark.parametrize(("stream", "accept"), EVERY)
def test_what_has_ended_is_told(platform: Platform, ended: str, stream: str, accept: str) -> None:
    with opened(platform.url + stream.format(task=ended, batch="ended"), Accept=accept) as answer:
        assert_comes_to_its_end(stream, told(answer, accept))


@pytest.mark.parametrize(("stream", "accept"), EVERY)
def test_what_runs_is_told_from_before_its_first_byte_to_its_end(platform: Platform, stream: str, accept: str) -> None:
    batch = f"runs-{EVERY.index((stream, accept))}"
    task_id, upload = announced(platform, batch)
    with opened(platform.url + stream.format(task=task_id, batch=batch), Accept=accept) as answer:
        events = told(answer, accept)
        while next(events) not in (("", "uploading"), ("", "active")):
            pass
        httpx.put(upload, content=b"x").raise_for_status()
        assert_comes_to_its_end(stream, events)


@pytest.mark.parametrize(("stream", "accept"), [one for one in EVERY if "/batches" not in one[0]])
def test_a_gap_is_told_and_what_stands_for_it(platform: Platform, ended: str, stream: str, accept: str) -> None:
    url = platform.url + stream.format(task=ended, batch="ended")
    with opened(url, Accept=accept, **{"Last-Event-ID": "1"}) as answer:
        events = told(answer, accept)
        assert next(events) == ("gap", "")
        assert_comes_to_its_end(stream, events)


def test_where_there_is_nothing_each_stream_waits_or_says_so(own_platform: Platform, server: Server) -> None:
    own_platform.start_api(server=server, HEADWAY_HEARTBEAT_SECONDS="0.2")
    for stream, accept in EVERY:
        with opened(own_platform.url + stream.format(task="0" * 32, batch="none"), Accept=accept) as answer:
            if stream not in ("/events", "/events?batch_id={batch}"):
                assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
                continue
            received = b""
            for chunk in answer.iter_raw():  # the first bytes and a heartbeat
                received += chunk
                if received.count(b"\n") >= 3:
                    break
            if accept != "text/event-stream":
                assert received.strip() == b""
            assert b"data" not in received


def test_a_stop_ends_each_stream_whole(own_platform: Platform, server: Server) -> None:
    api = own_platform.start_api(server=server)
    task_id, _ = announced(own_platform, "b")
    with ExitStack() as stack:
        open_streams = []
        for stream, accept in EVERY:
            url = own_platform.url + stream.format(task=task_id, batch="b")
            chunks = stack.enter_context(opened(url, Accept=accept)).iter_raw()
            received = next(chunks)
            while not re.search(rb"uploading|active", received):
                received += next(chunks)
            open_streams.append((accept, chunks))
        api.signal(signal.SIGTERM)
        for accept, chunks in open_streams:
            goodbye = b"".join(chunks)  # raises where the answer is cut
            if accept == "text/event-stream":
                assert re.fullmatch(rb"retry: \d+\n: the server is restarting, come back\n", goodbye)
            elif accept == "text/plain":
                assert goodbye == b"          (the server is restarting)\n"
            else:
                assert goodbye == b""
    assert api.wait() == (0 if server == "headway api" else -signal.SIGTERM)
    assert "Traceback" not in api.log
