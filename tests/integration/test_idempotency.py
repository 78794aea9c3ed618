"""`Idempotency-Key` over HTTP: one task for one key, however often, however many at a time, whatever dies."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import redis

from headway.shared import keys
from headway.shared.tasks.models import ANYONE
from tests.processes import Platform, RedisServer
from tests.waiting import wait_for

#: The issue asks for 1,000: IDEMPOTENT_POSTS=1000 runs them.
POSTS = int(os.environ.get("IDEMPOTENT_POSTS", "100"))

FORM: dict[str, Any] = {"files": {"file": ("a.bin", b"content", "x/y")}, "data": {"processor": "checksum"}}
ANNOUNCED: dict[str, Any] = {"json": {"filename": "a.bin", "size_bytes": 7, "processor": "checksum"}}


def a_key() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(8)}


def post(platform: Platform, key: dict[str, str], path: str = "/tasks", **request: Any) -> httpx.Response:
    return httpx.post(f"{platform.url}{path}", headers=key, timeout=30, **request)


def batch_of(platform: Platform, batch_id: str) -> list[str]:
    page = httpx.get(f"{platform.url}/tasks?batch_id={batch_id}&limit=500").json()
    return [task["task_id"] for task in page["tasks"]]


def assert_same_answer(again: httpx.Response, first: httpx.Response) -> None:
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers


def test_a_repeated_form_gets_the_first_answer_also_after_the_task_has_ended(platform: Platform) -> None:
    key = a_key()
    first = post(platform, key, **FORM)
    assert first.status_code == 202, first.text
    assert platform.wait(first.json()["task_id"])["status"] == "completed"
    assert_same_answer(post(platform, key, **FORM), first)


def test_a_repeated_announcement_gets_the_first_answer_also_after_the_upload(platform: Platform) -> None:
    key = a_key()
    first = post(platform, key, **ANNOUNCED)
    assert first.status_code == 201, first.text
    assert httpx.put(f"{platform.url}{first.json()['links']['upload']}", content=b"content").status_code == 200
    assert_same_answer(post(platform, key, **ANNOUNCED), first)


def test_the_tutorials_path_takes_a_key_too(platform: Platform) -> None:
    for request in (FORM, {}):
        key = a_key()
        first = post(platform, key, "/process-file", **request)
        assert_same_answer(post(platform, key, "/process-file", **request), first)


@pytest.mark.parametrize(
    "other",
    [
        {"files": {"file": ("a.bin", b"Content", "x/y")}},
        {"files": {"file": ("b.bin", b"content", "x/y")}},
        {"data": {"processor": "compress"}},
        {"data": {"processor": "checksum", "batch_id": "b"}},
        {"data": {"processor": "rehearsal", "options": '{"steps": 3}'}},
        ANNOUNCED | {"files": None, "data": None},
    ],
    ids=["content", "name", "processor", "batch", "options", "announced"],
)
def test_a_key_with_another_request_is_422_and_makes_no_task(platform: Platform, other: dict[str, Any]) -> None:
    key = a_key()
    first = post(platform, key, **FORM)
    answer = post(platform, key, **FORM | other)
    assert answer.status_code == 422
    assert answer.json()["type"].endswith(":key-reused")
    assert [error["field"] for error in answer.json()["errors"]] == ["Idempotency-Key"]
    newest = httpx.get(f"{platform.url}/tasks?limit=1").json()["tasks"]
    assert newest[0]["task_id"] == first.json()["task_id"]


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"a\tb", "schlüssel".encode()], ids=["empty", "long", "tab", "utf-8"])
def test_what_is_no_key_is_422_and_says_what_one_is(platform: Platform, key: bytes) -> None:
    answer = httpx.post(f"{platform.url}/tasks", headers=[(b"Idempotency-Key", key)], **FORM)
    assert answer.status_code == 422
    assert "1 to 255 printable ASCII" in answer.json()["detail"]


def test_a_request_that_failed_leaves_its_key_free(platform: Platform) -> None:
    key = a_key()
    assert post(platform, key, **FORM | {"data": {"processor": "no such"}}).status_code == 422
    assert post(platform, key, content=b"x", path="/tasks").status_code == 415
    answer = post(platform, key, **FORM)
    assert answer.status_code == 202
    assert "idempotency-replayed" not in answer.headers


class HalfSent:
    """A form whose sender has stopped in the middle of the file."""

    def __init__(self, platform: Platform, key: dict[str, str], batch_id: str) -> None:
        head = "--x\r\nContent-Disposition: form-data; name="
        parts = f'{head}"processor"\r\n\r\nchecksum\r\n{head}"batch_id"\r\n\r\n{batch_id}\r\n'
        parts += f'{head}"file"; filename="a"\r\n\r\n'
        self._rest = b"0123456789\r\n--x--\r\n"
        body = parts.encode() + b"0123456789"
        host, port = platform.url.removeprefix("http://").split(":")
        self.sock = socket.create_connection((host, int(port)))
        request = (
            f"POST /tasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIdempotency-Key: {key['Idempotency-Key']}\r\n"
            f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body) + len(self._rest)}\r\n\r\n"
        )
        self.sock.sendall(request.encode() + body)

    def finish(self) -> bytes:
        self.sock.sendall(self._rest)
        answer = b""
        while received := self.sock.recv(65536):
            answer += received
        self.sock.close()
        return answer

    def cut(self) -> None:
        self.sock.close()


#: What HalfSent sends, whole.
WHOLE: dict[str, Any] = {"files": {"file": ("a", b"0123456789" * 2, "")}}


def whole(batch_id: str) -> dict[str, Any]:
    return WHOLE | {"data": {"processor": "checksum", "batch_id": batch_id}}


@contextmanager
def half_sent(platform: Platform, key: dict[str, str], batch_id: str) -> Iterator[HalfSent]:
    """A request that holds its key."""
    name = keys.idempotency(ANYONE, hashlib.sha256(key["Idempotency-Key"].encode()).hexdigest())
    first = HalfSent(platform, key, batch_id)
    with redis.Redis.from_url(platform.redis_url) as client:
        wait_for("it holds the key", lambda: client.hexists(name, "holder"))
    yield first
    first.cut()


def test_a_request_that_comes_while_the_first_is_under_way_waits_for_its_answer(platform: Platform) -> None:
    key, batch_id = a_key(), "waits"
    with ThreadPoolExecutor(1) as threads, half_sent(platform, key, batch_id) as first:
        second = threads.submit(post, platform, key, **whole(batch_id))
        answered = first.finish()
        again = second.result(30)
    assert answered.startswith(b"HTTP/1.1 202")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert answered.endswith(again.content)
    assert len(batch_of(platform, batch_id)) == 1


def test_an_upload_that_is_cut_off_leaves_its_key_free(platform: Platform) -> None:
    key, batch_id = a_key(), "cut"
    with half_sent(platform, key, batch_id) as first:
        first.cut()
        answer = post(platform, key, **whole(batch_id))
    assert answer.status_code == 202
    assert "idempotency-replayed" not in answer.headers
    assert batch_of(platform, batch_id) == [answer.json()["task_id"]]


def test_a_process_that_is_killed_leaves_its_key_free_for_the_next_try_elsewhere(own_platform: Platform) -> None:
    doomed = own_platform.start_api()
    key, batch_id = a_key(), "killed"
    with half_sent(own_platform, key, batch_id):
        doomed.kill()
        own_platform.urls.clear()
        own_platform.start_api()
        answer = post(own_platform, key, **whole(batch_id))
    assert answer.status_code == 202
    assert "idempotency-replayed" not in answer.headers
    assert batch_of(own_platform, batch_id) == [answer.json()["task_id"]]


@pytest.mark.timeout(240 + POSTS / 10)
async def test_many_posts_at_once_with_one_key_make_one_task(own_platform: Platform, own_redis: RedisServer) -> None:
    own_platform.start_api()
    own_platform.start_api()
    key, batch_id = a_key(), "many"
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:
        posts = [
            client.post(f"{own_platform.urls[number % 2]}/tasks", headers=key, **whole(batch_id))
            for number in range(POSTS)
        ]
        began = time.monotonic()
        answers = await asyncio.gather(*posts)
        print(f"{POSTS} posts with one key were answered in {time.monotonic() - began:.1f} s")
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert batch_of(own_platform, batch_id) == [answers[0].json()["task_id"]]
    assert len(list(own_platform.data_dir.rglob("input-*"))) == 1, "the others kept nothing"
