"""The life of an idempotency key, on a real Redis and on fakeredis alike: holders that die, sleep, fail and wait."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import Request
from starlette.responses import JSONResponse, Response

import headway.api.uploads.idempotency
from headway.api.uploads.idempotency import Claim, Idempotency, fingerprint
from headway.shared import keys
from headway.shared.errors import KeyInUse, KeyReused, UnknownTask
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.idempotency import Answers, Lease
from headway.shared.tasks.models import ANYONE, OwnerId, Task, new_task_id
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from tests.contract.test_progress_channel import a_task
from tests.waiting import wait_until

ALICE, BOB = OwnerId("alice"), OwnerId("bob")


class House:
    """One API process: what it needs of one to answer a POST."""

    def __init__(self, redis: RedisClient, settings: Settings, lease_seconds: float) -> None:
        self.redis = redis
        self.reader = Reader(redis)
        self.publisher = Publisher(redis, settings)
        self.answers = Answers(redis, lease_seconds=lease_seconds)
        self.idempotency = Idempotency(self.answers, self.reader)

    async def make(self, claim: Claim, **asked: Any) -> Task:
        task = a_task(task_id=claim.task_id, **asked)
        await claim.settle(task)
        await self.publisher.create(task)
        return task

    async def once(
        self,
        *,
        make: Callable[[Claim], Awaitable[Task]] | None = None,
        owner: OwnerId = ALICE,
        key: bytes = b"k",
        **asked: Any,
    ) -> Response:
        scope = {"type": "http", "method": "POST", "path": "/tasks", "headers": [(b"idempotency-key", key)]}

        async def plainly(claim: Claim) -> Task:
            return await self.make(claim, owner=owner, **asked)

        return await self.idempotency.once(Request(scope), owner, make or plainly, show)

    async def tasks(self, owner: OwnerId = ALICE) -> list[str]:
        return [task.task_id for task, _ in await self.reader.tasks(owner, limit=100)]


def show(task: Task) -> JSONResponse:
    return JSONResponse({"task_id": task.task_id}, 202, {"Location": f"/tasks/{task.task_id}"})


def replayed(response: Response) -> bool:
    return "idempotency-replayed" in response.headers


@pytest.fixture
def house(any_redis: RedisClient, any_settings: Settings) -> House:
    return House(any_redis, any_settings, 5)


@pytest.fixture
def other_house(any_redis: RedisClient, any_settings: Settings) -> House:
    """Another process on the same Redis."""
    return House(any_redis, any_settings, 5)


@pytest.fixture
def mortal_house(any_redis: RedisClient, any_settings: Settings) -> House:
    """One whose leases last a moment, so that it counts as dead soon after it has said something."""
    return House(any_redis, any_settings, 0.05)


async def lease_of(house: House) -> Lease:
    """The lease of a request that is under way in a process that says nothing any more."""
    found = await house.answers.claim(ALICE, hashlib.sha256(b"k").hexdigest(), "dead", new_task_id())
    assert isinstance(found, Lease)
    return found


async def test_an_answer_is_given_again_as_it_was(house: House, other_house: House) -> None:
    first = await house.once()
    for again in (await house.once(), await other_house.once()):
        assert (again.status_code, again.body) == (202, first.body)
        assert again.headers["location"] == first.headers["location"]
        assert replayed(again)
    assert not replayed(first)
    assert len(await house.tasks()) == 1


async def test_a_key_is_its_owners(house: House) -> None:
    first, other = await house.once(), await house.once(owner=BOB)
    assert first.body != other.body
    assert not replayed(other)


async def test_a_key_with_another_request_is_refused_and_makes_nothing(house: House) -> None:
    await house.once()
    for other in ({"processor": "compress"}, {"options": {"a": 1}}, {"filename": "b"}, {"size_bytes": 11}):
        with pytest.raises(KeyReused):
            await house.once(**other)
    assert len(await house.tasks()) == 1


async def test_a_request_that_failed_leaves_its_key_free_for_any_other(house: House) -> None:
    async def fail(claim: Claim) -> Task:
        raise UnknownTask("as good as any")

    with pytest.raises(UnknownTask):
        await house.once(make=fail)
    assert await house.redis.keys("*idempotency*") == []
    assert not replayed(await house.once(processor="compress"))


async def test_those_who_wait_here_and_elsewhere_get_the_answer_of_the_first(house: House, other_house: House) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(claim: Claim) -> Task:
        asked.set()
        await go_on.wait()
        return await house.make(claim, owner=ALICE)

    async with asyncio.TaskGroup() as group:
        first = group.create_task(house.once(make=slowly))
        await asked.wait()
        waiting = [group.create_task(home.once()) for home in (house, other_house) for _ in range(20)]
        await wait_until("the other process waits too", lambda: other_house.idempotency._flights)
        go_on.set()
    assert {task.result().body for task in waiting} == {first.result().body}
    assert all(replayed(task.result()) for task in waiting)
    assert len(await house.tasks()) == 1


async def test_when_the_first_fails_the_next_takes_its_turn(house: House) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def fail(claim: Claim) -> Task:
        asked.set()
        await go_on.wait()
        raise UnknownTask

    async def then_the_others() -> set[bytes]:
        await asked.wait()
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(house.once()) for _ in range(20)]
            go_on.set()
        return {bytes(task.result().body) for task in others}

    failure, bodies = await asyncio.gather(house.once(make=fail), then_the_others(), return_exceptions=True)
    assert isinstance(failure, UnknownTask)
    assert isinstance(bodies, set)
    assert len(bodies) == len(await house.tasks()) == 1


async def test_a_wait_ends_after_its_bound(house: House, other_house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headway.api.uploads.idempotency, "WAIT_SECONDS", 0.1)
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(claim: Claim) -> Task:
        asked.set()
        await go_on.wait()
        return await house.make(claim, owner=ALICE)

    async with asyncio.TaskGroup() as group:
        group.create_task(house.once(make=slowly))
        await asked.wait()
        for home in (house, other_house):
            with pytest.raises(KeyInUse):
                await home.once()
        go_on.set()


async def test_a_holder_that_is_slow_renews_its_lease_and_keeps_its_key(
    any_redis: RedisClient, any_settings: Settings, house: House
) -> None:
    slow_house = House(any_redis, any_settings, 2)
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(claim: Claim) -> Task:
        asked.set()
        await go_on.wait()
        return await slow_house.make(claim, owner=ALICE)

    async with asyncio.TaskGroup() as group:
        first = group.create_task(slow_house.once(make=slowly))
        await asked.wait()
        second = group.create_task(house.once())
        name = (await house.redis.keys("*idempotency*"))[0]

        async def end_of_lease() -> int:
            return int(await house.redis.hget(name, "until_ms") or 0)  # type: ignore[misc]

        begun = await end_of_lease()

        async def renewed() -> int:
            return max(0, await end_of_lease() - begun)

        by_ms: int = await wait_until("the lease was renewed", renewed)
        assert by_ms > 0
        go_on.set()
    assert second.result().body == first.result().body
    assert replayed(second.result())


async def test_after_the_death_of_a_holder_that_made_nothing_the_next_request_is_the_first(
    mortal_house: House, house: House
) -> None:
    lease = await lease_of(mortal_house)
    answer = await house.once(processor="compress")
    assert not replayed(answer)
    assert await house.tasks() == [lease.task_id]


async def test_after_a_death_between_task_and_answer_the_task_is_found_and_no_second_one_made(
    mortal_house: House, house: House
) -> None:
    lease = await lease_of(mortal_house)
    task = a_task(task_id=lease.task_id, owner=ALICE)
    assert await mortal_house.answers.hold(lease, fingerprint("/tasks", task))
    await mortal_house.publisher.create(task)
    with pytest.raises(KeyReused):
        await house.once(processor="compress")
    for _ in range(2):
        answer = await house.once()
        assert answer.headers["location"] == f"/tasks/{lease.task_id}"
        assert replayed(answer)
    assert await house.tasks() == [lease.task_id]


async def test_a_holder_that_was_taken_for_dead_makes_no_second_task(mortal_house: House, house: House) -> None:
    """It wakes up right before it would make the task, and right before it would keep its answer."""
    lease = await lease_of(mortal_house)
    first = await house.once()
    assert not await mortal_house.answers.hold(lease, "late")
    await mortal_house.answers.release(lease)
    again = await house.once()
    assert (again.body, replayed(again)) == (first.body, True)


async def test_two_that_make_the_task_in_the_same_moment_make_one(house: House) -> None:
    async def beaten(claim: Claim) -> Task:
        await house.publisher.create(a_task(task_id=claim.task_id, owner=ALICE))  # by one that was taken for dead
        return await house.make(claim, owner=ALICE)

    with pytest.raises(KeyInUse):
        await house.once(make=beaten)
    answer = await house.once()
    assert replayed(answer)
    assert await house.tasks() == [answer.headers["location"].removeprefix("/tasks/")]


async def test_a_request_without_a_key_is_never_a_repetition(house: House) -> None:
    request = Request({"type": "http", "method": "POST", "path": "/tasks", "headers": []})
    for _ in range(2):
        await house.idempotency.once(request, ANYONE, house.make, show)
    assert len(await house.tasks(ANYONE)) == 2


async def test_every_key_has_an_expiry_and_holds_nothing_a_client_wrote(house: House) -> None:
    await house.once(key=b"tell nobody")
    [name] = await house.redis.keys("*idempotency*")
    assert b"tell" not in name
    assert name.decode().startswith(keys.idempotency(ALICE, ""))
    assert 86_000_000 < await house.redis.pttl(name) <= 86_400_000
