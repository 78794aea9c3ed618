"""Looking at tasks, changing them, and what the API says of itself."""

from __future__ import annotations

import hashlib
import json

import httpx
import pytest

from tests.processes import Platform, free_port
from tests.waiting import wait_for


def test_a_task_has_every_field_of_the_contract(platform: Platform) -> None:
    task = platform.submit("checksum", b"x")
    fields = {
        *(
            "task_id",
            "processor",
            "filename",
            "size_bytes",
            "content_type",
            "options",
            "batch_id",
            "status",
            "progress",
        ),
        *("step", "total_steps", "message", "done", "total", "unit", "rate", "eta_seconds", "attempt", "version"),
        *("created_at", "started_at", "updated_at", "finished_at", "result", "error", "links"),
        *("filename_as_sent", "priority", "not_before", "queue_position", "starts_in_seconds", "input_of", "partial"),
    }
    assert set(task) == fields
    assert set(platform.wait(task["task_id"])) == fields


def test_tasks_are_listed_newest_first_page_by_page(own_platform: Platform) -> None:
    own_platform.start_api()
    ids = [own_platform.submit("rehearsal")["task_id"] for _ in range(7)]
    for task_id in ids[:2]:
        httpx.post(f"{own_platform.url}/tasks/{task_id}/cancel")
    listed, cursor = [], None
    while True:
        params = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = httpx.get(f"{own_platform.url}/tasks", params=params).json()
        listed += [task["task_id"] for task in page["tasks"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert sorted(listed) == sorted(ids)
    cancelled = httpx.get(f"{own_platform.url}/tasks", params={"status": "cancelled"}).json()
    assert {task["task_id"] for task in cancelled["tasks"]} == set(ids[:2])
    assert cancelled["next_cursor"] is None
    none = httpx.get(f"{own_platform.url}/tasks", params={"processor": "checksum"}).json()
    assert none == {"tasks": [], "next_cursor": None}


@pytest.mark.parametrize(
    "query", ["status=nope", "limit=0", "limit=501", "limit=x", "cursor=xyz", "cursor=%FF", "cursor="]
)
def test_a_wrong_query_is_told(platform: Platform, query: str) -> None:
    answer = httpx.get(f"{platform.url}/tasks?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["field"] in ("status", "limit", "cursor")


def test_deleting_takes_the_files_too_and_only_after_the_end(platform: Platform) -> None:
    task = platform.submit("rehearsal", b"content", options='{"steps": 1, "step_seconds": 600}')
    url = f"{platform.url}/tasks/{task['task_id']}"
    folder = platform.data_dir / "tasks" / task["task_id"]
    assert httpx.delete(url).status_code == 409
    assert folder.exists()
    httpx.post(f"{url}/cancel")
    assert httpx.delete(url).status_code == 204
    assert not folder.exists()
    for gone in (httpx.get(url), httpx.delete(url), httpx.post(f"{url}/retry"), httpx.get(f"{url}/events")):
        assert (gone.status_code, gone.headers["content-type"]) == (404, "application/problem+json")


def test_a_failed_task_can_be_retried_to_its_end(platform: Platform) -> None:
    task = platform.submit("rehearsal", b"x", options='{"steps": 1, "step_seconds": 0, "fail_at": 1}')
    url = f"{platform.url}/tasks/{task['task_id']}"
    assert platform.wait(task["task_id"])["attempt"] == 1
    answer = httpx.post(f"{url}/retry")
    assert (answer.status_code, answer.json()["attempt"], answer.json()["error"]) == (202, 2, None)
    wait_for("it has failed again", lambda: platform.task(task["task_id"])["finished_at"])
    assert platform.task(task["task_id"])["attempt"] == 2


def test_a_completed_task_cannot_be_retried_or_cancelled(platform: Platform) -> None:
    task = platform.submit("checksum", b"x")
    platform.wait(task["task_id"])
    for verb in ("retry", "cancel"):
        answer = httpx.post(f"{platform.url}/tasks/{task['task_id']}/{verb}")
        assert answer.status_code == 409
        assert "completed" in answer.json()["detail"]


def test_the_processors_say_what_they_take(platform: Platform) -> None:
    listed = {one["name"]: one for one in httpx.get(f"{platform.url}/processors").json()["processors"]}
    assert {"checksum", "csv-profile", "rehearsal"} <= listed.keys()
    assert listed["rehearsal"]["options"]["properties"]["steps"]["type"] == "integer"
    assert listed["rehearsal"]["needs_file"] is False
    assert "text/*" in listed["csv-profile"]["accepts"]
    assert all(one["description"] for one in listed.values())


def test_health_and_readiness_with_a_reason_each(platform: Platform) -> None:
    assert httpx.get(f"{platform.url}/healthz").json() == {"status": "ok"}

    def ready() -> bool:
        answer = httpx.get(f"{platform.url}/readyz")
        return answer.status_code == 200 and answer.json()["status"] == "ready"

    wait_for("it is ready", ready)
    checks = httpx.get(f"{platform.url}/readyz").json()["checks"]
    assert set(checks) == {"redis", "relay", "workers", "storage"}
    assert all(check["ok"] and check["reason"] for check in checks.values())


def test_without_a_worker_files_are_taken_and_wait(own_platform: Platform) -> None:
    own_platform.start_api()
    answer = httpx.get(f"{own_platform.url}/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert "headway worker" in answer.json()["checks"]["workers"]["reason"]
    task = own_platform.submit("checksum", b"x")
    own_platform.start_worker()
    assert own_platform.wait(task["task_id"])["status"] == "completed"


def test_redis_not_there_at_the_start_is_said_and_waited_for(own_platform: Platform) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    own_platform.start_api(HEADWAY_REDIS_URL=nowhere)
    worker = own_platform.start_worker(HEADWAY_REDIS_URL=nowhere)
    answer = httpx.get(f"{own_platform.url}/readyz")
    assert answer.status_code == 503
    assert "HEADWAY_REDIS_URL" in answer.json()["checks"]["redis"]["reason"]
    for path in ("/tasks", f"/tasks/{'0' * 32}"):
        away = httpx.get(f"{own_platform.url}{path}")
        assert (away.status_code, away.headers["content-type"]) == (503, "application/problem+json")
        assert away.headers["retry-after"]
    posted = httpx.post(f"{own_platform.url}/tasks", data={"processor": "checksum"}, files={"file": ("a", b"x")})
    assert posted.status_code == 503
    wait_for("the worker says so", lambda: "HEADWAY_REDIS_URL" in worker.log)
    assert worker.code is None


def test_keys_are_asked_for_and_an_owner_sees_only_its_own(own_platform: Platform) -> None:
    keys = {"alice": "a" * 32, "bob": "b" * 32}
    own_platform.start_api(HEADWAY_API_KEYS=json.dumps(keys))
    url = own_platform.url
    alice, bob = ({"Authorization": f"Bearer {keys[owner]}"} for owner in ("alice", "bob"))
    for wrong in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": keys["alice"]},
        {"Authorization": "Bearer ä"},
    ):
        answer = httpx.get(f"{url}/tasks", headers=[(k.encode(), v.encode()) for k, v in wrong.items()])
        told = 'Bearer error="invalid_token"' if wrong.get("Authorization", "").startswith("Bearer ") else "Bearer"
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, told)
    task = httpx.post(f"{url}/tasks", data={"processor": "checksum"}, files={"file": ("a", b"x")}, headers=alice).json()
    path = f"{url}/tasks/{task['task_id']}"
    assert httpx.get(path, headers=alice).status_code == 200
    assert httpx.get(f"{url}/tasks", headers=bob).json()["tasks"] == []
    for method, suffix in (("GET", ""), ("GET", "/events"), ("GET", "/input"), ("POST", "/cancel"), ("DELETE", "")):
        assert httpx.request(method, path + suffix, headers=bob).status_code == 404
        assert httpx.request(method, path + suffix).status_code == 401
    assert httpx.get(f"{url}/healthz").status_code == httpx.get(f"{url}/readyz").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://evil.test"}, 403),
        ({"Origin": "http://evil.test"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 202),
        ({"Sec-Fetch-Site": "none"}, 202),
        ({}, 202),
    ],
)
def test_a_change_from_another_site_is_refused(platform: Platform, headers: dict[str, str], status: int) -> None:
    body = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0}}
    answer = httpx.post(f"{platform.url}/tasks", json=body, headers=headers)
    assert answer.status_code == status
    assert httpx.get(f"{platform.url}/tasks?limit=1", headers=headers).status_code == 200


