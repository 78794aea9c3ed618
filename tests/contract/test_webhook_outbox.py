"""The outbox: an end and its notice are one write; each is sent until it is taken, by one sender at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headway.shared import keys
from headway.shared.errors import Refused
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import ErrorType, OwnerId, Result, Task
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from headway.shared.webhooks.address import webhook_to
from headway.shared.webhooks.outbox import AT_ONCE, LEASE_SECONDS, RETRY_SECONDS, Claim, Outbox
from headway.worker.webhook_sender import body_of
from tests.contract.test_progress_channel import a_task, claimed

URL = 'https://hooks.test/a?"b"'
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TRY = {"at": "2026-12-01T12:00:00.000Z", "status_code": None, "error": "a {brace} and a\nline", "seconds": 0.1}


@pytest.fixture
def publisher(any_redis: RedisClient, any_settings: Settings) -> Publisher:
    return Publisher(any_redis, any_settings)


@pytest.fixture
def reader(any_redis: RedisClient) -> Reader:
    return Reader(any_redis)


@pytest.fixture
def outbox(any_redis: RedisClient) -> Outbox:
    return Outbox(any_redis)


async def told_of(publisher: Publisher, url: str = URL, **changes: Any) -> Task:
    """A task that was cancelled, and has one notice."""
    task = a_task(webhook=webhook_to(url), **changes)
    await publisher.create(task)
    await publisher.cancel(task)
    return task


async def due_now(redis: RedisClient, claim: Claim) -> None:
    """As if the wait were over."""
    for member in await redis.zrange(keys.WEBHOOKS_TO % claim.receiver, 0, -1):
        await redis.zadd(keys.WEBHOOKS_TO % claim.receiver, {member: 1})
    await redis.zadd(keys.WEBHOOKS_DUE, {claim.receiver: 1}, xx=True)


async def test_the_notice_is_written_with_the_end_and_says_what_the_task_was(
    publisher: Publisher, reader: Reader, outbox: Outbox
) -> None:
    task = a_task(webhook=webhook_to(URL), options={"a": [1, "ä"]}, owner=OwnerId("alice"), batch_id="b")
    attempt = await claimed(publisher, reader, task)
    assert await outbox.claim(10) == []
    summary = {f"column {number}": "x" * 100 for number in range(200)}  # longer than an event
    version = await publisher.complete(task.task_id, Result(summary=summary, files=[]), attempt=attempt)
    with pytest.raises(Refused):
        await publisher.fail(task.task_id, ErrorType.LOST, "no", attempt=attempt)
    [claim] = await outbox.claim(10)
    [notice] = claim.notices
    assert (claim.owner, notice.url, notice.type) == ("alice", URL, "task.completed")
    assert notice.webhook_id == f"msg_{task.task_id}_{version}"
    known = await reader.task(task.task_id)
    told = json.loads(body_of(notice))["data"]
    assert told.pop("links")["self"] == f"/tasks/{task.task_id}"
    assert told == known.model_dump(mode="json")
    assert told["result"]["summary"] == summary


async def test_a_write_that_is_sent_twice_is_one_notice(publisher: Publisher, reader: Reader, outbox: Outbox) -> None:
    task = a_task(webhook=webhook_to(URL))
    attempt = await claimed(publisher, reader, task)
    for _ in range(2):
        await publisher.complete(task.task_id, Result(summary={}, files=[]), attempt=attempt, write_id="one")
    [claim] = await outbox.claim(10)
    assert len(claim.notices) == 1
    assert await outbox.count(task.task_id) == 1


async def test_a_receiver_has_one_sender_at_a_time_until_that_is_gone(
    publisher: Publisher, outbox: Outbox, any_redis: RedisClient
) -> None:
    await told_of(publisher)
    [claim] = await outbox.claim(10)
    await told_of(publisher)
    assert await outbox.claim(10) == []
    lease_ms = await any_redis.pttl(keys.WEBHOOKS_BUSY % claim.receiver)
    assert 0 < lease_ms <= LEASE_SECONDS * 1000
    await any_redis.delete(keys.WEBHOOKS_BUSY % claim.receiver)  # its sender died, and the lease is over
    await due_now(any_redis, claim)
    [again] = await outbox.claim(10)
    assert again.token != claim.token
    assert claim.notices[0] in again.notices
    assert len(again.notices) == 2
    await outbox.release(claim)  # it was not dead: it may not end the other's claim
    assert await outbox.claim(10) == []


async def test_a_claim_holds_a_few_and_the_rest_follows(publisher: Publisher, outbox: Outbox) -> None:
    for _ in range(AT_ONCE + 3):
        await told_of(publisher)
    sent = 0
    while claims := await outbox.claim(10):
        [claim] = claims
        assert len(claim.notices) <= AT_ONCE
        for notice in claim.notices:
            assert await outbox.tried(claim, notice, "delivered", TRY) == "delivered"
        sent += len(claim.notices)
        await outbox.release(claim)
    assert sent == AT_ONCE + 3
    assert await outbox.receivers() == 0


async def test_the_waits_are_those_of_the_contract_and_then_it_is_given_up(
    publisher: Publisher, outbox: Outbox, any_redis: RedisClient
) -> None:
    task = await told_of(publisher)
    waits = []
    for _ in RETRY_SECONDS:
        [claim] = await outbox.claim(10)
        assert await outbox.tried(claim, claim.notices[0], "failed", TRY) == "pending"
        await outbox.release(claim)
        assert await outbox.claim(10) == []
        seconds, _ = await any_redis.time()
        [notice] = await outbox.of_task(task.task_id)
        waits.append(notice["due_ms"] / 1000 - seconds)
        assert await any_redis.zscore(keys.WEBHOOKS_DUE, claim.receiver) == notice["due_ms"]
        await due_now(any_redis, claim)
    assert all(wanted - 3 <= wait <= wanted + 1.5 for wait, wanted in zip(waits, RETRY_SECONDS, strict=True)), waits
    [claim] = await outbox.claim(10)
    assert await outbox.tried(claim, claim.notices[0], "failed", TRY) == "given_up"
    await outbox.release(claim)
    assert await outbox.receivers() == 0
    [notice] = await outbox.of_task(task.task_id)
    assert (notice["status"], notice["due_ms"], len(notice["tries"])) == ("given_up", None, len(RETRY_SECONDS) + 1)
    assert await outbox.resend(
        task.task_id, claim.notices[0].webhook_id, lives_seconds=600_000, owner_lives_seconds=600_000
    )
    [claim] = await outbox.claim(10)
    assert await outbox.tried(claim, claim.notices[0], "failed", TRY) == "pending"


async def test_a_late_failure_takes_back_no_delivery_and_a_lost_answer_counts_once(
    publisher: Publisher, outbox: Outbox, any_redis: RedisClient
) -> None:
    task = await told_of(publisher)
    [slow] = await outbox.claim(10)
    await any_redis.delete(keys.WEBHOOKS_BUSY % slow.receiver)
    await due_now(any_redis, slow)
    [quick] = await outbox.claim(10)
    assert await outbox.tried(quick, quick.notices[0], "delivered", TRY) == "delivered"
    assert await outbox.tried(slow, slow.notices[0], "failed", TRY) == "delivered"
    await outbox.release(quick)
    assert await outbox.claim(10) == []
    [notice] = await outbox.of_task(task.task_id)
    assert [one["error"] for one in notice["tries"]] == [TRY["error"]] * 2


async def test_an_owner_or_an_origin_that_has_enough_waits_and_others_do_not(
    publisher: Publisher, outbox: Outbox
) -> None:
    await told_of(publisher, "http://a.test/1", owner=OwnerId("alice"))
    await told_of(publisher, "http://b.test/2", owner=OwnerId("bob"))
    await told_of(publisher, "http://c.test/3", owner=OwnerId("bob"))
    origin = f"bob/{webhook_to('http://b.test/9').to.partition('.')[0]}"
    claims = await outbox.claim(10, ["alice", origin])
    assert [notice.url for claim in claims for notice in claim.notices] == ["http://c.test/3"]


async def test_a_deleted_tasks_notices_go_with_it_but_for_what_is_still_to_be_sent(
    publisher: Publisher, reader: Reader, outbox: Outbox, any_redis: RedisClient
) -> None:
    sent, unsent = await told_of(publisher, "http://a.test/"), await told_of(publisher, "http://b.test/")
    for claim in await outbox.claim(10):
        if claim.notices[0].task_id == sent.task_id:
            await outbox.tried(claim, claim.notices[0], "delivered", TRY)
        else:
            waiting = claim
        await outbox.release(claim)
    for task in (sent, unsent):
        await publisher.delete(await reader.task(task.task_id))
    left = [name async for name in any_redis.scan_iter("headway:webhook:*")]
    assert left == [f"headway:webhook:{waiting.notices[0].webhook_id}".encode()]
    [claim] = await outbox.claim(10)
    assert claim.notices == waiting.notices
    assert await outbox.tried(claim, claim.notices[0], "delivered", TRY) == "delivered"
    await outbox.release(claim)
    assert [name async for name in any_redis.scan_iter("headway:webhook*")] == []


async def test_one_that_was_lost_with_its_redis_is_no_more_looked_for(
    publisher: Publisher, outbox: Outbox, any_redis: RedisClient
) -> None:
    task = await told_of(publisher)
    [notice] = await outbox.of_task(task.task_id)
    await any_redis.delete(keys.WEBHOOK % notice["id"])
    assert await outbox.claim(10) == []
    assert await outbox.receivers() == 0


async def test_the_platforms_own_receiver_is_told_of_every_end_and_one_address_once(
    any_redis: RedisClient, any_settings: Settings, outbox: Outbox
) -> None:
    told = {"webhook_url": "http://all.test/", "webhook_secret": [SECRET]}
    publisher = Publisher(any_redis, any_settings.model_copy(update=told))
    plain = a_task()
    await publisher.create(plain)
    await publisher.cancel(plain)
    same = await told_of(publisher, "http://all.test/")
    both = await told_of(publisher, "http://other.test/")
    assert [notice["from"] for notice in await outbox.of_task(plain.task_id)] == ["platform"]
    assert [notice["from"] for notice in await outbox.of_task(same.task_id)] == ["task"]
    assert {notice["from"] for notice in await outbox.of_task(both.task_id)} == {"platform", "task"}


async def test_every_key_of_it_expires(publisher: Publisher, outbox: Outbox, any_redis: RedisClient) -> None:
    await told_of(publisher)
    await outbox.claim(10)
    names = [name async for name in any_redis.scan_iter("headway:webhook*")]
    assert len(names) == 5
    for name in names:
        assert await any_redis.pttl(name) > 0, name
