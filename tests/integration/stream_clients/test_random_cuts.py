"""Streams that are cut anywhere, again and again, and go on at another API with the last id that was seen whole.

STREAM_CUTS says how many cuts there are to be: 150 unless told otherwise, 2000 for a proof by hand:

    STREAM_CUTS=2000 .venv/bin/pytest tests/integration/stream_clients/test_random_cuts.py -s
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import AsyncExitStack
from itertools import count

import httpx
import pytest

from tests.one_byte_proxy import OneByteProxy
from tests.processes import Platform
from tests.streams import Frame, assert_true_story, parse_block, watch

CUTS = int(os.environ.get("STREAM_CUTS", "60"))
SEED = 20_261_122

#: Some cuts are inside the first event, most behind a few.
MOST_BYTES = 3_000
#: Watchers at once, on a machine that runs other tests beside this one.
WATCHERS = 12
PIECE_BYTES = 16
TASK = '{"steps": 40, "step_seconds": 0.1}'


async def follow(proxies: list[OneByteProxy], task_id: str, choose: random.Random) -> list[Frame]:
    """Watches a task to its end, at a random API each time; keeps whole events alone, as an EventSource does."""
    story: list[Frame] = []
    async with httpx.AsyncClient(timeout=20) as client:
        while True:
            url = f"{choose.choice(proxies).url}/tasks/{task_id}/events"
            headers = {"Last-Event-ID": str(story[-1].id if story else 0)}
            buffer = b""
            try:
                async with client.stream("GET", url, headers=headers) as answer:
                    if answer.status_code == 204:
                        return story
                    assert answer.status_code == 200
                    async for chunk in answer.aiter_raw():
                        *blocks, buffer = (buffer + chunk).split(b"\n\n")
                        story += [frame for frame in map(parse_block, blocks) if frame is not None]
            except httpx.RemoteProtocolError:
                continue  # cut


@pytest.mark.timeout(600)
async def test_random_cuts_over_two_apis_leave_no_hole_and_no_double(own_platform: Platform) -> None:
    own_platform.start_worker(HEADWAY_WORKER_CONCURRENCY="2")
    for _ in range(2):
        own_platform.start_api()
    choose = random.Random(SEED)
    anywhere = (choose.randrange(MOST_BYTES) for _ in count())
    holes, doubles, cuts, watchers, events = 0, 0, 0, 0, 0
    reconnects: Counter[int | None] = Counter()
    while cuts < CUTS:
        task_ids = [str(own_platform.submit("rehearsal", options=TASK)["task_id"]) for _ in range(2)]
        async with AsyncExitStack() as stack:
            proxies = [
                await stack.enter_async_context(OneByteProxy(url, cuts=anywhere, piece_bytes=PIECE_BYTES))
                for url in own_platform.urls
            ]
            watched = [task_ids[n % 2] for n in range(WATCHERS)]
            stories = await asyncio.gather(*(follow(proxies, task_id, choose) for task_id in watched))
            exchanges = [exchange for proxy in proxies for exchange in proxy.streams]
        cuts += sum(exchange.was_cut for exchange in exchanges)
        reconnects.update(exchange.status for exchange in exchanges)
        truths = {task_id: await asyncio.to_thread(watch, own_platform.url, task_id, 0) for task_id in task_ids}
        for task_id, story in zip(watched, stories, strict=True):
            truth = truths[task_id]
            assert_true_story(truth, first=1)
            seen = Counter(frame.id for frame in story)
            holes += sum(frame.id not in seen for frame in truth)
            doubles += sum(seen.values()) - len(seen)
            watchers += 1
            events += len(story)
            assert story == truth
    print(f"{cuts} cuts, {watchers} watchers, {events} events: {holes} holes, {doubles} doubles; answers {reconnects}")
    assert (holes, doubles) == (0, 0)