def test_a_result_file_downloads_as_an_attachment_in_ranges(platform: Platform) -> None:
    csv = b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(1000))
    done = platform.wait(platform.submit("csv-profile", csv, filename="squares.csv")["task_id"])
    [file] = done["result"]["files"]
    answer = httpx.get(f"{platform.url}{file['url']}")
    assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
    assert len(answer.content) == file["size_bytes"]
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert httpx.head(f"{platform.url}{file['url']}").headers["etag"] == f'"{file["sha256"]}"'
    part = httpx.get(f"{platform.url}{file['url']}", headers={"Range": "bytes=-4"})
    assert (part.status_code, part.content) == (206, answer.content[-4:])
    missing = httpx.get(f"{platform.url}/tasks/{done['task_id']}/files/nothing.txt")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")


# The tutorial's own paths.


def test_the_tutorials_post_without_a_body_starts_ten_steps(platform: Platform) -> None:
    answer = httpx.post(f"{platform.url}/process-file")
    assert answer.status_code in (200, 202)
    assert set(answer.json()) == {"task_id", "message"}
    task = platform.task(answer.json()["task_id"])
    assert (task["processor"], task["options"]["steps"], task["options"]["step_seconds"]) == ("rehearsal", 10, 2)
    with httpx.stream("GET", f"{platform.url}/task-progress/{task['task_id']}") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert b"data: " in next(stream.iter_raw())
    httpx.post(f"{platform.url}/tasks/{task['task_id']}/cancel")


