"""What a worker measures: its attempts, their children, its link to Redis; and the small server that shows it.

The server is prometheus-client's, in a thread of its own: a worker that is busy, or whose loop hangs, still answers.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final, Literal, get_args

from prometheus_client import Gauge, Metric, start_http_server
from prometheus_client.registry import Collector

from headway.shared.errors import SettingsError
from headway.shared.logging import get_logger
from headway.shared.metric_registry import Metrics, redis_up
from headway.shared.settings import Settings
from headway.shared.tasks.progress import Claim
from headway.worker.box.walls import Wall
from headway.worker.webhook_sender import ENDS as WEBHOOK_ENDS

ATTEMPT_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
#: A free worker takes milliseconds; a queue takes as long as it is.
PICK_UP_SECONDS: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0, 1800.0)
#: Of so many attempts of a processor the one that needed most memory is shown.
LAST_ATTEMPTS: Final = 20


Refused = Literal["message", "queue member"]
REFUSED: Final[tuple[Refused, ...]] = get_args(Refused)

log = get_logger(__name__)


@dataclass(slots=True)
class Counted:
    """An attempt under way; whoever runs it says how it ended."""

    outcome: str


class WorkerMetrics(Metrics, Collector):
    def __init__(self, processors: Iterable[str], outcomes: Iterable[str], *, unless_told: str) -> None:
        """`outcomes` are those of an attempt, `unless_told` that of one that was ended without a word."""
        super().__init__()
        self._unless_told = unless_told
        #: Replaced by whoever knows.
        self.reaches_redis: Callable[[], bool] = lambda: False
        by = "processor"
        self._attempts = self.counter("headway_attempts", "Attempts that ended here", by, "outcome")
        self._attempt_seconds = self.histogram("headway_attempt_seconds", "From claim to end", ATTEMPT_SECONDS, by)
        waited = "From queued to claimed, by the clocks of who queued and of this worker"
        self._pick_up = self.histogram("headway_pick_up_seconds", waited, PICK_UP_SECONDS)
        self._takeovers = self.counter("headway_takeovers", "Tasks taken over from a worker that was lost")
        self._running = Gauge("headway_attempts_running", "Attempts under way", registry=self.registry)
        self._cpu_seconds = self.counter("headway_child_cpu_seconds", "CPU time of attempts' processes", by)
        peak = f"Largest resident memory of the last {LAST_ATTEMPTS} attempts' processes"
        self._memory = Gauge("headway_child_memory_peak_bytes", peak, [by], registry=self.registry)
        self._told: set[str] = set()
        self._peaks: defaultdict[str, deque[int]] = defaultdict(lambda: deque(maxlen=LAST_ATTEMPTS))
        refused = "Messages and queue members that nobody of ours wrote"
        self._refused = self.counter("headway_refused", refused, "what")
        for what in REFUSED:
            self._refused.labels(what)
        self._published = self.counter("headway_events_published", "Events written to Redis")
        tries = "Tries to send a webhook that ended here"
        self._webhook_tries = self.counter("headway_webhook_tries", tries, "end")
        for end in WEBHOOK_ENDS:
            self._webhook_tries.labels(end)
        self._walls = Gauge(
            "headway_wall", "Whether this wall stands around children", ["wall"], registry=self.registry
        )
        outcomes = list(outcomes)
        for processor in processors:  # there before the first one, so that a first one is a rise
            self._cpu_seconds.labels(processor)
            self._attempt_seconds.labels(processor)
            for outcome in outcomes:
                self._attempts.labels(processor, outcome)

    def collect(self) -> Iterable[Metric]:
        yield from self.collector().collect()
        yield redis_up(self.reaches_redis())

    @contextmanager
    def attempt(self, claim: Claim) -> Iterator[Counted]:
        """An attempt, from its claim to its end."""
        if claim.took_over:
            self._takeovers.inc()
        else:
            self._pick_up.observe(max(0.0, time.time() - claim.task.updated_at.timestamp()))
        counted = Counted(self._unless_told)
        began = time.monotonic()
        self._running.inc()
        try:
            yield counted
        finally:
            self._running.dec()
            self._attempts.labels(claim.task.processor, counted.outcome).inc()
            self._attempt_seconds.labels(claim.task.processor).observe(time.monotonic() - began)

    def child_ended(self, processor: str, cpu_seconds: float, peak_bytes: int) -> None:
        self._cpu_seconds.labels(processor).inc(cpu_seconds)
        peaks = self._peaks[processor]
        peaks.append(peak_bytes)
        self._memory.labels(processor).set(max(peaks))

    def refuse(self, what: Refused) -> None:
        """Something in Redis that is not ours. Said once: whoever writes such things writes many."""
        self._refused.labels(what).inc()
        if what not in self._told:
            self._told.add(what)
            log.error("not understood, and left out; headway_refused_total counts what follows", what=what)

    def walls_stand(self, walls: Collection[Wall]) -> None:
        for wall in Wall:
            self._walls.labels(wall).set(wall in walls)

    def webhook_tried(self, end: str) -> None:
        self._webhook_tries.labels(end).inc()

    def event_published(self) -> None:
        self._published.inc()


@asynccontextmanager
async def served(metrics: WorkerMetrics, settings: Settings) -> AsyncIterator[None]:
    """Shows them while the block lasts, if a port was named. Raises SettingsError where it cannot be had."""
    host, port = settings.metrics_host, settings.metrics_port
    if not port:
        yield
        return
    try:
        server, thread = start_http_server(port, host, metrics)
    except OSError as error:
        reason = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise SettingsError(
            f"HEADWAY_METRICS_PORT: cannot listen on {host}:{port}: {reason}. Each worker of a machine needs a port of "
            "its own; 0 serves no metrics."
        ) from None
    try:
        yield
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        await asyncio.to_thread(thread.join)
