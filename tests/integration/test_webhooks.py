"""Webhooks by real receivers: who is told of an end, what stands in it, when it is tried again, and when no more."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import WebhookVerificationError

from tests.processes import Platform, RedisServer
from tests.receivers import Receiver
from tests.waiting import wait_for

OLD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEW = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(32)).decode()
REHEARSAL = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0}}
LONG = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 3000}}
FAILING = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0, "fail_at": 1}}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as started:
        yield started


@pytest.fixture(scope="module")
def telling(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("telling")
    allowed = {"HEADWAY_WEBHOOK_SECRET": f"{OLD},{NEW}", "HEADWAY_WEBHOOK_ALLOW": "127.0.0.1"}
    with Platform(folder, redis_server.fresh_url(), **allowed) as platform:
        platform.start_worker()
        platform.start_api()
        yield platform


def submit(platform: Platform, webhook: Any, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{platform.url}/tasks", json={**REHEARSAL, **body, "webhook": webhook})
    assert answer.is_success, answer.text
    task: dict[str, Any] = answer.json()
    return task


def notices(platform: Platform, task_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{platform.url}/tasks/{task_id}/webhooks").json()["webhooks"]
    return found


def notice_when(
    platform: Platform, task_id: str, is_so: Callable[[dict[str, Any]], bool], place: int = 0
) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = notices(platform, task_id)
        return found[place] if len(found) > place and is_so(found[place]) else None

    found = wait_for("the notice is as it should be", look)
    assert found is not None
    return found


def delivered(notice: dict[str, Any]) -> bool:
    return bool(notice["status"] == "delivered")


def tried(times: int) -> Callable[[dict[str, Any]], bool]:
    return lambda notice: len(notice["tries"]) >= times


def test_the_end_of_a_task_is_told_once_signed_and_whole(telling: Platform, receiver: Receiver) -> None:
    task_id = submit(telling, {"url": receiver.url("/ok?a=b")})["task_id"]
    notice = notice_when(telling, task_id, delivered)
    [one] = receiver.of(task_id)
    for secret in (OLD, NEW):
        assert one.verified(secret)["type"] == "task.completed"
    with pytest.raises(WebhookVerificationError):
        one.verified(OTHER)
    assert one.path == "/ok?a=b"
    assert one.headers["content-type"] == "application/json"
    told = json.loads(one.body)
    assert told["data"] == httpx.get(f"{telling.url}/tasks/{task_id}").json()
    assert told["timestamp"].endswith("Z")
    assert abs(time.time() - int(one.headers["webhook-timestamp"])) < 300
    assert notice["id"] == one.webhook_id
    assert notice["next_try_at"] is None
    assert [(one["status_code"], one["error"]) for one in notice["tries"]] == [(204, None)]


@pytest.mark.parametrize("body", [FAILING, LONG], ids=["failed", "cancelled"])
def test_a_failure_and_a_cancellation_are_told(telling: Platform, receiver: Receiver, body: dict[str, Any]) -> None:
    task_id = submit(telling, {"url": receiver.url()}, **body)["task_id"]
    if body is LONG:
        assert httpx.post(f"{telling.url}/tasks/{task_id}/cancel").status_code == 202
    notice_when(telling, task_id, delivered)
    [one] = receiver.of(task_id)
    told = one.verified(NEW)
    assert told["type"] == f"task.{told['data']['status']}"
    assert told["data"]["status"] == ("cancelled" if body is LONG else "failed")
    assert (told["data"]["error"] is None) == (body is LONG)


def test_only_the_ends_that_were_asked_for_are_told(telling: Platform, receiver: Receiver) -> None:
    task_id = submit(telling, {"url": receiver.url(), "events": ["failed"]})["task_id"]
    other = submit(telling, {"url": receiver.url(), "events": ["failed", "completed"]})["task_id"]
    notice_when(telling, other, delivered)
    wait_for("it ends", lambda: httpx.get(f"{telling.url}/tasks/{task_id}").json()["status"] == "completed")
    assert notices(telling, task_id) == []
    assert receiver.of(task_id) == []


def test_each_end_of_a_retried_task_is_a_notice_of_its_own(telling: Platform, receiver: Receiver) -> None:
    task_id = submit(telling, {"url": receiver.url()}, **FAILING)["task_id"]
    notice_when(telling, task_id, delivered)
    assert httpx.post(f"{telling.url}/tasks/{task_id}/retry").status_code == 202
    notice_when(telling, task_id, delivered, 1)
    first, second = receiver.of(task_id)
    assert first.webhook_id != second.webhook_id
    assert [one.verified(OLD)["data"]["attempt"] for one in (first, second)] == [1, 2]


def test_a_failed_try_is_made_again_under_the_same_id_with_the_same_body(telling: Platform, receiver: Receiver) -> None:
    task_id = submit(telling, {"url": receiver.url("/fail/1/again")})["task_id"]
    waiting = notice_when(telling, task_id, tried(1))
    assert waiting["status"] == "pending"
    assert waiting["tries"][0]["status_code"] == 500
    assert waiting["next_try_at"] > waiting["tries"][0]["at"]
    notice = notice_when(telling, task_id, delivered)
    assert [one["status_code"] for one in notice["tries"]] == [500, 204]
    first, second = receiver.of(task_id)
    assert (first.webhook_id, first.body) == (second.webhook_id, second.body)
    assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) >= 4
    assert second.verified(OLD)


@pytest.mark.parametrize(
    ("path", "status_code", "words"),
    [
        ("/redirect", 307, "redirects are not followed"),
        ("/status/404", 404, "answered 404"),
        ("/garbage", None, "not HTTP"),
        ("/cut", None, ""),
    ],
    ids=["redirect", "not-found", "garbage", "cut"],
)
def test_what_is_no_success_is_tried_again(
    telling: Platform, receiver: Receiver, path: str, status_code: int | None, words: str
) -> None:
    before = len(receiver.at("/ok"))
    task_id = submit(telling, {"url": receiver.url(path)})["task_id"]
    notice = notice_when(telling, task_id, tried(1))
    assert notice["status"] == "pending"
    assert notice["next_try_at"] is not None
    assert notice["tries"][0]["status_code"] == status_code
    assert words in notice["tries"][0]["error"]
    assert [one for one in receiver.at("/ok")[before:] if task_id.encode() in one.body] == []


def test_gone_ends_it_for_good(telling: Platform, receiver: Receiver) -> None:
    task_id = submit(telling, {"url": receiver.url("/status/410")})["task_id"]
    notice = notice_when(telling, task_id, tried(1))
    assert (notice["status"], notice["next_try_at"]) == ("gone", None)


def test_an_endless_answer_is_taken_by_its_status(telling: Platform, receiver: Receiver) -> None:
    task_id = submit(telling, {"url": receiver.url("/endless")})["task_id"]
    assert notice_when(telling, task_id, tried(1))["tries"][0]["status_code"] == 200


def test_a_notice_can_be_sent_again_under_its_id(telling: Platform, receiver: Receiver) -> None:
    task_id = submit(telling, {"url": receiver.url()})["task_id"]
    notice = notice_when(telling, task_id, delivered)
    address = f"{telling.url}/tasks/{task_id}/webhooks/{notice['id']}/resend"
    answer = httpx.post(address)
    assert answer.status_code == 202
    assert answer.json()["id"] == notice["id"]
    again = notice_when(telling, task_id, lambda notice: delivered(notice) and tried(2)(notice))
    assert len(again["tries"]) == 2
    first, second = receiver.of(task_id)
    assert (first.webhook_id, first.body) == (second.webhook_id, second.body)
    for wrong in ("msg_x", notice["id"] + "_all", f"msg_{'0' * 32}_4"):
        assert httpx.post(f"{telling.url}/tasks/{task_id}/webhooks/{wrong}/resend").status_code == 404
    other = submit(telling, {"url": receiver.url()})["task_id"]
    assert httpx.post(f"{telling.url}/tasks/{other}/webhooks/{notice['id']}/resend").status_code == 404


def test_receivers_that_hang_keep_nobody_else_waiting(telling: Platform) -> None:
    """Also others on the same host; and one whose many addresses are all of one host leaves hands for others."""
    with Receiver() as hung, Receiver() as well:
        for number in range(20):
            submit(telling, {"url": hung.url("/drip" if number < 2 else f"/hang/{number}")})
        wait_for("as many as may be are being tried", lambda: len(hung.received) >= 16)
        task_id = submit(telling, {"url": well.url()})["task_id"]
        notice_when(telling, task_id, delivered)
        tried_so_far = [notice["tries"] for one in hung.received for notice in _of(telling, one.body)]
        assert not all(tried_so_far)


def test_one_address_that_hangs_keeps_no_other_of_its_host_waiting(telling: Platform, receiver: Receiver) -> None:
    hung = submit(telling, {"url": receiver.url("/hang")})["task_id"]
    wait_for("it is being tried", lambda: receiver.of(hung))
    task_id = submit(telling, {"url": receiver.url()})["task_id"]
    notice_when(telling, task_id, delivered)


def _of(platform: Platform, body: bytes) -> list[dict[str, Any]]:
    return notices(platform, json.loads(body)["data"]["task_id"])


def test_a_form_and_a_resumable_upload_and_a_producer_name_one_too(telling: Platform, receiver: Receiver) -> None:
    webhook = json.dumps({"url": receiver.url()})
    form = {"processor": "checksum", "webhook": webhook}
    for path in ("/tasks", "/process-file"):
        answer = httpx.post(f"{telling.url}{path}", data=form, files={"file": ("a.txt", b"hello")})
        assert answer.status_code == 202, answer.text
        notice_when(telling, answer.json()["task_id"], delivered)
    metadata = ",".join(
        f"{name} {base64.b64encode(value.encode()).decode()}"
        for name, value in {"filename": "a.txt", "processor": "checksum", "webhook": webhook}.items()
    )
    tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", "Upload-Metadata": metadata}
    begun = httpx.post(
        f"{telling.url}/uploads", content=b"hello", headers=tus | {"Content-Type": "application/offset+octet-stream"}
    )
    assert begun.status_code == 201, begun.text
    notice_when(telling, begun.headers["headway-task-id"], delivered)
    produced = httpx.post(f"{telling.url}/tasks", json={"producer": "x", "webhook": json.loads(webhook)}).json()
    assert "webhook" not in produced["options"]
    done = httpx.post(f"{telling.url}{produced['links']['complete']}", json={"attempt": 1, "summary": {"n": 1}})
    assert done.is_success
    notice_when(telling, produced["task_id"], delivered)
    [one] = receiver.of(produced["task_id"])
    assert one.verified(OLD)["data"]["result"]["summary"] == {"n": 1}


def test_a_task_that_is_deleted_is_told_all_the_same(telling: Platform, receiver: Receiver) -> None:
    task_id = submit(telling, {"url": receiver.url("/fail/1/deleted")})["task_id"]
    notice_when(telling, task_id, tried(1))
    assert httpx.delete(f"{telling.url}/tasks/{task_id}").status_code == 204
    assert httpx.get(f"{telling.url}/tasks/{task_id}/webhooks").status_code == 404
    wait_for("the second try", lambda: len(receiver.of(task_id)) == 2)


WRONG: dict[str, Any] = {
    "no-url": {},
    "no-scheme": {"url": "hooks.example.com/x"},
    "file": {"url": "file:///etc/passwd"},
    "credentials": {"url": "http://a:b@example.com/"},
    "no-host": {"url": "http:///x"},
    "space": {"url": "http://example.com/a b"},
    "newline": {"url": "http://example.com/\r\nx-injected: 1"},
    "port": {"url": "http://example.com:0/"},
    "long": {"url": "http://example.com/" + "x" * 3000},
    "no-events": {"url": "http://example.com/", "events": []},
    "event": {"url": "http://example.com/", "events": ["started"]},
    "more": {"url": "http://example.com/", "secret": "x"},
    "text": "http://example.com/",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_webhook_is_a_clear_422(telling: Platform, wrong: str) -> None:
    answer = httpx.post(f"{telling.url}/tasks", json={**REHEARSAL, "webhook": WRONG[wrong]})
    assert answer.status_code == 422
    assert all(error["field"].startswith("webhook") for error in answer.json()["errors"])
    form = {"processor": "checksum", "webhook": json.dumps(WRONG[wrong])}
    answer = httpx.post(f"{telling.url}/tasks", data=form, files={"file": ("a.txt", b"hello")})
    assert answer.status_code == 422
    assert all(error["field"].startswith("webhook") for error in answer.json()["errors"])


def test_without_a_secret_a_webhook_is_a_clear_422(platform: Platform) -> None:
    webhook = {"url": "https://hooks.example.com/"}
    for body in ({**REHEARSAL, "webhook": webhook}, {"producer": "x", "webhook": webhook}):
        answer = httpx.post(f"{platform.url}/tasks", json=body)
        assert answer.status_code == 422
        assert "HEADWAY_WEBHOOK_SECRET" in answer.json()["detail"]


def test_the_same_idempotency_key_with_another_webhook_is_another_request(
    telling: Platform, receiver: Receiver
) -> None:
    again = {"Idempotency-Key": f"webhook-{time.time_ns()}"}
    bodies = [{**REHEARSAL, "webhook": {"url": receiver.url(path)}} for path in ("/ok/1", "/ok/1", "/ok/2")]
    answers = [httpx.post(f"{telling.url}/tasks", json=body, headers=again) for body in bodies]
    assert [answer.status_code for answer in answers] == [202, 202, 422]
    notice_when(telling, answers[0].json()["task_id"], delivered)
    assert len(receiver.of(answers[0].json()["task_id"])) == 1


def test_private_addresses_are_refused_unless_they_are_named(redis_server: RedisServer, tmp_path: Path) -> None:
    """A name that leads to loopback, and the forms of the address that only a resolver understands, too."""
    secret = {"HEADWAY_WEBHOOK_SECRET": OLD}
    with Platform(tmp_path / "refusing", redis_server.fresh_url(), **secret) as platform, Receiver() as receiver:
        platform.start_worker()
        platform.start_api()
        port = receiver.url("").rpartition(":")[2]
        hosts = ("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]", "0.0.0.0")
        tasks = [submit(platform, {"url": f"http://{host}:{port}/ok"})["task_id"] for host in hosts]
        for host, task_id in zip(hosts, tasks, strict=True):
            notice = notice_when(platform, task_id, tried(1))
            assert notice["status"] == "pending", host
            assert "may not go to" in notice["tries"][0]["error"], host
        assert receiver.received == []


def test_all_tasks_are_told_to_the_platforms_own_receiver(redis_server: RedisServer, tmp_path: Path) -> None:
    with Receiver() as everybody, Receiver() as one:
        env = {
            "HEADWAY_WEBHOOK_SECRET": OLD,
            "HEADWAY_WEBHOOK_URL": everybody.url("/ok/all?token=x"),
            "HEADWAY_WEBHOOK_ALLOW": "localhost",
            "HEADWAY_ROOT_PATH": "/headway",
        }
        with Platform(tmp_path / "all", redis_server.fresh_url(), **env) as platform:
            platform.start_worker()
            platform.start_api()
            plain = httpx.post(f"{platform.url}/headway/tasks", json=REHEARSAL).json()
            both = httpx.post(
                f"{platform.url}/headway/tasks", json={**REHEARSAL, "webhook": {"url": one.url(), "events": ["failed"]}}
            ).json()
            wait_for("both are told", lambda: len(everybody.received) == 2)
            assert {found.verified(OLD)["data"]["task_id"] for found in everybody.received} == {
                plain["task_id"],
                both["task_id"],
            }
            [told] = everybody.of(plain["task_id"])
            assert json.loads(told.body)["data"]["links"]["self"] == f"/headway/tasks/{plain['task_id']}"
            assert one.received == []
            [notice] = httpx.get(f"{platform.url}/headway/tasks/{plain['task_id']}/webhooks").json()["webhooks"]
            assert (notice["url"], notice["id"].endswith("_all")) == (None, True)
