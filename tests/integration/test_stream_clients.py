"""Every client × everything a server can get wrong, after the WPT's eventsource suite; each client reads single bytes.

A client watches one task whole, once more through three cuts, and a task that there is not, all at the same time; it is
run once, and each test looks at one side of what it was handed.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise

import pytest

from headway.shared.tasks.progress import EVENT_BYTES
from tests.integration.stream_clients.observing import CLIENTS, CUTS, RECONNECTING, Observation, expected, observe
from tests.integration.stream_clients.processors import HARD_TEXT, RESULT_NAME, telling_platform
from tests.processes import Platform, RedisServer
from tests.streams import assert_true_story

Observe = Callable[[str], Awaitable[Observation]]

every_client = pytest.mark.parametrize("client", CLIENTS)


@pytest.fixture(scope="module")
def telling(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    url = redis_server.fresh_url()
    with telling_platform(tmp_path_factory.mktemp("telling"), url) as platform:
        yield platform


@pytest.fixture(scope="module")
def observed(telling: Platform, tmp_path_factory: pytest.TempPathFactory) -> Observe:
    """What a client was handed. It is run when the first test asks for it, and not again."""
    seen: dict[str, Observation] = {}

    async def once(client: str) -> Observation:
        if client not in seen:
            seen[client] = await observe(client, telling, tmp_path_factory.mktemp("gate"))
        return seen[client]

    return once


@every_client
async def test_every_event_arrives_once_and_in_order_with_its_id(client: str, observed: Observe) -> None:
    seen = await observed(client)
    assert_true_story(seen.truth, first=1)
    assert seen.whole.events == expected(seen.truth)


@every_client
async def test_a_state_is_a_message_and_a_named_event_is_not(client: str, observed: Observe) -> None:
    seen = await observed(client)
    names = [told.event for told in seen.whole.events]
    assert names == [frame.name or "message" for frame in seen.truth]
    assert set(names) == {"message", "log"}
    for told in seen.whole.events:
        assert ("status" in json.loads(told.data)) == (told.event == "message")


@every_client
async def test_text_that_looks_like_fields_ends_and_every_script_arrives_as_it_was_written(
    client: str, observed: Observe
) -> None:
    told = [json.loads(told.data) for told in (await observed(client)).whole.events]
    steps = [f"{step} {HARD_TEXT}" for step in range(1, 7)]
    assert list(dict.fromkeys(data["message"] for data in told if data.get("step"))) == [*steps, "Done"]
    assert [data["message"] for data in told if data.get("level") == "warning"] == steps[1::2]
    assert told[-1]["result"]["summary"] == {"text": HARD_TEXT}
    assert [file["name"] for file in told[-1]["result"]["files"]] == [RESULT_NAME]


@every_client
async def test_an_event_as_large_as_the_contract_allows_arrives_whole(client: str, observed: Observe) -> None:
    seen = await observed(client)
    [large] = [told for told in seen.whole.events if len(told.data) > 10_000]
    assert len(f"id: {large.id}\nevent: log\ndata: {large.data}\n\n") == EVENT_BYTES
    assert large == expected(seen.truth)[int(large.id) - 1]


@pytest.mark.parametrize("client", CLIENTS)
async def test_comments_are_not_handed_over(client: str, observed: Observe) -> None:
    seen = await observed(client)
    assert b"\n: still here\n" in seen.whole.exchanges[0].body
    assert seen.whole.told == seen.whole.events


@every_client
async def test_a_cut_anywhere_leaves_no_hole_and_no_double(client: str, observed: Observe) -> None:
    seen = await observed(client)
    assert [exchange.was_cut for exchange in seen.cut.exchanges] == [*(True for _ in CUTS), False, False]
    assert seen.cut.events == expected(seen.truth)
    asked = [int(exchange.last_event_id or 0) for exchange in seen.cut.exchanges]
    assert asked == sorted(asked)
    # urllib3 hands on nothing of a chunk that is not whole: these two may be cut before their first event, each time.
    assert asked[1] > 0 or client in ("sseclient-py", "launchdarkly-eventsource")


@every_client
async def test_the_end_stops_it(client: str, observed: Observe) -> None:
    seen = await observed(client)
    for run in (seen.whole, seen.cut):
        assert run.ended
        *earlier, last = run.exchanges
        assert {exchange.status for exchange in earlier} == {200}
        assert (last.status, last.last_event_id) == (204, str(seen.truth[-1].id))


@every_client
async def test_an_unknown_task_stops_it_at_once(client: str, observed: Observe) -> None:
    seen = await observed(client)
    assert seen.unknown.ended
    assert seen.unknown.told == []
    assert [exchange.status for exchange in seen.unknown.exchanges] == [404]


@pytest.mark.parametrize("client", [name for name in RECONNECTING if name != "launchdarkly-eventsource"])
async def test_who_heeds_retry_comes_back_after_a_second(client: str, observed: Observe) -> None:
    """launchdarkly-eventsource has a strategy of its own, and hears none of it."""
    seen = await observed(client)
    ended = [exchange.at for exchange in seen.cut.exchanges]
    assert all(0.9 < later - earlier < 10 for earlier, later in pairwise(ended[1:]))
