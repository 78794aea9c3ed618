"""Who is silent for longer than its lease has lost its task, and nobody else has."""

from __future__ import annotations

import pytest

from headway.shared import keys
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import Producer, Status, Task, new_task_id, utc_now
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from headway.shared.tasks.silent_producers import AWAY_SECONDS, SilentProducers


def produced(lease_seconds: float = 30) -> Task:
    now = utc_now()
    return Task(
        task_id=new_task_id(), processor="cron", filename=None, size_bytes=None, content_type=None, options={},
        batch_id=None, priority=5, not_before=None, status=Status.PROCESSING, progress=0, step=0, total_steps=0,
        message="Started",
        done=0, total=None, unit=None, rate=None, eta_seconds=None, attempt=1, version=1,
        created_at=now, started_at=now, updated_at=now, finished_at=None, result=None, error=None,
        queue_position=None, starts_in_seconds=None,
        producer=Producer(lease_seconds=lease_seconds),
    )  # fmt: skip


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def its_lease_is_over(any_redis: RedisClient, task: Task) -> None:
    await any_redis.zadd(keys.PRODUCERS, {task.task_id: 1})


async def test_a_silent_one_is_lost_and_a_heard_one_is_not(any_redis: RedisClient, any_settings: Settings) -> None:
    publisher, reader, clock = Publisher(any_redis, any_settings), Reader(any_redis), Clock()
    silent, heard = produced(), produced()
    for task in (silent, heard):
        await publisher.create(task)
    look = SilentProducers(any_redis, publisher, clock=clock)
    await look.look()
    for task in (silent, heard):
        await its_lease_is_over(any_redis, task)
    await publisher.heard(heard, lease_seconds=30)
    await look.look()
    assert (await reader.task(heard.task_id)).status is Status.PROCESSING
    lost = await reader.task(silent.task_id)
    assert (lost.status, lost.error and lost.error.type) == (Status.FAILED, "worker_lost")
    assert await any_redis.zscore(keys.PRODUCERS, silent.task_id) is None


async def test_one_that_could_not_be_heard_has_more_time_first(any_redis: RedisClient, any_settings: Settings) -> None:
    publisher, reader, clock = Publisher(any_redis, any_settings), Reader(any_redis), Clock()
    task = produced()
    await publisher.create(task)
    look = SilentProducers(any_redis, publisher, clock=clock)
    await look.look()
    await its_lease_is_over(any_redis, task)
    clock.now += AWAY_SECONDS + 1
    await look.look()
    assert (await reader.task(task.task_id)).status is Status.PROCESSING
    await its_lease_is_over(any_redis, task)
    await look.look()
    assert (await reader.task(task.task_id)).status is Status.FAILED


@pytest.mark.parametrize("end", ["cancel", "delete"])
async def test_an_ended_one_is_in_no_list(any_redis: RedisClient, any_settings: Settings, end: str) -> None:
    publisher, reader = Publisher(any_redis, any_settings), Reader(any_redis)
    task = produced()
    await publisher.create(task)
    await publisher.cancel(task)
    if end == "delete":
        await publisher.delete(await reader.task(task.task_id))
    assert await any_redis.zcard(keys.PRODUCERS) == 0
