"""Redis is everybody's: one owner's words have a share, and when it is nearly full what was taken still ends."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import redis

from headway.shared.tasks.progress import LEFT_OUT
from tests.processes import Platform, RedisServer
from tests.resilience.test_strangers import ALICE, BOB, KEYS
from tests.security.test_limits_at_once import at_once, statuses
from tests.streams import frames_of, opened
from tests.waiting import wait_for

MIB: Final = 1024 * 1024


def task_of(platform: Platform, who: dict[str, str], **options: Any) -> httpx.Response:
    body = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0} | options}
    return httpx.post(f"{platform.url}/tasks", json=body, headers=who)


def test_notes_have_a_rate_and_a_share(own_platform: Platform) -> None:
    own_platform.start_api(
        HEADWAY_API_KEYS=json.dumps(KEYS), HEADWAY_OWNER_WORDS_BYTES="100000", HEADWAY_MAX_NOTES_PER_SECOND="20"
    )
    task = task_of(own_platform, ALICE).json()
    path = f"/tasks/{task['task_id']}/notes"
    note = {"author": "a", "text": "\N{SNOWMAN}" * 1000}  # 6 KB when it is escaped
    answers = statuses(at_once(own_platform.url, lambda client, _: client.post(path, json=note)))
    assert set(answers) <= {201, 429, 507}
    assert 1 <= answers[201] <= 16
    last: httpx.Response | None = None

    def full() -> bool:
        nonlocal last
        last = httpx.post(f"{own_platform.url}{path}", json=note, headers=ALICE)
        return last.status_code == 507

    wait_for("her words are as many as they may be", full)
    assert last is not None
    assert last.json()["type"] == "urn:headway:problem:quota-full"
    assert task_of(own_platform, BOB).status_code == 202
    httpx.post(f"{own_platform.url}/tasks/{task['task_id']}/cancel", headers=ALICE).raise_for_status()
    httpx.delete(f"{own_platform.url}/tasks/{task['task_id']}", headers=ALICE).raise_for_status()
    assert task_of(own_platform, ALICE).status_code == 202


TALKS: Final = """
import time
from headway.shared.tasks.processors import processor

@processor("talks", needs_file=False)
def talks(job):
    for number in range(60):
        job.log("%d " % number + "x" * 400)
        job.checkpoint({"number": number, "text": "y" * 100 * number})
        time.sleep(0.02)
    job.checkpoint({"last": "z" * 50_000})
    time.sleep(0.3)
    return {"said": 60}
