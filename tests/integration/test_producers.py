"""Work that no worker runs, over HTTP: a producer makes its task, reports, sends results, ends it or is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.processes import Platform, RedisServer
from tests.streams import frames_of, opened
from tests.waiting import wait_for

KEYS: Final = {"alice": "the-key-of-alice-9f2c", "bob": "the-key-of-bob-77aa1"}
ALICE: Final = {"Authorization": f"Bearer {KEYS['alice']}"}
BOB: Final = {"Authorization": f"Bearer {KEYS['bob']}"}
QUOTA_BYTES: Final = 100_000


@pytest.fixture(scope="module")
def keyed(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """An API alone: nobody but the API itself notices who is silent."""
    settings = {"HEADWAY_API_KEYS": json.dumps(KEYS), "HEADWAY_OWNER_QUOTA_BYTES": str(QUOTA_BYTES)}
    with Platform(tmp_path_factory.mktemp("keyed"), redis_server.fresh_url(), **settings) as platform:
        platform.start_api()
        yield platform


class Caller:
    """Somebody, by a key or a token."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._url, self._headers = url, headers

    def request(self, method: str, path: str, **what: Any) -> httpx.Response:
        headers = self._headers | what.pop("headers", {})
        return httpx.request(method, f"{self._url}{path}", headers=headers, timeout=30, **what)

    def get(self, path: str, **what: Any) -> httpx.Response:
        return self.request("GET", path, **what)

    def post(self, path: str, **what: Any) -> httpx.Response:
        return self.request("POST", path, **what)

    def put(self, path: str, **what: Any) -> httpx.Response:
        return self.request("PUT", path, **what)

    def patch(self, path: str, **what: Any) -> httpx.Response:
        return self.request("PATCH", path, **what)

    def delete(self, path: str) -> httpx.Response:
        return self.request("DELETE", path)


class Producer:
    """Speaks with its token alone; `owner` is the owner's client."""

    def __init__(self, platform: Platform, **asked: Any) -> None:
        self.owner = Caller(platform.url, ALICE)
        answer = self.owner.post("/tasks", json={"producer": "nightly-report"} | asked)
        assert answer.status_code == 201, answer.text
        self.task: dict[str, Any] = answer.json()
        self.path = f"/tasks/{self.task['task_id']}"
        assert answer.headers["location"] == self.path
        self.http = Caller(platform.url, {"Authorization": f"Bearer {self.task['producer_token']}"})

    def says(self, *reports: dict[str, Any]) -> httpx.Response:
        given = [{"attempt": 1} | report for report in reports]
        return self.http.patch(f"{self.path}/progress", json=given[0] if len(given) == 1 else given)

    def put(self, name: str, content: bytes) -> httpx.Response:
        headers = {"Content-Type": "text/plain"}
        return self.http.put(f"{self.path}/results/{name}", content=content, headers=headers)

    def completes(self, **summary: Any) -> httpx.Response:
        return self.http.post(f"{self.path}/complete", json={"attempt": 1, "summary": summary})

    @property
    def now(self) -> dict[str, Any]:
        found: dict[str, Any] = self.owner.get(self.path).json()
        return found


def test_a_producer_makes_reports_on_and_completes_its_task(keyed: Platform) -> None:
    one = Producer(keyed, title="Of last night", total=10, unit="rows", batch_id="nights")
    assert (one.task["status"], one.task["attempt"], one.task["processor"]) == ("processing", 1, "nightly-report")
    assert (one.task["total"], one.task["unit"], one.task["message"]) == (10, "rows", "Of last night")
    with opened(f"{keyed.url}{one.path}/events", **ALICE) as stream:
        frames = frames_of(stream)
        assert next(frames).status == "processing"
        told = one.says({"done": 3, "message": "Reading"})
        assert told.status_code == 200
        assert told.json() == {"status": "processing", "cancelled": False, "version": 2}
        seen = next(frames)
        assert (seen.data["progress"], seen.data["done"], seen.data["message"]) == (30, 3, "Reading")
        one.says({"advance": 4, "log": ["a line", {"message": "another", "level": "warning"}]})
        lines = [next(frames), next(frames)]
        assert [(line.name, line.data["message"], line.data["level"]) for line in lines] == [
            ("log", "a line", "info"),
            ("log", "another", "warning"),
        ]
        assert next(frames).data["done"] == 7
        assert one.put("report.txt", b"all is well").status_code == 200
        assert one.completes(rows=10).status_code == 200
        last = list(frames)[-1]
    assert (last.status, last.data["progress"]) == ("completed", 100)
    result = one.now["result"]
    assert result["summary"] == {"rows": 10}
    [file] = result["files"]
    assert (file["name"], file["size_bytes"], file["content_type"]) == ("report.txt", 11, "text/plain")
    fetched = one.owner.get(file["url"])
    assert (fetched.content, fetched.headers["etag"].strip('"')) == (b"all is well", file["sha256"])
    assert one.owner.get("/batches/nights").json()["counts"]["completed"] == 1
    assert one.owner.get("/tasks", params={"processor": "nightly-report"}).json()["tasks"]
    assert "nightly-report" in one.owner.get("/tasks.csv").text
    assert 'processor="producer",status="completed"' in one.owner.get("/metrics").text  # its name is no label


