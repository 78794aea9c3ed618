"""The event stream over HTTP, on real processes: snapshot, replay, live, end. The same on `headway api`, which writes
to the connections itself, and on plain uvicorn."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.processes import SERVERS, Platform, RedisServer, Server
from tests.streams import Frame, assert_true_story, frames_of, opened, watch

STEPS = '{"steps": 6, "step_seconds": 0.15}'


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Server:
    chosen: Server = request.param
    return chosen


@pytest.fixture(scope="module")
def platform(server: Server, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("platform"), redis_server.fresh_url()) as started:
        started.start_worker()
        started.start_api(server=server)
        yield started


def test_a_watcher_sees_a_file_from_queued_to_its_checksum(platform: Platform) -> None:
    content = b"headway" * 100_000
    task = platform.submit("checksum", content)
    story = watch(platform.url, task["task_id"], last_event_id=0)
    assert_true_story(story, first=1)
    assert story[0].status == "queued"
    assert story[-1].data["result"]["summary"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert story[-1].data["result"]["summary"]["size_bytes"] == len(content)


def test_connecting_in_the_middle_gives_the_snapshot_and_then_what_follows(platform: Platform) -> None:
    task = platform.submit("rehearsal", options=STEPS)
    platform.wait(task["task_id"], "processing")
    story = watch(platform.url, task["task_id"])
    assert_true_story(story)
    assert story[0].status == "processing"
    assert len(story) > 2


def test_each_step_of_a_rehearsal_is_one_state_event(platform: Platform) -> None:
    task = platform.submit("rehearsal", options=STEPS)
    story = watch(platform.url, task["task_id"], last_event_id=0)
    steps = [frame.data["step"] for frame in story if frame.status == "processing" and frame.data["step"]]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert all(frame.data["total_steps"] == 6 for frame in story if frame.data["step"])


@pytest.mark.parametrize("as_header", [True, False])
def test_reconnecting_gives_every_event_after_the_last_one_seen_once(platform: Platform, as_header: bool) -> None:
    task = platform.submit("rehearsal", options=STEPS)
    whole = watch(platform.url, task["task_id"], last_event_id=0)
    for seen in (1, 3, len(whole) - 1):
        url = f"{platform.url}/tasks/{task['task_id']}/events"
        headers = {"Last-Event-ID": str(seen)} if as_header else {}
        with opened(url if as_header else f"{url}?last_event_id={seen}", **headers) as answer:
            assert list(frames_of(answer)) == whole[seen:]


def test_the_header_wins_over_the_query(platform: Platform) -> None:
    task = platform.submit("rehearsal", options='{"steps": 2, "step_seconds": 0}')
    whole = watch(platform.url, task["task_id"], last_event_id=0)
    url = f"{platform.url}/tasks/{task['task_id']}/events?last_event_id=0"
    with opened(url, **{"Last-Event-ID": "2"}) as answer:
        assert list(frames_of(answer)) == whole[2:]


def test_a_reconnect_that_has_seen_the_end_gets_204_and_an_unknown_task_404(platform: Platform) -> None:
    task = platform.submit("checksum", b"x")
    end = watch(platform.url, task["task_id"])[-1]
    for seen in (end.id, end.id + 100):
        with opened(f"{platform.url}/tasks/{task['task_id']}/events", **{"Last-Event-ID": str(seen)}) as answer:
            assert (answer.status_code, answer.read()) == (204, b"")
    for unknown in ("0" * 32, "nonsense", "%00", "..%2f"):
        with opened(f"{platform.url}/tasks/{unknown}/events") as answer:
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("nonsense", ["abc", "-1", "1.5", "", "9" * 40, "0x10", "١"])
def test_an_event_id_that_is_not_ours_gets_the_snapshot(platform: Platform, nonsense: str) -> None:
    task = platform.submit("checksum", b"x")
    platform.wait(task["task_id"])
    url = httpx.URL(f"{platform.url}/tasks/{task['task_id']}/events", params={"last_event_id": nonsense})
    with opened(str(url)) as answer:
        [frame] = frames_of(answer)
    assert frame.status == "completed"


def test_the_headers_keep_every_proxy_from_buffering(platform: Platform) -> None:
    task = platform.submit("checksum", b"x")
    with opened(f"{platform.url}/tasks/{task['task_id']}/events", **{"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store, no-transform"
        assert answer.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in answer.headers
        assert answer.read().startswith(b"retry: 1000\nid: ")


def test_a_hundred_watchers_of_one_task_see_the_same_story(platform: Platform) -> None:
    task = platform.submit("rehearsal", options=STEPS)
    stories: list[list[Frame]] = []

    def one() -> None:
        stories.append(watch(platform.url, task["task_id"], last_event_id=0))

    threads = [threading.Thread(target=one) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stories) == 100
    assert_true_story(stories[0], first=1)
    assert all(story == stories[0] for story in stories)


def test_an_idle_stream_gets_comments(own_platform: Platform, server: Server) -> None:
    own_platform.start_api(server=server, HEADWAY_HEARTBEAT_SECONDS="0.2")
    task = own_platform.submit("rehearsal")  # there is no worker: nothing happens
    with opened(f"{own_platform.url}/tasks/{task['task_id']}/events") as answer:
        received = b""
        for chunk in answer.iter_raw():
            received += chunk
            if received.count(b"\n: ") >= 3:
                break
    assert received.count(b"data: ") == 1


def test_trimmed_history_is_told_as_a_gap_and_a_snapshot(own_platform: Platform, server: Server) -> None:
    own_platform.start_api(server=server, HEADWAY_HISTORY_LENGTH="10")
    own_platform.start_worker(HEADWAY_HISTORY_LENGTH="10")
    task = own_platform.submit("rehearsal", options='{"steps": 40, "step_seconds": 0}')
    own_platform.wait(task["task_id"])
    story = watch(own_platform.url, task["task_id"], last_event_id=2)
    assert_true_story(story)
    assert (story[0].name, story[0].data["from"]) == ("gap", 3)
    assert story[1].name == ""


def test_ndjson_and_text_tell_the_same(platform: Platform) -> None:
    task = platform.submit("rehearsal", options=STEPS)
    whole = watch(platform.url, task["task_id"], last_event_id=0)
    url = f"{platform.url}/tasks/{task['task_id']}/events?last_event_id=0"
    lines = httpx.get(url, headers={"Accept": "application/x-ndjson"}).text.splitlines()
    assert [json.loads(line) for line in lines if line] == [frame.data for frame in whole]
    text = httpx.get(url, headers={"Accept": "text/plain"})
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert len(text.text.splitlines()) == len(whole)
    assert "completed" in text.text.splitlines()[-1]


def test_both_servers_send_the_same_bytes(own_platform: Platform) -> None:
    for server in SERVERS:
        own_platform.start_api(server=server)
    own_platform.start_worker()
    task = own_platform.submit("rehearsal", options=STEPS)
    paths = [f"/tasks/{task['task_id']}/events?last_event_id=0", f"/events?task={task['task_id']}"]
    for accept in ("text/event-stream", "application/x-ndjson", "text/plain"):
        for path in paths:
            own_platform.wait(task["task_id"])
            told = []
            for url in own_platform.urls:
                with opened(url + path, Accept=accept) as answer:
                    kept = {name: value for name, value in answer.headers.items() if name not in ("date", "server")}
                    told.append((answer.status_code, kept, answer.read()))
            assert told[0] == told[1]
            assert told[0][2]


@pytest.mark.parametrize("path", ["/tasks/{}/events", "/task-progress/{}", "/events?task={}", "/events"])
@pytest.mark.parametrize("server", SERVERS)
def test_signs_of_life_are_events_for_who_asks_and_comments_for_everybody_else(
    own_platform: Platform, path: str, server: Server
) -> None:
    own_platform.start_api(server=server, HEADWAY_HEARTBEAT_SECONDS="0.1")
    task_id = own_platform.submit("rehearsal")["task_id"]
    url = own_platform.url + path.format(task_id)
    for asked in (True, False):
        with opened(url + ("&" if "?" in url else "?") + "alive=1" if asked else url) as answer:
            said, pieces = b"", answer.iter_raw()
            while said.count(b"event: alive\n" if asked else b": still here\n") < 4:
                said += next(pieces)
        assert (b"event: alive" in said, b": still here" in said) == (asked, not asked)
        if asked:
            signs = [json.loads(line[6:]) for line in said.split(b"\n") if b'"heartbeat_seconds"' in line]
            versions = [sign["version"] for sign in signs]
            assert versions[0] is None
            assert versions[-1] == 1
            assert {sign["heartbeat_seconds"] for sign in signs} == {0.1}
