"""Redis away, stopped, full, evicting, and everybody's connections cut: workers live, tasks go on, nothing runs twice
to the end, and the log says what to do without a word of anybody's data."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import redis

from headway.shared import keys
from headway.shared.redis.client import channel_on, connect, trouble_ahead
from headway.shared.settings import Settings
from headway.shared.tasks.models import TaskId
from headway.shared.tasks.queue import JobTicket, serialize
from tests.processes import Platform, RedisServer
from tests.resilience.test_worker_faults import running_step
from tests.streams import assert_true_story, watch
from tests.waiting import wait_for

#: The issue asks for 5 s and 60 s: REDIS_AWAY_SECONDS=60 runs the longer one.
AWAY_SECONDS = float(os.environ.get("REDIS_AWAY_SECONDS", "5"))

#: Long enough to be running before, during and after.
STEPS = int(AWAY_SECONDS * 10) + 40
WORK = json.dumps({"steps": STEPS, "step_seconds": 0.1})
PATIENCE_SECONDS = AWAY_SECONDS + 30


@pytest.fixture
def control(own_redis: RedisServer) -> Iterator[redis.Redis]:
    """A client that is not the platform's."""
    with redis.Redis(port=own_redis.port) as client:
        yield client


@pytest.fixture
def fleet(own_platform: Platform) -> Platform:
    own_platform.start_api()
    for _ in range(2):
        own_platform.start_worker(HEADWAY_WORKER_CONCURRENCY="2", HEADWAY_LEASE_SECONDS="1.5")
    return own_platform


def has_passed(seconds: float) -> Callable[[], bool]:
    over = time.monotonic() + seconds
    return lambda: time.monotonic() > over


def attempts_completed(platform: Platform, task_id: str) -> int:
    lines = [json.loads(line) for worker in platform.workers for line in worker.log.splitlines()]
    return sum(line["event"] == "attempt completed" and line["task_id"] == task_id for line in lines)


def assert_all_is_well(platform: Platform, task_id: str) -> None:
    """The task completed, once, in one true story, and every worker lives and works."""
    done = platform.wait(task_id, seconds=PATIENCE_SECONDS)
    assert (done["status"], done["result"]["summary"]) == ("completed", {"steps": STEPS})
    assert_true_story(watch(platform.url, task_id, last_event_id=0))
    assert attempts_completed(platform, task_id) == 1
    assert [worker.code for worker in platform.workers] == [None] * len(platform.workers)
    after = [platform.submit("checksum", b"still here")["task_id"] for _ in range(4)]
    assert [platform.wait(one)["status"] for one in after] == ["completed"] * 4


@pytest.mark.timeout(240 + 2 * AWAY_SECONDS)
def test_a_redis_that_is_down_for_a_while_ends_no_worker_and_no_task(fleet: Platform, own_redis: RedisServer) -> None:
    task_id = fleet.submit("rehearsal", options=WORK)["task_id"]
    running_step(fleet, task_id)
    own_redis.kill()
    wait_for("it has been away", has_passed(AWAY_SECONDS), seconds=AWAY_SECONDS + 1)
    own_redis.start()
    assert_all_is_well(fleet, task_id)
    for worker in fleet.workers:
        events = [json.loads(line)["event"] for line in worker.log.splitlines()]
        assert events.count("redis away") <= 3, "it is said once, not each time it is tried"
        assert "redis back" in events


@pytest.mark.timeout(240 + 2 * AWAY_SECONDS)
def test_a_redis_that_is_stopped_and_goes_on_ends_no_worker_and_no_task(
    fleet: Platform, own_redis: RedisServer
) -> None:
    task_id = fleet.submit("rehearsal", options=WORK)["task_id"]
    running_step(fleet, task_id)
    own_redis.signal(signal.SIGSTOP)
    wait_for("it has been stopped", has_passed(AWAY_SECONDS), seconds=AWAY_SECONDS + 1)
    own_redis.signal(signal.SIGCONT)
    assert_all_is_well(fleet, task_id)


