"""The delay of events: measured now and then, from what an event says of its making, and of nothing else."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from prometheus_client import generate_latest

from headway.api.serving.api_metrics import ApiMetrics
from headway.api.streams.delivery_delay import DelaySampler, made_at_of
from headway.shared.json_text import text_of
from headway.shared.tasks.models import rfc3339
from tests.waiting import wait_until


def state_of(age_seconds: float, **more: object) -> bytes:
    made_at = datetime.now(UTC) - timedelta(seconds=age_seconds)
    return b'7  {"version":7,"status":"processing","updated_at":"%b",%b' % (
        rfc3339(made_at).encode(),
        text_of(more)[1:].encode(),
    )


async def test_the_newest_event_of_a_read_is_measured_once_and_the_next_when_it_is_time() -> None:
    seen: list[float] = []
    sampler = DelaySampler(seen.append)
    sampler.newest = state_of(2.0)
    sampler.written()
    sampler.written()
    assert len(seen) == 1
    assert 1.9 < seen[0] < 60
    assert not sampler.wanted
    await wait_until("another is wanted", lambda: sampler.wanted)


async def test_an_event_without_a_time_is_passed_over_and_the_next_one_is_measured() -> None:
    seen: list[float] = []
    sampler = DelaySampler(seen.append)
    sampler.newest = b'7 note {"author":"x","text":"y"}'
    sampler.written()
    assert not seen
    assert sampler.wanted


async def test_a_clock_that_is_behind_makes_no_delay_below_zero() -> None:
    seen: list[float] = []
    sampler = DelaySampler(seen.append)
    sampler.newest = state_of(-60)
    sampler.written()
    assert seen == [0.0]


def test_what_says_no_time_is_not_measured_and_a_strangers_time_is_not_believed() -> None:
    true = time.time() - 5
    assert made_at_of(b'7 note {"author":"x","text":"\\"updated_at\\":\\"2020-01-01T00:00:00.000Z\\""}') is None
    assert made_at_of(b"") is None
    assert made_at_of(b'7  {"updated_at":"soon"}') is None
    found = made_at_of(state_of(5, result={"summary": {"updated_at": "2020-01-01T00:00:00.000Z"}}))
    assert found is not None
    assert abs(found - true) < 2


def test_two_applications_in_one_process_count_for_themselves() -> None:
    one, other = ApiMetrics(), ApiMetrics()
    one.tally.uploaded(5)
    assert b"headway_upload_bytes_total 5.0" in _served(one)
    assert b"headway_upload_bytes_total 0.0" in _served(other)


def _served(metrics: ApiMetrics) -> bytes:
    return generate_latest(metrics.current())
