"""Who goes first: owners in turn; within one the highest priority, then its batches in turn; within a batch by time."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import timedelta
from typing import Any

import pytest

from headway.shared import keys
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.line import Line as LineReader
from headway.shared.tasks.models import OwnerId, Result, Task, TaskId, utc_now
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from headway.worker.leases import Leases, Limits
from tests.contract.test_progress_channel import a_task
from tests.waiting import POLL_SECONDS


class Line:
    """Tasks that are submitted, and workers that take their jobs."""

    def __init__(self, redis: RedisClient, settings: Settings) -> None:
        self.redis = redis
        self.publisher = Publisher(redis, settings)
        self.names: dict[TaskId, str] = {}
        self.leases = Leases(redis, "ours", 30)

    async def submit(self, owner: str, *names: str, **about: Any) -> list[Task]:
        tasks = [a_task(owner=OwnerId(owner), **about) for _ in names]
        for task, name in zip(tasks, names, strict=True):
            self.names[task.task_id] = name
            await self.publisher.create(task)
        return tasks

    def named(self, jobs: Any) -> list[str]:
        return [self.names[keys.task_of_job(job)] for job in jobs]

    async def take(self, count: int = 1, leases: Leases | None = None) -> list[str]:
        return self.named((await (leases or self.leases).turn(count)).taken)

    async def one_by_one(self) -> list[str]:
        """All that wait, in the order in which one slot runs them."""
        order: list[str] = []
        ended: list[str] = []
        while taken := (await self.leases.turn(1, ended=ended)).taken:
            ended = list(taken)
            order += self.named(taken)
        return order


@pytest.fixture
def line(any_redis: RedisClient, any_settings: Settings) -> Line:
    return Line(any_redis, any_settings)


def numbered(name: str, count: int) -> list[str]:
    return [f"{name}{number}" for number in range(count)]


@pytest.mark.parametrize("before", [0, 1, 7], ids=["fresh", "one ran", "many ran"])
async def test_whatever_one_owner_has_sent_another_is_next(line: Line, before: int) -> None:
    await line.submit("alice", *numbered("past", before))
    await line.one_by_one()
    await line.submit("alice", "running")
    assert await line.take() == ["running"]
    await line.submit("alice", *numbered("urgent", 50), priority=9)
    await line.submit("alice", *numbered("b", 50), batch_id="b")
    await line.submit("bob", "bob")
    assert (await line.one_by_one())[0] == "bob"


async def test_owners_take_turns_however_many_each_has(line: Line) -> None:
    await line.submit("alice", *numbered("a", 6))
    await line.submit("bob", *numbered("b", 2))
    await line.submit("carol", *numbered("c", 3))
    assert await line.one_by_one() == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "c2", "a3", "a4", "a5"]


async def test_who_comes_again_and_again_does_not_get_ahead(line: Line) -> None:
    await line.submit("alice", *numbered("a", 6))
    order = []
    for number in range(5):
        await line.submit("bob", f"b{number}")
        order += await line.take(2)
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3", "a4", "b4"]


async def test_batches_take_turns_within_their_owner(line: Line) -> None:
    await line.submit("alice", *numbered("x", 4), batch_id="x")
    await line.submit("alice", *numbered("y", 2), batch_id="y")
    await line.submit("alice", "alone")
    assert await line.one_by_one() == ["x0", "y0", "alone", "x1", "y1", "x2", "x3"]


async def test_the_highest_priority_goes_first_and_within_it_who_came_first(line: Line) -> None:
    for priority in (5, 0, 9, 6):
        await line.submit("alice", *(f"{priority}.{number}" for number in range(2)), priority=priority)
    assert await line.one_by_one() == ["9.0", "9.1", "6.0", "6.1", "5.0", "5.1", "0.0", "0.1"]


async def test_an_owner_has_no_more_than_its_limit_and_the_others_go_on(line: Line) -> None:
    limited = Leases(line.redis, "ours", 30, Limits(2))
    await line.submit("alice", *numbered("a", 4))
    await line.submit("bob", "b0")
    first = await limited.turn(9)
    assert sorted(line.named(first.taken)) == ["a0", "a1", "b0"]
    assert (await limited.turn(9)).taken == {}
    [a0, _] = [job for job in first.taken if line.named([job])[0].startswith("a")]
    assert line.named((await limited.turn(9, ended=[a0])).taken) == ["a2"]
    assert await line.take(9) == ["a3"], "a worker that knows no limit finds it too"


async def test_a_processor_has_no_more_than_its_limit_and_the_others_go_on(line: Line) -> None:
    limited = Leases(line.redis, "ours", 30, Limits(0, {"gpu": 1}))
    await line.submit("alice", *numbered("a", 2), processor="gpu")
    await line.submit("bob", "b0", processor="gpu")
    await line.submit("alice", "other")
    first = await limited.turn(9)
    assert sorted(line.named(first.taken)) == ["a0", "other"]
    assert line.named((await limited.turn(9, ended=list(first.taken))).taken) == ["b0"], "owners in turn here too"


async def test_a_paused_processor_is_passed_over_until_it_goes_on(line: Line) -> None:
    await line.submit("alice", "paused", processor="gpu")
    await line.submit("alice", "other")
    await line.redis.sadd(keys.LINE_PAUSED, "gpu")  # type: ignore[misc]
    assert await line.one_by_one() == ["other"]
    await line.redis.srem(keys.LINE_PAUSED, "gpu")  # type: ignore[misc]
    assert await line.one_by_one() == ["paused"]


async def test_a_task_waits_for_its_time(line: Line) -> None:
    due = utc_now() + timedelta(milliseconds=300)
    await line.submit("alice", "later", not_before=due, priority=9)
    await line.submit("alice", "tomorrow", not_before=due + timedelta(days=100))
    await line.submit("alice", "past", not_before=due - timedelta(days=1))
    assert await line.take() == ["past"]
    turn = await line.leases.turn(1)
    while not turn.taken:
        assert turn.due_seconds is not None
        assert turn.due_seconds < 0.4
        await asyncio.sleep(POLL_SECONDS)
        turn = await line.leases.turn(1)
    assert utc_now() >= due
    assert line.named(turn.taken) == ["later"]
    assert await line.take(9) == []


async def test_what_waits_for_its_time_is_kept_until_then(line: Line) -> None:
    [task] = await line.submit("alice", "far", not_before=utc_now() + timedelta(days=1000))
    job = keys.job_id(task.task_id, 1)
    for key in (keys.state(task.task_id), keys.job(job)):
        assert await line.redis.pttl(key) > 1000 * 86_400_000
    await line.publisher.cancel(task)
    assert not await line.redis.exists(keys.LINE_LATER, keys.LINE_JOBS, keys.job(job))


async def test_a_job_that_nobody_has_any_more_stands_where_it_stood(line: Line) -> None:
    await line.submit("alice", "a0", "a1", "a2")
    await line.submit("bob", "b0")
    turn = await line.leases.turn(2)
    assert line.named(turn.taken) == ["a0", "b0"]
    a0, b0 = turn.taken
    await line.leases.turn(given_back=[a0])
    await line.redis.delete(keys.job_lease(b0))  # its worker died
    await line.redis.zadd(keys.LINE_RUNNING, {b0: 1})
    other = Leases(line.redis, "other", 30)
    assert sorted(await line.take(2, other)) == ["a0", "b0"]
    assert await line.take(9, other) == ["a1", "a2"]


async def test_nothing_is_left_of_a_line_in_which_nobody_waits_or_runs(line: Line) -> None:
    tasks = await line.submit("alice", *numbered("a", 3), batch_id="b")
    await line.submit("bob", *numbered("b", 3), processor="gpu")
    await line.publisher.cancel(tasks[1])
    limited = Leases(line.redis, "ours", 30, Limits(1))
    ended: list[str] = []
    while taken := (await limited.turn(9, ended=ended)).taken:
        ended = list(taken)
    left = {key.decode() for key in await line.redis.keys("headway:line:*")}
    assert left == {keys.LINE_CLOCK, keys.LINE_TURNS}
    for key in left:
        assert await line.redis.pttl(key) > 0


async def test_jobs_of_before_there_was_a_line_move_into_it_in_their_order(line: Line) -> None:
    tasks = await line.submit("alice", *numbered("a", 3))
    [bob] = await line.submit("bob", "b0")
    await line.redis.delete(*await line.redis.keys("headway:line:*"))
    hour_ago_ms = int(utc_now().timestamp() * 1000) - 3_600_000 - 1000  # what versions of before wrote there
    jobs = [keys.job_id(task.task_id, 1) for task in (*tasks, bob)]
    scores = dict(zip(jobs, range(hour_ago_ms, hour_ago_ms + 4), strict=True))
    await line.redis.zadd(keys.QUEUE, scores)
    await line.redis.set(keys.job_lease(jobs[0]), "a worker of before", px=60_000)
    assert await line.take(2) == ["a1", "b0"]
    since_us = (await line.redis.zrange(keys.LINE_WAITING, 0, 0, withscores=True))[0][1]
    assert int(since_us) // 1000 == hour_ago_ms + 3_600_000 + 2
    assert await line.redis.zrange(keys.QUEUE, 0, -1) == [jobs[0].encode()], "it is that worker's to end"
    await line.redis.zadd(keys.QUEUE, {jobs[2]: hour_ago_ms})  # put back by a sweeper of before
    assert await line.take(9) == ["a2"]


async def test_arqs_own_client_may_defer_a_job(any_redis: RedisClient) -> None:
    now_ms = utc_now().timestamp() * 1000
    await any_redis.zadd(keys.QUEUE, {"now": now_ms, "later": now_ms + 60_000})
    turn = await Leases(any_redis, "ours", 30).turn(9)
    assert list(turn.taken) == ["now"]
    assert turn.due_seconds is not None


async def test_a_worker_that_was_away_takes_its_job_back_out_of_the_line(line: Line) -> None:
    await line.submit("alice", "a0", "a1")
    [a0] = (await line.leases.turn(1)).taken
    await line.redis.delete(keys.job_lease(a0))
    await line.redis.zadd(keys.LINE_RUNNING, {a0: 1})
    await Leases(line.redis, "other", 30).turn(0)  # puts it back
    assert await line.redis.zscore(keys.LINE_WAITING, a0) is not None
    assert await line.leases.renew([a0]) == []
    assert await line.take(9, Leases(line.redis, "other", 30)) == ["a1"]


async def positions(line: Line) -> dict[str, int | None]:
    about = LineReader(line.redis)
    found = {name: await about.place(task_id) for task_id, name in line.names.items()}
    return {name: place.position for name, place in found.items() if place is not None}


async def test_a_place_in_the_line_is_the_order_in_which_they_go(line: Line) -> None:
    await line.submit("alice", *numbered("x", 5), batch_id="x")
    await line.submit("alice", *numbered("y", 2), batch_id="y")
    await line.submit("alice", *numbered("high", 2), priority=8)
    await line.submit("bob", *numbered("b", 3))
    await line.submit("carol", "c0", processor="other")
    for _ in range(14):
        told = await positions(line)
        assert sorted(place for place in told.values() if place) == list(range(1, len(told) + 1)), told
        if not told:
            break
        [first] = await line.take(1)
        assert told[first] == 1, (told, first)
        for task_id, name in line.names.items():
            if name == first:
                await line.redis.delete(keys.state(task_id))  # it waits no more


async def test_a_new_tasks_first_event_says_its_place(line: Line) -> None:
    await line.submit("alice", *numbered("a", 4))
    [bob] = await line.submit("bob", "b0")
    [last] = await line.submit("alice", "last")
    reader = Reader(line.redis)
    assert (await reader.task(bob.task_id)).queue_position == 2
    assert (await reader.task(last.task_id)).queue_position == 6
    assert (await reader.task(last.task_id)).starts_in_seconds is None, "nothing has been measured"
    state = json.loads((await reader.snapshot(last.task_id)).state.data)
    assert state["queue_position"] == 6
    claim = await line.publisher.claim(bob.task_id, reader)
    assert claim is not None
    started = await reader.task(bob.task_id)
    assert (started.queue_position, started.starts_in_seconds) == (None, None)


async def test_how_long_it_takes_is_known_from_those_that_ran(line: Line) -> None:
    reader, now = Reader(line.redis), time.time()
    for seconds in (1.0, 1.0, 1.0):
        [task] = await line.submit("alice", "done")
        [job] = (await line.leases.turn(1)).taken
        claim = await line.publisher.claim(task.task_id, reader)
        assert claim is not None
        await line.redis.hset(keys.state(task.task_id), "claimed_ms", str(int((now - seconds) * 1000)))  # type: ignore[misc]
        await line.publisher.complete(task.task_id, Result(summary={}, files=[]), **claim.fence)
        await line.leases.turn(ended=[job])
    await line.submit("alice", "runs", *numbered("a", 4))
    await line.take(1)
    about = LineReader(line.redis)
    starts = {name: await about.place(task_id) for task_id, name in line.names.items() if name.startswith("a")}
    seconds_of = [place.seconds for place in starts.values() if place is not None and place.seconds is not None]
    assert seconds_of == sorted(seconds_of)
    assert len(seconds_of) == 4
    assert 0.3 < seconds_of[0] < 30  # half of one task, however slow this machine is
    assert seconds_of[3] == pytest.approx(7 * seconds_of[0], rel=0.3)


async def test_a_place_costs_the_same_however_long_the_line_is(redis_client: RedisClient, settings: Settings) -> None:
    line = Line(redis_client, settings)

    async def commands_of_a_look(task: Task) -> int:
        before = (await redis_client.info("commandstats")).items()
        calls = sum(int(stat["calls"]) for name, stat in before if name != "cmdstat_info")
        await LineReader(redis_client).place(task.task_id)
        after = (await redis_client.info("commandstats")).items()
        return sum(int(stat["calls"]) for name, stat in after if name != "cmdstat_info") - calls

    [short] = await line.submit("alice", "a")
    few = await commands_of_a_look(short)
    for owner in range(100):
        await line.submit(f"owner{owner}", *numbered("x", 3))
    [long] = await line.submit("alice", "b")
    assert await commands_of_a_look(long) <= few + 10
    place = await LineReader(redis_client).place(long.task_id)
    assert place is not None
    assert place.position is not None
    assert 50 <= place.position <= 200  # it is the second of alice's, among 100 others'
