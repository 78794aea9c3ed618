"""A connection to Redis that is dead without a word: nothing arrives, nothing fails. Made by a proxy between the two
that goes on accepting what is sent on the old connections and passes nothing on, as a cut cable does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.processes import Platform, RedisServer, free_port
from tests.resilience.test_stream_faults import LONG, Watchers
from tests.streams import assert_true_story
from tests.waiting import wait_until


class Cable:
    """A TCP proxy whose connections can be made to lose everything, both ways, while new ones work."""

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self._to = port
        self._generation = 0
        self.made = 0

    def cut(self) -> None:
        """What is connected now is dead from here on, and nobody is told."""
        self._generation += 1

    async def __aenter__(self) -> Cable:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.made += 1
        redis_reader, redis_writer = await asyncio.open_connection("127.0.0.1", self._to)
        generation = self._generation
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(reader, redis_writer, generation))
                group.create_task(self._pass_on(redis_reader, writer, generation))
        except* OSError:
            pass
        finally:
            for end in (writer, redis_writer):
                end.close()

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, generation: int) -> None:
        while data := await source.read(65_536):
            if generation == self._generation:
                sink.write(data)
                with contextlib.suppress(OSError):
                    await sink.drain()
        if generation == self._generation:
            sink.close()


@pytest.fixture
async def cable(own_redis: RedisServer) -> AsyncIterator[Cable]:
    async with Cable(own_redis.port) as laid:
        yield laid


async def test_the_api_notices_and_every_stream_goes_on_without_a_hole(own_platform: Platform, cable: Cable) -> None:
    url = f"redis://127.0.0.1:{cable.port}/0"
    await asyncio.to_thread(own_platform.start_api, HEADWAY_REDIS_URL=url)
    await asyncio.to_thread(own_platform.start_worker)
    task_id = (await asyncio.to_thread(own_platform.submit, "rehearsal", options=LONG))["task_id"]
    async with Watchers(10, f"{own_platform.url}/tasks/{task_id}/events?last_event_id=0") as watchers:
        await wait_until("it runs", lambda: watchers.stories[0][-1].data["step"] > 3)
        made = cable.made
        cable.cut()
        await watchers.ended(20)
    assert cable.made > made
    for story in watchers.stories:
        assert_true_story(story, first=1)
        assert story[-1].status == "completed"


async def test_a_worker_notices_and_its_task_ends_once(own_platform: Platform, cable: Cable) -> None:
    url = f"redis://127.0.0.1:{cable.port}/0"
    await asyncio.to_thread(own_platform.start_api)
    worker = await asyncio.to_thread(own_platform.start_worker, HEADWAY_REDIS_URL=url)
    task_id = (await asyncio.to_thread(own_platform.submit, "rehearsal", options=LONG))["task_id"]
    async with Watchers(1, f"{own_platform.url}/tasks/{task_id}/events?last_event_id=0") as watchers:
        await wait_until("it runs", lambda: watchers.stories[0][-1].data["step"] > 3)
        cable.cut()
        await watchers.ended(40)
    assert_true_story(watchers.stories[0], first=1)
    assert watchers.stories[0][-1].status == "completed"
    assert worker.code is None