def test_the_end_comes_once_and_nothing_after_it(keyed: Platform) -> None:
    one = Producer(keyed)
    failure = {"attempt": 1, "error": {"message": "the database is away", "retryable": True}}
    assert one.http.post(f"{one.path}/fail", json=failure).status_code == 200
    error = {"type": "processor_error", "message": "the database is away", "retryable": True}
    assert (one.now["status"], one.now["error"]) == ("failed", error)
    for answer in (one.http.post(f"{one.path}/fail", json=failure), one.completes(), one.says({"done": 1})):
        assert answer.status_code == 409, answer.text
        assert "failed" in answer.json()["detail"]
    assert one.put("late.txt", b"late").status_code == 409
    assert one.owner.post(f"{one.path}/retry").status_code == 409
    assert "retry" not in one.now["links"]


def test_progress_never_falls_and_phases_share_the_bar(keyed: Platform) -> None:
    one = Producer(keyed, phases={"read": 3, "write": 1})
    seen = []
    for said in ({"phase": "read", "total": 10, "done": 5}, {"done": 1}, {"phase": "write", "total": 2}, {"done": 1}):
        assert one.says(said).status_code == 200
        seen.append((one.now["progress"], one.now["step"], one.now["message"]))
    assert seen == [(37.5, 1, "read"), (37.5, 1, "read"), (75, 2, "write"), (87.5, 2, "write")]
    unknown = one.says({"phase": "upload"})
    assert unknown.status_code == 422
    assert "read, write" in unknown.json()["detail"]


def test_a_whole_number_may_be_written_as_a_double(keyed: Platform) -> None:
    """Some languages have no other numbers."""
    one = Producer(keyed, total=10.0)
    assert one.http.patch(f"{one.path}/progress", json={"attempt": 1.0, "done": 4.0, "seq": 1.0}).status_code == 200
    assert (one.now["done"], one.now["total"]) == (4, 10)
    for wrong in (1.5, True, "1", None):
        assert one.http.patch(f"{one.path}/progress", json={"attempt": wrong}).status_code == 422
    assert one.http.post(f"{one.path}/complete", json={"attempt": 1.0, "summary": {}}).status_code == 200


def test_an_older_attempt_is_refused(keyed: Platform) -> None:
    one = Producer(keyed)
    assert one.http.patch(f"{one.path}/progress", json={"attempt": 2, "done": 1}).status_code == 409
    assert one.http.post(f"{one.path}/complete", json={"attempt": 2}).status_code == 409
    assert one.now["done"] == 0


