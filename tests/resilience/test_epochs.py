"""What Redis lost and clients have seen: numbers go on above it, so that nothing new is taken for something known."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from headway.shared import keys
from headway.shared.redis.client import RedisClient, connect
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, Status, Task
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from tests.contract.test_progress_channel import a_task
from tests.feeds import feed_truth
from tests.processes import RedisServer
from tests.sentinels import Node
from tests.unit.sweeping import Bench
from tests.waiting import wait_for

BATCH = "a-batch"


@dataclass
class Side:
    """What is written to and read from one server."""

    publisher: Publisher
    reader: Reader
    redis: RedisClient

    async def progress(self, task: Task, *, times: int = 1) -> int:
        """Returns the version."""
        versions = [
            await self.publisher.change(task.task_id, {"progress": 1}, allowed=(Status.PROCESSING,))
            for _ in range(times)
        ]
        return versions[-1]

    async def running(self) -> Task:
        task = a_task(batch_id=BATCH)
        await self.publisher.create(task)
        assert await self.publisher.claim(task.task_id, self.reader) is not None
        return task


class Sides(AsyncExitStack):
    async def connected(self, url: str) -> Side:
        settings = Settings(redis_url=url)
        client = await self.enter_async_context(connect(settings))
        return Side(Publisher(client, settings), Reader(client), client)


@pytest.fixture
async def sides() -> AsyncIterator[Sides]:
    async with Sides() as sides:
        yield sides


def url_of(server: Node) -> str:
    return f"redis://127.0.0.1:{server.port}/0"


async def test_after_a_promotion_every_number_is_above_all_that_were_seen(tmp_path: Path, sides: Sides) -> None:
    with ExitStack() as stack:
        old = Node(tmp_path / "old", "repl-diskless-sync-delay 0\nappendonly yes\n")
        new = Node(tmp_path / "new", f"replicaof 127.0.0.1 {old.port}\nappendonly yes\n")
        for node in (old, new):
            stack.callback(node.kill)
            node.start()
        before = await sides.connected(url_of(old))
        task = await before.running()
        kept = await before.progress(task, times=3)
        with redis.Redis(port=new.port) as replica:
            wait_for("it is replicated", lambda: int(replica.hget(keys.state(task.task_id), "version") or 0) == kept)
        new.ask("REPLICAOF", "NO", "ONE")

        # What the old primary still takes is lost, and was seen.
        seen = await before.progress(task, times=2)
        number = (await feed_truth(before.redis)).number
        await before.publisher.cancel(await before.reader.task(task.task_id))
        batch = await before.reader.batch(ANYONE, BATCH)

        after = await sides.connected(url_of(new))
        assert (await after.reader.snapshot(task.task_id)).state.version == kept < seen
        first = await after.progress(task)
        assert first > seen + 1
        assert await after.progress(task) == first + 1
        truth = await after.reader.snapshot(task.task_id, after=seen)
        assert [event.version for event in truth.history] == [first, first + 1]
        assert truth.missed_from == seen + 1, "it is told by a gap"
        reader = await feed_truth(after.redis, after=number)
        assert reader.number > number + 1
        assert [state.task_version for state in reader.states] == [first + 1]
        await after.publisher.cancel(await after.reader.task(task.task_id))
        assert (await after.reader.batch(ANYONE, BATCH)).version > batch.version
        assert await (await sides.connected(url_of(new))).reader.ended_version(task.task_id) == first + 2

        born = await after.running()
        assert await after.progress(born) == 3, "a new task begins at 1"


async def test_a_restart_that_loses_nothing_leaves_the_numbers_alone(own_redis: RedisServer, sides: Sides) -> None:
    before = await sides.connected(own_redis.url)
    task = await before.running()
    own_redis.kill()
    own_redis.start()
    assert await before.progress(task) == 3
    assert await (await sides.connected(own_redis.url)).progress(task) == 4


async def test_a_restart_from_a_snapshot_goes_on_above_what_it_lacks(tmp_path: Path, sides: Sides) -> None:
    server = Node(tmp_path / "server", "")
    with ExitStack() as stack:
        stack.callback(server.kill)
        server.start()
        before = await sides.connected(url_of(server))
        task = await before.running()
        server.ask("SAVE")
        seen = await before.progress(task, times=3)
        server.kill()
        server.start()
        assert await before.progress(task) > seen


async def test_who_may_not_ask_for_the_replication_works_as_ever(tmp_path: Path, sides: Sides) -> None:
    server = Node(tmp_path / "server", "user plain on >plain ~* &* +@all -info\n")
    with ExitStack() as stack:
        stack.callback(server.kill)
        server.start()
        side = await sides.connected(url_of(server).replace("//", "//plain:plain@"))
        task = await side.running()
        assert await side.progress(task) == 3
        server.ask("CONFIG", "SET", "maxmemory", "1")
        full = await sides.connected(url_of(server))
        assert (await full.reader.task(task.task_id)).version == 3, "a full one can still be read"


async def test_the_sweeper_tells_again_what_nothing_was_written_of(
    any_redis: RedisClient, any_settings: Settings
) -> None:
    bench = Bench(any_redis, any_settings)
    waits, unbegun = await bench.created(), await bench.uploading(begun=False)
    ended = await bench.created()
    await bench.publisher.cancel(await bench.task(ended))
    await bench.sweep()
    assert (await bench.task(waits)).version == 1
    epoch: Any = {"number": 7, "replid": "0" * 40}
    await any_redis.hset(keys.EPOCH, mapping=epoch)  # type: ignore[misc]
    await bench.sweep()
    told = await bench.task(waits)
    assert (told.version, told.status) == (7_000_001, Status.QUEUED)
    await bench.sweep()
    assert (await bench.task(waits)).version == told.version, "once"
    assert [(await bench.task(task)).version for task in (unbegun, ended)] == [1, 2]
