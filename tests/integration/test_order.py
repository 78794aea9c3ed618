"""Who goes first, seen from outside: another owner's task, a higher priority, a later time, a limit."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.processes import Platform, RedisServer
from tests.streams import frames_of
from tests.waiting import wait_for

KEYS = {"alice": "alices-key-0123456789", "bob": "bobs-key-0123456789ab"}


@pytest.fixture(scope="module")
def shared(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Of two owners, with one slot."""
    env = {"HEADWAY_API_KEYS": json.dumps(KEYS), "HEADWAY_WORKER_CONCURRENCY": "1"}
    with Platform(tmp_path_factory.mktemp("order"), redis_server.fresh_url(), **env) as platform:
        platform.start_worker()
        platform.start_api()
        yield platform


class Owner:
    def __init__(self, platform: Platform, name: str) -> None:
        self.http = httpx.Client(
            base_url=platform.url, headers={"Authorization": f"Bearer {KEYS[name]}"}, timeout=60, trust_env=False
        )

    def submit(self, step_seconds: float = 0.0, **about: Any) -> str:
        body = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": step_seconds}, **about}
        answer = self.http.post("/tasks", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def task(self, task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/tasks/{task_id}").json()
        return found

    def done(self, *task_ids: str) -> list[dict[str, Any]]:
        wait_for("they have ended", lambda: all(self.task(one)["finished_at"] for one in task_ids), seconds=60)
        return [self.task(one) for one in task_ids]


@pytest.fixture
def alice(shared: Platform) -> Iterator[Owner]:
    owner = Owner(shared, "alice")
    with owner.http:
        yield owner


@pytest.fixture
def bob(shared: Platform) -> Iterator[Owner]:
    owner = Owner(shared, "bob")
    with owner.http:
        yield owner


@contextmanager
def while_one_runs(owner: Owner) -> Iterator[None]:
    """The only slot is taken until the block ends."""
    task_id = owner.submit(step_seconds=600)
    wait_for("it runs", lambda: owner.task(task_id)["status"] == "processing", seconds=60)
    try:
        yield
    finally:
        owner.http.post(f"/tasks/{task_id}/cancel")


def test_whatever_one_owner_has_sent_another_is_next(alice: Owner, bob: Owner) -> None:
    with while_one_runs(alice):
        more = [alice.submit(priority=9) for _ in range(20)]
        one = bob.submit()
    [bobs] = bob.done(one)
    others = alice.done(*more)
    assert all(bobs["started_at"] < other["started_at"] for other in others)


def test_within_an_owner_the_highest_priority_goes_first(alice: Owner) -> None:
    with while_one_runs(alice):
        low, middle, high = (alice.submit(priority=priority) for priority in (0, 5, 9))
    [low_, middle_, high_] = alice.done(low, middle, high)
    assert [one["priority"] for one in (low_, middle_, high_)] == [0, 5, 9]
    assert high_["started_at"] < middle_["started_at"] < low_["started_at"]


def test_a_task_does_not_start_before_its_time(alice: Owner) -> None:
    due = datetime.now(UTC) + timedelta(seconds=2)
    text = due.astimezone().isoformat()
    task_id = alice.submit(not_before=text)
    waiting = alice.task(task_id)
    assert waiting["status"] == "queued"
    assert waiting["message"].startswith("Waiting until ")
    assert abs((datetime.fromisoformat(waiting["not_before"]) - due).total_seconds()) < 0.01
    assert waiting["not_before"].endswith("Z")
    [done] = alice.done(task_id)
    assert datetime.fromisoformat(done["started_at"]) >= due.replace(microsecond=0)


def test_a_task_that_waits_for_its_time_can_be_cancelled_and_retried(alice: Owner) -> None:
    task_id = alice.submit(not_before="2090-01-01T00:00:00+02:00")
    assert alice.task(task_id)["not_before"] == "2089-12-31T22:00:00.000Z"
    assert alice.http.post(f"/tasks/{task_id}/cancel").json()["status"] == "cancelled"
    again = alice.http.post(f"/tasks/{task_id}/retry").json()
    assert (again["status"], again["message"]) == ("queued", "Waiting until 2089-12-31T22:00:00.000Z")
    assert alice.http.post(f"/tasks/{task_id}/cancel").json()["status"] == "cancelled"


@pytest.mark.parametrize(
    "wrong",
    [
        *({"priority": -1}, {"priority": 10}, {"priority": "high"}, {"priority": 1.5}),
        *({"not_before": "tomorrow"}, {"not_before": "2026-12-24T18:00:00"}, {"not_before": 1796126583}),
        *({"not_before": "2026-02-30T00:00:00Z"}, {"not_before": "9999-12-31T23:59:59-23:59"}),
    ],
    ids=lambda wrong: "-".join(map(str, *wrong.items())).replace(":", "."),
)
@pytest.mark.parametrize("form", ["json", "multipart"])
def test_an_order_that_is_none_is_refused_by_name(alice: Owner, wrong: dict[str, Any], form: str) -> None:
    about = {"processor": "rehearsal", **wrong}
    if form == "json":
        answer = alice.http.post("/tasks", json=about)
    else:
        answer = alice.http.post("/tasks", files={name: (None, str(value)) for name, value in about.items()})
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == list(wrong)


def test_a_form_and_tus_say_an_order_too(alice: Owner) -> None:
    form = {"processor": (None, "text-stats"), "priority": (None, "7"), "not_before": (None, "2090-01-01T00:00:00Z")}
    task = alice.http.post("/tasks", files={"file": ("a.txt", b"a"), **form}).json()
    assert (task["priority"], task["not_before"]) == (7, "2090-01-01T00:00:00.000Z")
    metadata = "filename YS50eHQ=,processor dGV4dC1zdGF0cw==,priority Nw==,not_before MjA5MC0wMS0wMVQwMDowMDowMFo="
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "1", "Upload-Metadata": metadata}
    upload = alice.http.post("/uploads", headers=headers)
    assert upload.status_code == 201, upload.text
    task = alice.task(upload.headers["Headway-Task-Id"])
    assert (task["priority"], task["not_before"]) == (7, "2090-01-01T00:00:00.000Z")
    piece = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    alice.http.patch(upload.headers["Location"], content=b"a", headers=piece)
    assert alice.task(task["task_id"])["message"] == "Waiting until 2090-01-01T00:00:00.000Z"


def test_an_owner_runs_no_more_than_its_limit_over_all_workers(own_platform: Platform) -> None:
    for _ in range(2):
        own_platform.start_worker(HEADWAY_OWNER_CONCURRENCY="1", HEADWAY_WORKER_CONCURRENCY="2")
    own_platform.start_api()
    options = json.dumps({"steps": 1, "step_seconds": 0.2})
    tasks = [own_platform.submit("rehearsal", options=options)["task_id"] for _ in range(4)]
    ran = sorted((own_platform.wait(one) for one in tasks), key=lambda task: str(task["started_at"]))
    for before, after in itertools.pairwise(ran):
        assert before["finished_at"] <= after["started_at"]


def test_a_waiting_task_has_a_place_that_moves_up_and_is_told_on_its_stream(alice: Owner, bob: Owner) -> None:
    with while_one_runs(alice):
        one = bob.submit(priority=0)
        waiting = [alice.submit() for _ in range(3)]
        assert [alice.task(task_id)["queue_position"] for task_id in waiting] == [2, 3, 4]
        assert bob.task(one)["queue_position"] == 1
        listed = alice.http.get("/tasks?status=queued").json()["tasks"]
        places = {task["task_id"]: task["queue_position"] for task in listed}
        assert [places[task_id] for task_id in waiting] == [2, 3, 4]
        with alice.http.stream("GET", f"/tasks/{waiting[2]}/events") as stream:
            frames = frames_of(stream)
            first = next(frames)
            assert first.data["queue_position"] == 4
            alice.http.post(f"/tasks/{waiting[0]}/cancel")
            moved = next(frames)
            assert (moved.name, moved.data["status"], moved.data["queue_position"]) == ("", "queued", 3)
            assert moved.id == first.id + 1
    done = alice.done(*waiting)[2]
    assert (done["status"], done["queue_position"], done["starts_in_seconds"]) == ("completed", None, None)


def test_once_some_have_run_it_is_told_when_the_next_ones_start(alice: Owner) -> None:
    alice.done(*(alice.submit() for _ in range(2)))
    with while_one_runs(alice):
        waiting = [alice.submit() for _ in range(2)]
        first, second = (alice.task(task_id)["starts_in_seconds"] for task_id in waiting)
        assert 0 < first < second
        later = alice.submit(not_before="2090-01-01T00:00:00Z")
        assert alice.task(later)["queue_position"] is None
        assert alice.task(later)["starts_in_seconds"] > 1e9
        alice.http.post(f"/tasks/{later}/cancel")
    alice.done(*waiting)