def test_a_producer_that_begins_again_is_the_next_attempt_from_its_checkpoint(keyed: Platform) -> None:
    one = Producer(keyed, total=10, unit="rows", phases={"read": 1, "write": 1})
    one.says({"seq": 1, "phase": "read", "done": 5, "total": 10, "checkpoint": {"row": 5}}, {"seq": 2, "done": 8})
    assert one.put("part.txt", b"of the first attempt").status_code == 200
    again = one.http.post(f"{one.path}/attempts")
    assert again.status_code == 201
    task = again.json()
    assert (task["attempt"], task["status"], task["restored"]) == (2, "processing", {"row": 5})
    assert (task["progress"], task["done"], task["total"], task["unit"]) == (25, 0, 10, "rows")
    for late in (one.says({"done": 9}), one.completes(), one.http.put(f"{one.path}/results/x?attempt=1", content=b"x")):
        assert (late.status_code, late.json()["type"]) == (409, "urn:headway:problem:conflict")
    two = Caller(keyed.url, {"Authorization": f"Bearer {task['producer_token']}"})
    report = {"attempt": 2, "seq": 1, "done": 2}  # its numbers are its own
    assert two.patch(f"{one.path}/progress", json=report).status_code == 200
    assert (one.now["done"], one.now["progress"]) == (2, 25)  # progress does not fall below the checkpoint's
    assert two.post(f"{one.path}/complete", json={"attempt": 2}).status_code == 200
    assert one.now["result"]["files"] == []  # what the first attempt has sent went with it
    assert one.http.post(f"{one.path}/attempts").status_code == 409


def test_a_lost_or_failed_producer_begins_again_and_a_cancelled_one_does_not(keyed: Platform) -> None:
    one = Producer(keyed, lease_seconds=0.5)
    one.says({"checkpoint": [1, 2]})
    wait_for("its lease is over", lambda: one.now["status"] == "failed")
    assert one.now["error"]["type"] == "worker_lost"
    with opened(f"{keyed.url}{one.path}/events?last_event_id=0", **ALICE) as stream:
        assert [frame.status for frame in frames_of(stream)][-1] == "failed"
    task = one.http.post(f"{one.path}/attempts", json={"attempt": 1}).json()
    assert (task["attempt"], task["restored"], task["error"], task["finished_at"]) == (2, [1, 2], None, None)
    failure = {"attempt": 2, "error": {"message": "no"}}
    assert one.http.post(f"{one.path}/fail", json=failure).status_code == 200
    assert one.http.post(f"{one.path}/attempts", json={"attempt": 1}).status_code == 409
    third = one.http.post(f"{one.path}/attempts", json={}).json()
    assert (third["attempt"], third["restored"]) == (3, None)  # what fails by itself begins from the start
    counts = [frame.status for frame in events_of(keyed, one) if frame.status in ("failed", "completed")]
    assert counts == ["failed", "failed"]
    assert one.owner.post(f"{one.path}/cancel").status_code == 202
    refused = one.http.post(f"{one.path}/attempts")
    assert (refused.status_code, "cancelled" in refused.json()["detail"]) == (409, True)


def events_of(platform: Platform, one: Producer) -> list[Any]:
    """All that there is of a task that is active; a stream ends with each end of its task."""
    found: list[Any] = []
    last = one.now["version"]
    while not found or found[-1].id < last:
        seen = found[-1].id if found else 0
        with opened(f"{platform.url}{one.path}/events?last_event_id={seen}", **ALICE) as stream:
            for frame in frames_of(stream):
                found.append(frame)
                if frame.id == last:
                    break
    return found


def test_a_next_attempt_is_its_producers_alone(keyed: Platform) -> None:
    one, other = Producer(keyed), Producer(keyed)
    path = f"{one.path}/attempts"
    reader = Caller(keyed.url, {"Authorization": f"Bearer {one.task['token']}"})
    assert [who.post(path).status_code for who in (other.http, Caller(keyed.url, BOB), Caller(keyed.url, {}))] == [
        404,
        404,
        401,
    ]
    assert reader.post(path).status_code == 403
    bad: tuple[Any, ...] = ({"attempt": "1"}, {"attempt": 0}, {"x": 1}, [], 5)
    for wrong in bad:
        assert one.http.post(path, json=wrong).status_code == 422, wrong
    assert one.now["attempt"] == 1
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: one.owner.post(path, json={"attempt": 1}).status_code, range(8)))
    assert sorted(made) == [201, *[409] * 7]


