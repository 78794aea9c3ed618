"""`GET /metrics`: what this process measures, and what Redis says of the platform, for Prometheus.

Where Redis is away or too slow it answers all the same, with `headway_redis_up` 0 and without the platform: a scrape is
when that has to be seen.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from redis.exceptions import RedisError

from headway.api.dependencies import OwnerDep, StateDep
from headway.api.lifespan import State
from headway.api.openapi import TEXT, answer
from headway.api.serving.counted_log import counted_line
from headway.shared import keys
from headway.shared.logging import get_logger
from headway.shared.metric_registry import redis_up, together
from headway.shared.redis.client import AWAY, why_away
from headway.shared.tasks.line import line_counts
from headway.shared.tasks.models import ACTIVE, Status
from headway.shared.tasks.queue import SILENT_LEASES

log = get_logger(__name__)

router = APIRouter(tags=["health"])

#: A scraper waits 10 s by default, an operator not that long.
PATIENCE_SECONDS: Final = 1.5
EXPOSITION: Final[dict[int | str, dict[str, Any]]] = {
    200: answer(
        "Prometheus' text format, or OpenMetrics by Accept",
        {"text/plain": TEXT, "application/openmetrics-text": TEXT},
    )
}


@router.get("/metrics", response_class=Response, responses=EXPOSITION, summary="What Prometheus reads")
async def metrics(request: Request, state: StateDep, _: OwnerDep) -> Response:
    """Counters, gauges and histograms; docs/reference.md says what each answers."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    platform = list(await _platform(state))
    return Response(encode(together(state.metrics.current(), platform)), headers={"Content-Type": content_type})


async def _platform(state: State) -> Iterable[Metric]:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            seen = await _look(state)
    except (*AWAY, TimeoutError, RedisError) as error:
        counted_line(log.warning, "metrics without redis", reason=why_away(error))
        return [redis_up(False)]
    return [redis_up(True), *_families(seen, state.registry.processors)]


@dataclass(frozen=True, slots=True)
class _Seen:
    workers: int
    leases: int
    waiting: int
    later: int
    oldest_seconds: float
    #: Status and processor to how many: now of those that have not ended, ever of those that have.
    counts: dict[tuple[str, str], int]


async def _look(state: State) -> _Seen:
    seconds, microseconds = await state.redis.time()
    now_us = seconds * 1_000_000 + microseconds
    async with state.redis.pipeline(transaction=False) as pipe:
        pipe.zrange(keys.WORKERS, 0, -1, withscores=True)
        line_counts(pipe, now_us // 1000)
        pipe.zcard(keys.LINE_LATER)
        pipe.zrange(keys.LINE_WAITING, 0, 0, withscores=True)
        pipe.hgetall(keys.COUNTS)
        workers, arriving, waiting, lost, running, later, oldest, counts = await pipe.execute()
    silent_ms = SILENT_LEASES * state.settings.lease_seconds * 1000
    return _Seen(
        workers=sum(1 for _, at in workers if now_us / 1000 - at < silent_ms),
        leases=running,
        waiting=arriving + waiting + lost,
        later=later,
        oldest_seconds=max(0.0, now_us - oldest[0][1]) / 1_000_000 if oldest else 0.0,
        counts={_pair(name): int(count) for name, count in counts.items()},
    )


def _pair(name: bytes) -> tuple[str, str]:
    status, processor = json.loads(b"[%b]" % name)
    return str(status), str(processor)


def _families(seen: _Seen, registered: Iterable[str]) -> Iterator[Metric]:
    for name, documentation, value in (
        ("headway_queue_depth", "Jobs that wait for a worker", seen.waiting),
        ("headway_queue_later", "Jobs that are not due yet", seen.later),
        ("headway_queue_oldest_seconds", "How long the longest waiting job has been on the queue", seen.oldest_seconds),
        ("headway_workers", "Workers that are alive", seen.workers),
        ("headway_leases", "Tasks that workers hold", seen.leases),
    ):
        yield GaugeMetricFamily(name, documentation, value=value)
    tasks = GaugeMetricFamily("headway_tasks", "Tasks that have not ended", labels=["processor", "status"])
    ended = CounterMetricFamily("headway_tasks_ended", "Tasks that have ended", labels=["processor", "status"])
    names = sorted({*registered, *(processor for _, processor in seen.counts)})
    for processor in names:
        for status in Status:
            family = tasks if status in ACTIVE else ended
            family.add_metric([processor, status], seen.counts.get((status, processor), 0))
    yield tasks
    yield ended
