"""Uploads on lines that break, stall and come back, with processes and a Redis that die under them.

UPLOAD_CUTS=1000 for the full number of uploads that are cut at a random byte.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest

from headway.shared.files.directory import DirectoryStorage
from headway.shared.redis.client import connect
from headway.shared.settings import Settings
from headway.shared.tasks.models import TaskId
from headway.shared.tasks.progress import Publisher
from headway.shared.units import DAY_SECONDS
from headway.worker.sweeper import UPLOAD_IDLE_SECONDS, Sweeper
from tests.integration.test_tus import VERSION, answer_on, line_to, metadata, offset_of, partial, place, send
from tests.processes import Platform, RedisServer
from tests.streams import assert_true_story, watch
from tests.waiting import wait_for, wait_until

SIZE = 2_000_000
CUTS = int(os.environ.get("UPLOAD_CUTS", "30"))
#: Of those, this many at once.
AT_ONCE = 20


@pytest.fixture
def content() -> bytes:
    return os.urandom(SIZE)


def half_sent(platform: Platform, url: str, task_id: str, content: bytes) -> socket.socket:
    line = line_to(url, 0, len(content), content[: SIZE // 2])
    wait_for("half of it is there", lambda: platform.task(task_id)["done"] == SIZE // 2, seconds=20)
    return line


def reset(line: socket.socket) -> None:
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()


def completed(platform: Platform, task_id: str, content: bytes) -> bool:
    task = platform.wait(task_id)
    assert task["status"] == "completed", task
    assert_true_story(watch(platform.url, task_id, last_event_id=0), first=1)
    return bool(task["result"]["summary"]["sha256"] == hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("break_it", [socket.socket.close, reset], ids=["FIN", "RST"])
def test_a_piece_that_is_cut_is_kept_to_the_last_byte_and_the_rest_completes_it(
    platform: Platform, content: bytes, break_it: object
) -> None:
    task_id, url = place(platform, SIZE)
    line = half_sent(platform, url, task_id, content)
    assert callable(break_it)
    break_it(line)
    wait_for("the cut is told", lambda: platform.task(task_id)["message"].endswith("waiting for the rest"))
    assert offset_of(url) == SIZE // 2 == platform.task(task_id)["done"]
    assert send(url, SIZE // 2, content[SIZE // 2 :]).status_code == 204
    assert completed(platform, task_id, content)
    story = watch(platform.url, task_id, last_event_id=0)
    shown = [frame.data["done"] for frame in story if frame.status == "uploading"]
    assert shown == sorted(shown)


@pytest.fixture(scope="module")
def pair(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Two APIs and a worker."""
    with Platform(tmp_path_factory.mktemp("pair"), redis_server.fresh_url()) as own:
        for _ in range(2):
            own.start_api()
        own.start_worker()
        yield own