def test_many_tasks_are_reported_on_in_one_request(keyed: Platform) -> None:
    ones = [Producer(keyed, total=10) for _ in range(3)]
    ids = [one.task["task_id"] for one in ones]
    ones[1].owner.post(f"{ones[1].path}/cancel")
    said = [{"task_id": task_id, "attempt": 1, "advance": 2} for task_id in ids * 2]
    said += [{"task_id": "0" * 32, "attempt": 1}, {"task_id": ids[2], "attempt": 7}]
    answer = ones[0].owner.patch("/tasks/progress", json=said)
    assert answer.status_code == 200
    first, second, third, unknown = answer.json()["tasks"]
    assert first == {"task_id": ids[0], "status": "processing", "cancelled": False, "version": 2}
    assert (second["status"], second["cancelled"]) == ("cancelled", True)
    assert (third["problem"]["status"], unknown["problem"]["status"]) == (409, 404)
    assert [one.now["done"] for one in ones] == [4, 0, 0]
    assert ones[0].http.patch("/tasks/progress", json=said).status_code == 403
    assert Caller(keyed.url, BOB).patch("/tasks/progress", json=said[:1]).json()["tasks"][0]["problem"]["status"] == 404
    bad: tuple[Any, ...] = ([], {}, [{"attempt": 1}], [{"task_id": "x", "attempt": 1}], [{"task_id": ids[0]}])
    for wrong in bad:
        assert ones[0].owner.patch("/tasks/progress", json=wrong).status_code == 422, wrong


def test_the_same_report_counts_once(keyed: Platform) -> None:
    one = Producer(keyed, total=1000)
    for _ in range(3):
        assert one.says({"seq": 1, "advance": 5, "log": ["once"]}).status_code == 200
    assert one.says({"seq": 3, "advance": 1}, {"seq": 2, "advance": 1}, {"seq": 3, "advance": 1}).status_code == 200
    assert one.now["done"] == 7
    assert one.completes().status_code == 200
    told = one.owner.get(f"{one.path}/events?last_event_id=0", headers={"Accept": "application/x-ndjson"})
    assert told.text.count('"once"') == 1


def test_reports_at_once_all_count(keyed: Platform) -> None:
    one = Producer(keyed, total=1000)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: one.says({"seq": n, "advance": 1}), range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert one.now["done"] == 40


def test_a_sign_of_life_alone_is_no_event(keyed: Platform) -> None:
    one = Producer(keyed)
    assert one.says({}).json() == {"status": "processing", "cancelled": False, "version": 1}
    assert one.now["version"] == 1


def test_a_cancelled_producer_is_told(keyed: Platform) -> None:
    one = Producer(keyed)
    assert one.owner.post(f"{one.path}/cancel").status_code == 202
    told = one.says({"done": 5})
    assert told.status_code == 200
    assert (told.json()["status"], told.json()["cancelled"]) == ("cancelled", True)
    assert (one.now["status"], one.now["done"]) == ("cancelled", 0)
    assert one.completes().status_code == 409


def test_a_result_may_take_longer_than_the_lease(keyed: Platform) -> None:
    """What comes of it is a sign of life."""
    one, other = Producer(keyed, lease_seconds=5), Producer(keyed, lease_seconds=2)

    def pieces() -> Iterator[bytes]:
        yield b"a"
        while other.now["status"] == "processing":  # whose lease ends first, and then for as long again
            time.sleep(0.2)
            yield b"b"
        until = time.monotonic() + 5
        while time.monotonic() < until:
            time.sleep(0.2)
            yield b"c"

    answer = one.http.put(f"{one.path}/results/slow", content=pieces())
    assert answer.status_code == 200, answer.text
    assert one.completes().status_code == 200


def test_a_silent_producer_has_lost_its_task(keyed: Platform) -> None:
    silent = Producer(keyed, lease_seconds=1.5)
    began = time.monotonic()
    with opened(f"{keyed.url}{silent.path}/events", **ALICE) as stream:
        frames = frames_of(stream)
        next(frames)
        last = list(frames)[-1]
        seconds = time.monotonic() - began
    assert (last.status, last.data["error"]["type"]) == ("failed", "worker_lost")
    assert seconds > 1.4
    assert silent.says({"done": 1}).status_code == 409


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"done": -1}, "done"),
        ({"done": float("nan")}, "done"),
        ({"done": float("inf")}, "done"),
        ({"done": 1.5}, "done"),
        ({"done": "5"}, "done"),
        ({"done": True}, "done"),
        ({"total": 10**30}, "total"),
        ({"advance": -3}, "advance"),
        ({"done": 1, "advance": 1}, "body"),
        ({"attempt": "1"}, "attempt"),
        ({"seq": -1}, "seq"),
        ({"phase": ""}, "phase"),
        ({"log": "a line"}, "log"),
        ({"log": ["x"] * 101}, "log"),
        ({"log": [{"message": "x", "level": "fatal"}]}, "log.0"),
        ({"checkpoint": {"x": float("nan")}}, "checkpoint"),
        ({"progress": 5}, "progress"),
    ],
)
def test_a_bad_report_says_what_to_do(keyed: Platform, said: dict[str, Any], field: str) -> None:
    one = Producer(keyed, lease_seconds=60)
    headers = {"Content-Type": "application/json"}
    answer = one.http.patch(f"{one.path}/progress", content=json.dumps({"attempt": 1} | said), headers=headers)
    assert answer.status_code == 422, answer.text
    assert any(error["field"].startswith(field) and error["message"] for error in answer.json()["errors"])
    assert one.now["version"] == 1
    one.completes()


