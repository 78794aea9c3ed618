"""What falls between, made by killing real processes in the wrong moment, and swept up by real workers."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import redis

from headway.shared import keys
from headway.shared.files.directory import DirectoryStorage
from headway.shared.redis.client import connect
from headway.shared.settings import Settings
from headway.shared.tasks.models import TaskId
from headway.shared.tasks.progress import Publisher
from headway.worker.sweeper import UPLOAD_IDLE_SECONDS, Sweeper
from tests.processes import Platform, RedisServer
from tests.resilience.test_worker_faults import running_step
from tests.streams import assert_true_story, watch
from tests.unit.sweeping import FORGET
from tests.waiting import wait_for, wait_until

SIZE = 4_000_000


@pytest.fixture
def control(own_redis: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=own_redis.port) as client:
        yield client


class Broom:
    """A sweeper of the test's own, whose clock the test moves: nobody wants to wait for a day."""

    def __init__(self, sweeper: Sweeper, now: list[float]) -> None:
        self._sweeper = sweeper
        self._now = now

    async def sweep(self, after: float = 0.0) -> None:
        self._now[0] += after
        await self._sweeper.sweep()


@pytest.fixture
async def broom(own_platform: Platform) -> AsyncIterator[Broom]:
    settings = Settings(redis_url=own_platform.redis_url, data_dir=own_platform.data_dir)
    now = [0.0]
    async with connect(settings) as client:
        services = {"publisher": Publisher(client, settings), "storage": DirectoryStorage(settings.data_dir)}
        yield Broom(Sweeper(client, settings, worker_id="test", clock=lambda: now[0], **services), now)  # type: ignore[arg-type]


def announced(platform: Platform) -> str:
    body = {"processor": "checksum", "filename": "half.bin", "size_bytes": SIZE}
    answer = httpx.post(f"{platform.url}/tasks", json=body)
    assert answer.status_code == 201
    task_id: str = answer.json()["task_id"]
    return task_id


