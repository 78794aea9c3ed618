"""Redis is everybody's: one owner's words have a share, and when it is nearly full what was taken still ends."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

import httpx
import redis

from tests.processes import Platform, RedisServer
from tests.resilience.test_strangers import ALICE, BOB, KEYS
from tests.security.test_limits_at_once import at_once, statuses
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


def test_what_was_taken_ends_in_a_redis_that_is_nearly_full_and_then_all_is_well(
    own_platform: Platform, own_redis: RedisServer
) -> None:
    with redis.Redis(port=own_redis.port) as client:
        used = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", used + 6 * MIB)
        own_platform.start_api()
        for _ in range(2):
            own_platform.start_worker(HEADWAY_WORKER_CONCURRENCY="2")
        taken, refused = list[str](), Counter[str]()
        while len(taken) < 3000 and refused["urn:headway:problem:redis-nearly-full"] < 5:
            for answer in at_once(
                own_platform.url,
                lambda http, n: http.post(
                    "/tasks",
                    json={"processor": "rehearsal", "options": {"steps": 100, "step_seconds": 0.001}},
                ),
                50,
            ):
                if answer.status_code == 202:
                    taken.append(answer.json()["task_id"])
                else:
                    assert int(answer.headers["retry-after"]) > 0
                    assert "maxmemory" in answer.json()["detail"]
                    refused[answer.json()["type"]] += 1
        assert set(refused) == {"urn:headway:problem:redis-nearly-full"}, "never so full that Redis itself refuses"
        assert len(taken) > 100
        ended = Counter(own_platform.wait(task_id, seconds=240)["status"] for task_id in taken)
        assert ended == {"completed": len(taken)}
        wait_for("new work is taken again", lambda: task_of(own_platform, {}).status_code == 202, seconds=60)
        assert [process.code for process in (*own_platform.workers, *own_platform.apis)] == [None] * 3