def test_lists_bodies_and_orders_that_are_none_are_refused(keyed: Platform) -> None:
    one = Producer(keyed)
    assert one.http.patch(f"{one.path}/progress", json=[{"attempt": 1}] * 1000).status_code == 422
    assert one.http.patch(f"{one.path}/progress", json=[{"attempt": 1}] * 10_000).status_code == 413
    for body in ("[]", "{}", "", "null", "5", '{"attempt":1', "[" * 50_000, "[[1]]"):
        headers = {"Content-Type": "application/json"}
        answer = one.http.patch(f"{one.path}/progress", content=body, headers=headers)
        assert answer.status_code == 422, body[:20]
    for wrong in (
        {"producer": ""},
        {"producer": "x" * 101},
        {"producer": "a\nb"},
        {"producer": 5},
        {"producer": "x", "lease_seconds": 86_401},
        {"producer": "x", "lease_seconds": -1},
        {"producer": "x", "total": -1},
        {"producer": "x", "phases": {"a": 0}},
        {"producer": "x", "phases": ["a"] * 51},
        {"producer": "x", "processor": "checksum"},
        {"producer": "x", "batch_id": "no good"},
    ):
        answer = one.owner.post("/tasks", json=wrong)
        assert answer.status_code == 422, wrong
        assert answer.json()["errors"]


def test_a_producer_token_reports_on_its_task_and_does_nothing_else(keyed: Platform) -> None:
    one, other = Producer(keyed), Producer(keyed)
    assert one.http.patch(f"{other.path}/progress", json={"attempt": 1, "done": 1}).status_code == 404
    for method, path in (
        ("GET", one.path),
        ("GET", f"{one.path}/events"),
        ("POST", f"{one.path}/cancel"),
        ("DELETE", one.path),
        ("POST", f"{one.path}/notes"),
        ("GET", "/tasks"),
        ("POST", "/tasks"),
    ):
        assert one.http.request(method, path).status_code == 403, (method, path)
    reader = {"Authorization": f"Bearer {one.task['token']}"}
    said = {"json": {"attempt": 1, "done": 1}}
    assert httpx.patch(f"{keyed.url}{one.path}/progress", headers=reader, **said).status_code == 403  # type: ignore[arg-type]
    assert httpx.patch(f"{keyed.url}{one.path}/progress", headers=BOB, **said).status_code == 404  # type: ignore[arg-type]
    assert httpx.patch(f"{keyed.url}{one.path}/progress", **said).status_code == 401  # type: ignore[arg-type]
    assert one.owner.patch(f"{one.path}/progress", **said).status_code == 200
    assert one.now["done"] == 1


def test_a_workers_task_is_nobody_elses_to_report_on(keyed: Platform) -> None:
    with httpx.Client(base_url=keyed.url, headers=ALICE) as owner:
        options = {"steps": 1, "step_seconds": 0}
        task = owner.post("/tasks", json={"processor": "rehearsal", "options": options}).json()
        path = f"/tasks/{task['task_id']}"
        assert "producer_token" not in task
        assert owner.patch(f"{path}/progress", json={"attempt": 1, "done": 1}).status_code == 409
        assert owner.post(f"{path}/complete", json={"attempt": 1}).status_code == 409
        assert owner.put(f"{path}/results/x", content=b"x").status_code == 409


