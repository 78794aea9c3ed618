"""What a processor declares of its own running: retries, limits; and one that is paused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import datetime

import httpx
import jwt
import pytest

from tests.processes import Platform, RedisServer
from tests.streams import watch
from tests.waiting import wait_for

KEYS = {"alice": "alices-key-0123456789"}
MODULE = """
import time
from headway.processors import BadInput, Job, Options, Retries, processor

class Flaky(Options):
    fails: int = 1
    error: str = "ConnectionError"

def run(job):
    seen = job.restored or 0
    job.checkpoint(seen + 1)
    time.sleep(0.3)  # a checkpoint is on its way
    if job.attempt <= job.options.fails:
        errors = {"ConnectionError": ConnectionError, "ValueError": ValueError, "BadInput": BadInput}
        raise errors[job.options.error]("not now")
    return {"seen": seen}

@processor("flaky", needs_file=False, options=Flaky, retries=Retries(max=2, backoff_seconds=0.2))
def flaky(job: Job):
    return run(job)

@processor("picky", needs_file=False, options=Flaky, retries=Retries(max=2, backoff_seconds=0.1, on=OSError))
def picky(job: Job):
    return run(job)

@processor("slow", needs_file=False, timeout_seconds=0.5, retries=Retries(max=1, backoff_seconds=0, on="timeout"))
def slow(job: Job):
    if job.attempt == 1:
        time.sleep(600)
    return {}

@processor("single", needs_file=False, concurrency=1)
def single(job: Job):
    time.sleep(0.2)
    return {}

@processor("small", needs_file=False, memory_bytes=128 * 1024 * 1024)
def small(job: Job):
    held = bytearray(300 * 1024 * 1024)
    return {"held": len(held)}
