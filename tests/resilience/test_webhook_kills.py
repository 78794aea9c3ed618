"""Workers and Redis are killed while ends are written and told: each end is told at least once, under one id."""

from __future__ import annotations

import random
import signal
import time
from collections import defaultdict

import httpx

from tests.processes import Platform, RedisServer
from tests.receivers import Receiver
from tests.waiting import wait_for

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ROUNDS = 4
TASKS = 8


def something_more_is_told(receiver: Receiver) -> None:
    before = len(receiver.received)
    wait_for("something more is told", lambda: len(receiver.received) > before)


def test_every_end_is_told_under_one_id_whatever_is_killed(own_platform: Platform) -> None:
    own_platform._env |= {
        "HEADWAY_WEBHOOK_SECRET": SECRET,
        "HEADWAY_WEBHOOK_ALLOW": "127.0.0.1",
        "HEADWAY_LEASE_SECONDS": "1",
        "HEADWAY_MAX_ATTEMPTS": "100",
    }
    chance = random.Random(4711)
    own_platform.start_api()
    tasks: list[str] = []
    with Receiver() as receiver:
        own_platform.start_worker()
        for _ in range(ROUNDS):
            body = {
                "processor": "rehearsal",
                "options": {"steps": 2, "step_seconds": 0.05},
                "webhook": {"url": receiver.url("/ok")},
            }
            for number in range(TASKS):
                if number % 3 == 0:
                    body = body | {"options": {"steps": 2, "step_seconds": 0.05, "fail_at": 1}}
                tasks.append(httpx.post(f"{own_platform.url}/tasks", json=body, timeout=60).json()["task_id"])
            something_more_is_told(receiver)
            time.sleep(chance.uniform(0, 0.2))  # anywhere in the middle of the others
            own_platform.workers[-1].signal(signal.SIGKILL)
            own_platform.start_worker()
        ends: dict[str, set[str]] = defaultdict(set)

        def all_are_told() -> bool:
            for one in list(receiver.received):
                told = one.verified(SECRET)
                ends[told["data"]["task_id"]].add(one.webhook_id)
            return ends.keys() >= set(tasks)

        wait_for("each end is told", all_are_told, seconds=120)
        assert {task_id: len(ids) for task_id, ids in ends.items()} == dict.fromkeys(tasks, 1)


def test_a_redis_that_is_killed_loses_no_notice(own_platform: Platform, own_redis: RedisServer) -> None:
    own_platform._env |= {"HEADWAY_WEBHOOK_SECRET": SECRET, "HEADWAY_WEBHOOK_ALLOW": "127.0.0.1"}
    own_platform.start_api()
    own_platform.start_worker()
    with Receiver() as receiver:
        body = {
            "processor": "rehearsal",
            "options": {"steps": 1, "step_seconds": 0},
            "webhook": {"url": receiver.url("/fail/1/x")},
        }
        task_id = httpx.post(f"{own_platform.url}/tasks", json=body, timeout=60).json()["task_id"]
        wait_for("the first try", lambda: receiver.of(task_id))
        own_redis.kill()
        own_redis.start()
        wait_for("the second try", lambda: len(receiver.of(task_id)) >= 2)
        assert len({one.webhook_id for one in receiver.of(task_id)}) == 1
