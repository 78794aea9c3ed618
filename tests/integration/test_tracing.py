"""One task is one trace, from the request to the last event a watcher is sent, whoever dies; and nothing waits for a
collector. Real processes, and a collector that takes what real ones take."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.collector import CollectedSpan, Collector
from tests.processes import SERVERS, START_SECONDS, HeadwayProcess, Platform, RedisServer, Server
from tests.streams import frames_of, opened
from tests.waiting import wait_for

KEY = "a-key-that-nobody-may-read"
FILE = "a name that nobody may read.csv"
HEADERS = {"Authorization": f"Bearer {KEY}"}
PRODUCER, CONSUMER = 4, 5
FAST = {"OTEL_BSP_SCHEDULE_DELAY": "50"}

Traced = tuple[Platform, Collector]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Traced]:
    """With keys, both kinds of server, and a worker that may be killed."""
    env = FAST | {"HEADWAY_API_KEYS": json.dumps({"alice": KEY}), "HEADWAY_LEASE_SECONDS": "0.5"}
    url = redis_server.fresh_url()
    with Collector() as collector:
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        with Platform(tmp_path_factory.mktemp("traced"), url, **env) as platform:
            platform.start_worker(wait=False)
            for server in SERVERS:
                platform.start_api(server=server, wait=False)
            for url in platform.urls:
                wait_for("the API is ready", partial(is_ready, url), seconds=START_SECONDS)
            yield platform, collector


def the_worker(platform: Platform) -> HeadwayProcess:
    """Of those that were started, the one that was not ended."""
    return platform.workers[-1]


def is_ready(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/readyz").json().get("status") == "ready")
    except httpx.HTTPError:
        return False


def submit(url: str, processor: str, **options: Any) -> dict[str, Any]:
    """With a file, but for the rehearsal."""
    if processor == "rehearsal":
        answer = httpx.post(f"{url}/tasks", json={"processor": processor, "options": options}, headers=HEADERS)
    else:
        data, files = {"processor": processor}, {"file": (FILE, b"a,b\n1,2\n")}
        answer = httpx.post(f"{url}/tasks", data=data, files=files, headers=HEADERS)
    assert answer.status_code == 202, answer.text
    task: dict[str, Any] = answer.json()
    return task


def watch(url: str, task: dict[str, Any]) -> None:
    """To the end, by the task's token."""
    bearer = {"Authorization": f"Bearer {task['token']}"}
    with opened(f"{url}/tasks/{task['task_id']}/events?last_event_id=0", **bearer) as answer:
        assert list(frames_of(answer))[-1].data["finished_at"]


def post(url: str, task: dict[str, Any], what: str) -> None:
    assert httpx.post(f"{url}/tasks/{task['task_id']}/{what}", headers=HEADERS).status_code == 202


def is_processing(url: str, task: dict[str, Any], attempt: int = 1) -> bool:
    seen = httpx.get(f"{url}/tasks/{task['task_id']}", headers=HEADERS).json()
    return bool(seen["status"] == "processing" and seen["attempt"] == attempt)


def span_of(collector: Collector, name: str, task_id: str, **attributes: Any) -> CollectedSpan:
    [span] = wait_for(
        f"a span {name!r} of {task_id}", lambda: collector.named(name, task_id=task_id, **attributes), seconds=20
    )
    return span


def trace_with(collector: Collector, trace_id: str, *names: str) -> dict[str, CollectedSpan]:
    """The spans of a trace, once those named have come."""
    return wait_for(
        f"a trace with {', '.join(names)}",
        lambda: trace if (trace := collector.trace(trace_id)).keys() >= set(names) else {},
        seconds=20,
    )


