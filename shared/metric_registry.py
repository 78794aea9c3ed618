"""What API and worker both measure, in a registry of the process's own: none is global, so several applications in one
process do not collide.

With PROMETHEUS_MULTIPROC_DIR the processes that share a port keep their numbers in files of that directory
(prometheus-client's multiprocess mode), and whichever is asked answers for all of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    multiprocess,
)
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from headway.shared.version import VERSION

#: prometheus-client's own variable; it must be set before that is imported.
SHARED_DIR_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
#: Four times what all routes with all their answers take (run).
SHARED_FILE_BYTES: Final = 512 * 1024
#: A break of the link breaks all connections of the pool; those made again within this long were lost by the same one.
SAME_BREAK_SECONDS: Final = 1.0

# A time of creation beside each counter would double what is stored, for what Prometheus finds out by itself.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The registry and what is in it for both."""

    def __init__(self, shared_dir: Path | None = None) -> None:
        """`shared_dir`: where the other processes of the same port keep theirs. Raises OSError."""
        self.registry = CollectorRegistry()
        self.shared_dir = shared_dir
        if shared_dir is not None:
            _allot(shared_dir)
        reconnects = self.counter(
            "headway_redis_reconnects", "Times a connection to Redis was lost and made again", "link"
        )
        self._commands_lost_at = float("-inf")
        self._commands = reconnects.labels("commands")
        self.subscription_reconnected: Callable[[], None] = reconnects.labels("subscription").inc

    def counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def histogram(self, name: str, documentation: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, documentation, labels, buckets=buckets, registry=self.registry)

    def commands_reconnected(self) -> None:
        now = time.monotonic()
        if now - self._commands_lost_at > SAME_BREAK_SECONDS:
            self._commands.inc()
        self._commands_lost_at = now

    def collector(self) -> Collector:
        """All that is to be served, of every process that shares the port."""
        if self.shared_dir is not None:
            return _Families(_of_all_processes(self.shared_dir))
        return _Families(self._of_this_process())

    def _of_this_process(self) -> Iterator[Metric]:
        yield from self.registry.collect()
        yield from ProcessCollector(registry=None).collect()
        yield from GCCollector(registry=CollectorRegistry()).collect()
        yield from _about()


def shared_dir() -> Path | None:
    """Where processes that share a port keep their numbers; None: this one has its port to itself."""
    return Path(found) if (found := os.environ.get(SHARED_DIR_VARIABLE)) else None


@contextmanager
def sharing_metrics() -> Iterator[None]:
    """Processes that are started while the block lasts answer for each other."""
    if shared_dir() is not None:
        yield
        return
    with TemporaryDirectory(prefix="headway-metrics-", ignore_cleanup_errors=True) as folder:
        os.environ[SHARED_DIR_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[SHARED_DIR_VARIABLE]


def _allot(folder: Path) -> None:
    """Makes this process's files, with all the room they will need. prometheus-client writes them through memory, and
    grows them: where the disk is full by then, the kernel would end the process. Raises OSError."""
    for kind in ("counter", "histogram", "gauge_livesum"):
        with suppress(FileExistsError), (folder / f"{kind}_{os.getpid()}.db").open("xb") as file:
            file.write(bytes(SHARED_FILE_BYTES))


class _Families(Collector):
    """Families that were collected, to be written once."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def together(collector: Collector, families: Iterable[Metric]) -> Collector:
    """One of both, to be written once."""
    return _Families(chain(collector.collect(), families))


def redis_up(up: bool) -> Metric:
    return GaugeMetricFamily("headway_redis_up", "1 where Redis answers this process, else 0", value=float(up))


def _about() -> Iterator[Metric]:
    build = GaugeMetricFamily("headway_build_info", "1, with the version of Headway", labels=["version"])
    build.add_metric([VERSION], 1)
    yield build
    yield from PlatformCollector(registry=None).collect()


def _of_all_processes(folder: Path) -> Iterator[Metric]:
    """What those that have died counted stays counted; what they had open is no more."""
    alive = []
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if _is_alive(pid):
            alive.append(pid)
        else:
            multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
    yield from multiprocess.MultiProcessCollector(None, str(folder)).collect()  # type: ignore[no-untyped-call]
    yield from _summed(alive)
    yield from _about()


def _summed(pids: Iterable[int]) -> Iterator[Metric]:
    """process_* of all of them: the sum, but for the time of the start, which is the earliest."""
    found: dict[str, Metric] = {}
    for pid in pids:
        for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            if (before := found.get(family.name)) is None:
                found[family.name] = family
                continue
            a, b = before.samples[0], family.samples[0]
            value = min(a.value, b.value) if "start_time" in family.name else a.value + b.value
            before.samples[0] = a._replace(value=value)
    yield from found.values()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
