"""A cancel and a completion at the same moment: one end, and the answer to the call agrees with it (scoreboard row 5).

Each trial's cancel leaves after an event chosen at random and a little later by chance, so that it meets the task
everywhere between its birth and its end.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from headway.shared import keys
from headway.shared.redis.client import RedisClient, channel_on, connect
from headway.shared.settings import Settings
from headway.shared.tasks.models import TERMINAL, TaskId
from headway.shared.tasks.reader import decode_message
from tests.processes import Platform

#: The scoreboard's figure is of 10,000: CANCEL_TRIALS=10000.
TRIALS = int(os.environ.get("CANCEL_TRIALS", "150"))
AT_ONCE = 6

#: The task's length and the longest wait before its cancel: whichever side won a whole round has it harder in the next,
#: so that it stays a race on a machine of any speed.
MOST_STEPS = 40
LONGEST_WAIT_SECONDS = 0.2


@pytest.fixture
async def redis_client_of(platform: Platform) -> AsyncIterator[RedisClient]:
    async with connect(Settings(redis_url=platform.redis_url)) as client:
        yield client


async def history(redis: RedisClient, task_id: TaskId) -> list[dict[str, Any]]:
    entries = await redis.xrange(keys.events(task_id))
    return [json.loads(values[b"d"]) for _, values in entries if not values[b"n"]]


async def until_version(redis: RedisClient, task_id: TaskId, version: int) -> None:
    """Returns when the task has had that many events, or has ended."""
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(channel_on(redis, keys.channel(task_id)))
        while True:
            message = await pubsub.get_message(timeout=60)
            assert message is not None, f"the task says nothing: {await redis.hgetall(keys.state(task_id))}"  # type: ignore[misc]
            known = json.loads(await redis.hget(keys.state(task_id), "version") or b"0")  # type: ignore[misc]
            seen = decode_message(message["data"]).version if message["type"] == "message" else int(known)
            ended = await redis.hget(keys.state(task_id), "ended_version")  # type: ignore[misc]
            if seen >= version or ended:
                return


async def trial(
    client: httpx.AsyncClient, redis: RedisClient, chosen: random.Random, steps: int, longest_wait_seconds: float
) -> tuple[int, str]:
    work = {"processor": "rehearsal", "options": {"steps": steps, "step_seconds": 0}}
    task_id = TaskId((await client.post("/tasks", json=work)).json()["task_id"])
    # An event for each of: queued, starting, the steps, and the end.
    await until_version(redis, task_id, chosen.randint(1, steps + 2))
    # This wait is the trial: where in the task's life the cancel arrives.
    await asyncio.sleep(chosen.random() * longest_wait_seconds)
    answer = await client.post(f"/tasks/{task_id}/cancel")
    if answer.status_code == 202:
        assert answer.json()["status"] == "cancelled"
    end = (await client.get(f"/tasks/{task_id}")).json()
    assert (answer.status_code, end["status"]) in ((202, "cancelled"), (409, "completed"))
    return answer.status_code, task_id


@pytest.mark.timeout(240 + TRIALS // 5)
async def test_a_cancel_that_races_the_end_is_one_end_and_its_answer_agrees(
    platform: Platform, redis_client_of: RedisClient
) -> None:
    chosen, answers, tasks = random.Random(TRIALS), Counter[int](), list[TaskId]()
    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=platform.url, limits=limits, timeout=30) as client:
        steps, wait_seconds = 2, 0.004
        for _ in range(-(-TRIALS // AT_ONCE)):
            trials = [trial(client, redis_client_of, chosen, steps, wait_seconds) for _ in range(AT_ONCE)]
            ended = await asyncio.gather(*trials)
            answers.update(status for status, _ in ended)
            tasks += [TaskId(task_id) for _, task_id in ended]
            won = {status for status, _ in ended}
            if won == {202}:  # the cancels: shorter tasks, and if those are as short as can be, later cancels
                steps, wait_seconds = max(2, steps // 2), wait_seconds * (1 if steps > 2 else 1.5)
            if won == {409}:
                steps, wait_seconds = (steps, wait_seconds / 2) if wait_seconds > 0.001 else (steps * 2, wait_seconds)
            steps, wait_seconds = min(steps, MOST_STEPS), min(wait_seconds, LONGEST_WAIT_SECONDS)
    for task_id in tasks:  # now, when whoever was late has had time to be wrong
        story = await history(redis_client_of, task_id)
        assert [state["status"] in TERMINAL for state in story] == [False] * (len(story) - 1) + [True]
    print(json.dumps({"trials": len(tasks), "cancelled": answers[202], "completed": answers[409]}))
    assert min(answers[202], answers[409]) > len(tasks) / 20, "both sides have to win now and then to be a race"