"""


def words_of(server: RedisServer, owner: str) -> int:
    with redis.Redis(port=server.port) as client:
        return int(str(client.hget(f"headway:owner:{owner}:words", "total") or b"0", "ascii"))


def logs_of(platform: Platform, task_id: str) -> list[str]:
    with opened(f"{platform.url}/tasks/{task_id}/events?last_event_id=0", **ALICE) as answer:
        return [frame.data["message"] for frame in frames_of(answer) if frame.name == "log"]


def test_log_lines_and_checkpoints_of_a_running_task_count_and_what_has_no_room_is_left_out_and_told(
    own_platform: Platform, own_redis: RedisServer, tmp_path: Path
) -> None:
    most = 12_000
    (tmp_path / "headway_test_talks.py").write_text(TALKS)
    env: dict[str, Any] = {"HEADWAY_API_KEYS": json.dumps(KEYS), "HEADWAY_OWNER_WORDS_BYTES": str(most)}
    env |= {"HEADWAY_PROCESSORS": "headway_test_talks", "HEADWAY_APP_DIR": str(tmp_path)}
    own_platform.start_api(**env)
    own_platform.start_worker(**env)
    made = httpx.post(f"{own_platform.url}/tasks", json={"processor": "talks"}, headers=ALICE)
    task_id = made.raise_for_status().json()["task_id"]
    wait_for(
        "it has ended",
        lambda: httpx.get(f"{own_platform.url}/tasks/{task_id}", headers=ALICE).json()["status"] == "completed",
    )
    said = logs_of(own_platform, task_id)
    assert said.count(LEFT_OUT) == 1
    assert "checkpoints" in said[-1]
    assert said[-1].startswith("Left out for want of room: ")
    assert 0 < words_of(own_redis, "alice") <= most + 3 * 500
    httpx.delete(f"{own_platform.url}/tasks/{task_id}", headers=ALICE).raise_for_status()
    assert words_of(own_redis, "alice") == 0


def test_reports_count_where_their_lines_and_checkpoints_have_no_room(
    own_platform: Platform, own_redis: RedisServer
) -> None:
    most = 12_000
    own_platform.start_api(HEADWAY_API_KEYS=json.dumps(KEYS), HEADWAY_OWNER_WORDS_BYTES=str(most))
    made = httpx.post(f"{own_platform.url}/tasks", json={"producer": "nightly"}, headers=ALICE).json()
    path = f"{own_platform.url}/tasks/{made['task_id']}/progress"
    for number in range(50):
        report = {"attempt": 1, "done": number + 1, "log": ["x" * 400], "checkpoint": "y" * 100 * number}
        httpx.patch(path, json=report, headers=ALICE).raise_for_status()
    task = httpx.get(f"{own_platform.url}/tasks/{made['task_id']}", headers=ALICE).json()
    assert task["done"] == 50
    end = {"attempt": 1, "summary": {"said": 50}}
    httpx.post(f"{own_platform.url}/tasks/{made['task_id']}/complete", json=end, headers=ALICE).raise_for_status()
    assert logs_of(own_platform, made["task_id"]).count(LEFT_OUT) == 1
    assert 0 < words_of(own_redis, "alice") <= most + 2 * 500


def test_what_was_taken_ends_in_a_redis_that_is_nearly_full_and_then_all_is_well(
    own_platform: Platform, own_redis: RedisServer
) -> None:
    """Filled with notes, without their own limits, from before the tasks run until they have ended."""
    with redis.Redis(port=own_redis.port) as client, ExitStack() as stack:
        memory: Any = client.info("memory")
        client.config_set("maxmemory", int(memory["used_memory"]) + 16 * MIB)
        own_platform.start_api(HEADWAY_MAX_NOTES_PER_SECOND="0", HEADWAY_OWNER_WORDS_BYTES="0")
        own_platform.start_worker(HEADWAY_WORKER_CONCURRENCY="2")
        answers = [task_of(own_platform, {}, steps=30, step_seconds=0.01) for _ in range(20)]
        assert {answer.status_code for answer in answers} == {202}
        taken = [answer.json()["task_id"] for answer in answers]
        refused = Counter[str]()
        over = threading.Event()

        def fill() -> None:
            note = {"author": "a", "text": "\N{SNOWMAN}" * 1000}
            with httpx.Client(base_url=own_platform.url, timeout=60) as http:
                for task_id in itertools.cycle(taken):
                    if over.is_set():
                        return
                    answer = http.post(f"/tasks/{task_id}/notes", json=note)
                    if answer.status_code != 201:
                        refused[answer.json()["type"]] += 1

        stack.callback(over.set)
        fillers = [threading.Thread(target=fill) for _ in range(2)]
        for filler in fillers:
            filler.start()
        wait_for("it is nearly full", lambda: refused["urn:headway:problem:redis-nearly-full"] > 0)
        ended = Counter(own_platform.wait(task_id, seconds=240)["status"] for task_id in taken)
        over.set()
        for filler in fillers:
            filler.join()
        assert ended == {"completed": len(taken)}
        assert set(refused) == {"urn:headway:problem:redis-nearly-full"}, "never so full that Redis itself refuses"
        wait_for("new work is taken again", lambda: task_of(own_platform, {}).status_code == 202, seconds=60)
        assert [process.code for process in (*own_platform.workers, *own_platform.apis)] == [None] * 2