def test_results_count_to_the_quota_and_go_with_a_failure(keyed: Platform) -> None:
    one = Producer(keyed)
    assert one.put("a.txt", b"x" * 60_000).status_code == 200
    assert one.put("a.txt", b"y" * 30_000).status_code == 200  # in its place
    full = one.put("b.txt", b"x" * 90_000)
    assert (full.status_code, full.json()["type"]) == (507, "urn:headway:problem:quota-full")
    for name in (".hidden", "a%5Cb", "a%00b", "x" * 201):
        assert one.put(name, b"x").status_code == 422, name
    one.http.post(f"{one.path}/fail", json={"attempt": 1, "error": {"message": "no"}})
    assert one.now["result"] is None
    two = Producer(keyed)
    assert two.put("b.txt", b"x" * 90_000).status_code == 200  # the first one's bytes are its owner's again
    assert two.completes().status_code == 200
    assert [file["name"] for file in two.now["result"]["files"]] == ["b.txt"]
    assert two.owner.delete(two.path).status_code == 204


def test_an_idempotency_key_makes_one_task(keyed: Platform) -> None:
    with httpx.Client(base_url=keyed.url, headers=ALICE | {"Idempotency-Key": "tonight"}) as owner:
        made = [owner.post("/tasks", json={"producer": "nightly-report", "total": 3}) for _ in range(2)]
        assert [answer.status_code for answer in made] == [201, 201]
        assert made[0].json()["task_id"] == made[1].json()["task_id"]
        assert made[1].json()["producer_token"]
        other = owner.post("/tasks", json={"producer": "nightly-report", "total": 4})
        assert other.status_code == 422


def test_a_worker_notices_who_is_silent_and_puts_no_such_task_on_the_queue(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Platform(tmp_path_factory.mktemp("worked"), redis_server.fresh_url()) as platform:
        platform.start_worker()
        api = platform.start_api()
        with httpx.Client(base_url=platform.url) as client:
            task = client.post("/tasks", json={"producer": "cron", "lease_seconds": 7}).json()
            kept = client.post("/tasks", json={"producer": "cron", "lease_seconds": 600}).json()
        assert task["producer_token"]  # in open mode nobody looks at it
        api.kill()
        log = platform.workers[0]
        wait_for("the worker has seen it", lambda: "producer lost" in log.log, seconds=30)
        platform.start_api()
        url = platform.urls[-1]
        lost = httpx.get(f"{url}/tasks/{task['task_id']}").json()
        assert lost["error"]["type"] == "worker_lost"
        assert httpx.get(f"{url}/tasks/{kept['task_id']}").json()["attempt"] == 1
        assert "put back" not in log.log


def test_who_says_that_the_next_report_takes_longer_is_not_lost_meanwhile(keyed: Platform) -> None:
    waits, long, short = (Producer(keyed, lease_seconds=0.5, **more) for more in ({"waits_seconds": 60}, {}, {}))
    assert long.says({"lease_seconds": 60, "message": "Tried again in a minute"}).status_code == 200
    wait_for("the one that said nothing is lost", lambda: short.now["status"] == "failed")
    assert (waits.now["status"], long.now["status"]) == ("processing", "processing")
    long.says({})
    wait_for("it was for once", lambda: long.now["status"] == "failed")


def test_many_requests_about_many_tasks_at_once_are_all_answered(keyed: Platform) -> None:
    """More reads at a time than Redis has connections for."""
    ones = [Producer(keyed, total=10_000) for _ in range(40)]
    said = [{"task_id": one.task["task_id"], "attempt": 1, "advance": 1} for one in ones]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ones[0].owner.patch("/tasks/progress", json=said), range(32)))
    assert [answer.status_code for answer in answers] == [200] * 32
    assert {one.now["done"] for one in ones} == {32}


def test_a_redis_that_is_away_is_said_of_all_tasks_at_once(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server, Platform(tmp_path / "platform", server.url) as platform:
        platform.start_api()
        made = httpx.post(f"{platform.url}/tasks", json={"producer": "x"}).json()
        server.kill()
        said = [{"task_id": made["task_id"], "attempt": 1}, {"task_id": "0" * 32, "attempt": 1}]
        answer = httpx.patch(f"{platform.url}/tasks/progress", json=said, timeout=60)
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