@pytest.mark.parametrize("server", SERVERS)
def test_one_task_is_one_trace_from_the_request_to_the_last_event(traced: Traced, server: Server) -> None:
    platform, collector = traced
    url = platform.urls[SERVERS.index(server)]
    task = submit(url, "csv-profile")
    watch(url, task)
    trace_id = span_of(collector, "last event sent", task["task_id"]).trace_id
    trace = trace_with(collector, trace_id, "POST /tasks", "enqueue", "process csv-profile", "start child", "finish")
    request, enqueue, process = (trace[name] for name in ("POST /tasks", "enqueue", "process csv-profile"))
    assert request.parent_id == ""
    assert enqueue.parent_id == request.span_id
    assert process.parent_id == enqueue.span_id
    assert {trace[name].parent_id for name in ("start child", "finish", "last event sent")} == {process.span_id}
    assert (enqueue.kind, process.kind) == (PRODUCER, CONSUMER)
    assert {request.service, enqueue.service, trace["last event sent"].service} == {"headway-api"}
    assert {process.service, trace["finish"].service} == {"headway-worker"}
    assert process.attributes == {
        "headway.task_id": task["task_id"],
        "headway.processor": "csv-profile",
        "headway.attempt": 1,
        "headway.outcome": "completed",
    }
    assert "phase" in process.events
    assert not any(span.failed for span in trace.values())
    # and the worker's lines about it lead there
    lines = [json.loads(line) for worker in platform.workers for line in worker.log.splitlines()]
    assert {line["trace_id"] for line in lines if line.get("task_id") == task["task_id"]} == {trace_id}


def test_a_file_that_comes_later_is_traced_from_there_and_linked_to_its_announcement(traced: Traced) -> None:
    platform, collector = traced
    announcement = {"processor": "checksum", "filename": FILE, "size_bytes": 5}
    answer = httpx.post(f"{platform.url}/tasks", json=announcement, headers=HEADERS)
    task = answer.json()
    httpx.put(platform.url + task["links"]["upload"], content=b"12345", headers=HEADERS).raise_for_status()
    watch(platform.url, task)
    enqueue = span_of(collector, "enqueue", task["task_id"])
    upload = span_of(collector, "PUT /tasks/{task_id}/upload", task["task_id"])
    assert enqueue.parent_id == upload.span_id
    assert span_of(collector, "process checksum", task["task_id"]).trace_id == upload.trace_id
    [link] = enqueue.links
    announced = [span for span in collector.named("POST /tasks") if span.span_id == link]
    assert [span.attributes["http.response.status_code"] for span in announced] == [201]


def test_a_task_whose_worker_is_killed_goes_on_in_its_trace(traced: Traced) -> None:
    platform, collector = traced
    worker = the_worker(platform)
    task = submit(platform.url, "rehearsal", steps=200, step_seconds=0.1)
    wait_for("it runs", lambda: is_processing(platform.url, task))
    worker.signal(signal.SIGKILL)
    platform.start_worker(wait=False)
    wait_for("it runs again", lambda: is_processing(platform.url, task, 2), seconds=20)
    post(platform.url, task, "cancel")
    watch(platform.url, task)
    enqueue = span_of(collector, "enqueue", task["task_id"])
    second = span_of(collector, "process rehearsal", task["task_id"])
    assert (second.trace_id, second.parent_id) == (enqueue.trace_id, enqueue.span_id)
    assert (second.attributes["headway.attempt"], second.attributes["headway.outcome"]) == (2, "cancelled")
    [first] = second.links  # which nobody could send any more
    assert first not in {span.span_id for span in collector.spans}
    assert span_of(collector, "last event sent", task["task_id"]).trace_id == enqueue.trace_id