def test_the_tutorials_post_with_a_file_is_a_checksum(platform: Platform) -> None:
    answer = httpx.post(f"{platform.url}/process-file", files={"file": ("a.txt", b"hello")})
    done = platform.wait(answer.json()["task_id"])
    assert done["result"]["summary"]["sha256"] == hashlib.sha256(b"hello").hexdigest()


def test_the_tutorials_numbers_come_one_by_one(platform: Platform) -> None:
    with httpx.stream("GET", f"{platform.url}/stream-numbers", timeout=15) as answer:
        chunks = list(answer.iter_raw())
    assert len(chunks) == 10
    assert b"".join(chunks).decode().split("\n")[:-1] == [f"Number: {number}" for number in range(1, 11)]


def test_the_tutorials_clock_greets_counts_and_ends(platform: Platform) -> None:
    with httpx.stream("GET", f"{platform.url}/sse-updates?seconds=2", timeout=15) as answer:
        data = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert data[0] == "Connection established"
    counts = [json.loads(line) for line in data[1:]]
    assert [set(count) for count in counts] == [{"count", "timestamp"}] * len(counts)
    assert [count["count"] for count in counts] == [1, 2]


def test_the_tutorials_csv_has_the_rows_asked_for(platform: Platform) -> None:
    lines = httpx.get(f"{platform.url}/download-large-csv?rows=5003").text.splitlines()
    assert lines[0] == "id,name,value"
    assert len(lines) == 5004
    assert len(httpx.get(f"{platform.url}/download-large-csv").text.splitlines()) == 100_001
    assert httpx.get(f"{platform.url}/download-large-csv?rows=-1").status_code == 422


def test_offered_files_download_and_nothing_else_does(platform: Platform) -> None:
    (platform.files_dir / "report.html").write_bytes(b"<script>")
    (platform.files_dir / ".secret").write_bytes(b"no")
    (platform.files_dir / "link").symlink_to("/etc/passwd")
    answer = httpx.get(f"{platform.url}/download/report.html")
    assert (answer.status_code, answer.content) == (200, b"<script>")
    assert answer.headers["content-disposition"].startswith("attachment")
    for name in (".secret", "link", "nothing", "..%2f..%2fetc%2fpasswd", "%00", "a" * 300):
        assert httpx.get(f"{platform.url}/download/{name}").status_code == 404


def test_the_page_has_a_strict_policy(platform: Platform) -> None:
    answer = httpx.get(platform.url)
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert httpx.get(f"{platform.url}/static/app.js").status_code == 200
