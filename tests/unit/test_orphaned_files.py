"""Files that nobody needs any more, on a real Redis and on fakeredis: which go and when, and which stay."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from headway.shared import keys
from headway.shared.files.storage import CHUNK_BYTES, Partial
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import OwnerId, Result, Status, TaskId, utc_now
from headway.shared.units import DAY_SECONDS
from headway.worker.orphaned_files import is_orphaned
from headway.worker.task_scan import ScannedTask
from tests.unit.sweeping import Bench, aged
from tests.unit.test_trees import deep
from tests.waiting import wait_until

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


async def test_an_upload_that_is_being_written_stays_whatever_its_date_says(bench: Bench) -> None:
    upload = bench.storage.upload(TaskId("b" * 32))
    await upload.write(bytes(2 * CHUNK_BYTES))
    await upload.write(b"")
    partial = bench.settings.data_dir / "partial"
    await wait_until("it is written", lambda: any(path.stat().st_size for path in partial.glob("b*")))
    [path] = partial.glob("b*")
    os.utime(path, (0, 0))
    await bench.sweep()
    assert path.exists()
    await upload.pause()
    os.utime(path, (0, 0))
    await bench.sweep()
    assert not path.exists()


async def test_a_worker_whose_clock_is_ahead_removes_nothing_before_its_time(
    redis_client: RedisClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(redis_client, settings)
    announced_until = utc_now() + timedelta(hours=1)
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 2 * HOUR)
    announced = await bench.created(status=Status.UPLOADING, upload_expires_at=announced_until)
    files = [bench.settings.data_dir / "partial" / f"{'a' * 32}-input-0123456789abcdef"]
    files.append(bench.settings.data_dir / "partial" / f"{announced.task_id}-upload" / ("0" * 16))
    files[1].parent.mkdir()
    for path in files:
        path.write_bytes(b"half")
    await bench.sweep()
    assert all(path.exists() for path in files)
    assert (await bench.task(announced)).status is Status.UPLOADING


async def test_a_folder_that_no_path_can_reach_is_swept_and_one_that_cannot_be_removed_ends_no_sweep(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await bench.created()
    for _ in range(3):
        await bench.publisher.claim(task.task_id, bench.reader)
    scratches = [await bench.storage.scratch(task.task_id, 1) for _ in range(3)]
    deep(scratches[0] / "deep", 3000)
    (scratches[1] / "locked").mkdir(mode=0)
    for folder in scratches:
        aged(folder, HOUR)
    stubborn = scratches[2].name
    removing = bench.storage.remove

    async def remove(partial: Partial) -> bool:
        if Path(partial.name).name == stubborn:
            raise RecursionError("not to be had")
        return await removing(partial)

    monkeypatch.setattr(bench.storage, "remove", remove)
    with capture_logs() as lines:
        await bench.sweep()
        await bench.sweep()
    assert [path.name for path in (bench.settings.data_dir / "partial").iterdir()] == [stubborn]
    assert [line["name"].endswith(stubborn) for line in lines if line["event"] == "files cannot be removed"] == [True]


async def test_what_is_in_redis_and_is_not_ours_ends_no_sweep(bench: Bench) -> None:
    owners: Any = bench.redis
    await owners.sadd(keys.OWNER_ACTIVE % "anyone", b"\xff\xfe", "../../x", "a" * 32, "c" * 32)
    await owners.hset("headway:task:" + "a" * 32, mapping={"status": b"\xff", "version": "[" * 10_000})
    await owners.set("headway:task:" + "c" * 32, "no hash")
    await owners.hset(b"headway:task:\xff\xff", "status", '"queued"')
    await owners.zadd(keys.DELETED, {b"\xff": 1})
    await owners.zadd(keys.OWNER_TASKS % "anyone", {b"\xff": 1})
    folder = bench.folder(TaskId("a" * 32), 9 * DAY_SECONDS)
    await bench.redis_has_been_there(DAY_SECONDS)
    task = await bench.created()
    await bench.taken_off_the_queue(task)
    await bench.sweep()
    assert await bench.queue() == [keys.job_id(task.task_id, 1)]
    assert folder.exists(), "what cannot be read is known all the same"


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
@pytest.mark.parametrize("named", [None, f"result-2-{'ab' * 8}"])
async def test_what_a_known_tasks_state_does_not_name_goes_and_what_it_names_stays(
    bench: Bench, status: Status, named: str | None
) -> None:
    """An input whose task was never queued with it; results of an attempt that died before it said that it was done, or
    of another worker's of the same number. None: an older worker kept them."""
    task = await bench.created(input_name="input-00")
    fields = {"status": f'"{status}"', "attempt": "2", "results_name": json.dumps(named)}
    await bench.redis.hset(keys.state(task.task_id), mapping=fields)  # type: ignore[misc]
    folder = bench.settings.data_dir / "tasks" / task.task_id
    for entry in ("input-00", "input-11", "result-1/a", "result-2/a", f"result-2-{'ab' * 8}/a", "somebody's"):
        (folder / entry).parent.mkdir(parents=True, exist_ok=True)
        (folder / entry).write_bytes(b"x")
    aged(folder, HOUR - 60)
    await bench.sweep()
    assert len(list(folder.iterdir())) == 6, "somebody may be about to name them"
    aged(folder, HOUR + 60)
    await bench.sweep()
    ours = {Status.PROCESSING: {"result-2", f"result-2-{'ab' * 8}"}, Status.COMPLETED: {named or "result-2"}}
    assert {path.name for path in folder.iterdir()} == {"input-00", "somebody's"} | ours.get(status, set())
