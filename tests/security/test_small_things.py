"""What is small and lets somebody in: addresses that are only said, cookies of neighbours, files that would run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import httpx
import pytest

from tests.processes import Platform, RedisServer
from tests.resilience.test_strangers import ALICE, KEYS

JSON: Final = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0}}


@pytest.fixture(scope="module")
def keyed(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    url = redis_server.fresh_url()
    with Platform(tmp_path_factory.mktemp("small"), url, HEADWAY_API_KEYS=json.dumps(KEYS)) as platform:
        platform.start_api()
        yield platform


def test_who_says_another_address_each_time_is_stopped_all_the_same(keyed: Platform) -> None:
    with httpx.Client(base_url=keyed.url) as client:

        def status(number: int) -> int:
            said = {"X-Forwarded-For": f"10.1.{number // 250}.{number % 250}"}
            return client.post("/session", json={"key": f"wrong-key-number-{number:06}"}, headers=said).status_code

        tries = [status(number) for number in range(300)]
    assert tries.count(401) == 100
    assert set(tries) == {401, 429}


@pytest.mark.parametrize("dest", ["script", "style", "worker", "serviceworker", "sharedworker", "iframe", "object"])
def test_a_file_is_never_run_by_a_page(platform: Platform, dest: str) -> None:
    task = httpx.post(
        f"{platform.url}/tasks",
        data={"processor": "checksum"},
        files={"file": ("a.js", b"alert(1)", "text/javascript")},
    ).json()
    path = f"{platform.url}/tasks/{task['task_id']}/input"
    assert httpx.get(path, headers={"Sec-Fetch-Dest": dest}).status_code == 403
    (platform.files_dir / "b.js").write_bytes(b"alert(2)")
    assert httpx.get(f"{platform.url}/download/b.js", headers={"Sec-Fetch-Dest": dest}).status_code == 403
    for fine in ("document", "empty", "image", "video"):
        assert httpx.get(path, headers={"Sec-Fetch-Dest": fine}).content == b"alert(1)"
    assert httpx.get(path).content == b"alert(1)"


def test_of_two_session_cookies_none_counts(keyed: Platform) -> None:
    cookie = httpx.post(f"{keyed.url}/session", json={"key": KEYS["alice"]}).cookies["headway_session"]

    def status(header: str) -> int:
        return httpx.get(f"{keyed.url}/session", headers={"Cookie": header}).status_code

    assert status(f"headway_session={cookie}") == 200
    assert status(f"other=1; headway_session={cookie}; headway_session={cookie}") == 200
    for two in ("headway_session=planted; headway_session={}", "headway_session={}; a=b; headway_session="):
        assert status(two.format(cookie)) == 401


@pytest.mark.parametrize(
    ("origin", "said", "status"), [("http", None, 202), ("https", None, 403), ("http", "https", 403)]
)
def test_a_page_of_another_scheme_is_another_site(keyed: Platform, origin: str, said: str | None, status: int) -> None:
    host = keyed.url.removeprefix("http://")
    headers = ALICE | {"Origin": f"{origin}://{host}"} | ({"X-Forwarded-Proto": said} if said else {})
    assert httpx.post(f"{keyed.url}/tasks", json=JSON, headers=headers).status_code == status


def test_no_redirect_leads_to_the_host_that_somebody_named(keyed: Platform) -> None:
    answer = httpx.get(f"{keyed.url}/tasks/?limit=1", headers=ALICE | {"Host": "evil.example"})
    assert "evil" not in answer.headers.get("location", "")
    assert answer.status_code in (307, 404)
    if answer.status_code == 307:
        assert answer.headers["location"] == "/tasks?limit=1"


def test_readiness_speaks_of_the_disk(keyed: Platform) -> None:
    storage = httpx.get(f"{keyed.url}/readyz").json()["checks"]["storage"]
    assert storage["ok"]
    assert "%" in storage["reason"] or storage["degraded"]


def test_a_task_token_reads_the_notes_of_its_task(keyed: Platform) -> None:
    task = httpx.post(f"{keyed.url}/tasks", json=JSON, headers=ALICE).json()
    token = {"Authorization": f"Bearer {task['token']}"}
    path = f"{keyed.url}/tasks/{task['task_id']}/notes"
    assert httpx.post(path, json={"author": "a", "text": "b"}, headers=ALICE).status_code == 201
    assert [note["text"] for note in httpx.get(path, headers=token).json()["notes"]] == ["b"]
    assert httpx.post(path, json={"author": "a", "text": "b"}, headers=token).status_code == 403
