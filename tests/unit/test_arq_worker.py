"""The worker's loop with functions of the test's own: what leaves the queue, what is run again, and how few at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from arq.jobs import serialize_job
from arq.worker import Retry, func

from headway.shared import keys
from headway.shared.cancellation import cancel
from headway.shared.errors import RedisAway
from headway.shared.redis.client import RedisClient
from headway.shared.tasks.models import TaskId
from headway.shared.tasks.queue import VERSION, JobTicket, is_newer, serialize
from headway.worker.arq_worker import LeasedWorker
from headway.worker.leases import Leases, Turn
from tests.waiting import POLL_SECONDS

Running = Callable[[Callable[..., Awaitable[None]]], AbstractAsyncContextManager[LeasedWorker]]


@pytest.fixture
def running(any_redis: RedisClient) -> Running:
    """Runs a worker on a function that is called with the name of the job, two at once."""

    @asynccontextmanager
    async def run(function: Callable[..., Awaitable[None]]) -> AsyncIterator[LeasedWorker]:
        worker = LeasedWorker(
            func(function, name="run"),  # type: ignore[arg-type]
            redis=any_redis,
            queue_name=keys.QUEUE,
            leases=Leases(any_redis, "ours", 30),
            lease_seconds=30,
            max_jobs=2,
            job_timeout_seconds=30,
            on_lost=lambda _: None,
            ctx={},
        )
        main = asyncio.create_task(worker.main())
        try:
            yield worker
        finally:
            await cancel(main, *worker.tasks.values())

    return run


async def enqueue(redis: RedisClient, *jobs: str, function: str = "run") -> None:
    for score, job in enumerate(jobs, start=1):
        await redis.set(keys.job(job), serialize_job(function, (job,), {}, None, score, serializer=serialize))
        await redis.zadd(keys.QUEUE, {job: score})


async def emptied(redis: RedisClient) -> None:
    """Returns when nothing is left of any job; the test's own deadline is the limit."""
    while await redis.exists(keys.QUEUE, keys.LINE_JOBS) or await redis.keys("arq:*"):
        await asyncio.sleep(POLL_SECONDS)


async def test_every_job_runs_once_and_no_more_at_once_than_asked_for(any_redis: RedisClient, running: Running) -> None:
    ran, at_once, most = [], 0, 0

    async def run(_: Any, job: str) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        ran.append(job)
        at_once -= 1

    jobs = [f"job {number:02}" for number in range(20)]
    await enqueue(any_redis, *jobs)
    async with running(run):
        await emptied(any_redis)
    assert (sorted(ran), most) == (jobs, 2)


async def test_a_job_that_asks_for_it_is_run_again(any_redis: RedisClient, running: Running) -> None:
    tries = []

    async def run(_: Any, job: str) -> None:
        tries.append(job)
        if len(tries) < 3:
            raise Retry

    await enqueue(any_redis, "a")
    async with running(run):
        await emptied(any_redis)
    assert tries == ["a"] * 3


async def test_a_job_that_breaks_or_says_nothing_of_use_leaves_the_queue_and_harms_no_other(
    any_redis: RedisClient, running: Running
) -> None:
    ran = []

    async def run(_: Any, job: str) -> None:
        if job == "breaks":
            raise ValueError(job)
        ran.append(job)

    await enqueue(any_redis, "unknown", function="somebody else's")
    await enqueue(any_redis, "garbage", "expired", "breaks", "good")
    await any_redis.set(keys.job("garbage"), b"\x80\x04pickle")
    await any_redis.delete(keys.job("expired"))
    async with running(run):
        await emptied(any_redis)
    assert ran == ["good"]


async def test_a_job_of_a_newer_version_is_left_on_the_queue_and_harms_no_other(
    any_redis: RedisClient, running: Running
) -> None:
    ran = []

    async def run(_: Any, job: str) -> None:
        ran.append(job)

    await enqueue(any_redis, "newer", "of ours", "of before there were versions")
    for job, version in (("newer", VERSION + 1), ("of ours", VERSION)):
        payload = serialize_job("run", (job,), {}, None, 1, serializer=lambda job: serialize({"v": version, **job}))  # noqa: B023
        await any_redis.set(keys.job(job), payload)
    async with running(run):
        while len(ran) < 2 or await any_redis.zcard(keys.LINE_RUNNING) > 1:
            await asyncio.sleep(POLL_SECONDS)
    assert ran == ["of ours", "of before there were versions"]
    assert await any_redis.zrange(keys.LINE_RUNNING, 0, -1) == [b"newer"]
    assert await any_redis.exists(keys.job("newer"))
    assert await any_redis.pttl(keys.job_lease("newer")) > 0  # another worker's turn comes when it has run out


def test_a_job_says_its_version() -> None:
    payload = JobTicket.new(TaskId("a"), 1, "00-1-2-01").payload
    assert json.loads(payload)["v"] == VERSION
    assert not is_newer(payload)
    assert is_newer(payload.replace(b'"v":%d' % VERSION, b'"v":%d' % (VERSION + 1)))
    assert is_newer(payload.replace(b'"v":%d' % VERSION, b'"v":"2.0"'))


async def test_a_job_that_ended_while_redis_was_away_is_let_go_of_when_it_is_back(
    any_redis: RedisClient, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = Leases.turn
    refused: list[list[str]] = []

    async def away(leases: Leases, *given: Any, ended: list[str] | tuple[()] = (), **others: Any) -> Turn:
        if ended and len(refused) < 2:
            refused.append([*ended])
            raise RedisAway
        return await turn(leases, *given, ended=ended, **others)

    async def run(_: Any, job: str) -> None:
        ran.append(job)

    ran: list[str] = []
    monkeypatch.setattr(Leases, "turn", away)
    await enqueue(any_redis, "a")
    async with running(run):
        await emptied(any_redis)
    assert (ran, refused) == (["a"], [["a"], ["a"]])


async def test_a_job_that_is_stopped_with_its_worker_is_given_back(any_redis: RedisClient, running: Running) -> None:
    started = asyncio.Event()

    async def run(_: Any, __: str) -> None:
        started.set()
        await asyncio.Event().wait()

    await enqueue(any_redis, "a")
    async with running(run):
        await started.wait()
        assert await any_redis.exists(keys.job_lease("a"))
    assert await any_redis.zrange(keys.LINE_WAITING, 0, -1) == [b"a"]
    assert not await any_redis.exists(keys.job_lease("a"), keys.LINE_RUNNING)
