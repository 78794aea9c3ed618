"""Files that nobody needs any more, on a real Redis and on fakeredis: which go and when, and which stay."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headway.shared import keys
from headway.shared.files.storage import Partial
from headway.shared.redis.client import RedisClient
from headway.shared.settings import DAY_SECONDS, Settings
from headway.shared.tasks.models import OwnerId, Result, Status, TaskId, utc_now
from headway.worker.orphaned_files import is_orphaned
from headway.worker.task_scan import ScannedTask
from tests.unit.sweeping import Bench, aged

HOUR = 3600.0


@pytest.fixture
def bench(any_redis: RedisClient, any_settings: Settings) -> Bench:
    return Bench(any_redis, any_settings)


async def test_files_go_with_the_task_that_expires(bench: Bench) -> None:
    task = await bench.created()
    claim = await bench.publisher.claim(task.task_id, bench.reader)
    assert claim is not None
    await bench.publisher.complete(task.task_id, Result(summary={}, files=[]), attempt=claim.attempt)
    folder = bench.folder(task.task_id, 0)
    await bench.redis.pexpire(keys.state(task.task_id), 300_000)
    await bench.sweep()
    assert folder.exists()
    await bench.redis.delete(keys.state(task.task_id))
    await bench.sweep(after=299)
    assert folder.exists(), "not before its time, whoever deleted it"
    await bench.sweep(after=2)
    assert not folder.exists()


async def test_files_of_a_task_that_was_retried_before_it_expired_stay(bench: Bench) -> None:
    task = await bench.created()
    await bench.publisher.cancel(task)
    folder = bench.folder(task.task_id, 0)
    await bench.redis.pexpire(keys.state(task.task_id), 300_000)
    await bench.sweep()
    await bench.publisher.retry(await bench.task(task))
    await bench.sweep(after=301)
    assert folder.exists()


@pytest.mark.parametrize(
    ("age", "held", "stays"),
    [(8 * DAY_SECONDS, 2 * HOUR, False), (8 * DAY_SECONDS, 60.0, True), (6 * DAY_SECONDS, 2 * HOUR, True)],
    ids=["old", "a Redis that came back empty", "younger than a task lives"],
)
async def test_files_of_an_unknown_task_go_late_and_never_because_redis_is_new(
    bench: Bench, age: float, held: float, stays: bool
) -> None:
    folder = bench.folder(TaskId("e" * 32), age)
    known = bench.folder((await bench.created()).task_id, age)
    await bench.redis_has_been_there(held)
    await bench.sweep()
    assert (folder.exists(), known.exists()) == (stays, True)


async def test_an_empty_redis_begins_to_count_anew(bench: Bench) -> None:
    folder = bench.folder(TaskId("d" * 32), 9 * DAY_SECONDS)
    await bench.redis_has_been_there(DAY_SECONDS)
    await bench.redis.flushdb()
    await bench.sweep()
    await bench.sweep()
    assert folder.exists()


def seen(status: Status, attempt: int = 1) -> ScannedTask:
    return ScannedTask(TaskId("0" * 32), status, 5, attempt, OwnerId("anyone"), 10, utc_now(), 1000)


@pytest.mark.parametrize(
    ("attempt", "idle", "task", "left_behind"),
    [
        (None, HOUR - 60, None, False),
        (None, HOUR + 60, None, True),
        (1, HOUR + 60, None, True),
        (1, 61, seen(Status.COMPLETED), True),
        (1, 59, seen(Status.COMPLETED), False),
        (None, 61, seen(Status.CANCELLED), True),
        (1, 61, seen(Status.PROCESSING, 2), True),
        (2, 9 * DAY_SECONDS, seen(Status.PROCESSING, 2), False),
        (None, HOUR, seen(Status.UPLOADING), False),
        (None, DAY_SECONDS + 60, seen(Status.UPLOADING), True),
    ],
)
def test_a_partial_file_is_left_behind_when_nobody_can_be_writing_it(
    attempt: int | None, idle: float, task: ScannedTask | None, left_behind: bool
) -> None:
    assert is_orphaned(Partial("x", TaskId("0" * 32), attempt, 1, idle), task) is left_behind


def test_a_resumable_upload_is_never_left_behind_before_it_was_given_up() -> None:
    partial = Partial("x", TaskId("0" * 32), None, 1, 9 * DAY_SECONDS)
    assert not is_orphaned(partial, replace(seen(Status.UPLOADING), upload_expires_at=utc_now()))
    assert is_orphaned(partial, replace(seen(Status.FAILED), upload_expires_at=utc_now()))


async def test_partial_files_that_are_left_behind_are_removed_and_no_others(bench: Bench) -> None:
    task = await bench.created()
    for _ in range(2):
        await bench.publisher.claim(task.task_id, bench.reader)
    old, current = [await bench.storage.scratch(task.task_id, attempt) for attempt in (1, 2)]
    for folder in (old, current):
        (folder / "half").write_bytes(b"x")
        aged(folder, HOUR)
    partial = bench.settings.data_dir / "partial"
    upload = partial / f"{'c' * 32}-input-0123456789abcdef"
    upload.write_bytes(b"half")
    aged(upload, 2 * HOUR)
    strange = partial / "somebody-elses"
    strange.write_bytes(b"")
    aged(strange, 99 * DAY_SECONDS)
    await bench.sweep()
    assert sorted(partial.iterdir()) == sorted([current, strange])


async def test_files_of_a_deletion_that_was_cut_off_go_and_those_of_one_made_again_stay(bench: Bench) -> None:
    tasks = [await bench.created() for _ in range(2)]
    folders = [bench.folder(task.task_id, 0) for task in tasks]
    for task in tasks:
        await bench.publisher.cancel(task)
        await bench.publisher.delete(await bench.task(task))
    await bench.publisher.create(tasks[1])
    await bench.sweep()
    assert folders[0].exists(), "whoever deletes it may be at it"
    for task in tasks:
        await bench.redis.zadd(keys.DELETED, {task.task_id: 1})  # long ago
    await bench.sweep()
    assert [folder.exists() for folder in folders] == [False, True]
    assert await bench.redis.zcard(keys.DELETED) == 0


@pytest.mark.parametrize(
    "status", [Status.QUEUED, Status.PROCESSING, Status.COMPLETED, Status.FAILED, Status.CANCELLED]
)
async def test_what_a_known_tasks_state_does_not_name_goes_and_what_it_names_stays(
    bench: Bench, status: Status
) -> None:
    """An input whose task was never queued with it; results of an attempt that died before it said that it was done."""
    task = await bench.created(input_name="input-00")
    task = task.model_copy(update={"attempt": 2})
    await bench.redis.hset(keys.state(task.task_id), mapping={"status": f'"{status}"', "attempt": "2"})  # type: ignore[misc]
    folder = bench.settings.data_dir / "tasks" / task.task_id
    for entry in ("input-00", "input-11", "result-1/a", "result-2/a", "somebody's"):
        (folder / entry).parent.mkdir(parents=True, exist_ok=True)
        (folder / entry).write_bytes(b"x")
    aged(folder, HOUR - 60)
    await bench.sweep()
    assert len(list(folder.iterdir())) == 5, "somebody may be about to name them"
    aged(folder, HOUR + 60)
    await bench.sweep()
    has_results = status in (Status.PROCESSING, Status.COMPLETED)
    assert {path.name for path in folder.iterdir()} == {"input-00", "somebody's"} | (
        {"result-2"} if has_results else set()
    )
