"""What a processor pays that says `job.advance(1)` a million times a second.

    .venv/bin/python -m benchmarks.publishing --only work

The call, as the least of many short loops, and the thread that looks at the count and sends it, by its own clock.
"""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.tables import spread
from headway.shared.tasks.registry import load_registry
from headway.worker.reporter import Reporter

#: A CRC of this much takes about a microsecond.
UNIT_BYTES = 5500
SLICE, SLICES = 1000, 500


def thread_seconds(pid: int, thread: int | None = None) -> float:
    """CPU time of one thread; the main one's, where all of Redis's commands and a worker's loop run."""
    return int(Path(f"/proc/{pid}/task/{thread or pid}/schedstat").read_text().split()[0]) / 1e9


def in_the_work(rounds: int) -> str:
    """The least of many short loops is what the call costs while nobody else has the core."""
    sent: list[dict[str, Any]] = []
    rehearsal = load_registry(["headway.worker.processors.rehearsal"]).get("rehearsal")
    job = Reporter(
        rehearsal, options=None, input_path=None, output_folder=Path(), filename=None, content_type=None,
        size_bytes=0, memory_bytes=0, attempt=1, restored=None, send=sent.append,
    )  # fmt: skip
    job.phase("Units", total=1 << 40, unit="units")
    work, data, advance = zlib.crc32, bytes(UNIT_BYTES), job.advance

    def bare() -> None:
        done = 0
        for _ in range(SLICE):
            work(data)
            done += 1  # noqa: SIM113 - it is what others are measured against

    def told() -> None:
        for _ in range(SLICE):
            work(data)
            advance(1)

    def called() -> None:
        for _ in range(SLICE):
            work(data)
            nothing(1)

    def tracked() -> None:
        for _ in job.track(range(SLICE)):
            work(data)

    ways = {"a local counter": bare, "`job.advance(1)`": told, "a function that does not even count": called}
    ways["`job.track(…)`"] = tracked
    rows: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        least = dict.fromkeys(ways, float("inf"))
        for _ in range(SLICES):
            for way, loop in ways.items():
                began = time.perf_counter()
                loop()
                least[way] = min(least[way], (time.perf_counter() - began) / SLICE * 1e9)
        for way, cost in least.items():
            rows[way].append(cost)
    sampler = [sampling_share(job, told) for _ in range(rounds)]
    unit = median(rows["a local counter"])
    lines = [
        f"A unit takes {unit:,.0f} ns, {1e3 / unit:.2f} million a second; rounds: {rounds}, least of {SLICES} loops.",
        "",
        "| counted with | ns a unit more than a local counter | of the work at a million units a second |",
        "| --- | --- | --- |",
    ]
    for way in list(ways)[1:]:
        more = [cost - alone for cost, alone in zip(rows[way], rows["a local counter"], strict=True)]
        lines.append(f"| {way} | {spread(more, '{:+.0f}')} | {spread([one / 10 for one in more], '{:.1f} %')} |")
    lines.append(f"| the thread that looks at the count, 20 times a second | | {spread(sampler, '{:.2f} %')} |")
    return "\n".join(lines)


def nothing(_: int = 1) -> None:
    """What Python takes for calling anything."""


def sampling_share(job: Reporter, loop: Callable[[], None]) -> float:
    """Percent of a core that the sampling thread has while the loop runs for a second."""
    with job.sampling():
        [sampler] = [thread for thread in threading.enumerate() if thread.name == "progress"]
        assert sampler.native_id is not None
        before, until = thread_seconds(os.getpid(), sampler.native_id), time.perf_counter() + 1
        while time.perf_counter() < until:
            loop()
        return 100 * (thread_seconds(os.getpid(), sampler.native_id) - before)