@pytest.mark.timeout(240 + 2 * AWAY_SECONDS)
def test_a_full_redis_is_503_and_what_runs_completes_when_there_is_room(fleet: Platform, control: redis.Redis) -> None:
    task_id = fleet.submit("rehearsal", options=WORK)["task_id"]
    running_step(fleet, task_id)
    control.config_set("maxmemory", 1)
    secret = "topsecret-payload"
    for refused in (
        httpx.post(f"{fleet.url}/tasks", files={"file": (f"{secret}.txt", b"x")}, data={"processor": "checksum"}),
        httpx.post(f"{fleet.url}/tasks", json={"processor": "checksum", "filename": f"{secret}.txt"}),
    ):
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert "maxmemory" in refused.json()["detail"]
        assert secret not in refused.text
    assert fleet.task(task_id)["status"] == "processing", "what is there can still be read"
    wait_for("leases would have run out", has_passed(4), seconds=5)
    control.config_set("maxmemory", 0)
    assert_all_is_well(fleet, task_id)
    assert fleet.task(task_id)["attempt"] == 1, "a full Redis still renews leases"
    assert any("maxmemory reached" in worker.log for worker in fleet.workers)
    for process in (*fleet.workers, *fleet.apis):
        assert secret not in process.log
        assert "step_seconds" not in process.log
    assert list(fleet.data_dir.glob("partial/*")) == []


def test_a_redis_with_too_few_replicas_is_503_and_what_runs_completes_when_it_has_them(
    fleet: Platform, control: redis.Redis
) -> None:
    task_id = fleet.submit("rehearsal", options=WORK)["task_id"]
    running_step(fleet, task_id)
    control.config_set("min-replicas-to-write", 1)
    refused = httpx.post(f"{fleet.url}/tasks", files={"file": ("a.txt", b"x")}, data={"processor": "checksum"})
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert "min-replicas-to-write" in refused.json()["detail"]
    wait_for("leases would have run out", has_passed(4), seconds=5)
    control.config_set("min-replicas-to-write", 0)
    assert_all_is_well(fleet, task_id)


def test_cutting_everybodys_connections_again_and_again_harms_nothing(fleet: Platform, control: redis.Redis) -> None:
    task_id = fleet.submit("rehearsal", options=WORK)["task_id"]
    running_step(fleet, task_id)
    for step in range(5, 25, 2):
        for kind in ("normal", "pubsub"):
            control.client_kill_filter(_type=kind, skipme=True)
        running_step(fleet, task_id, step)
    assert_all_is_well(fleet, task_id)
    assert fleet.task(task_id)["attempt"] == 1


def test_an_eviction_policy_that_loses_tasks_is_said_at_the_start_with_what_to_do(
    own_platform: Platform, control: redis.Redis
) -> None:
    control.config_set("maxmemory-policy", "allkeys-lru")
    worker = own_platform.start_worker()
    wait_for("it is said", lambda: "redis not fit for tasks" in worker.log)
    assert "CONFIG SET maxmemory-policy noeviction" in worker.log
    assert worker.code is None


async def test_what_is_wrong_with_a_redis_that_answers_is_told(own_redis: RedisServer, control: redis.Redis) -> None:
    async with connect(Settings(redis_url=own_redis.url)) as client:
        assert await trouble_ahead(client) is None
        control.config_set("maxmemory", 1)
        assert "raise maxmemory" in str(await trouble_ahead(client))
        control.config_set("maxmemory", 0)
        control.config_set("maxmemory-policy", "volatile-ttl")
        assert "volatile-ttl" in str(await trouble_ahead(client))
    async with connect(Settings(redis_url="memory://")) as fake:
        assert await trouble_ahead(fake) is None


def test_jobs_that_cannot_be_run_leave_the_queue_and_no_worker_ends(fleet: Platform, control: redis.Redis) -> None:
    ticket = JobTicket.new(TaskId("0" * 32), 1)
    for number, payload in enumerate(
        (
            None,  # expired, or thrown away
            serialize({"t": None, "f": "no_such_function", "a": [], "k": {}, "et": 1}),
            serialize({"f": "process_file"}),
            b"\x80\x04pickled",
            b"5",
            ticket.payload,  # of a task that nobody knows
        )
    ):
        job = f"{number:032x}.1"
        if payload is not None:
            control.set(keys.job(job), payload, px=60_000)
        control.zadd(keys.QUEUE, {job: 1})
    control.publish(channel_on(control, keys.CONTROL), "wake")
    wait_for("the queue is empty", lambda: not control.exists(keys.QUEUE, keys.LINE_JOBS))
    after = fleet.submit("checksum", b"still here")
    assert fleet.wait(after["task_id"])["status"] == "completed"
    assert [worker.code for worker in fleet.workers] == [None, None]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_without_redis_still_stops_within_five_seconds(
    fleet: Platform, own_redis: RedisServer, number: signal.Signals
) -> None:
    task_id = fleet.submit("rehearsal", options=WORK)["task_id"]
    running_step(fleet, task_id)
    own_redis.signal(signal.SIGSTOP)
    for worker in fleet.workers:
        worker.signal(number)
    assert [worker.wait(5) for worker in fleet.workers] == [0, 0]