"""


@pytest.fixture(scope="module")
def declared(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("declared")
    (folder / "mine.py").write_text(MODULE)
    env = {"HEADWAY_PROCESSORS": "mine", "HEADWAY_APP_DIR": str(folder), "HEADWAY_WORKER_CONCURRENCY": "2"}
    with Platform(folder / "platform", redis_server.fresh_url(), **env) as platform:
        platform.start_worker()
        platform.start_worker()
        platform.start_api()
        yield platform


def test_a_failed_attempt_is_tried_again_from_its_checkpoint_on_the_same_stream(declared: Platform) -> None:
    task_id = declared.submit("flaky", options='{"fails": 2}')["task_id"]
    states = [frame.data for frame in watch(declared.url, task_id, last_event_id=0) if not frame.name]
    ended = states[-1]
    assert (ended["status"], ended["attempt"], ended["error"]) == ("completed", 3, None)
    assert ended["result"]["summary"] == {"seen": 2}, "each attempt went on from the one before"
    waits = [state for state in states if state["status"] == "queued" and state["attempt"] > 1]
    assert [state["attempt"] for state in waits] == [2, 3]
    for number, state in enumerate(waits, start=1):
        words = state["message"].split()
        assert words[:5] == ["Retry", str(number), "of", "2", "at"]
        assert "ConnectionError: not now" in state["message"]
        next_at = datetime.fromisoformat(words[5].rstrip(":"))
        started = next(one for one in states if one["attempt"] == number + 1 and one["status"] == "processing")
        assert datetime.fromisoformat(started["started_at"]) >= next_at
        assert (next_at - datetime.fromisoformat(state["updated_at"])).total_seconds() >= 0.2 * 2 ** (number - 1) - 0.01


def test_no_more_is_tried_than_was_declared_and_a_retry_begins_anew(declared: Platform) -> None:
    task_id = declared.submit("flaky", options='{"fails": 4}')["task_id"]
    failed = declared.wait(task_id, seconds=60)
    assert (failed["status"], failed["attempt"]) == ("failed", 3)
    assert failed["error"]["message"] == "ConnectionError: not now"
    assert httpx.post(f"{declared.url}/tasks/{task_id}/retry").status_code == 202
    done = declared.wait(task_id, seconds=60)
    assert (done["status"], done["attempt"]) == ("completed", 5)


@pytest.mark.parametrize(
    ("processor", "error", "attempts"),
    [("flaky", "BadInput", 1), ("picky", "ValueError", 1), ("picky", "ConnectionError", 2), ("flaky", "ValueError", 2)],
)
def test_what_is_tried_again_was_declared(declared: Platform, processor: str, error: str, attempts: int) -> None:
    task_id = declared.submit(processor, options=json.dumps({"fails": 1, "error": error}))["task_id"]
    ended = declared.wait(task_id, seconds=60)
    assert (ended["attempt"], ended["status"]) == (attempts, "failed" if attempts == 1 else "completed")


def test_a_task_that_waits_for_its_next_attempt_can_be_cancelled(declared: Platform) -> None:
    task_id = declared.submit("flaky", options='{"fails": 3}')["task_id"]
    wait_for("it waits", lambda: declared.task(task_id)["message"].startswith("Retry "))
    assert httpx.post(f"{declared.url}/tasks/{task_id}/cancel").json()["status"] == "cancelled"


def test_a_processor_has_a_time_limit_of_its_own(declared: Platform) -> None:
    done = declared.wait(declared.submit("slow")["task_id"], seconds=60)
    assert (done["status"], done["attempt"]) == ("completed", 2)


def test_a_processor_has_a_memory_limit_of_its_own(declared: Platform) -> None:
    failed = declared.wait(declared.submit("small")["task_id"], seconds=60)
    assert failed["error"]["type"] == "memory"
    assert "128 MiB" in failed["error"]["message"]


def test_a_processor_runs_no_more_at_once_than_it_declares_over_all_workers(declared: Platform) -> None:
    tasks = [declared.submit("single")["task_id"] for _ in range(4)]
    ran = sorted((declared.wait(one, seconds=60) for one in tasks), key=lambda task: str(task["started_at"]))
    for before, after in itertools.pairwise(ran):
        assert before["finished_at"] <= after["started_at"]


def test_what_is_declared_is_told(declared: Platform) -> None:
    told = {one["name"]: one for one in httpx.get(f"{declared.url}/processors").json()["processors"]}
    assert told["flaky"]["retries"] == {"max": 2, "backoff_seconds": 0.2}
    assert (told["slow"]["timeout_seconds"], told["single"]["concurrency"]) == (0.5, 1)
    assert told["small"]["memory_bytes"] == 128 * 1024 * 1024
    names = ("paused", "concurrency", "timeout_seconds", "memory_bytes", "retries")
    assert [told["checksum"][name] for name in names] == [False, None, None, None, None]


def test_a_paused_processors_tasks_wait_and_the_others_go_on(declared: Platform) -> None:
    paused = httpx.post(f"{declared.url}/processors/text-stats/pause").json()
    assert (paused["name"], paused["paused"]) == ("text-stats", True)
    waiting = declared.submit("text-stats", b"a")["task_id"]
    assert declared.wait(declared.submit("checksum", b"a")["task_id"], seconds=60)["status"] == "completed"
    assert declared.task(waiting)["status"] == "queued"
    listed = httpx.get(f"{declared.url}/processors").json()["processors"]
    assert [one["name"] for one in listed if one["paused"]] == ["text-stats"]
    assert httpx.post(f"{declared.url}/processors/text-stats/resume").json()["paused"] is False
    assert declared.wait(waiting, seconds=60)["status"] == "completed"
    unknown = httpx.post(f"{declared.url}/processors/nosuch/pause")
    assert (unknown.status_code, unknown.headers["content-type"]) == (404, "application/problem+json")


def test_who_has_no_key_of_the_platform_pauses_nothing(own_platform: Platform) -> None:
    secret = "a-secret-of-more-than-32-bytes-for-tests"
    own_platform.start_api(HEADWAY_API_KEYS=json.dumps(KEYS), HEADWAY_JWT_KEY=secret, HEADWAY_JWT_AUDIENCE="headway")
    token = jwt.encode({"sub": "carol", "aud": "headway", "exp": 4_000_000_000}, secret, "HS256")
    path = f"{own_platform.url}/processors/checksum/pause"
    assert httpx.post(path, headers={"Authorization": f"Bearer {token}"}).status_code == 403
    assert httpx.post(path, headers={"Authorization": f"Bearer {KEYS['alice']}"}).status_code == 200
    assert httpx.post(path).status_code == 401