def test_a_task_that_is_handed_over_or_asked_for_again_stays_in_its_trace(traced: Traced) -> None:
    platform, collector = traced
    worker = the_worker(platform)
    task = submit(platform.url, "rehearsal", steps=200, step_seconds=0.1)
    wait_for("it runs", lambda: is_processing(platform.url, task), seconds=20)
    worker.signal(signal.SIGTERM)
    platform.start_worker(wait=False)
    wait_for("it runs again", lambda: is_processing(platform.url, task, 2), seconds=20)
    post(platform.url, task, "cancel")
    about = collector, "process rehearsal", task["task_id"]
    span_of(*about, attempt=2)  # the worker has heard it
    post(platform.url, task, "retry")
    wait_for("it was begun again", lambda: is_processing(platform.url, task, 3), seconds=20)
    post(platform.url, task, "cancel")
    watch(platform.url, task)
    first, second, third = (span_of(*about, attempt=attempt) for attempt in (1, 2, 3))
    outcomes = [span.attributes["headway.outcome"] for span in (first, second, third)]
    assert outcomes == ["handed_over", "cancelled", "cancelled"]
    assert (second.links, third.links) == ((first.span_id,), ())
    again = span_of(collector, "enqueue", task["task_id"], attempt=3)
    assert (again.parent_id, third.parent_id) == (second.span_id, again.span_id)
    assert again.links == (span_of(collector, "POST /tasks/{task_id}/retry", task["task_id"]).span_id,)
    assert {first.trace_id, second.trace_id, third.trace_id} == {again.trace_id}


@pytest.mark.parametrize("server", SERVERS)
def test_a_stream_is_one_span_at_most_and_a_failure_says_only_its_kind(traced: Traced, server: Server) -> None:
    platform, collector = traced
    url = platform.urls[SERVERS.index(server)]
    task = submit(url, "rehearsal", steps=20, step_seconds=0.02, fail_at=19)
    for _ in range(2):
        watch(url, task)
    wait_for(
        "both streams",
        lambda: (
            sum(s.attributes["headway.streams"] for s in collector.named("last event sent", task_id=task["task_id"]))
            == 2
        ),
        seconds=20,
    )
    process = span_of(collector, "process rehearsal", task["task_id"])
    assert process.failed
    assert process.attributes["error.type"] == "processor_error"
    assert "told to" not in process.text
    assert len(collector.trace(process.trace_id)) <= 7
    assert [span.name for span in collector.spans if "events" in span.name] == []


def test_no_key_token_query_or_name_is_in_a_span(traced: Traced) -> None:
    platform, collector = traced
    url = platform.url
    task = submit(url, "compress")
    watch(url, task)
    seen = httpx.get(f"{url}/tasks/{task['task_id']}", headers=HEADERS).json()
    file = seen["result"]["files"][0]
    httpx.get(f"{url}{file['url']}?transfer=1&token={KEY}", headers=HEADERS).raise_for_status()
    assert httpx.get(f"{url}/tasks/{KEY}?key={KEY}", headers=HEADERS).status_code == 404
    span_of(collector, "GET /tasks/{task_id}/files/{name}", task["task_id"])
    span_of(collector, "last event sent", task["task_id"])
    everything = "".join(span.text for span in collector.spans)
    for private in (KEY, task["token"], FILE, "nobody", "transfer=1", "Bearer"):
        assert private not in everything


def test_a_collector_that_is_away_delays_no_task_and_no_exit(redis_server: RedisServer, tmp_path: Path) -> None:
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        closed.bind(("127.0.0.1", 0))
        endpoints = [f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in (silent, closed)]
        with Platform(tmp_path, redis_server.fresh_url(), **FAST) as platform:
            # Else it is tried again for 10 s before that is said.
            env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoints[1], "OTEL_EXPORTER_OTLP_TIMEOUT": "0.5"}
            worker = platform.start_worker(wait=False, **env)
            api = platform.start_api(OTEL_EXPORTER_OTLP_ENDPOINT=endpoints[0])
            task = platform.submit("checksum", b"1")
            assert platform.wait(task["task_id"])["status"] == "completed"
            wait_for("the worker says so", lambda: '"event": "traces not sent"' in worker.log, seconds=30)
            for process in (api, worker):
                process.signal(signal.SIGTERM)
                assert process.wait(6) == 0
            assert worker.log.count("traces not sent") == 1
            assert "Traceback" not in api.log + worker.log
