"""An owner's tasks in pages, on a real Redis and on fakeredis alike: each once, newest first, whatever is beside it."""

from __future__ import annotations

import json

import pytest

from headway.shared import keys
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, Result, TaskId, utc_now
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from tests.contract.test_progress_channel import a_task

PAGE = 40


@pytest.fixture
def reader(any_redis: RedisClient) -> Reader:
    return Reader(any_redis)


@pytest.fixture
async def of_one_millisecond(any_redis: RedisClient, any_settings: Settings) -> list[TaskId]:
    """300 tasks of one millisecond between two others, in the order in which they are to be read."""
    publisher = Publisher(any_redis, any_settings)
    at = utc_now()
    older, newer = a_task(created_at=at.replace(year=2001)), a_task(created_at=at.replace(year=2100))
    tied = [a_task(created_at=at) for _ in range(300)]
    for task in (*tied, newer, older):
        await publisher.create(task)
    return [newer.task_id, *sorted((task.task_id for task in tied), reverse=True), older.task_id]


async def test_a_list_has_long_results_cut_as_events_have_them(
    any_redis: RedisClient, any_settings: Settings, reader: Reader
) -> None:
    publisher = Publisher(any_redis, any_settings)
    for size in (10, 200_000):
        task = a_task()
        await publisher.create(task)
        claim = await publisher.claim(task.task_id, reader)
        assert claim is not None
        await publisher.complete(task.task_id, Result(summary={"text": "x" * size}, files=[]), **claim.fence)
    found = [task.result for task, _ in await reader.tasks(ANYONE, limit=10)]
    assert sorted((result.truncated, len(str(result.summary))) for result in found if result) == [
        (False, len(str({"text": "x" * 10}))),
        (True, len(str({}))),
    ]
    for task, _ in await reader.tasks(ANYONE, limit=10):
        whole = await reader.task(task.task_id)
        assert whole.result is not None
        assert not whole.result.truncated
        assert whole.result.summary["text"]


async def read(reader: Reader) -> list[TaskId]:
    found: list[TaskId] = []
    before = None
    while page := await reader.tasks(ANYONE, limit=PAGE, before=before):
        found += [task.task_id for task, _ in page]
        before = page[-1][1]
    return found


async def read_rows(reader: Reader) -> list[TaskId]:
    found: list[TaskId] = []
    page = await reader.rows(ANYONE, ["task_id"], limit=PAGE)
    while page.place is not None:
        found += [TaskId(json.loads(row[0] or b"")) for row in page.rows]
        page = await reader.rows(ANYONE, ["task_id"], limit=PAGE, before=page.place)
    return found


async def test_hundreds_of_tasks_of_one_millisecond_are_each_read_once(
    reader: Reader, of_one_millisecond: list[TaskId]
) -> None:
    assert await read(reader) == of_one_millisecond
    assert await read_rows(reader) == of_one_millisecond


async def test_pages_go_on_from_a_task_that_is_gone_meanwhile(
    reader: Reader, of_one_millisecond: list[TaskId], any_redis: RedisClient
) -> None:
    first = await reader.rows(ANYONE, ["task_id"], limit=PAGE)
    assert first.place is not None
    await any_redis.zrem(keys.OWNER_TASKS % ANYONE, *of_one_millisecond[:PAGE])
    rest = await reader.tasks(ANYONE, limit=PAGE, before=first.place)
    assert [task.task_id for task, _ in rest] == of_one_millisecond[PAGE : 2 * PAGE]


async def test_a_page_of_expired_tasks_is_not_the_end(
    reader: Reader, of_one_millisecond: list[TaskId], any_redis: RedisClient
) -> None:
    await any_redis.delete(*(keys.state(task_id) for task_id in of_one_millisecond[: 2 * PAGE]))
    assert await read_rows(reader) == of_one_millisecond[2 * PAGE :]
    assert await read(reader) == of_one_millisecond[2 * PAGE :]
    assert await any_redis.zcard(keys.OWNER_TASKS % ANYONE) == len(of_one_millisecond) - 2 * PAGE
