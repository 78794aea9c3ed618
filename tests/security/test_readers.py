"""Who only reads costs the writer's history nothing, needs no Redis for what is public, and has a share of the loop."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Final

import httpx
import pytest

from headway.api.serving.descriptors import downloads_of_one
from headway.api.serving.turns import Gone, Turns
from tests.processes import Platform, RedisServer
from tests.resilience.test_strangers import ALICE, BOB, KEYS
from tests.streams import assert_true_story, frames_of, opened, watch
from tests.waiting import wait_for

READS: Final = 1100


def test_a_task_token_that_reads_without_end_pushes_nothing_out(platform: Platform) -> None:
    task = platform.submit("rehearsal", b"hello", options='{"steps": 3, "step_seconds": 0}')
    platform.wait(task["task_id"])
    url = f"{platform.url}/tasks/{task['task_id']}"
    assert httpx.post(f"{url}/notes", json={"author": "a", "text": "b"}).status_code == 201
    before = watch(platform.url, task["task_id"], last_event_id=0)
    with opened(f"{platform.url}/events") as answer:
        frames = frames_of(answer)
        with httpx.Client() as client:
            assert {client.get(f"{url}/input?transfer=1").status_code for _ in range(READS)} == {200}
        heard = next(frame for frame in frames if frame.name == "transfer" and frame.data["progress"] == 100)
    assert heard.data["task_id"] == task["task_id"]
    assert watch(platform.url, task["task_id"], last_event_id=0) == before
    assert [note["text"] for note in httpx.get(f"{url}/notes").json()["notes"]] == ["b"]


def test_a_transfer_among_events_has_no_id_in_any_form_and_leaves_no_hole(platform: Platform) -> None:
    task = platform.submit("rehearsal", b"hello", options='{"steps": 1000, "step_seconds": 0.05}')
    url = f"{platform.url}/tasks/{task['task_id']}"
    platform.wait(task["task_id"], "processing")
    story = []
    with opened(f"{url}/events") as answer, opened(f"{url}/events", Accept="application/x-ndjson") as lines:
        frames, objects = frames_of(answer), lines.iter_lines()
        for _ in range(5):
            httpx.get(f"{url}/input?transfer=1").raise_for_status()
            while (frame := next(frames)).name != "transfer":
                story.append(frame)
            while '"transfer"' not in (line := next(objects)):
                pass
            assert "version" not in json.loads(line)
        httpx.post(f"{url}/cancel").raise_for_status()
        story += frames
    assert_true_story(story)


def test_what_is_public_is_there_without_redis_with_a_cookie_too(
    own_platform: Platform, own_redis: RedisServer
) -> None:
    own_platform.start_api(HEADWAY_API_KEYS=json.dumps(KEYS))
    with httpx.Client(base_url=own_platform.url) as browser:
        assert browser.post("/session", json={"key": KEYS["alice"]}).status_code == 200
        own_redis.kill()
        for path in ("/", "/static/app.js", "/static/style.css", "/healthz"):
            assert browser.get(path).status_code == 200, path
        assert browser.get("/readyz").json()["status"] == "unready"
        assert browser.get("/session").status_code == 503
        own_redis.start()
        wait_for("the session goes on", lambda: browser.get("/session").status_code == 200)


async def test_owners_take_turns_whatever_each_has_waiting() -> None:
    turns, order = Turns(), list[str]()

    async def work(owner: str) -> None:
        await turns.wait(owner)
        order.append(owner)

    gone = asyncio.create_task(work("greedy"))
    greedy = [asyncio.create_task(work("greedy")) for _ in range(50)]
    await asyncio.sleep(0)
    gone_too = greedy.pop(3)
    gone_too.cancel()
    healthy = [asyncio.create_task(work("healthy")) for _ in range(3)]
    await asyncio.gather(gone, *greedy, *healthy)
    assert Counter(order) == {"greedy": 50, "healthy": 3}
    last = max(place for place, owner in enumerate(order) if owner == "healthy")
    assert last < 10, order


async def test_who_has_left_takes_no_turn_of_those_behind_it() -> None:
    """However many have left: whoever comes next is the next."""
    turns, order, here = Turns(), list[str](), True

    async def work(name: str) -> None:
        try:
            await turns.wait("address", lambda: here or name == "new")
        except Gone:
            order.append("gone")
        else:
            order.append(name)

    first = asyncio.create_task(work("first"))
    await asyncio.sleep(0)
    left = [asyncio.create_task(work("left")) for _ in range(400)]
    new = asyncio.create_task(work("new"))
    await asyncio.sleep(0)
    here = False
    given = len(order)
    await asyncio.gather(first, *left, new)
    assert Counter(order[given:]) <= Counter({"gone": 400, "new": 1, "first": 1, "left": 1})
    assert not turns._given


async def test_turns_that_are_over_leave_room_for_the_next_ones() -> None:
    turns = Turns()
    for _ in range(3):
        await asyncio.gather(*(turns.wait(str(n % 3)) for n in range(20)))
        await asyncio.sleep(0.01)
        assert not turns._given
        assert turns._waiting == {}


def test_downloads_of_one_have_a_limit_and_others_have_theirs(own_platform: Platform) -> None:
    own_platform.start_api(HEADWAY_API_KEYS=json.dumps(KEYS))
    most = downloads_of_one()

    async def crowd() -> tuple[Counter[int], int]:
        pools = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=own_platform.url, headers=ALICE, timeout=60, limits=pools) as alice:
            asks = [alice.build_request("GET", "/download-large-csv?rows=10000000") for _ in range(most + 20)]
            answers = await asyncio.gather(*(alice.send(ask, stream=True) for ask in asks))
            found = Counter(answer.status_code for answer in answers)
            async with httpx.AsyncClient(base_url=own_platform.url, headers=BOB, timeout=60) as bob:
                other = await bob.get("/session")
            for answer in answers:
                await answer.aclose()
            again = await alice.get("/download-large-csv?rows=10")
            while again.status_code == 429:
                assert int(again.headers["retry-after"]) > 0
                again = await alice.get("/download-large-csv?rows=10")
        return found, other.status_code

    found, other = asyncio.run(crowd())
    assert found == {200: most, 429: 20}
    assert other == 200


@pytest.mark.parametrize("rows", [0, 1, 199, 200, 201, 5000])
def test_a_table_made_in_pieces_is_whole(platform: Platform, rows: int) -> None:
    lines = httpx.get(f"{platform.url}/download-large-csv", params={"rows": rows}).text.splitlines()
    assert lines == ["id,name,value", *(f"{n},Item {n},{n * 10}" for n in range(1, rows + 1))]
