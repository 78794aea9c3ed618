"""The six truths of the progress channel, on a real Redis and on fakeredis alike."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from headway.shared import keys
from headway.shared.errors import Conflict, Refused, UnknownTask
from headway.shared.redis.client import RedisClient, channel_on
from headway.shared.settings import Settings
from headway.shared.tasks.models import (
    ANYONE,
    ErrorType,
    Event,
    OwnerId,
    Result,
    ResultFile,
    Status,
    Task,
    TaskId,
    new_task_id,
    utc_now,
)
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.queue import deserialize
from headway.shared.tasks.reader import LIVE_FIELDS, Reader, decode_message


def a_task(**changes: Any) -> Task:
    now = utc_now()
    fields: dict[str, Any] = {
        "task_id": new_task_id(), "processor": "checksum", "filename": "täst \u2028.bin", "size_bytes": 10,
        "content_type": None, "options": {}, "batch_id": None, "status": Status.QUEUED, "progress": 0, "step": 0,
        "total_steps": 0, "message": "Waiting", "done": 0, "total": None, "priority": 5, "not_before": None,
        "unit": None, "rate": None,
        "eta_seconds": None, "attempt": 1, "version": 1, "created_at": now, "started_at": None, "updated_at": now,
        "finished_at": None, "result": None, "error": None, "queue_position": None, "starts_in_seconds": None,
    }  # fmt: skip
    return Task(**fields | changes)


@pytest.fixture
def publisher(any_redis: RedisClient, any_settings: Settings) -> Publisher:
    return Publisher(any_redis, any_settings.model_copy(update={"history_length": 20}))


@pytest.fixture
def reader(any_redis: RedisClient) -> Reader:
    return Reader(any_redis)


async def claimed(publisher: Publisher, reader: Reader, task: Task) -> int:
    await publisher.create(task)
    claim = await publisher.claim(task.task_id, reader)
    assert claim is not None
    return claim.attempt


async def test_a_created_task_reads_back_as_it_was(publisher: Publisher, reader: Reader) -> None:
    task = a_task(options={"steps": 3}, owner=OwnerId("alice"), input_sha256="ab")
    assert await publisher.create(task) == 1
    read = await reader.task(task.task_id)
    assert read.queue_position == 1
    read = read.model_copy(update={"queue_position": None})
    assert read.model_dump(exclude={"created_at", "updated_at"}) == task.model_dump(
        exclude={"created_at", "updated_at"}
    )
    assert (read.owner, read.input_sha256) == ("alice", "ab")


async def test_a_task_cannot_be_created_twice(publisher: Publisher, reader: Reader) -> None:
    task = a_task()
    await publisher.create(task)
    with pytest.raises(Refused) as refused:
        await publisher.create(task)
    assert refused.value.reason == "exists"
    assert (await reader.task(task.task_id)).version == 1


async def test_the_job_is_on_the_queue_in_the_same_step_as_json(publisher: Publisher, any_redis: RedisClient) -> None:
    task = a_task()
    await publisher.create(task)
    job = keys.job_id(task.task_id, 1)
    assert await any_redis.zscore(keys.LINE_WAITING, job) is not None
    payload = deserialize(await any_redis.get(keys.job(job)))
    assert (payload["f"], payload["a"]) == ("process_file", [task.task_id])


async def test_an_uploading_task_is_not_on_the_queue_until_its_file_is_there(
    publisher: Publisher, any_redis: RedisClient, reader: Reader
) -> None:
    task = a_task(status=Status.UPLOADING)
    await publisher.create(task)
    assert await any_redis.zcard(keys.LINE_WAITING) == 0
    await publisher.enqueue(task, {"input_name": "input-1"})
    assert await any_redis.zcard(keys.LINE_WAITING) == 1
    assert (await reader.task(task.task_id)).status is Status.QUEUED
    with pytest.raises(Refused):
        await publisher.enqueue(task, {"input_name": "input-2"})
    assert (await reader.task(task.task_id)).input_name == "input-1"


async def test_each_event_has_the_next_version_in_the_state_the_history_and_the_live_channel(
    publisher: Publisher, reader: Reader, any_redis: RedisClient
) -> None:
    task = a_task()
    async with any_redis.pubsub() as pubsub:
        await pubsub.subscribe(channel_on(any_redis, keys.channel(task.task_id)))
        attempt = await claimed(publisher, reader, task)
        await publisher.emit(task.task_id, "log", {"message": "hello"}, attempt=attempt)
        await publisher.change(task.task_id, {"progress": 50}, allowed=(Status.PROCESSING,), attempt=attempt)
        await publisher.complete(task.task_id, Result(summary={"n": 1}, files=[]), attempt=attempt)
        live: list[Event] = []
        while len(live) < 5:
            message = await pubsub.get_message(timeout=5)
            assert message is not None
            if message["type"] == "message":
                live.append(decode_message(message["data"]))
    snapshot = await reader.snapshot(task.task_id, after=0)
    assert [event.version for event in live] == [1, 2, 3, 4, 5]
    assert list(snapshot.history) == live
    assert snapshot.state == live[-1]
    assert snapshot.task.version == 5
    assert [event.name for event in live] == ["", "", "log", "", ""]
    assert [event.is_terminal for event in live] == [False, False, False, False, True]


async def test_a_state_event_is_the_whole_live_state_on_one_ascii_line(publisher: Publisher, reader: Reader) -> None:
    task = a_task(message='quote " newline \n null \0 line separator \u2028')
    await publisher.create(task)
    [event] = (await reader.snapshot(task.task_id, after=0)).history
    assert tuple(json.loads(event.data)) == LIVE_FIELDS
    assert event.data.isascii()
    assert b"\n" not in event.data
    assert json.loads(event.data)["message"] == task.message


async def test_nothing_is_written_after_the_end_whoever_writes(publisher: Publisher, reader: Reader) -> None:
    task = a_task()
    attempt = await claimed(publisher, reader, task)
    await publisher.complete(task.task_id, Result(summary={}, files=[]), attempt=attempt)
    version = (await reader.task(task.task_id)).version
    with pytest.raises(Refused):
        await publisher.fail(task.task_id, ErrorType.TIMEOUT, "late", attempt=attempt)
    with pytest.raises(Refused):
        await publisher.change(task.task_id, {"progress": 1}, allowed=(Status.PROCESSING,), attempt=attempt)
    with pytest.raises(Conflict):
        await publisher.cancel(task)
    assert (await reader.task(task.task_id)).version == version


async def test_an_older_attempt_is_refused_once_a_newer_one_has_begun(publisher: Publisher, reader: Reader) -> None:
    task = a_task()
    first = await claimed(publisher, reader, task)
    takeover = await publisher.claim(task.task_id, reader)
    assert takeover is not None
    assert (takeover.attempt, takeover.took_over) == (first + 1, True)
    with pytest.raises(Refused) as refused:
        await publisher.complete(task.task_id, Result(summary={}, files=[]), attempt=first)
    assert refused.value.reason == "stale"
    assert (await reader.task(task.task_id)).status is Status.PROCESSING


async def test_many_workers_that_claim_at_once_each_get_another_attempt_or_none(
    publisher: Publisher, reader: Reader
) -> None:
    task = a_task()
    await publisher.create(task)
    claims = await asyncio.gather(*(publisher.claim(task.task_id, reader) for _ in range(8)))
    attempts = [claim.attempt for claim in claims if claim is not None]
    assert attempts
    assert len(set(attempts)) == len(attempts)


async def test_a_task_whose_worker_keeps_dying_fails_as_worker_lost(publisher: Publisher, reader: Reader) -> None:
    task = a_task()
    await publisher.create(task)
    for attempt in (1, 2, 3):
        claim = await publisher.claim(task.task_id, reader)
        assert claim is not None
        assert claim.attempt == attempt
    assert await publisher.claim(task.task_id, reader) is None
    ended = await reader.task(task.task_id)
    assert ended.error is not None
    assert ended.error.type is ErrorType.WORKER_LOST


async def test_giving_a_task_back_does_not_count_as_losing_its_worker(publisher: Publisher, reader: Reader) -> None:
    task = a_task()
    await publisher.create(task)
    for attempt in range(1, 7):
        claim = await publisher.claim(task.task_id, reader)
        assert claim is not None
        assert claim.attempt == attempt
        await publisher.give_back(claim, "The worker was stopped")
    assert (await reader.task(task.task_id)).status is Status.QUEUED


async def test_cancel_is_the_end_at_once_and_takes_the_job_off_the_queue(
    publisher: Publisher, reader: Reader, any_redis: RedisClient
) -> None:
    task = a_task()
    await publisher.create(task)
    await publisher.cancel(task)
    assert (await reader.task(task.task_id)).status is Status.CANCELLED
    assert await any_redis.zcard(keys.LINE_WAITING) == 0
    assert await publisher.claim(task.task_id, reader) is None


async def test_a_retry_is_the_next_attempt_with_a_job_of_its_own(
    publisher: Publisher, reader: Reader, any_redis: RedisClient
) -> None:
    task = a_task()
    attempt = await claimed(publisher, reader, task)
    await publisher.fail(task.task_id, ErrorType.PROCESSOR_ERROR, "broke", attempt=attempt)
    failed = await reader.task(task.task_id)
    await publisher.retry(failed)
    again = await reader.task(task.task_id)
    assert (again.status, again.attempt, again.error, again.finished_at) == (Status.QUEUED, 2, None, None)
    assert await any_redis.zscore(keys.LINE_WAITING, keys.job_id(task.task_id, 2)) is not None
    with pytest.raises(Conflict):
        await publisher.retry(again)


async def test_history_is_bounded_and_what_was_trimmed_is_known(publisher: Publisher, reader: Reader) -> None:
    task = a_task()
    attempt = await claimed(publisher, reader, task)
    for done in range(40):
        await publisher.change(task.task_id, {"done": done}, allowed=(Status.PROCESSING,), attempt=attempt)
    snapshot = await reader.snapshot(task.task_id, after=3)
    assert len(snapshot.history) == 20
    assert snapshot.missed_from == 4
    assert (await reader.snapshot(task.task_id, after=30)).missed_from is None
    assert [event.version for event in (await reader.snapshot(task.task_id, after=40)).history] == [41, 42]


async def test_a_large_result_is_whole_in_the_task_and_cut_in_the_event(publisher: Publisher, reader: Reader) -> None:
    task = a_task()
    attempt = await claimed(publisher, reader, task)
    files = [
        ResultFile(name=f"{i}.txt", size_bytes=i, content_type="text/plain", sha256="0" * 64, url=f"/{i}")
        for i in range(500)
    ]
    await publisher.complete(task.task_id, Result(summary={"n": ["x" * 100] * 500}, files=files), attempt=attempt)
    snapshot = await reader.snapshot(task.task_id)
    assert snapshot.task.result is not None
    assert len(snapshot.task.result.files) == 500
    assert len(snapshot.task.result.summary["n"]) == 500
    assert len(snapshot.state.data) < 16 * 1024
    assert json.loads(snapshot.state.data)["result"]["truncated"] is True


async def test_every_key_has_an_expiry(publisher: Publisher, reader: Reader, any_redis: RedisClient) -> None:
    task = a_task()
    attempt = await claimed(publisher, reader, task)
    active = await any_redis.pttl(keys.state(task.task_id))
    await publisher.complete(task.task_id, Result(summary={}, files=[]), attempt=attempt)
    assert active > await any_redis.pttl(keys.state(task.task_id))
    for key in await any_redis.keys("*"):
        if not key.startswith(b"headway:line:"):  # the line is what is waiting, and waits for ever
            assert await any_redis.pttl(key) > 0, key


async def test_what_has_lived_for_a_while_is_kept_anew_by_the_next_event(
    publisher: Publisher, reader: Reader, any_redis: RedisClient
) -> None:
    task = a_task()
    attempt = await claimed(publisher, reader, task)
    found = [*await any_redis.keys("headway:task:*"), *await any_redis.keys("headway:owner:*")]
    lasting = {key: await any_redis.pttl(key) for key in found}
    for key, left in lasting.items():
        await any_redis.pexpire(key, left - 2 * 3600 * 1000)
    await publisher.change(task.task_id, {"done": 1}, allowed=(Status.PROCESSING,), attempt=attempt)
    for key, left in lasting.items():
        assert await any_redis.pttl(key) > left - 3600 * 1000, key


async def test_another_owners_task_is_as_unknown_as_none(publisher: Publisher, reader: Reader) -> None:
    task = a_task(owner=OwnerId("alice"))
    await publisher.create(task)
    for stranger in (OwnerId("bob"), ANYONE):
        with pytest.raises(UnknownTask):
            await reader.task(task.task_id, stranger)
        with pytest.raises(UnknownTask):
            await reader.snapshot(task.task_id, stranger)
    with pytest.raises(UnknownTask):
        await reader.task(TaskId("0" * 32), OwnerId("alice"))


async def test_tasks_are_listed_newest_first_in_pages_without_holes(publisher: Publisher, reader: Reader) -> None:
    created = utc_now()  # all in the same millisecond: the hardest case for a cursor
    tasks = [a_task(created_at=created) for _ in range(25)]
    for task in tasks:
        await publisher.create(task)
    seen: list[TaskId] = []
    before = None
    while page := await reader.tasks(ANYONE, limit=4, before=before):
        seen += [task.task_id for task, _ in page]
        before = page[-1][1]
    assert len(seen) == len(set(seen)) == 25


async def test_a_deleted_task_is_gone_with_its_history(
    publisher: Publisher, reader: Reader, any_redis: RedisClient
) -> None:
    task = a_task()
    await publisher.create(task)
    with pytest.raises(Conflict):
        await publisher.delete(await reader.task(task.task_id))
    await publisher.cancel(task)
    await publisher.delete(await reader.task(task.task_id))
    with pytest.raises(UnknownTask):
        await reader.task(task.task_id)
    assert await reader.tasks(ANYONE, limit=10) == []
    assert not await any_redis.exists(keys.events(task.task_id))
