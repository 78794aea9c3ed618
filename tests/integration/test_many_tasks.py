"""Many tasks on one connection, batches and their roll-up, notes and transfers: on real processes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import redis

from headway.shared import keys
from tests.processes import Platform, RedisServer
from tests.streams import Frame, frames_of, opened, watch
from tests.waiting import wait_for

STEPS = '{"steps": 4, "step_seconds": 0.1}'


def by_task(story: list[Frame]) -> dict[str, list[Frame]]:
    found: dict[str, list[Frame]] = {}
    for frame in story:
        found.setdefault(frame.data["task_id"], []).append(frame)
    return found


def assert_each_is_true(story: list[Frame]) -> None:
    """Of each task: versions rise, progress never falls, one end, the last."""
    for frames in by_task(story).values():
        states = [frame for frame in frames if not frame.name]
        versions = [frame.data["version"] for frame in states]
        assert versions == sorted(set(versions))
        ends = [frame for frame in states if frame.status in ("completed", "failed", "cancelled")]
        assert ends == states[-1:]


def until_all_ended(frames: Iterator[Frame], ids: set[str]) -> list[Frame]:
    story, open_ids = [], set(ids)
    while open_ids:
        frame = next(frames)
        story.append(frame)
        if not frame.name and frame.status in ("completed", "failed", "cancelled"):
            open_ids.discard(frame.data["task_id"])
    return story


def test_named_tasks_share_a_stream_that_ends_with_the_last_of_them(platform: Platform) -> None:
    ids = [platform.submit("rehearsal", options=STEPS)["task_id"] for _ in range(3)]
    other = platform.submit("checksum", b"not watched")["task_id"]
    query = "&".join(f"task={task_id}" for task_id in ids)
    with opened(f"{platform.url}/events?{query}") as answer:
        story = list(frames_of(answer))
    assert set(by_task(story)) == set(ids)
    assert other not in by_task(story)
    assert_each_is_true(story)
    with opened(f"{platform.url}/events?{query}", **{"Last-Event-ID": str(story[-1].id)}) as answer:
        assert answer.status_code == 204
    with opened(f"{platform.url}/events?{query}") as answer:  # a first look at ended tasks shows their ends
        assert {frame.status for frame in frames_of(answer)} == {"completed"}


def test_resuming_gives_every_event_after_the_last_id_once(platform: Platform) -> None:
    ids = [platform.submit("rehearsal", options=STEPS)["task_id"] for _ in range(2)]
    query = "&".join(f"task={task_id}" for task_id in ids)
    first: list[Frame] = []
    with opened(f"{platform.url}/events?{query}") as answer:
        for frame in frames_of(answer):
            first.append(frame)
            if frame.data["step"] == 2:
                break
    with opened(f"{platform.url}/events?{query}", **{"Last-Event-ID": str(first[-1].id)}) as answer:
        rest = list(frames_of(answer))
    assert_each_is_true(first + rest)
    assert set(by_task(first + rest)) == set(ids)


def test_unknown_named_tasks_are_404(platform: Platform) -> None:
    known = platform.submit("checksum", b"x")["task_id"]
    for query in (f"task={'0' * 32}", f"task={known}&task={'0' * 32}", "task=nonsense"):
        with opened(f"{platform.url}/events?{query}") as answer:
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("query", ["batch_id=a%20b", "batch_id=" + "x" * 65, f"task={'0' * 32}&batch_id=b"])
def test_a_wrong_scope_is_told(platform: Platform, query: str) -> None:
    with opened(f"{platform.url}/events?{query}") as answer:
        assert answer.status_code == 422


def test_all_of_the_owners_tasks_are_shown_also_those_that_come_later(own_platform: Platform) -> None:
    own_platform.start_api()
    own_platform.start_worker()
    before = own_platform.submit("checksum", b"x")["task_id"]
    own_platform.wait(before)
    with opened(f"{own_platform.url}/events") as answer:
        frames = frames_of(answer)
        assert next(frames).data["task_id"] == before
        later = own_platform.submit("rehearsal", options=STEPS)["task_id"]
        story = until_all_ended(frames, {later})
    assert story[0].status == "queued"
    assert_each_is_true(story)


def test_an_owner_without_tasks_gets_a_stream_that_waits(own_platform: Platform) -> None:
    own_platform.start_api()
    with opened(f"{own_platform.url}/events") as answer:
        received = answer.iter_raw()
        assert next(received).startswith(b"retry: 1000\n: ")
        task_id = own_platform.submit("rehearsal")["task_id"]
        assert task_id.encode() in next(received)


def test_a_trimmed_feed_is_a_gap_and_the_true_state_of_what_changed(own_platform: Platform) -> None:
    own_platform.start_api(HEADWAY_HISTORY_LENGTH="5")
    own_platform.start_worker(HEADWAY_HISTORY_LENGTH="5")
    untouched = own_platform.submit("checksum", b"x")["task_id"]
    own_platform.wait(untouched)
    seen = own_platform.task(untouched)["version"]
    ids = {own_platform.submit("rehearsal", options='{"steps": 9, "step_seconds": 0}')["task_id"] for _ in range(3)}
    for task_id in ids:
        own_platform.wait(task_id)
    with opened(f"{own_platform.url}/events", **{"Last-Event-ID": str(seen)}) as answer:
        frames = frames_of(answer)
        gap = next(frames)
        states = [next(frames) for _ in ids]
    assert (gap.name, gap.data["from"]) == ("gap", seen + 1)
    assert {frame.data["task_id"] for frame in states} == ids
    assert {frame.status for frame in states} == {"completed"}


def test_a_batch_rolls_up_to_one_honest_progress(platform: Platform) -> None:
    batch = "batch-1"
    ids = {platform.submit("rehearsal", options=STEPS, batch_id=batch)["task_id"] for _ in range(4)}
    ids.add(
        platform.submit("rehearsal", options='{"steps": 1, "step_seconds": 0, "fail_at": 1}', batch_id=batch)["task_id"]
    )
    with opened(f"{platform.url}/batches/{batch}/events") as answer:
        story = list(frames_of(answer))
    for frame in story:
        counts = frame.data["counts"]
        assert sum(counts.values()) == frame.data["total"] == 5
        assert (frame.data["progress"] == 100) == (frame.data["status"] == "ended")
    assert [frame.id for frame in story] == sorted({frame.id for frame in story})
    progress = [frame.data["progress"] for frame in story]
    assert progress == sorted(progress)
    last = story[-1].data
    assert (last["counts"]["completed"], last["counts"]["failed"], last["eta_seconds"]) == (4, 1, 0)
    rollup = httpx.get(f"{platform.url}/batches/{batch}").json()
    assert rollup["counts"] == last["counts"]
    with opened(f"{platform.url}/batches/{batch}/events", **{"Last-Event-ID": str(story[-1].id)}) as answer:
        assert answer.status_code == 204
    listed = httpx.get(f"{platform.url}/tasks", params={"batch_id": batch}).json()["tasks"]
    assert {task["task_id"] for task in listed} == ids
    with opened(f"{platform.url}/events?batch_id={batch}") as answer:
        frames = frames_of(answer)
        assert {next(frames).data["task_id"] for _ in ids} == ids


def test_a_retry_moves_the_batch_back_honestly(platform: Platform) -> None:
    batch = "batch-2"
    task_id = platform.submit("rehearsal", options='{"steps": 1, "step_seconds": 0, "fail_at": 1}', batch_id=batch)[
        "task_id"
    ]
    platform.wait(task_id)
    ended = httpx.get(f"{platform.url}/batches/{batch}").json()
    assert (ended["status"], ended["progress"], ended["counts"]["failed"]) == ("ended", 100, 1)
    httpx.post(f"{platform.url}/tasks/{task_id}/retry")
    wait_for(
        "it has failed again", lambda: platform.task(task_id)["attempt"] == 2 and platform.task(task_id)["finished_at"]
    )
    again = httpx.get(f"{platform.url}/batches/{batch}").json()
    assert (again["total"], again["counts"], again["progress"]) == (1, ended["counts"], 100)
    assert again["version"] > ended["version"]


def test_a_batch_is_cancelled_whole_and_in_one_request(platform: Platform) -> None:
    """More tasks than a page of the server's, in every state, and none of another batch."""
    batch = "batch-3"
    short = platform.submit("rehearsal", options='{"steps": 1, "step_seconds": 0}', batch_id=batch)["task_id"]
    platform.wait(short)
    with httpx.Client(base_url=platform.url) as client:
        made: dict[str, Any] = {"processor": "rehearsal", "options": {"steps": 100, "step_seconds": 1}}
        for _ in range(60):
            assert client.post("/tasks", json=made | {"batch_id": batch}).status_code == 202
        announced = {"processor": "checksum", "filename": "a.txt", "size_bytes": 5, "batch_id": batch}
        assert client.post("/tasks", json=announced).status_code == 201
        other = client.post("/tasks", json=made | {"batch_id": "batch-4"}).json()["task_id"]

        first = client.post(f"/batches/{batch}/cancel")
        assert first.status_code == 202
        assert first.json() == {"batch_id": batch, "tasks": 62, "cancelled": 61, "ended": 1}
        rollup = client.get(f"/batches/{batch}").json()
        assert (rollup["status"], rollup["counts"]["cancelled"], rollup["counts"]["completed"]) == ("ended", 61, 1)
        again = client.post(f"/batches/{batch}/cancel")
        assert again.json() == {"batch_id": batch, "tasks": 62, "cancelled": 0, "ended": 62}
        assert client.get(f"/tasks/{other}").json()["status"] in ("queued", "processing")
        client.post(f"/tasks/{other}/cancel")
        assert client.post("/batches/nothing/cancel").status_code == 404
        elsewhere = client.post(f"/batches/{batch}/cancel", headers={"Sec-Fetch-Site": "cross-site"})
        assert elsewhere.status_code == 403


