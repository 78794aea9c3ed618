"""Tasks whose file is another's, step by step: none is forgotten, gets two files, or waits for what never comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.shared import keys
from headway.shared.errors import Refused, StorageAway, UnknownTask
from headway.shared.files.storage import StoredFile
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import Result, Status, Task
from headway.worker.followers import Followers
from tests.contract.test_progress_channel import a_task
from tests.unit.sweeping import Bench


@pytest.fixture
async def bench(redis_client: RedisClient, settings: Settings) -> Bench:
    return Bench(redis_client, settings)


def followers(bench: Bench) -> Followers:
    return Followers(bench.redis, bench.publisher, bench.reader, bench.storage)


async def with_a_file(bench: Bench) -> tuple[Task, StoredFile]:
    task = a_task()
    upload = bench.storage.upload(task.task_id)
    await upload.write(b"hello")
    stored = await upload.commit()
    task = task.model_copy(update={"input_name": stored.name, "input_sha256": stored.sha256, "size_bytes": 5})
    await bench.publisher.create(task)
    return task, stored


async def completed(bench: Bench, task: Task) -> None:
    claim = await bench.publisher.claim(task.task_id, bench.reader)
    assert claim is not None
    await bench.publisher.complete(task.task_id, Result(summary={}, files=[]), attempt=claim.attempt)


def inputs_of(bench: Bench, task: Task) -> list[Path]:
    return list((bench.settings.data_dir / "tasks" / task.task_id).glob("input-*"))


async def follower_of(bench: Bench, source: Task) -> Task:
    return await bench.created(size_bytes=None, input_of={"task_id": source.task_id})


async def test_it_has_no_job_until_the_other_has_completed_and_then_one(bench: Bench) -> None:
    source, _ = await with_a_file(bench)
    task = await follower_of(bench, source)
    job = keys.job_id(task.task_id, 1)
    await followers(bench).look()
    await bench.sweep()
    assert job not in await bench.queue()
    await completed(bench, source)
    assert await bench.redis.zrange(keys.FOLLOWERS, 0, -1) == [task.task_id.encode()]
    await followers(bench).look()
    assert job in await bench.queue()
    assert await bench.redis.zcard(keys.FOLLOWERS) == 0
    assert (await bench.task(task)).size_bytes == 5


async def test_two_that_look_at_once_give_it_one_file_and_one_job(bench: Bench) -> None:
    source, _ = await with_a_file(bench)
    task = await follower_of(bench, source)
    await completed(bench, source)
    first, second = followers(bench), followers(bench)
    before = await bench.task(task)
    await first._follow(before, source.task_id)
    with pytest.raises(Refused):
        await second._follow(before, source.task_id)
    [kept] = inputs_of(bench, task)
    assert kept.name == (await bench.task(task)).input_name


async def test_a_worker_that_died_with_it_is_followed(bench: Bench) -> None:
    source, _ = await with_a_file(bench)
    task = await follower_of(bench, source)
    await completed(bench, source)
    taken = await bench.redis.zrange(keys.FOLLOWERS, 0, -1)
    await bench.redis.zadd(keys.FOLLOWERS, dict.fromkeys(taken, 1e15))  # its lease
    await followers(bench).look()
    assert (await bench.task(task)).input_name is None
    await bench.redis.zadd(keys.FOLLOWERS, dict.fromkeys(taken, 1))  # is over
    await followers(bench).look()
    assert (await bench.task(task)).input_name is not None


async def test_one_whose_other_task_was_lost_fails_and_does_not_wait_for_ever(bench: Bench) -> None:
    source, _ = await with_a_file(bench)
    task = await follower_of(bench, source)
    await bench.redis.delete(keys.state(source.task_id))
    await bench.sweep()
    await followers(bench).look()
    found = await bench.task(task)
    assert (found.status, found.error and found.error.type) == (Status.FAILED, "bad_input")
    assert found.error is not None
    assert "is gone" in found.error.message


async def test_a_storage_that_is_away_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = await with_a_file(bench)
    task = await follower_of(bench, source)
    await completed(bench, source)

    async def away(*_: object) -> None:
        raise StorageAway

    with monkeypatch.context() as patch:
        patch.setattr(bench.storage, "take_over", away)
        await followers(bench).look()
    assert (await bench.task(task)).status is Status.QUEUED
    await bench.redis.zadd(keys.FOLLOWERS, {task.task_id: 1})
    await followers(bench).look()
    assert (await bench.task(task)).input_name is not None


async def test_none_is_made_that_follows_a_task_which_is_not_known(bench: Bench) -> None:
    task = a_task(input_of={"task_id": "0" * 32})
    with pytest.raises(UnknownTask):
        await bench.publisher.create(task)
    assert await bench.redis.dbsize() == 0


async def test_a_source_that_was_retried_is_waited_for_again(bench: Bench) -> None:
    source, _ = await with_a_file(bench)
    task = await follower_of(bench, source)
    await bench.publisher.cancel(source)
    await bench.publisher.retry(await bench.task(source))
    await followers(bench).look()
    assert (await bench.task(task)).status is Status.QUEUED
    waiting = await bench.redis.smembers(keys.FOLLOWERS_OF % source.task_id)  # type: ignore[misc]
    assert waiting == {task.task_id.encode()}