def half_an_upload(platform: Platform, task_id: str) -> socket.socket:
    """Sends half of the file, and leaves the line open."""
    url = urlsplit(platform.url)
    line = socket.create_connection((str(url.hostname), int(url.port or 80)))
    head = f"PUT /tasks/{task_id}/upload HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n\r\n"
    line.sendall(head.encode() + b"x" * (SIZE // 2))
    wait_for("half of it is there", lambda: platform.task(task_id)["done"] == SIZE // 2)
    return line


def cut(line: socket.socket) -> None:
    """RST, as a line that breaks."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()


def partials(platform: Platform) -> list[Path]:
    return list((platform.data_dir / "partial").iterdir())


async def test_a_cut_upload_that_is_not_taken_up_ends_as_failed(own_platform: Platform, broom: Broom) -> None:
    own_platform.start_api()
    task_id = announced(own_platform)
    cut(half_an_upload(own_platform, task_id))
    await wait_until("it is seen to be cut", lambda: "cut off" in own_platform.task(task_id)["message"])
    assert partials(own_platform) == []
    await broom.sweep()
    await broom.sweep(after=UPLOAD_IDLE_SECONDS + 1)
    ended = own_platform.task(task_id)
    assert (ended["status"], ended["error"]["type"], ended["error"]["retryable"]) == ("failed", "bad_input", False)
    assert_true_story(watch(own_platform.url, task_id, last_event_id=0), first=1)
    assert httpx.put(f"{own_platform.url}/tasks/{task_id}/upload", content=b"x" * SIZE).status_code == 409


async def test_a_cut_upload_that_is_sent_again_in_time_completes(own_platform: Platform, broom: Broom) -> None:
    own_platform.start_api()
    task_id = announced(own_platform)
    cut(half_an_upload(own_platform, task_id))
    await wait_until("it is seen to be cut", lambda: "cut off" in own_platform.task(task_id)["message"])
    await broom.sweep()
    await broom.sweep(after=UPLOAD_IDLE_SECONDS - 1)
    assert httpx.put(f"{own_platform.url}/tasks/{task_id}/upload", content=b"x" * SIZE).status_code == 200
    await broom.sweep(after=UPLOAD_IDLE_SECONDS)
    own_platform.start_worker()
    assert own_platform.wait(task_id)["status"] == "completed"


async def test_an_upload_whose_api_was_killed_ends_and_its_half_file_goes(own_platform: Platform, broom: Broom) -> None:
    api = own_platform.start_api()
    task_id = announced(own_platform)
    line = half_an_upload(own_platform, task_id)
    api.kill()
    line.close()
    [half] = partials(own_platform)
    await broom.sweep()
    await broom.sweep(after=UPLOAD_IDLE_SECONDS + 1)
    os.utime(half, (time.time() - 61, time.time() - 61))
    await broom.sweep()
    assert partials(own_platform) == []
    own_platform.start_api(port=urlsplit(own_platform.url).port)
    assert own_platform.task(task_id)["error"]["type"] == "bad_input"


def lease_of(control: redis.Redis, task_id: str) -> bool:
    return bool(control.exists(keys.job_lease(keys.job_id(TaskId(task_id), 1))))


def test_a_task_whose_enqueue_was_lost_is_run_all_the_same(own_platform: Platform, control: redis.Redis) -> None:
    own_platform.start_api()
    lost = [own_platform.submit("checksum", b"lost")["task_id"] for _ in range(3)]
    for task_id in lost:
        control.eval(FORGET, 0, keys.job_id(TaskId(task_id), 1))
    control.delete(keys.job(keys.job_id(TaskId(lost[0]), 1)))
    worker = own_platform.start_worker()
    for task_id in lost:
        done = own_platform.wait(task_id, seconds=20)
        assert (done["status"], done["attempt"]) == ("completed", 1)
    assert worker.log.count("task put back on the queue") == 3


def test_a_job_that_redis_threw_away_is_made_again(own_platform: Platform, control: redis.Redis) -> None:
    """The queue still names it, but what it is has been evicted: arq calls that expired."""
    own_platform.start_api()
    task_id = own_platform.submit("checksum", b"evicted")["task_id"]
    control.delete(keys.job(keys.job_id(TaskId(task_id), 1)))
    own_platform.start_worker()
    assert own_platform.wait(task_id, seconds=20)["status"] == "completed"


def test_running_tasks_are_never_put_back_however_many_workers_sweep(own_platform: Platform) -> None:
    own_platform.start_api()
    for _ in range(2):
        own_platform.start_worker(HEADWAY_WORKER_CONCURRENCY="3")
    options = '{"steps": 120, "step_seconds": 0.1}'
    tasks = [own_platform.submit("rehearsal", options=options)["task_id"] for _ in range(6)]
    for task_id in tasks:
        done = own_platform.wait(task_id, seconds=40)
        assert (done["status"], done["attempt"]) == ("completed", 1)
    assert not any("put back" in worker.log or "sweep broke" in worker.log for worker in own_platform.workers)


def sweeps(control: redis.Redis) -> Callable[[], bytes | None]:
    return lambda: control.get(keys.SWEEPER)  # type: ignore[return-value]


def test_when_the_worker_that_sweeps_is_killed_another_one_does(own_platform: Platform, control: redis.Redis) -> None:
    first = own_platform.start_worker()
    before = wait_for("it sweeps", sweeps(control))
    own_platform.start_worker()
    first.kill()
    wait_for("the other sweeps", lambda: (sweeps(control)() or before) != before, seconds=25)


def test_a_stopped_worker_leaves_the_sweeping_to_another_at_once(own_platform: Platform, control: redis.Redis) -> None:
    worker = own_platform.start_worker()
    wait_for("it sweeps", sweeps(control))
    worker.stop()
    assert control.get(keys.SWEEPER) is None


async def test_the_scratch_folder_of_a_killed_worker_goes(own_platform: Platform, broom: Broom) -> None:
    own_platform.start_api()
    worker = own_platform.start_worker()
    task_id = own_platform.submit("rehearsal", options='{"steps": 20, "step_seconds": 0.1}')["task_id"]
    running_step(own_platform, task_id)
    worker.kill()
    [scratch] = partials(own_platform)
    own_platform.start_worker(HEADWAY_LEASE_SECONDS="0.5")
    assert own_platform.wait(task_id)["status"] == "completed"
    await broom.sweep()
    assert partials(own_platform) == [scratch], "somebody may not yet know that it lost the task"
    os.utime(scratch, (time.time() - 61, time.time() - 61))
    await broom.sweep()
    assert partials(own_platform) == []
