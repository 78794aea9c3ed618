"""Many tasks of one process publish over one connection, and none pays for another: on Redis and on fakeredis."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest
from redis.exceptions import ResponseError

from headway.shared import keys
from headway.shared.errors import Refused
from headway.shared.redis.client import AWAY, RedisClient, connect
from headway.shared.redis.script_pipeline import ScriptPipeline
from headway.shared.settings import Settings
from headway.shared.tasks.models import Status, TaskId
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from tests.contract.test_progress_channel import a_task
from tests.processes import RedisServer
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One that nobody else uses: the shared platform's connections would count too."""
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


async def running(publisher: Publisher, reader: Reader, count: int) -> list[TaskId]:
    tasks = [a_task() for _ in range(count)]
    for task in tasks:
        await publisher.create(task)
        assert await publisher.claim(task.task_id, reader)
    return [task.task_id for task in tasks]


async def test_many_tasks_that_publish_at_once_share_one_connection(
    redis_client: RedisClient, settings: Settings
) -> None:
    tasks = await running(Publisher(redis_client, settings), Reader(redis_client), 50)
    async with connect(settings) as client:
        publisher = Publisher(client, settings)
        before = await redis_client.info("stats")
        versions = await asyncio.gather(
            *(publisher.change(task, {"done": 1}, allowed=(Status.PROCESSING,), attempt=1) for task in tasks)
        )
        after = await redis_client.info("stats")
    assert versions == [3] * 50
    made = int(after["total_connections_received"]) - int(before["total_connections_received"])
    assert made == 1, "a task had a connection of its own"


async def test_a_call_that_fails_fails_nobody_else(any_redis: RedisClient, any_settings: Settings) -> None:
    publisher, reader = Publisher(any_redis, any_settings), Reader(any_redis)
    stale, broken, fine = await running(publisher, reader, 3)
    await any_redis.delete(keys.events(broken))
    await any_redis.set(keys.events(broken), "no stream")
    told = await asyncio.gather(
        publisher.change(stale, {"done": 1}, allowed=(Status.PROCESSING,), attempt=7),
        publisher.change(broken, {"done": 1}, allowed=(Status.PROCESSING,), attempt=1),
        publisher.change(fine, {"done": 1}, allowed=(Status.PROCESSING,), attempt=1),
        return_exceptions=True,
    )
    assert isinstance(told[0], Refused)
    assert isinstance(told[1], ResponseError)
    assert told[2] == 3


async def test_whoever_is_cancelled_takes_nobodys_answer_along(any_redis: RedisClient) -> None:
    calls = ScriptPipeline(any_redis)
    script = any_redis.register_script("return redis.call('INCR', KEYS[1])")
    waiting = [asyncio.ensure_future(calls.call(script, [f"headway:{name}"], [])) for name in "abc"]
    await asyncio.sleep(0)
    waiting[0].cancel()  # it was the first, whose call began the sending
    assert await asyncio.gather(*waiting[1:]) == [1, 1]
    under_way = asyncio.ensure_future(calls.call(script, ["headway:b"], []))
    for _ in range(3):
        await asyncio.sleep(0)
    under_way.cancel()
    assert await calls.call(script, ["headway:c"], []) == 2
    with pytest.raises(asyncio.CancelledError):
        await under_way


async def test_a_caller_finds_its_writes_in_the_order_it_made_them(any_redis: RedisClient) -> None:
    calls = ScriptPipeline(any_redis)
    script = any_redis.register_script("return redis.call('RPUSH', KEYS[1], ARGV[1])")

    async def calling(name: str) -> None:
        for number in range(20):
            assert await calls.call(script, [name], [number]) == number + 1

    names = [f"headway:{number}" for number in range(10)]
    await asyncio.gather(*map(calling, names))
    for name in names:
        written: list[bytes] = await any_redis.lrange(name, 0, -1)  # type: ignore[misc]
        assert written == [str(number).encode() for number in range(20)]


async def test_a_redis_that_forgot_the_script_is_given_it_again(any_redis: RedisClient) -> None:
    calls = ScriptPipeline(any_redis)
    script = any_redis.register_script("return redis.call('INCR', KEYS[1])")
    assert await calls.call(script, ["headway:a"], []) == 1
    await any_redis.script_flush()
    assert await asyncio.gather(*(calls.call(script, [f"headway:{name}"], []) for name in "ab")) == [2, 1]


async def test_where_redis_is_away_every_caller_is_told_and_none_waits_for_a_deadline_of_its_own(
    own_redis: RedisServer,
) -> None:
    async with connect(Settings(redis_url=own_redis.url), retries=0) as client:
        calls = ScriptPipeline(client)
        script = client.register_script("return redis.call('INCR', KEYS[1])")
        assert await calls.call(script, ["headway:a"], []) == 1
        own_redis.signal(signal.SIGSTOP)
        under_way = asyncio.ensure_future(calls.call(script, ["headway:a"], []))
        await wait_until("the first call is under way", lambda: not calls._waiting)
        behind = asyncio.ensure_future(calls.call(script, ["headway:b"], []))
        told = await asyncio.gather(under_way, behind, return_exceptions=True)
        assert told[0] is told[1]
        assert isinstance(told[0], AWAY)
        own_redis.kill()
        own_redis.start()
        assert await calls.call(script, ["headway:c"], []) == 1
