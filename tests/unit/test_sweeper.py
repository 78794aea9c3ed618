"""The sweeper, step by step, on a real Redis and on fakeredis: what it ends and puts back, and what it leaves alone."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from headway.shared import keys
from headway.shared.errors import RedisAway, StorageAway
from headway.shared.files.directory import DirectoryStorage
from headway.shared.files.storage import Partial, TaskFolder
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, ErrorType, OwnerId, Status, TaskId, utc_now
from headway.shared.units import DAY_SECONDS
from headway.worker import orphaned_files, sweeper
from headway.worker.sweeper import LOCK_SECONDS, UPLOAD_IDLE_SECONDS
from headway.worker.task_scan import look
from tests.unit.sweeping import Bench

HOUR = 3600.0


@pytest.fixture
def bench(any_redis: RedisClient, any_settings: Settings) -> Bench:
    return Bench(any_redis, any_settings)


async def test_an_upload_that_was_cut_and_not_taken_up_fails(bench: Bench) -> None:
    task = await bench.uploading()
    await bench.sweep()
    await bench.sweep(after=UPLOAD_IDLE_SECONDS)
    assert (await bench.task(task)).status is Status.UPLOADING
    await bench.sweep(after=1)
    failed = await bench.task(task)
    assert failed.error is not None
    assert (failed.status, failed.error.type, failed.error.retryable) == (Status.FAILED, ErrorType.BAD_INPUT, False)
    assert "never arrived" in failed.error.message


async def test_an_upload_whose_body_may_still_come_is_not_taken_for_cut_off(
    bench: Bench, any_redis: RedisClient, any_settings: Settings
) -> None:
    patient = Bench(any_redis, any_settings.model_copy(update={"receive_timeout_seconds": 100.0}))
    task = await patient.uploading()
    await patient.sweep()
    await patient.sweep(after=105)
    assert (await patient.task(task)).status is Status.UPLOADING
    await patient.sweep(after=10)
    assert (await patient.task(task)).status is Status.FAILED


async def test_an_upload_that_goes_on_however_slowly_is_left_alone(bench: Bench) -> None:
    task = await bench.uploading()
    for done in range(2, 6):
        await bench.sweep(after=UPLOAD_IDLE_SECONDS - 1)
        await bench.publisher.change(task.task_id, {"done": done}, allowed=(Status.UPLOADING,))
    assert (await bench.task(task)).status is Status.UPLOADING


@pytest.mark.parametrize(("age", "status"), [(DAY_SECONDS - 60, Status.UPLOADING), (DAY_SECONDS + 60, Status.FAILED)])
async def test_an_upload_that_never_began_may_wait_a_day(bench: Bench, age: float, status: Status) -> None:
    task = await bench.uploading(begun=False, created_at=utc_now() - timedelta(seconds=age))
    for _ in range(3):
        await bench.sweep(after=HOUR)
    assert (await bench.task(task)).status is status


async def test_a_whole_upload_that_the_disk_is_still_making_safe_is_left_alone(bench: Bench) -> None:
    task = await bench.uploading(size_bytes=10)
    upload = bench.storage.upload(task.task_id)
    await upload.write(b"0123456789")
    await upload._flush()
    await upload._settle()
    for _ in range(3):
        await bench.sweep(after=UPLOAD_IDLE_SECONDS + 1)
    assert (await bench.task(task)).status is Status.UPLOADING
    await upload.commit()


@pytest.mark.parametrize("claimed", [False, True], ids=["queued", "processing"])
async def test_a_task_whose_job_was_lost_is_put_back_and_runs(bench: Bench, claimed: bool) -> None:
    task = await bench.created()
    if claimed:
        await bench.publisher.claim(task.task_id, bench.reader)
    before = await bench.task(task)
    await bench.taken_off_the_queue(task)
    await bench.sweep()
    await bench.sweep()
    assert await bench.queue() == [keys.job_id(task.task_id, 1)]
    assert await bench.redis.get(keys.job(keys.job_id(task.task_id, 1))) is not None
    assert (await bench.task(task)).version == before.version, "being put back is no event"
    claim = await bench.publisher.claim(task.task_id, bench.reader)
    assert claim is not None
    assert claim.attempt == (2 if claimed else 1)


async def test_a_task_with_a_job_or_a_lease_is_not_put_back(bench: Bench) -> None:
    waiting = await bench.created()
    running = await bench.created()
    await bench.publisher.claim(running.task_id, bench.reader)
    await bench.taken_off_the_queue(running)
    await bench.redis.set(keys.job_lease(keys.job_id(running.task_id, 1)), "some worker")
    await bench.sweep()
    assert await bench.queue() == [keys.job_id(waiting.task_id, 1)]


async def test_the_job_of_an_earlier_attempt_counts_as_the_tasks(bench: Bench) -> None:
    task = await bench.created()
    for _ in range(2):
        await bench.publisher.claim(task.task_id, bench.reader)
    assert (await bench.task(task)).attempt == 2
    await bench.sweep()
    assert await bench.queue() == [keys.job_id(task.task_id, 1)]


async def test_a_task_that_no_list_names_is_found_all_the_same(bench: Bench) -> None:
    task = await bench.created(owner=OwnerId("somebody"))
    await bench.redis.delete(keys.OWNER_ACTIVE % "somebody")
    await bench.taken_off_the_queue(task)
    await bench.sweep()
    assert await bench.queue() == [keys.job_id(task.task_id, 1)]


async def test_each_round_is_a_page_and_every_task_has_its_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "SCAN_KEYS", 1000)
    monkeypatch.setattr(orphaned_files, "PAGE", 7)
    tasks = [await bench.created() for _ in range(30)]
    for task in tasks:
        await bench.taken_off_the_queue(task)
        bench.folder(task.task_id, 0)
    unknown = bench.folder(TaskId("f" * 32), 9 * DAY_SECONDS)
    await bench.redis_has_been_there(DAY_SECONDS)
    for _ in range(6):
        await bench.sweep()
    assert len(await bench.queue()) == 30
    assert not unknown.exists()


async def test_every_key_of_the_sweeper_expires(bench: Bench) -> None:
    assert await bench.sweeper.may_sweep()
    await bench.sweep()
    assert 0 < await bench.redis.pttl(keys.SWEEPER) <= LOCK_SECONDS * 1000
    assert await bench.redis.pttl(keys.SINCE) > DAY_SECONDS * 1000


async def test_one_sweeps_at_a_time_and_the_next_one_follows(bench: Bench) -> None:
    other = bench.another("second")
    assert [await bench.sweeper.may_sweep(), await other.may_sweep(), await bench.sweeper.may_sweep()] == [
        True,
        False,
        True,
    ]
    await other.leave()
    assert not await other.may_sweep()
    await bench.sweeper.leave()
    assert await other.may_sweep()


async def test_a_look_leaves_out_what_redis_does_not_know(bench: Bench) -> None:
    task = await bench.created()
    found = await look(bench.redis, [TaskId("0" * 32), task.task_id])
    assert [one.task_id for one in found] == [task.task_id]
    assert await look(bench.redis, []) == []


async def test_what_expired_holds_no_bytes_of_its_owner_any_more(bench: Bench) -> None:
    gone, there = await bench.created(size_bytes=60, input_name="a"), await bench.created(size_bytes=30, input_name="b")
    await bench.redis.delete(keys.state(gone.task_id))
    await bench.sweep()
    assert await bench.reader.stored_bytes(there.owner) == 30


async def test_what_expired_is_taken_off_every_list_of_its_owner_a_page_a_round(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "TASKS", 7)
    tasks = [await bench.created(owner=ANYONE) for _ in range(30)]
    for task in tasks[:-1]:
        await bench.redis.delete(keys.state(task.task_id), keys.events(task.task_id))
    for _ in range(30):
        await bench.sweep()
    for index in (keys.OWNER_TASKS, keys.OWNER_CHANGED):
        assert await bench.redis.zrange(index % ANYONE, 0, -1) == [tasks[-1].task_id.encode()]
    assert await bench.redis.smembers(keys.OWNER_ACTIVE % ANYONE) == {tasks[-1].task_id.encode()}  # type: ignore[misc]
    events = await bench.redis.xrange(keys.OWNER_EVENTS % ANYONE)
    assert sorted(values[b"t"] for _, values in events) == sorted(task.task_id.encode() for task in tasks)
    assert [b'"lost"' in values[b"d"] for _, values in events] == [False] + [True] * 29, "a last word of each"


class Breaking(DirectoryStorage):
    """A directory that refuses what is in `broken`."""

    broken: frozenset[str] = frozenset()

    def _check(self, what: str) -> None:
        if what in self.broken:
            raise StorageAway from PermissionError(errno.EACCES, "Permission denied", "/data/x")

    async def partials(self) -> AsyncIterator[Partial]:
        self._check("partials")
        async for partial in super().partials():
            yield partial

    async def task_folders(self) -> AsyncIterator[TaskFolder]:
        self._check("task_folders")
        async for folder in super().task_folders():
            yield folder

    async def delete(self, task_id: TaskId) -> None:
        self._check("delete")
        await super().delete(task_id)


@pytest.fixture
def storage(bench: Bench) -> Breaking:
    storage = bench.storage = Breaking(bench.settings.data_dir)
    bench.sweeper = bench.another("first")
    return storage


@pytest.mark.parametrize("what", ["partials", "task_folders", "delete"])
async def test_a_storage_that_cannot_be_used_keeps_the_sweeper_from_nothing_else(
    bench: Bench, storage: Breaking, what: str
) -> None:
    lost = await bench.created()
    await bench.taken_off_the_queue(lost)
    expired, there = [await bench.created(size_bytes=size, input_name="a") for size in (60, 30)]
    await bench.redis.delete(keys.state(expired.task_id))
    deleted = await bench.created()
    await bench.publisher.cancel(deleted)
    await bench.publisher.delete(await bench.task(deleted))
    await bench.redis.zadd(keys.DELETED, {deleted.task_id: 1})
    storage.broken = frozenset({what})
    with capture_logs() as logs:
        for _ in range(3):
            await bench.sweep(after=HOUR)
    assert keys.job_id(lost.task_id, 1) in await bench.queue()
    assert await bench.reader.stored_bytes(there.owner) == 30, "quotas are settled"
    failed = [line for line in logs if line["event"] == "sweep failed"]
    assert [(line["errno"], line["place"]) for line in failed] == [("EACCES", "/data/x")], "it is said, and once"
    assert (await bench.redis.zscore(keys.DELETED, deleted.task_id) is not None) == (what == "delete")
    storage.broken = frozenset()
    with capture_logs() as logs:
        await bench.sweep(after=HOUR)
    assert await bench.redis.zscore(keys.DELETED, deleted.task_id) is None
    assert [line["job"] for line in logs if line["event"] == "sweep works again"] == [failed[0]["job"]]


async def test_one_file_that_cannot_be_removed_keeps_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.redis_has_been_there(DAY_SECONDS)
    folders = [bench.folder(TaskId(letter * 32), 9 * DAY_SECONDS) for letter in "abc"]
    delete = bench.storage.delete

    async def refused(task_id: TaskId) -> None:
        if task_id == "b" * 32:
            raise StorageAway
        await delete(task_id)

    monkeypatch.setattr(bench.storage, "delete", refused)
    await bench.sweep()
    assert [folder.exists() for folder in folders] == [False, True, False]
    monkeypatch.undo()
    await bench.sweep()
    assert not folders[1].exists()


async def test_an_upload_that_cannot_be_seen_is_not_given_up(bench: Bench, storage: Breaking) -> None:
    task = await bench.uploading()
    storage.broken = frozenset({"partials"})
    await bench.sweep()
    await bench.sweep(after=UPLOAD_IDLE_SECONDS + 1)
    assert (await bench.task(task)).status is Status.UPLOADING


async def test_without_redis_the_round_is_put_off_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def away(*_: object) -> None:
        asked.append(1)
        raise RedisAway

    monkeypatch.setattr(bench.publisher, "let_go", away)
    await bench.created()
    with pytest.raises(RedisAway):
        await bench.sweep()
    assert len(asked) == 1


async def test_of_more_owners_than_are_known_at_once_each_has_its_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner is whoever a token names, so there is no end of them."""
    monkeypatch.setattr("headway.worker.sweeper.OWNERS", 4)
    owners = {OwnerId(f"owner-{number}") for number in range(10)}
    for owner in owners:
        await bench.created(owner=owner)
    turns = set()
    for _ in range(10):
        await bench.sweep()
        known = set(bench.sweeper._owners)
        assert len(known) == 4
        assert ANYONE in known
        assert {owner for owner, _ in bench.sweeper._indexes} == known
        turns |= known
    assert turns == owners | {ANYONE}
