"""Pipelines: a chain of tasks made in one step, with one bar; each takes the result of the one before it."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.processes import Platform, RedisServer
from tests.receivers import Receiver
from tests.waiting import wait_for

CSV = b"a,b\n" + b"".join(b"%d,%d\n" % (number, number % 7) for number in range(2000))
SHA256 = hashlib.sha256(CSV).hexdigest()
STEPS: list[dict[str, Any]] = [
    {"processor": "checksum"},
    {"processor": "compress", "options": {"format": "gzip"}},
    {"processor": "extract"},
    {"processor": "checksum", "file": "trips.csv"},
]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(scope="module")
def piping(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    env = {"HEADWAY_WEBHOOK_SECRET": SECRET, "HEADWAY_WEBHOOK_ALLOW": "127.0.0.1", "HEADWAY_MAX_UNFINISHED_TASKS": "40"}
    with Platform(tmp_path_factory.mktemp("piping"), redis_server.fresh_url(), **env) as platform:
        platform.start_worker()
        platform.start_api()
        yield platform


def made(platform: Platform, body: dict[str, Any], status: int = 201, key: str | None = None) -> dict[str, Any]:
    headers = {"Idempotency-Key": key} if key is not None else {}
    answer = httpx.post(f"{platform.url}/pipelines", json=body, headers=headers)
    assert answer.status_code == status, answer.text
    pipeline: dict[str, Any] = answer.json()
    return pipeline


def ended(platform: Platform, pipeline: dict[str, Any]) -> list[dict[str, Any]]:
    return [platform.wait(task["task_id"], seconds=60) for task in pipeline["tasks"]]


def is_true_to_the_end(platform: Platform, pipeline: dict[str, Any]) -> None:
    tasks = ended(platform, pipeline)
    assert [task["status"] for task in tasks] == ["completed"] * len(STEPS), [task["error"] for task in tasks]
    assert tasks[-1]["result"]["summary"]["sha256"] == SHA256
    batch = httpx.get(f"{platform.url}{pipeline['links']['self']}").json()
    assert (batch["progress"], batch["counts"]["completed"], batch["total"]) == (100, len(STEPS), len(STEPS))
    assert batch["status"] == "ended"


def test_an_announced_file_goes_through_all_steps(piping: Platform) -> None:
    pipeline = made(piping, {"steps": STEPS, "filename": "trips.csv", "size_bytes": len(CSV)})
    first, *others = pipeline["tasks"]
    assert [task["processor"] for task in pipeline["tasks"]] == [step["processor"] for step in STEPS]
    assert first["status"] == "uploading"
    assert all(task["status"] == "queued" and "waiting" in task["message"] for task in others)
    assert [task["input_of"]["task_id"] for task in others] == [task["task_id"] for task in pipeline["tasks"][:-1]]
    assert {task["batch_id"] for task in pipeline["tasks"]} == {pipeline["batch_id"]}
    assert httpx.put(f"{piping.url}{first['links']['upload']}", content=CSV).status_code == 200
    is_true_to_the_end(piping, pipeline)


def test_a_form_brings_the_file_with_the_steps(piping: Platform) -> None:
    form = {"steps": json.dumps(STEPS), "batch_id": "mine"}
    answer = httpx.post(f"{piping.url}/pipelines", data=form, files={"file": ("trips.csv", CSV)})
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == "/batches/mine"
    is_true_to_the_end(piping, answer.json())


def test_the_file_may_be_another_tasks(piping: Platform) -> None:
    source = piping.submit("checksum", CSV, filename="trips.csv")
    is_true_to_the_end(piping, made(piping, {"steps": STEPS, "input": {"task_id": source["task_id"]}}, 202))


def test_a_failure_goes_through_the_rest_and_is_told_once(piping: Platform) -> None:
    rehearsal = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0, "fail_at": 1}}
    with Receiver() as receiver:
        body = {"steps": [rehearsal, {"processor": "checksum"}, {"processor": "checksum"}]}
        pipeline = made(piping, body | {"webhook": {"url": receiver.url()}}, 202)
        assert [task["status"] for task in ended(piping, pipeline)] == ["failed"] * 3
        wait_for("its end is told", lambda: receiver.received)
        [one] = receiver.received
        assert one.verified(SECRET)["data"]["task_id"] == pipeline["tasks"][-1]["task_id"]


def test_a_step_that_has_several_results_needs_a_name_and_says_so(piping: Platform) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("a.txt", "a")
        members.writestr("b.txt", "b")
    form = {"steps": json.dumps([{"processor": "extract"}, {"processor": "checksum"}])}
    answer = httpx.post(f"{piping.url}/pipelines", data=form, files={"file": ("two.zip", archive.getvalue())})
    _, last = ended(piping, answer.json())
    assert last["status"] == "failed"
    assert "named by `file`" in last["error"]["message"]
    assert "a.txt, b.txt" in last["error"]["message"]


def test_the_same_key_makes_one_chain_and_other_steps_are_another_request(piping: Platform) -> None:
    body: dict[str, Any] = {"steps": STEPS, "filename": "trips.csv", "size_bytes": len(CSV)}
    key = {"Idempotency-Key": "pipeline-1"}
    first, again = (made(piping, body, key="pipeline-1") for _ in range(2))
    assert first == again
    other = body | {"steps": [*STEPS[:-1], {"processor": "csv-profile", "file": "trips.csv"}]}
    assert httpx.post(f"{piping.url}/pipelines", json=other, headers=key).status_code == 422
    assert httpx.get(f"{piping.url}/batches/{first['batch_id']}").json()["total"] == len(STEPS)
    httpx.post(f"{piping.url}/batches/{first['batch_id']}/cancel")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"steps": []},
        {"steps": [{"processor": "checksum"}]},
        {"steps": [{"processor": "none"}], "filename": "a"},
        {"steps": [{"processor": "checksum"}, {"processor": "none"}], "filename": "a"},
        {"steps": [{"processor": "checksum"}, {"processor": "compress", "options": {"format": "x"}}], "filename": "a"},
        {"steps": [{"processor": "checksum", "file": "a"}], "filename": "a"},
        {"steps": [{"processor": "checksum"}] * 21, "filename": "a"},
        {"steps": [{"processor": "checksum", "more": 1}], "filename": "a"},
    ],
    ids=str,
)
def test_what_is_no_chain_is_refused_whole(piping: Platform, wrong: dict[str, Any]) -> None:
    before = len(httpx.get(f"{piping.url}/tasks?limit=500").json()["tasks"])
    answer = httpx.post(f"{piping.url}/pipelines", json=wrong)
    assert answer.status_code == 422, answer.text
    assert len(httpx.get(f"{piping.url}/tasks?limit=500").json()["tasks"]) == before


def test_a_chain_that_has_no_room_is_made_in_no_part(piping: Platform) -> None:
    body: dict[str, Any] = {"steps": [{"processor": "checksum"}] * 15, "filename": "a", "size_bytes": 5}
    chains = [made(piping, body) for _ in range(2)]
    answer = httpx.post(f"{piping.url}/pipelines", json=body | {"batch_id": "too-many"})
    assert answer.status_code == 429, answer.text
    assert httpx.get(f"{piping.url}/batches/too-many").status_code == 404
    for chain in chains:
        assert httpx.post(f"{piping.url}/batches/{chain['batch_id']}/cancel").status_code == 202
        assert {task["status"] for task in ended(piping, chain)} <= {"cancelled", "failed"}
