"""A task whose file is another's: its input, or a result of it; it waits for that one to end, and fails with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import Platform, RedisServer
from tests.s3_server import S3Server
from tests.streams import assert_true_story, watch
from tests.waiting import wait_for

ALICE = {"Authorization": "Bearer the-secret-key-of-alice-4711"}
BOB = {"Authorization": "Bearer the-secret-key-of-bob-0815"}
CSV = b"a,b\n" + b"".join(b"%d,%d\n" % (number, number % 7) for number in range(2000))
LONG = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 3000}}


@pytest.fixture(scope="module", params=["directory", "bucket"])
def chaining(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    env: dict[str, str] = {}
    if request.param == "bucket":
        server: S3Server = request.getfixturevalue("s3_server")
        env = {"HEADWAY_STORAGE_URL": f"s3://{server.bucket}/chaining", **server.environment}
    with Platform(tmp_path_factory.mktemp("chaining"), redis_server.fresh_url(), **env) as platform:
        platform.start_worker()
        platform.start_api()
        yield platform


def follow(platform: Platform, source: str, processor: str = "checksum", **more: Any) -> dict[str, Any]:
    asked = {"task_id": source, **({"file": more.pop("file")} if "file" in more else {})}
    answer = httpx.post(f"{platform.url}/tasks", json={"processor": processor, "input": asked, **more})
    assert answer.status_code == 202, answer.text
    task: dict[str, Any] = answer.json()
    assert task["input_of"] == asked
    return task


def announced(platform: Platform, processor: str = "compress", **more: Any) -> dict[str, Any]:
    body = {"processor": processor, "filename": "trips.csv", "size_bytes": len(CSV), **more}
    task: dict[str, Any] = httpx.post(f"{platform.url}/tasks", json=body).json()
    return task


def test_the_input_of_a_task_that_has_ended_is_taken_without_an_upload(chaining: Platform) -> None:
    source = chaining.submit("csv-profile", CSV, filename="trips.csv")
    chaining.wait(source["task_id"])
    task = chaining.wait(follow(chaining, source["task_id"])["task_id"])
    assert task["status"] == "completed", task
    assert task["result"]["summary"]["sha256"] == hashlib.sha256(CSV).hexdigest()
    assert (task["filename"], task["size_bytes"]) == ("trips.csv", len(CSV))
    assert httpx.get(f"{chaining.url}{task['links']['input']}").content == CSV


def test_a_result_is_taken_by_its_name_and_stays_when_its_task_goes(chaining: Platform) -> None:
    source = chaining.submit("compress", CSV, filename="trips.csv", options='{"format": "gzip"}')
    [file] = chaining.wait(source["task_id"])["result"]["files"]
    task = chaining.wait(follow(chaining, source["task_id"], file=file["name"])["task_id"])
    assert task["result"]["summary"]["sha256"] == file["sha256"]
    assert (task["filename"], task["size_bytes"]) == (file["name"], file["size_bytes"])
    assert httpx.delete(f"{chaining.url}/tasks/{source['task_id']}").status_code == 204
    content = httpx.get(f"{chaining.url}/tasks/{task['task_id']}/input").content
    assert hashlib.sha256(content).hexdigest() == file["sha256"]
    again = chaining.wait(follow(chaining, task["task_id"])["task_id"])
    assert again["result"]["summary"]["sha256"] == file["sha256"]


def test_it_waits_for_a_task_that_has_not_ended_and_then_runs(chaining: Platform) -> None:
    source = announced(chaining, options={"format": "gzip"})
    middle = follow(chaining, source["task_id"], "extract", file="trips.csv.gz")
    last = follow(chaining, middle["task_id"], file="trips.csv")
    same = follow(chaining, source["task_id"])
    for task in (middle, last, same):
        assert task["status"] == "queued"
        assert "waiting" in task["message"]
    assert httpx.put(f"{chaining.url}{source['links']['upload']}", content=CSV).status_code == 200
    for task in (last, same):
        done = chaining.wait(task["task_id"])
        assert done["status"] == "completed", done
        assert done["result"]["summary"]["sha256"] == hashlib.sha256(CSV).hexdigest()
    assert_true_story(watch(chaining.url, last["task_id"], last_event_id=0))


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_it_fails_with_the_other_one_and_so_do_those_behind_it(chaining: Platform, end: str) -> None:
    source = announced(chaining, "rehearsal", options={"steps": 1, "fail_at": 1, "step_seconds": 0})
    first = follow(chaining, source["task_id"])
    second = follow(chaining, first["task_id"], file="x")
    if end == "failed":
        httpx.put(f"{chaining.url}{source['links']['upload']}", content=CSV)
    else:
        httpx.post(f"{chaining.url}/tasks/{source['task_id']}/cancel")
    assert chaining.wait(source["task_id"])["status"] == end
    for task, before in ((first, source), (second, first)):
        done = chaining.wait(task["task_id"])
        assert (done["status"], done["error"]["type"]) == ("failed", "bad_input")
        assert f"{before['task_id']}, is " in done["error"]["message"]
        assert "retry" in done["links"]


def test_who_asks_after_a_failure_gets_the_input_and_no_result(chaining: Platform) -> None:
    options = '{"steps": 1, "fail_at": 1, "step_seconds": 0}'
    source = chaining.submit("rehearsal", CSV, options=options)
    chaining.wait(source["task_id"], "failed")
    same, result = follow(chaining, source["task_id"]), follow(chaining, source["task_id"], file="x")
    assert chaining.wait(same["task_id"])["status"] == "completed"
    assert f"{source['task_id']}, is failed" in chaining.wait(result["task_id"])["error"]["message"]


def test_one_that_waits_can_be_cancelled_and_retried(chaining: Platform) -> None:
    source = announced(chaining)
    task = follow(chaining, source["task_id"])
    address = f"{chaining.url}/tasks/{task['task_id']}"
    assert httpx.post(f"{address}/cancel").json()["status"] == "cancelled"
    again = httpx.post(f"{address}/retry").json()
    assert again["status"] == "queued"
    assert "waiting" in again["message"]
    assert httpx.put(f"{chaining.url}{source['links']['upload']}", content=CSV).status_code == 200
    done = chaining.wait(task["task_id"], "completed", "failed")
    assert (done["status"], done["attempt"]) == ("completed", 2)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"input": {"task_id": "0" * 32}}, 404),
        ({"input": {"task_id": "none"}}, 422),
        ({"input": {}}, 422),
        ({"input": {"task_id": "0" * 32, "more": 1}}, 422),
        ({"input": "0" * 32}, 422),
        ({"input": {"task_id": "0" * 32}, "filename": "a"}, 422),
        ({"input": {"task_id": "0" * 32}, "size_bytes": 3}, 422),
    ],
    ids=str,
)
def test_what_is_no_file_of_another_task_is_said(chaining: Platform, body: dict[str, Any], status: int) -> None:
    answer = httpx.post(f"{chaining.url}/tasks", json={"processor": "checksum", **body})
    assert answer.status_code == status, answer.text
    assert "input" in answer.json()["detail"]


def test_a_file_that_will_never_be_there_is_refused_at_once(chaining: Platform) -> None:
    source = chaining.submit("checksum", b"hello")
    chaining.wait(source["task_id"])
    bare = httpx.post(f"{chaining.url}/tasks", json=LONG).json()
    for asked in ({"task_id": source["task_id"], "file": "none"}, {"task_id": bare["task_id"]}):
        answer = httpx.post(f"{chaining.url}/tasks", json={"processor": "checksum", "input": asked})
        assert answer.status_code == 422, answer.text
    httpx.post(f"{chaining.url}/tasks/{bare['task_id']}/cancel")


def test_it_is_the_owners_alone_and_counts_to_the_quota(redis_server: RedisServer, tmp_path: Path) -> None:
    keys = {"alice": ALICE["Authorization"][7:], "bob": BOB["Authorization"][7:]}
    env = {"HEADWAY_API_KEYS": json.dumps(keys), "HEADWAY_OWNER_QUOTA_BYTES": str(len(CSV) * 2 + 100)}
    with Platform(tmp_path / "keyed", redis_server.fresh_url(), **env) as platform:
        platform.start_worker()
        platform.start_api()
        with httpx.Client(base_url=platform.url, headers=ALICE) as alice, httpx.Client(base_url=platform.url) as others:
            form = {"processor": "checksum"}
            source = alice.post("/tasks", data=form, files={"file": ("a.csv", CSV)}).json()
            body = {"processor": "checksum", "input": {"task_id": source["task_id"]}}
            assert others.post("/tasks", json=body, headers=BOB).status_code == 404
            token = {"Authorization": f"Bearer {source['token']}"}
            assert others.post("/tasks", json=body, headers=token).status_code == 403
            ends = []
            for _ in range(2):
                task = alice.post("/tasks", json=body).json()["links"]["self"]
                ends.append(ended(alice, task))
            assert [end["status"] for end in ends] == ["completed", "failed"]
            assert ends[1]["error"]["type"] == "storage_full"
            assert "does not fit" in ends[1]["error"]["message"]


def ended(client: httpx.Client, task: str) -> dict[str, Any]:
    found = wait_for("it ends", lambda: (now := client.get(task).json())["finished_at"] and now)
    return dict(found)


def has_begun(platform: Platform, task_id: str) -> None:
    wait_for("this one has begun", lambda: platform.task(task_id)["started_at"])


def test_a_worker_that_is_killed_between_two_of_a_chain_breaks_no_chain(own_platform: Platform) -> None:
    own_platform.start_api()
    source = announced(own_platform, options={"format": "gzip"})
    tasks = [source]
    for _ in range(5):
        tasks.append(follow(own_platform, tasks[-1]["task_id"]))
    assert httpx.put(f"{own_platform.url}{source['links']['upload']}", content=CSV).status_code == 200
    for task in tasks:
        worker = own_platform.start_worker(HEADWAY_LEASE_SECONDS="1", HEADWAY_MAX_ATTEMPTS="100")
        has_begun(own_platform, task["task_id"])
        worker.kill()
    own_platform.start_worker(HEADWAY_LEASE_SECONDS="1")
    assert own_platform.wait(tasks[-1]["task_id"], seconds=120)["status"] == "completed"