def test_two_who_cancel_a_batch_at_once_cancel_each_task_once(platform: Platform) -> None:
    batch = "batch-5"
    with httpx.Client(base_url=platform.url) as client:
        made = {"processor": "rehearsal", "options": {"steps": 100, "step_seconds": 1}, "batch_id": batch}
        for _ in range(50):
            client.post("/tasks", json=made)
    with ThreadPoolExecutor(2) as pool:
        cancelling = [pool.submit(httpx.post, f"{platform.url}/batches/{batch}/cancel") for _ in range(2)]
        answers = [one.result().json() for one in cancelling]
    assert sum(answer["cancelled"] for answer in answers) == 50
    assert {answer["tasks"] for answer in answers} == {50}
    assert httpx.get(f"{platform.url}/batches/{batch}").json()["counts"]["cancelled"] == 50


def test_an_unknown_batch_is_404(platform: Platform) -> None:
    for path in ("/batches/nothing", "/batches/nothing/events", "/batches/a%20b"):
        with opened(f"{platform.url}{path}") as answer:
            assert answer.status_code == 404


def test_a_note_reaches_everybody_who_watches_in_its_place(platform: Platform) -> None:
    task = platform.submit("rehearsal", options='{"steps": 3, "step_seconds": 0.2}')
    url = f"{platform.url}/tasks/{task['task_id']}"
    with opened(f"{url}/events") as watching:
        frames = frames_of(watching)
        next(frames)
        text = "looks good\nid: 99\n\ndata: {}\u2028🙂"
        answer = httpx.post(f"{url}/notes", json={"author": "Ann", "text": text})
        assert answer.status_code == 201
        note = next(frame for frame in frames if frame.name == "note")
    assert note.id == answer.json()["version"]
    assert (note.data["author"], note.data["text"]) == ("Ann", text)
    assert note in watch(platform.url, task["task_id"], last_event_id=0)
    platform.wait(task["task_id"])
    httpx.post(f"{url}/notes", json={"author": "Ann", "text": "after the end"}).raise_for_status()
    assert [said["text"] for said in httpx.get(f"{url}/notes").json()["notes"]] == [text, "after the end"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"author": "", "text": "x"},
        {"author": "a", "text": " "},
        {"author": "a", "text": "x" * 1001},
        [],
        {"author": 1, "text": "x"},
    ],
)
def test_a_wrong_note_is_told(platform: Platform, body: object) -> None:
    task = platform.submit("checksum", b"x")
    answer = httpx.post(f"{platform.url}/tasks/{task['task_id']}/notes", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert answer.json()["errors"]


def test_the_largest_note_is_one_event_of_at_most_16_kib(platform: Platform) -> None:
    task = platform.submit("rehearsal", options='{"steps": 1, "step_seconds": 0}')
    httpx.post(f"{platform.url}/tasks/{task['task_id']}/notes", json={"author": "🙂" * 80, "text": "🙂" * 1000})
    platform.wait(task["task_id"])
    body = httpx.get(f"{platform.url}/events", params={"task": task["task_id"], "last_event_id": "0"})
    assert max(len(block) for block in body.content.split(b"\n\n")) <= 16 * 1024


def test_a_download_shows_on_the_stream_of_whoever_asks(platform: Platform) -> None:
    content = bytes(3_000_000)
    task = platform.submit("rehearsal", content, options='{"steps": 1, "step_seconds": 5}')
    url = f"{platform.url}/tasks/{task['task_id']}"
    with opened(f"{url}/events") as watching:
        frames = frames_of(watching)
        next(frames)
        assert httpx.get(f"{url}/input", params={"transfer": "1"}).content == content
        transfers: list[dict[str, Any]] = []
        while not transfers or transfers[-1]["progress"] < 100:
            frame = next(frames)
            if frame.name == "transfer":
                transfers.append(frame.data)
    assert transfers[-1] == {
        "task_id": task["task_id"],
        "file": "file.bin",
        "sent": 3_000_000,
        "total": 3_000_000,
        "progress": 100,
    }
    assert [one["sent"] for one in transfers] == sorted(one["sent"] for one in transfers)
    httpx.post(f"{url}/cancel")


def test_a_transfer_after_the_end_does_not_open_the_end_again(platform: Platform) -> None:
    task = platform.submit("checksum", b"x" * 100)
    end = watch(platform.url, task["task_id"])[-1]
    httpx.get(f"{platform.url}/tasks/{task['task_id']}/input?transfer=1")
    assert platform.task(task["task_id"])["version"] == end.id
    with opened(f"{platform.url}/tasks/{task['task_id']}/events", **{"Last-Event-ID": str(end.id)}) as answer:
        assert answer.status_code == 204
    whole = watch(platform.url, task["task_id"], last_event_id=0)
    assert whole[-1] == end


def test_redis_back_empty_tells_every_task_on_the_feed_as_lost(own_platform: Platform, own_redis: RedisServer) -> None:
    own_platform.start_api()
    ids = {own_platform.submit("rehearsal")["task_id"] for _ in range(3)}
    with opened(f"{own_platform.url}/events") as answer:
        frames = frames_of(answer)
        for _ in ids:
            next(frames)
        own_redis.kill()
        own_redis.forget()
        own_redis.start()
        story = until_all_ended(frames, ids)
    assert {frame.data["error"]["type"] for frame in story} == {"lost"}
    assert {json.dumps(frame.data["task_id"]) for frame in story} == {json.dumps(task_id) for task_id in ids}


def test_the_feed_resumes_across_a_cut_and_a_restart_of_the_api(own_platform: Platform) -> None:
    api = own_platform.start_api()
    own_platform.start_worker(HEADWAY_WORKER_CONCURRENCY="3")
    options = '{"steps": 30, "step_seconds": 0.1}'
    ids = {own_platform.submit("rehearsal", options=options)["task_id"] for _ in range(3)}
    story: list[Frame] = []
    with opened(f"{own_platform.url}/events") as answer:
        for frame in frames_of(answer):
            story.append(frame)
            if frame.data["step"] == 3:
                break  # the line is cut here
    resumed = {"Last-Event-ID": str(story[-1].id)}
    with contextlib.suppress(httpx.HTTPError), opened(f"{own_platform.url}/events", **resumed) as answer:
        for frame in frames_of(answer):
            story.append(frame)
            if frame.data["step"] == 8 and api.code is None:
                api.kill()
    assert api.code is not None
    own_platform.start_api(port=int(own_platform.url.rsplit(":", 1)[1]))
    with opened(f"{own_platform.url}/events", **{"Last-Event-ID": str(story[-1].id)}) as answer:
        story += until_all_ended(frames_of(answer), ids)
    assert_each_is_true(story)
    for frames in by_task(story).values():
        versions = [frame.data["version"] for frame in frames]
        assert versions == list(range(versions[0], versions[-1] + 1))


def test_a_deletion_is_told_to_whoever_watches_or_comes_back_and_nothing_of_the_task_is_replayed(
    own_platform: Platform,
) -> None:
    own_platform.start_worker()
    own_platform.start_api()
    url = own_platform.url
    kept, gone = (own_platform.submit("checksum", b"x", batch_id="run1:tasks")["task_id"] for _ in range(2))
    for task_id in (kept, gone):
        own_platform.wait(task_id, "completed")
    folder = own_platform.data_dir / "tasks" / gone
    assert folder.exists()
    with opened(f"{url}/events?batch_id=run1:tasks") as batch, opened(f"{url}/events") as answer:
        feeds = [frames_of(batch), frames_of(answer)]
        last = [[next(feed), next(feed)][-1] for feed in feeds][-1]
        httpx.post(f"{url}/tasks/{gone}/notes", json={"author": "a", "text": "a secret"}).raise_for_status()
        assert httpx.delete(f"{url}/tasks/{gone}").status_code == 204
        for feed in feeds:
            told = [next(feed), next(feed)]
            assert [frame.name for frame in told] == ["note", "deleted"]
            assert told[1].data["task_id"] == gone
    assert not folder.exists()
    for headers in ({"Last-Event-ID": str(last.id)}, {"Last-Event-ID": "1"}):
        with opened(f"{url}/events", **headers) as answer:
            frames = frames_of(answer)
            while (frame := next(frames)).name != "deleted":
                assert frame.data.get("task_id") != gone, "of a task that was deleted"
            assert frame.data["task_id"] == gone
    assert httpx.get(f"{url}/tasks/{gone}/events").status_code == 404
    assert httpx.delete(f"{url}/tasks/{gone}").status_code == 404
    assert httpx.get(f"{url}/batches/run1:tasks").json()["total"] == 1


def test_batches_whose_names_meet_take_tasks(platform: Platform) -> None:
    for name in ("meet", "meet:tasks", "meet:live"):
        task = platform.submit("checksum", b"x", batch_id=name)
        platform.wait(task["task_id"], "completed")
        assert httpx.get(f"{platform.url}/batches/{name}").json()["counts"]["completed"] == 1


def test_a_task_that_redis_threw_away_is_told_to_whoever_watches(
    own_platform: Platform, own_redis: RedisServer
) -> None:
    own_platform.start_api()
    own_platform.start_worker()
    ended = own_platform.submit("checksum", b"x")["task_id"]
    own_platform.wait(ended)
    body = {"filename": "x", "size_bytes": 1, "content_type": "text/plain", "processor": "checksum"}
    waits = httpx.post(f"{own_platform.url}/tasks", json=body).json()["task_id"]
    with opened(f"{own_platform.url}/events") as answer, redis.Redis.from_url(own_redis.url) as client:
        frames = frames_of(answer)
        assert {next(frames).data["task_id"] for _ in range(2)} == {ended, waits}
        for task_id in (ended, waits):  # as an eviction does, without a word
            client.delete(keys.state(task_id), keys.events(task_id))
        last = {frame.data["task_id"]: frame for frame in (next(frames), next(frames))}
    assert (last[ended].name, last[waits].name) == ("deleted", "")
    assert (last[waits].status, last[waits].data["error"]["type"]) == ("failed", "lost")


def test_feeds_that_lose_their_subscription_ask_redis_once_for_all_of_them(
    own_platform: Platform, own_redis: RedisServer
) -> None:
    own_platform.start_api()
    for _ in range(60):
        own_platform.submit("rehearsal")
    with ExitStack() as stack, redis.Redis.from_url(own_redis.url) as client:
        feeds = [frames_of(stack.enter_context(opened(f"{own_platform.url}/events"))) for _ in range(30)]
        for frames in feeds:
            assert len({next(frames).data["task_id"] for _ in range(60)}) == 60
        client.config_resetstat()
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

        def calls(name: str) -> int:
            return int(client.info("commandstats").get(f"cmdstat_{name}", {}).get("calls", 0))

        wait_for("it is subscribed again", lambda: calls("subscribe"))
        wait_for("it has been read", lambda: calls("exists"))
        task_id = own_platform.submit("rehearsal")["task_id"]
        for frames in feeds:
            assert next(frames).data["task_id"] == task_id
        assert calls("hgetall") + calls("hmget") < 60, "nobody reads all tasks again"
        assert calls("exists") < 10
