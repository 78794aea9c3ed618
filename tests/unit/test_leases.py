"""A turn: jobs are let go of and others are taken, in one step, by whoever has them and by nobody else."""

from __future__ import annotations

import pytest

from headway.shared import keys
from headway.shared.errors import RedisAway
from headway.shared.redis.client import RedisClient, channel_on
from headway.shared.tasks.queue import WAKE
from headway.worker.leases import Leases

IN_LINE = (keys.LINE_WAITING, keys.LINE_RUNNING)


async def queue_up(redis: RedisClient, *jobs: str) -> None:
    for score, job in enumerate(jobs, start=1):
        await redis.set(keys.job(job), f"payload of {job}")
        await redis.zadd(keys.QUEUE, {job: score})


async def queued(redis: RedisClient) -> list[str]:
    """Whoever waits and whoever runs."""
    assert not await redis.exists(keys.QUEUE)
    return sorted([job.decode() for key in IN_LINE for job in await redis.zrange(key, 0, -1)])


async def test_jobs_are_taken_first_come_first_with_their_payloads_and_by_one_worker(any_redis: RedisClient) -> None:
    await queue_up(any_redis, "a", "b", "c")
    ours, theirs = (Leases(any_redis, name, 30) for name in ("ours", "theirs"))
    first = await ours.turn(2)
    assert (list(first.taken.items()), first.queued) == ([("a", b"payload of a"), ("b", b"payload of b")], 3)
    assert list((await theirs.turn(2)).taken) == ["c"]
    assert (await ours.turn(2)).taken == {}


async def test_what_has_ended_leaves_and_what_is_given_back_wakes_the_others(any_redis: RedisClient) -> None:
    await queue_up(any_redis, "a", "b", "c")
    leases = Leases(any_redis, "ours", 30)
    await leases.turn(2)
    async with any_redis.pubsub() as heard:
        await heard.subscribe(channel_on(any_redis, keys.CONTROL))
        await heard.get_message(timeout=5)
        turn = await leases.turn(1, ended=["a"], given_back=["b"])
        message = await heard.get_message(timeout=5)
    assert message is not None
    assert message["data"] == WAKE.encode()
    assert list(turn.taken) == ["b"], "the oldest that is free, given back or not"
    assert await queued(any_redis) == ["b", "c"]
    assert await any_redis.zrange(keys.LINE_WAITING, 0, -1) == [b"c"]
    assert await any_redis.exists(keys.job("a"), keys.job_lease("a")) == 0


async def test_a_job_that_another_worker_has_by_now_is_not_let_go_of(any_redis: RedisClient) -> None:
    await queue_up(any_redis, "a", "b")
    ours, theirs = (Leases(any_redis, name, 30) for name in ("ours", "theirs"))
    await ours.turn(2)
    await any_redis.delete(keys.job_lease("a"), keys.job_lease("b"))  # they ran out
    await any_redis.zadd(keys.LINE_RUNNING, {"a": 1, "b": 1})
    await theirs.turn(2)
    await ours.turn(ended=["a"], given_back=["b"])
    assert await queued(any_redis) == ["a", "b"]
    assert await theirs.renew(["a", "b"]) == []
    assert await ours.renew(["a", "b"]) == ["a", "b"]


async def test_a_job_whose_payload_has_expired_is_handed_over_without_one(any_redis: RedisClient) -> None:
    await queue_up(any_redis, "a")
    await any_redis.delete(keys.job("a"))
    assert (await Leases(any_redis, "ours", 30).turn(1)).taken == {"a": b""}


async def test_a_full_redis_gives_no_lease_and_still_takes_what_has_ended(redis_client: RedisClient) -> None:
    await queue_up(redis_client, "a", "b")
    leases = Leases(redis_client, "ours", 30)
    await leases.turn(1)
    await redis_client.config_set("maxmemory", "1")
    try:
        with pytest.raises(RedisAway, match="full"):
            await leases.turn(1)
        await leases.turn(1, ended=["a"])
    finally:
        await redis_client.config_set("maxmemory", "0")
    assert await queued(redis_client) == ["b"]


async def test_a_worker_that_comes_drops_those_that_have_long_been_silent(any_redis: RedisClient) -> None:
    await any_redis.zadd(keys.WORKERS, {"dead": 1})
    await Leases(any_redis, "ours", 30).renew([])
    assert [worker.decode() for worker in await any_redis.zrange(keys.WORKERS, 0, -1)] == ["ours"]
