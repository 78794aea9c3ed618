"""Who is asking, over HTTP, on two API processes that share a Redis: keys, sessions, task tokens, limits."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import httpx
import pytest
import redis
from pydantic import SecretStr

from headway.api.access.keyring import Keyring
from headway.shared.tasks.models import OwnerId
from tests.processes import Platform, RedisServer
from tests.streams import frames_of, opened
from tests.waiting import wait_for

KEYS: Final = {"alice": "the-key-of-alice-9f2c", "bob": "the-key-of-bob-77aa1"}
WRONG: Final = "no-key-of-anybody-31337"


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


ALICE: Final = bearer(KEYS["alice"])
BOB: Final = bearer(KEYS["bob"])


@pytest.fixture(scope="module")
def keyed(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Two APIs with keys and a worker, on a database of their own."""
    url = redis_server.fresh_url()
    with Platform(tmp_path_factory.mktemp("keyed"), url, HEADWAY_API_KEYS=json.dumps(KEYS)) as platform:
        platform.start_worker()
        platform.start_api()
        platform.start_api()
        yield platform


def submit(url: str, headers: dict[str, str] = ALICE, **options: Any) -> dict[str, Any]:
    body = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0} | options}
    answer = httpx.post(f"{url}/tasks", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    task: dict[str, Any] = answer.json()
    return task


def sign_in(url: str, key: str = KEYS["alice"], **headers: str) -> str:
    """The session's cookie."""
    answer = httpx.post(f"{url}/session", json={"key": key}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.headers["set-cookie"].partition(";")[0]


def test_a_session_is_a_cookie_that_no_script_and_no_other_site_gets(keyed: Platform) -> None:
    answer = httpx.post(f"{keyed.url}/session", json={"key": KEYS["alice"]})
    assert answer.status_code == 200
    assert answer.json()["owner"] == "alice"
    assert answer.headers["cache-control"] == "no-store"
    value, *attributes = answer.headers["set-cookie"].split("; ")
    assert value.startswith("headway_session=")
    assert {part.lower() for part in attributes} == {"httponly", "samesite=strict", "path=/", "max-age=43200"}
    through_https = httpx.post(
        f"{keyed.url}/session", json={"key": KEYS["alice"]}, headers={"X-Forwarded-Proto": "https"}
    )
    assert "; Secure" in through_https.headers["set-cookie"]


def test_a_session_sees_what_its_owner_sees_and_says_who_that_is(keyed: Platform) -> None:
    task = submit(keyed.url)
    cookie = {"Cookie": sign_in(keyed.url)}
    for url in keyed.urls:
        assert httpx.get(f"{url}/tasks/{task['task_id']}", headers=cookie).status_code == 200
        told = httpx.get(f"{url}/session", headers=cookie).json()
        assert told["owner"] == "alice"
        assert told["expires_at"]
        assert httpx.get(f"{url}/session", headers=ALICE).json() == {"owner": "alice", "expires_at": None}
        assert httpx.get(f"{url}/session").status_code == 401
    bobs = {"Cookie": sign_in(keyed.url, KEYS["bob"])}
    assert httpx.get(f"{keyed.url}/tasks/{task['task_id']}", headers=bobs).status_code == 404


def test_signing_out_ends_the_session_everywhere_and_its_streams(keyed: Platform) -> None:
    cookie = {"Cookie": sign_in(keyed.url)}
    task = submit(keyed.url, steps=1, step_seconds=600)
    streams = [opened(f"{url}/tasks/{task['task_id']}/events", **cookie) for url in keyed.urls]
    with streams[0] as here, streams[1] as there, opened(f"{keyed.urls[1]}/events", **ALICE) as by_key:
        out = httpx.delete(f"{keyed.url}/session", headers=cookie)
        assert out.status_code == 204
        assert "max-age=0" in out.headers["set-cookie"].lower()
        for url in keyed.urls:
            refused = httpx.get(f"{url}/tasks", headers=cookie)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert all(frame.status == "processing" or frame.status == "queued" for frame in frames_of(here))
        assert all(frame.status == "processing" or frame.status == "queued" for frame in frames_of(there))
        assert httpx.delete(f"{keyed.url}/session", headers=cookie).status_code == 401
        httpx.post(f"{keyed.url}/tasks/{task['task_id']}/cancel", headers=ALICE)
        told = frames_of(by_key)  # what came with a key goes on
        assert next(frame for frame in told if frame.data["task_id"] == task["task_id"] and frame.status == "cancelled")


def test_signing_in_again_ends_the_session_before(keyed: Platform) -> None:
    first = sign_in(keyed.url)
    second = sign_in(keyed.url, KEYS["bob"], Cookie=first)
    assert first != second
    assert httpx.get(f"{keyed.urls[1]}/session", headers={"Cookie": first}).status_code == 401
    assert httpx.get(f"{keyed.urls[1]}/session", headers={"Cookie": second}).json()["owner"] == "bob"


def test_a_cookie_counts_for_our_own_page_alone(keyed: Platform) -> None:
    cookie = {"Cookie": sign_in(keyed.url)}
    for other in (
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
    ):
        assert httpx.get(f"{keyed.url}/tasks", headers=cookie | other).status_code == 401
        assert httpx.post(f"{keyed.url}/tasks", headers=cookie | other).status_code == 403
        assert httpx.post(f"{keyed.url}/session", json={"key": KEYS["bob"]}, headers=other).status_code == 403
    own = {"Origin": keyed.url, "Sec-Fetch-Site": "same-origin"}
    assert httpx.get(f"{keyed.url}/tasks", headers=cookie | own).status_code == 200


def test_a_bearer_that_is_wrong_is_not_made_good_by_a_cookie_but_a_proxys_password_is_no_bearer(
    keyed: Platform,
) -> None:
    cookie = {"Cookie": sign_in(keyed.url)}
    assert httpx.get(f"{keyed.url}/tasks", headers=cookie | bearer(WRONG)).status_code == 401
    assert httpx.get(f"{keyed.url}/tasks", headers=cookie | {"Authorization": "Basic eDp5"}).status_code == 200


def test_no_session_is_kept_without_an_end_or_under_its_own_name(keyed: Platform) -> None:
    cookie = sign_in(keyed.url)
    with redis.Redis.from_url(keyed.redis_url) as client:
        found = list(client.scan_iter("headway:session:*"))
        assert found
        for key in found:
            assert 0 < client.ttl(key) <= 12 * 3600
            assert key.decode().rpartition(":")[2] not in cookie


def test_wrong_keys_are_slowed_down_by_address_and_a_right_one_after_them_too(keyed: Platform) -> None:
    def tried(key: str, address: str) -> httpx.Response:
        return httpx.post(f"{keyed.url}/session", json={"key": key}, headers={"X-Forwarded-For": address})

    assert {tried(WRONG, "192.0.2.1").status_code for _ in range(10)} == {401}
    slowed = tried(KEYS["alice"], "192.0.2.1")
    assert slowed.status_code == 429
    assert 0 < int(slowed.headers["retry-after"]) <= 60
    assert tried(KEYS["alice"], "192.0.2.2").status_code == 200


@pytest.mark.parametrize(
    "sent", [{}, {"key": ""}, {"key": 5}, {"key": None}, {"key": "x" * 513}, {"key": "x", "a": 1}, []]
)
def test_a_sign_in_that_is_none_tells_nothing_back(keyed: Platform, sent: Any) -> None:
    answer = httpx.post(f"{keyed.url}/session", json=sent)
    assert answer.status_code in (401, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert "xxxx" not in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("path", ["/session", f"/tasks/{'0' * 32}/notes"])
def test_what_takes_a_few_words_takes_no_long_body(keyed: Platform, path: str) -> None:
    answer = httpx.post(f"{keyed.url}{path}", content=b'{"key": "' + b"x" * 100_000 + b'"}', headers=ALICE)
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")


def test_in_open_mode_there_is_nobody_to_be(platform: Platform) -> None:
    answer = httpx.post(f"{platform.url}/session", json={"key": WRONG})
    assert (answer.status_code, answer.json()) == (200, {"owner": None, "expires_at": None})
    assert "set-cookie" not in answer.headers
    assert httpx.get(f"{platform.url}/session").json()["owner"] is None
    assert httpx.delete(f"{platform.url}/session").status_code == 204
    assert "token" not in submit(platform.url, {})


def test_a_token_reads_its_task_everything_of_it_and_at_every_process(keyed: Platform) -> None:
    files = {"file": ("notes.txt", b"one two three")}
    answer = httpx.post(f"{keyed.url}/tasks", data={"processor": "compress"}, files=files, headers=ALICE)
    task = answer.json()
    token = bearer(task["token"])
    url = f"{keyed.urls[1]}/tasks/{task['task_id']}"
    with opened(f"{url}/events", **token) as stream:
        assert list(frames_of(stream))[-1].status == "completed"
    with opened(f"{keyed.url}/task-progress/{task['task_id']}", **token) as stream:
        assert list(frames_of(stream))[-1].status == "completed"
    done = httpx.get(url, headers=token).json()
    [file] = done["result"]["files"]
    for path in (file["url"], done["links"]["input"]):
        assert httpx.get(f"{keyed.url}{path}", headers=token).status_code == 200
        assert httpx.head(f"{keyed.url}{path}", headers=token).status_code == 200


def test_a_token_does_nothing_else(keyed: Platform) -> None:
    task, other = submit(keyed.url), submit(keyed.url)
    token, here = bearer(task["token"]), f"/tasks/{task['task_id']}"
    refused = [
        *(("GET", path) for path in ("/tasks", "/tasks.csv", "/events", f"/events?task={task['task_id']}")),
        *(("GET", path) for path in ("/processors", "/session", "/docs", "/openapi.json", "/download/x", "/nothing")),
        *(("POST", path) for path in ("/tasks", "/process-file", f"{here}/cancel", f"{here}/retry", f"{here}/notes")),
        *(("DELETE", path) for path in (here, "/session", f"/uploads/{task['task_id']}")),
        *(("PUT", f"{here}/upload"), ("HEAD", f"/uploads/{task['task_id']}"), ("PATCH", f"/uploads/{task['task_id']}")),
    ]
    for method, path in refused:
        answer = httpx.request(method, f"{keyed.url}{path}", headers=token)
        assert answer.status_code == 403, (method, path)
    for path in (f"/tasks/{other['task_id']}", f"/tasks/{other['task_id']}/events", f"/tasks/{'0' * 32}/input"):
        answer = httpx.get(f"{keyed.url}{path}", headers=token)
        assert (answer.status_code, answer.json()["detail"]) == (404, "There is no such task.")
    assert httpx.get(f"{keyed.url}/tasks/{task['task_id']}", headers=ALICE).json().get("token") is None


def test_a_token_ends_with_its_task(keyed: Platform) -> None:
    task = submit(keyed.url)
    url = f"{keyed.url}/tasks/{task['task_id']}"
    with opened(f"{url}/events", **ALICE) as stream:
        assert list(frames_of(stream))[-1].status == "completed"
    assert httpx.delete(url, headers=ALICE).status_code == 204
    assert httpx.get(url, headers=bearer(task["token"])).status_code == 404


def test_a_repeated_answer_has_a_token_of_its_own_that_is_kept_nowhere(keyed: Platform) -> None:
    body = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0}}
    headers = ALICE | {"Idempotency-Key": "the-same"}
    first = httpx.post(f"{keyed.url}/tasks", json=body, headers=headers)
    signed_at = int(time.time())
    wait_for("the clock's next second", lambda: time.time() > signed_at + 1)
    again = httpx.post(f"{keyed.urls[1]}/tasks", json=body, headers=headers)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    one, two = first.json(), again.json()
    assert one.pop("token") != (fresh := two.pop("token"))
    assert one == two
    assert httpx.get(f"{keyed.url}/tasks/{two['task_id']}", headers=bearer(fresh)).status_code == 200


def test_a_stream_ends_when_its_token_does(keyed: Platform) -> None:
    task = submit(keyed.url, steps=1, step_seconds=600)
    url = f"{keyed.url}/tasks/{task['task_id']}"
    expires_at = int(time.time()) + 2
    token = Keyring({OwnerId("alice"): SecretStr(KEYS["alice"])}).sign(
        "task", OwnerId("alice"), expires_at, task=task["task_id"]
    )
    with opened(f"{url}/events", **bearer(token)) as stream:
        assert not [frame for frame in frames_of(stream) if frame.status == "completed"]
    assert httpx.get(url, headers=bearer(token)).status_code == 401
    assert httpx.get(url, headers=ALICE).json()["status"] in ("queued", "processing")  # it is the token that ended
    httpx.post(f"{url}/cancel", headers=ALICE)


def test_nothing_in_a_url_says_who_is_asking(keyed: Platform) -> None:
    task = submit(keyed.url)
    cookie = sign_in(keyed.url).partition("=")[2]
    for value in (KEYS["alice"], task["token"], cookie):
        for name in ("key", "token", "access_token", "api_key", "authorization", "headway_session", "bearer"):
            for path in ("/tasks", f"/tasks/{task['task_id']}", f"/tasks/{task['task_id']}/events"):
                answer = httpx.get(f"{keyed.url}{path}", params={name: value})
                assert answer.status_code == 401
    assert httpx.get(f"{keyed.url}/tasks".replace("//", f"//alice:{KEYS['alice']}@")).status_code == 401


def test_a_redis_that_is_away_makes_a_session_wait_at_streams_and_come_back_elsewhere(
    own_platform: Platform, own_redis: RedisServer
) -> None:
    own_platform.start_api(HEADWAY_API_KEYS=json.dumps(KEYS))
    url = own_platform.url
    task = submit(url)
    kept, ended = sign_in(url), sign_in(url)
    assert httpx.delete(f"{url}/session", headers={"Cookie": ended}).status_code == 204
    own_redis.kill()
    answer = httpx.get(f"{url}/tasks", headers={"Cookie": kept})
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert answer.headers["retry-after"]
    assert httpx.post(f"{url}/session", json={"key": KEYS["alice"]}).status_code == 503
    assert (
        httpx.get(f"{url}/tasks/{task['task_id']}/events", headers={"Cookie": "headway_session=x.y.z"}).status_code
        == 401
    )
    path = f"{url}/tasks/{task['task_id']}/events"
    with opened(path, Cookie=kept) as stream, opened(path, Cookie=ended) as refused:
        assert (stream.status_code, refused.status_code) == (200, 200)
        own_redis.start()
        assert next(frames_of(stream)).status == "queued"
        assert b"".join(refused.iter_raw()).count(b"data:") <= 1  # it ends, which is what counts


def test_over_a_limit_it_is_429_with_a_time_to_come_back(own_platform: Platform) -> None:
    own_platform.start_api(
        HEADWAY_API_KEYS=json.dumps(KEYS),
        HEADWAY_MAX_STREAMS="3",
        HEADWAY_MAX_UPLOADS="1",
        HEADWAY_MAX_UNFINISHED_TASKS="2",
    )
    url = own_platform.url

    def refused(answer: httpx.Response) -> bool:
        if answer.status_code != 429:
            return False
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) > 0
        return True

    tasks = [submit(url) for _ in range(2)]
    body = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0}}
    form = {"data": {"processor": "checksum"}, "files": {"file": ("a", b"x")}}
    assert refused(httpx.post(f"{url}/tasks", json=body, headers=ALICE))
    assert refused(httpx.post(f"{url}/tasks", headers=ALICE, **form))  # type: ignore[arg-type]
    assert refused(httpx.post(f"{url}/process-file", headers=ALICE))
    assert httpx.post(f"{url}/tasks", json=body, headers=BOB).status_code == 202

    watched = f"{url}/tasks/{tasks[0]['task_id']}/events"
    with ExitStack() as stack:
        for path in (watched, watched, f"{url}/events"):
            assert stack.enter_context(opened(path, **ALICE)).status_code == 200
        for path in (watched, f"{url}/events", f"{url}/sse-updates"):
            assert refused(httpx.get(path, headers=ALICE))
        assert refused(httpx.get(f"{url}/events", headers=BOB))  # who comes from the same address
    wait_for("the streams are given back", lambda: stream_status(watched) == 200)

    def upload() -> httpx.Response:
        files = {"file": ("a", b"x" * 100_000)}
        return httpx.post(f"{url}/tasks", data={"processor": "checksum"}, files=files, headers=BOB)

    head = f"POST /tasks HTTP/1.1\r\nHost: x\r\nAuthorization: {BOB['Authorization']}\r\nContent-Length: 100000\r\n"
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as under_way:
        under_way.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n".encode())
        wait_for("it is under way, and another is refused", lambda: refused(upload()))
    wait_for("its place is free", lambda: upload().status_code == 202)