@pytest.mark.parametrize("other", [0, 1], ids=["the same API", "another API"])
def test_whoever_comes_back_takes_over_from_a_line_that_is_half_open(
    pair: Platform, content: bytes, other: int
) -> None:
    task_id, url = place(pair, SIZE)
    with half_sent(pair, url, task_id, content) as line:
        elsewhere = url.replace(pair.url, pair.urls[other])
        taken = send(elsewhere, SIZE // 2, content[SIZE // 2 :])
        assert (taken.status_code, taken.headers.get("upload-offset")) == (204, str(SIZE))
        assert answer_on(line)[0] == 423
    assert completed(pair, task_id, content)


def test_a_writer_that_hangs_is_followed_when_its_lock_runs_out(own_platform: Platform, content: bytes) -> None:
    first = own_platform.start_api()
    own_platform.start_api()
    own_platform.start_worker()
    task_id, url = place(own_platform, SIZE)
    with half_sent(own_platform, url, task_id, content):
        first.signal(signal.SIGSTOP)
        try:
            elsewhere = url.replace(own_platform.urls[0], own_platform.urls[1])
            offset = offset_of(elsewhere)
            assert send(elsewhere, offset, content[offset:]).status_code == 204
        finally:
            first.signal(signal.SIGCONT)
        assert completed(own_platform, task_id, content)
        wait_for("what it had not yet written is gone", lambda: partial(own_platform, task_id) == [])


def test_an_upload_goes_on_after_redis_was_away(own_platform: Platform, own_redis: RedisServer, content: bytes) -> None:
    own_platform.start_api()
    own_platform.start_worker()
    task_id, url = place(own_platform, SIZE)
    with half_sent(own_platform, url, task_id, content) as line:
        own_redis.kill()
        status, answer = answer_on(line)
        assert status == 503
        assert b"retry-after" in answer.lower()
    assert httpx.head(url, headers=VERSION, timeout=20).status_code == 503
    own_redis.start()
    wait_for("Redis is back", lambda: httpx.head(url, headers=VERSION, timeout=20).status_code == 200, seconds=20)
    assert offset_of(url) == SIZE // 2
    assert send(url, SIZE // 2, content[SIZE // 2 :]).status_code == 204
    assert completed(own_platform, task_id, content)


def test_an_upload_goes_on_after_its_api_was_killed(own_platform: Platform, content: bytes) -> None:
    api = own_platform.start_api()
    own_platform.start_worker()
    task_id, url = place(own_platform, SIZE)
    line = half_sent(own_platform, url, task_id, content)
    api.kill()
    line.close()
    own_platform.start_api(port=urlsplit(own_platform.url).port)
    offset = offset_of(url)
    assert send(url, offset, content[offset:]).status_code == 204
    assert completed(own_platform, task_id, content)


def test_a_server_that_is_told_to_stop_keeps_what_came_and_says_so(own_platform: Platform, content: bytes) -> None:
    api = own_platform.start_api()
    task_id, url = place(own_platform, SIZE)
    with half_sent(own_platform, url, task_id, content) as line:
        api.signal(signal.SIGTERM)
        assert answer_on(line)[0] == 503
    assert api.wait() == 0
    own_platform.start_api(port=urlsplit(own_platform.url).port)
    assert offset_of(url) == SIZE // 2


async def test_all_bytes_of_a_process_that_died_before_the_end_are_made_a_file_by_who_asks(
    platform: Platform, content: bytes
) -> None:
    task_id, url = place(platform, SIZE)
    upload = await DirectoryStorage(platform.data_dir).resume(TaskId(task_id))
    await upload.write(content)
    await upload.pause()
    assert offset_of(url) == SIZE
    assert await asyncio.to_thread(completed, platform, task_id, content)


class Broom:
    """A sweeper of the test's own, whose clocks the test moves."""

    def __init__(self, own: Sweeper, now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        self._own = own
        self._now = now
        self._begun = time.time()
        monkeypatch.setattr(time, "time", lambda: self._begun + now[0])

        async def redis_time() -> tuple[int, int]:
            return int(self._begun + now[0]), 0

        monkeypatch.setattr(own._redis, "time", redis_time)
        monkeypatch.setattr("headway.shared.files.directory._clock_of", lambda _: self._begun + now[0])

    async def sweep(self, after: float = 0.0) -> None:
        self._now[0] += after
        await self._own.sweep()


@pytest.fixture
async def broom(own_platform: Platform, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Broom]:
    settings = Settings(redis_url=own_platform.redis_url, data_dir=own_platform.data_dir)
    now = [0.0]
    async with connect(settings) as client:
        services = {"publisher": Publisher(client, settings), "storage": DirectoryStorage(settings.data_dir)}
        own = Sweeper(client, settings, worker_id="test", clock=lambda: now[0], **services)  # type: ignore[arg-type]
        yield Broom(own, now, monkeypatch)


async def test_a_paused_upload_is_waited_for_until_its_day_is_over(
    own_platform: Platform, broom: Broom, content: bytes
) -> None:
    own_platform.start_api()
    task_id, url = place(own_platform, SIZE)
    assert send(url, 0, content[:1000]).status_code == 204
    await broom.sweep()
    await broom.sweep(after=UPLOAD_IDLE_SECONDS + 1)
    waiting = own_platform.task(task_id)
    assert (waiting["status"], waiting["message"]) == ("uploading", "The upload was cut off; waiting for the rest")
    await broom.sweep(after=DAY_SECONDS - 120)
    assert own_platform.task(task_id)["version"] == waiting["version"]
    assert offset_of(url) == 1000
    await broom.sweep(after=180)
    ended = own_platform.task(task_id)
    assert (ended["status"], ended["error"]["type"], ended["error"]["retryable"]) == ("failed", "bad_input", False)
    assert "did not come in time" in ended["message"]
    await broom.sweep(after=61)
    assert partial(own_platform, task_id) == []
    assert httpx.head(url, headers=VERSION).status_code == 410
    assert httpx.post(f"{own_platform.url}/tasks/{task_id}/retry").status_code == 409


@pytest.fixture(scope="module")
def impatient(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """An API that waits a second for a KiB."""
    url = redis_server.fresh_url()
    with Platform(tmp_path_factory.mktemp("impatient"), url, HEADWAY_RECEIVE_TIMEOUT_SECONDS="1") as own:
        own.start_api()
        yield own


@pytest.mark.parametrize("way", ["PUT", "multipart", "tus"])
@pytest.mark.parametrize("trickles", [True, False], ids=["a byte at a time", "nothing at all"])
def test_a_body_that_comes_too_slowly_is_ended(impatient: Platform, way: str, trickles: bool) -> None:
    head, task_id = request_of(impatient, way, 100_000)
    address = urlsplit(impatient.url)
    with socket.create_connection((str(address.hostname), int(address.port or 80)), timeout=0.05) as line:
        line.sendall(head + bytes(50_000))
        received = b""
        deadline = time.monotonic() + 20
        while b"}" not in received:
            assert time.monotonic() < deadline, "it was not ended"
            if trickles:
                with suppress(ConnectionError):
                    line.sendall(b"x")
            with suppress(TimeoutError, ConnectionError):
                received += line.recv(4096)
        assert received.startswith(b"HTTP/1.1 408 "), received
        assert b"connection: close" in received.lower()
        assert b"too slowly" in received
    if way == "multipart":
        assert list((impatient.data_dir / "partial").iterdir()) == []
        return
    assert "cut off" in impatient.task(task_id)["message"]
    if way == "tus":
        assert offset_of(f"{impatient.url}/uploads/{task_id}") >= 50_000
        assert httpx.delete(f"{impatient.url}/uploads/{task_id}", headers=VERSION).status_code == 204
    wait_for("nothing is left", lambda: list((impatient.data_dir / "partial").iterdir()) == [])


def test_a_slow_body_that_moves_is_taken(impatient: Platform) -> None:
    head, task_id = request_of(impatient, "PUT", 4 * 1200)
    address = urlsplit(impatient.url)
    with socket.create_connection((str(address.hostname), int(address.port or 80)), timeout=20) as line:
        line.sendall(head)
        for part in range(1, 5):
            line.sendall(bytes(1200))
            wait_for("it has come", lambda part=part: impatient.task(task_id)["done"] >= 1200 * part)  # type: ignore[misc]
        assert answer_on(line)[0] == 200


def request_of(platform: Platform, way: str, size_bytes: int, **named: str) -> tuple[bytes, str]:
    """The head of a request that sends so many bytes of a file, and its task's id, if it has one yet."""
    match way:
        case "PUT":
            body = {"processor": "checksum", "filename": "a", "size_bytes": size_bytes, **named}
            task_id = httpx.post(f"{platform.url}/tasks", json=body, timeout=30).json()["task_id"]
            return _head(f"PUT /tasks/{task_id}/upload", size_bytes, "x/y"), task_id
        case "tus":
            said = {"filename": "a", "processor": "checksum", **named}
            asked = VERSION | {"Upload-Length": str(size_bytes), "Upload-Metadata": metadata(**said)}
            answer = httpx.post(f"{platform.url}/uploads", headers=asked, timeout=30)
            head = _head(f"PATCH {answer.headers['location']}", size_bytes, "application/offset+octet-stream")
            return head, answer.headers["headway-task-id"]
    fields = {"processor": "checksum", **named}
    form = "".join(f'--x\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{fields[key]}\r\n' for key in fields)
    form += '--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    tail = len("\r\n--x--\r\n")
    return _head("POST /tasks", len(form) + size_bytes + tail, "multipart/form-data; boundary=x") + form.encode(), ""


def _head(line: str, length: int, content_type: str) -> bytes:
    head = f"{line} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
    return f"{head}Content-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n".encode()


@pytest.mark.timeout(240 + CUTS)
async def test_an_upload_that_is_cut_at_any_byte_leaves_no_half_file_and_nothing_that_waits(
    own_platform: Platform, broom: Broom
) -> None:
    own_platform.start_api()
    chance = random.Random(CUTS)
    turn = asyncio.Semaphore(AT_ONCE)
    puts: list[str] = []

    async def trial(number: int) -> tuple[str, bytes] | None:
        way = ("PUT", "multipart", "tus")[number % 3]
        content = chance.randbytes(chance.randrange(1, 400_000))
        cut_at, with_reset = chance.randrange(len(content)), chance.random() < 0.5
        async with turn:
            head, task_id = await asyncio.to_thread(request_of, own_platform, way, len(content), batch_id="cut")
            await cut_off(own_platform, head + content[:cut_at], with_reset)
            if way == "PUT":
                puts.append(task_id)
            if way != "tus":
                return None
            await resumed(f"{own_platform.url}/uploads/{task_id}", content)
            return task_id, content

    async with asyncio.TaskGroup() as group:
        trials = [group.create_task(trial(number)) for number in range(CUTS)]
    whole = dict(filter(None, (one.result() for one in trials)))
    folder = own_platform.data_dir / "partial"
    await wait_until("no half file is left", lambda: list(folder.iterdir()) == [], seconds=20)
    # A reset may take the head of a PUT with it, and then nothing has begun.
    unseen = [task_id for task_id in puts if own_platform.task(task_id)["version"] == 1]
    for task_id in unseen:
        httpx.post(f"{own_platform.url}/tasks/{task_id}/cancel")
    for after in (0, UPLOAD_IDLE_SECONDS + 1):
        await broom.sweep(after=after)
    own_platform.start_worker()

    def ended() -> bool:
        counts = httpx.get(f"{own_platform.url}/batches/cut").json()["counts"]
        return bool(counts["uploading"] + counts["queued"] + counts["processing"] == 0)

    await wait_until("nothing waits", ended, seconds=30 + CUTS / 10)
    for task_id, content in whole.items():
        done = own_platform.task(task_id)
        assert done["status"] == "completed"
        assert done["result"]["summary"]["sha256"] == hashlib.sha256(content).hexdigest()
    counts = httpx.get(f"{own_platform.url}/batches/cut").json()["counts"]
    expected = {"completed": len(whole), "failed": len(puts) - len(unseen), "cancelled": len(unseen)}
    assert {status: counts[status] for status in expected} == expected
    kept = {path.parent.name for path in (own_platform.data_dir / "tasks").rglob("input-*")}
    assert kept == set(whole)


async def cut_off(platform: Platform, sent: bytes, with_reset: bool) -> None:
    address = urlsplit(platform.url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(sent)
    await writer.drain()
    if with_reset:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def resumed(url: str, content: bytes) -> None:
    """As a client does: asks where to go on, goes on, and asks again where that was not right any more."""
    async with httpx.AsyncClient(timeout=30) as client:
        while True:
            looked = await client.head(url, headers=VERSION)
            if looked.status_code == 423:
                continue
            assert looked.status_code == 200, looked.headers
            if (offset := int(looked.headers["upload-offset"])) == len(content):
                return
            headers = VERSION | {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
            answer = await client.patch(url, headers=headers, content=content[offset:])
            assert answer.status_code in (204, 409, 423), answer.text