def stream_status(url: str) -> int:
    with opened(url, **ALICE) as answer:
        return answer.status_code


def test_a_look_at_sessions_that_fails_is_told_in_readiness_and_goes_on(
    own_platform: Platform, own_redis: RedisServer
) -> None:
    """Redis refuses the look, and nothing else: what is refused is no Redis that is away."""
    for _ in range(2):
        own_platform.start_api(HEADWAY_API_KEYS=json.dumps(KEYS))
    first, second = own_platform.urls
    cookie = {"Cookie": sign_in(first)}

    def is_ready() -> bool:
        return httpx.get(f"{second}/readyz").status_code == 200

    with opened(f"{second}/events", **cookie) as stream, redis.Redis.from_url(own_redis.url) as admin:
        received = stream.iter_raw()
        next(received)
        admin.execute_command("ACL", "SETUSER", "default", "-mget")
        wait_for("it is not ready", lambda: not is_ready())
        assert "sessions" in httpx.get(f"{second}/readyz").json()["checks"]["relay"]["reason"]
        admin.execute_command("ACL", "SETUSER", "default", "+mget")
        wait_for("it is ready", is_ready)
        httpx.delete(f"{first}/session", headers=cookie).raise_for_status()
        for _ in received:  # to the end of the stream
            pass
