"""A rolling deploy of two APIs and two workers behind a proxy, under load: what watchers miss, see twice, and wait for.

    .venv/bin/python -m benchmarks.rolling_deploy [--watchers 2000] [--proxy caddy] [--json FILE]

Watchers, in a process of their own, are browsers' EventSource: of tasks that are made and worked on all the time, most
of them shared, some with one watcher, some of two tasks or of all on one connection. Beside them files are sent. Then
API A is told to stop and replaced on its port, then B, then each worker. Every version must have come once, in order,
with one end; every file that was accepted must be there. A trial takes about two minutes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.audience import Plan, Report, watch_all
from benchmarks.senders import WAYS, Senders
from tests.processes import Platform, RedisServer
from tests.proxies import Kind, balancing

#: Load before the first signal: what the deploy is compared with.
STEADY_SECONDS: Final = 15.0
#: From a process that is ready to the next signal: so that the one API's clients are back before the other's leave.
BETWEEN_SECONDS: Final = 9.0
#: All tasks of the plan and the files on one worker, while the other is replaced.
CONCURRENCY: Final = 100


@dataclass
class Step:
    """One process told to stop, and replaced. Times are time.time()."""

    name: str
    told_at: float
    exit_seconds: float = 0.0
    code: int = 0
    ready_seconds: float = 0.0


@dataclass
class Trial:
    watchers: int
    proxy: str
    load_average: tuple[float, float, float]
    stories: dict[str, int]
    unfinished: int
    #: A status with which an EventSource gave up, and how often; 204 is the right one.
    last_answers: dict[str, int]
    #: How connections ended.
    ends: dict[str, int]
    steps: list[dict[str, Any]]
    #: For each API: whose streams it ended, and when they asked again.
    waves: list[dict[str, Any]]
    pauses_seconds: dict[str, float]
    latency_ms: dict[str, dict[str, float]]
    sent: dict[str, int]
    refused: dict[str, int]
    lost: list[str] = field(default_factory=list)
    events: int = 0


def replaced(platform: Platform, number: int, kind: str) -> Step:
    """Tells one to stop, waits until it is gone, and starts another in its place."""
    old = (platform.apis if kind == "API" else platform.workers)[number]
    step = Step(f"{kind} {'AB'[number]}", time.time())
    began = time.monotonic()
    old.signal(signal.SIGTERM)
    step.code = old.wait(30)
    step.exit_seconds = round(time.monotonic() - began, 2)
    if kind == "API":
        platform.apis[number] = platform.start_api(port=urlsplit(platform.urls[number]).port)
        platform.apis.pop()
    else:
        platform.workers[number] = platform.start_worker(HEADWAY_WORKER_CONCURRENCY=str(CONCURRENCY))
        platform.workers.pop()
    step.ready_seconds = round(time.monotonic() - began, 2)
    return step


def quantiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=1000, method="inclusive")
    found = {"p50": cuts[499], "p99": cuts[989], "max": max(values)}
    return {name: round(value, 2) for name, value in found.items()}


def waves_of(report: Report, steps: list[Step]) -> list[dict[str, Any]]:
    """The streams that each API ended, and how those who had them came back: seconds from the signal."""
    waves = []
    for number, step in enumerate(steps):
        until = steps[number + 1].told_at if number + 1 < len(steps) else float("inf")
        back = [one for one in report.returns if step.told_at <= one.since < until]
        if not back or not step.name.startswith("API"):
            continue
        asked = sorted(one.asked_at - step.told_at for one in back)
        ended = [one.since - step.told_at for one in back]
        waves.append(
            {
                "step": step.name,
                "clients": len(back),
                "last_end_seconds": round(max(ended), 2),
                "first_seconds": round(asked[0], 2),
                "last_seconds": round(asked[-1], 2),
                "spread_seconds": round(asked[-1] - asked[0], 2),
                "by_second": dict(sorted(Counter(int(at) for at in asked).items())),
                "retry_seconds": [round(f(one.retry_seconds for one in back), 2) for f in (min, max)],
                "answered_ms": quantiles([(one.answered_at - one.asked_at) * 1000 for one in back]),
                "away_seconds": quantiles([one.answered_at - one.since for one in back]),
            }
        )
    return waves


def latencies(report: Report, steps: list[Step]) -> dict[str, dict[str, float]]:
    """From the worker's write to the watcher, of events that came live, in ms: before, and from each signal on."""
    bounds = [("before", 0.0)] + [(step.name, step.told_at) for step in steps] + [("", float("inf"))]
    found = {}
    for (name, begin), (_, end) in pairwise(bounds):
        some = [ms for at, ms in zip(report.at, report.latency_ms, strict=True) if begin <= at < end]
        found[name] = quantiles(some) | {"events": len(some)}
    return found


def once(folder: Path, plan: Plan, proxy: Kind, between_seconds: float) -> Trial:
    spawning = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(folder / "redis", appendfsync="everysec"))
        platform = stack.enter_context(
            Platform(folder / "platform", redis.url, HEADWAY_WORKER_CONCURRENCY=str(CONCURRENCY))
        )
        for _ in range(2):
            platform.start_worker()
            platform.start_api()
        url = stack.enter_context(balancing(proxy, folder / "proxy", platform.urls))
        ready, over = spawning.Event(), spawning.Event()
        receiving, sending = spawning.Pipe(duplex=False)
        crowd = spawning.Process(target=watch_all, args=(url, plan, ready, over, sending), daemon=True)
        crowd.start()
        sending.close()
        assert ready.wait(120), "not everybody watches"
        senders = Senders(url, 2)
        senders.start()
        time.sleep(STEADY_SECONDS)
        steps = []
        for kind in ("API", "worker"):
            for number in range(2):
                steps.append(replaced(platform, number, kind))
                time.sleep(between_seconds if kind == "API" else between_seconds / 3)
        load = os.getloadavg()
        senders.stop()
        over.set()
        assert receiving.poll(180), "the watchers have not come to an end"
        report: Report = receiving.recv()
        crowd.join(10)
        lost = senders.lost()
    return Trial(
        watchers=plan.watchers,
        proxy=proxy,
        load_average=load,
        stories=report.totals,
        unfinished=report.unfinished,
        last_answers=report.last_answers,
        ends=report.ends,
        steps=[asdict(step) for step in steps],
        waves=waves_of(report, steps),
        pauses_seconds=quantiles(report.pauses_seconds) | {"tasks": len(report.pauses_seconds)},
        latency_ms=latencies(report, steps),
        sent={way: sum(one.way == way for one in senders.sent) for way in WAYS},
        refused=dict(Counter(f"{one.way} {what}" for one in senders.sent for what in one.refused))
        | {f"POST {what}": count for what, count in report.refused.items()},
        lost=lost,
        events=report.events,
    )


def told(trial: Trial) -> None:
    print(f"{trial.watchers} watchers behind {trial.proxy}, load average {trial.load_average[0]:.1f}")
    print(f"  stories: {trial.stories}, {trial.events} events; unfinished {trial.unfinished}")
    print(f"  last answers: {trial.last_answers}; connections ended: {trial.ends}")
    for step in trial.steps:
        exited = f"exit {step['code']} after {step['exit_seconds']} s"
        print(f"  {step['name']}: {exited}, the next one ready at {step['ready_seconds']} s")
    for wave in trial.waves:
        print(f"  {wave['step']}: {wave['clients']} streams ended, the last after {wave['last_end_seconds']} s;")
        print(
            f"    asked again from {wave['first_seconds']} to {wave['last_seconds']} s, by second {wave['by_second']};"
        )
        print(f"    answered in ms {wave['answered_ms']}, away s {wave['away_seconds']}")
    print(f"  pause of tasks handed over, s: {trial.pauses_seconds}")
    for name, row in trial.latency_ms.items():
        print(f"  latency ms, {name}: {row}")
    print(f"  files: {trial.sent}, refused on the way {trial.refused}, lost {trial.lost}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--watchers", type=int, default=2000)
    parser.add_argument("--proxy", choices=("caddy", "nginx"), default="caddy")
    parser.add_argument("--between", type=float, default=BETWEEN_SECONDS, help="seconds from one process to the next")
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    trials = []
    for _ in range(arguments.trials):
        with tempfile.TemporaryDirectory() as name:
            trials.append(once(Path(name), Plan(watchers=arguments.watchers), arguments.proxy, arguments.between))
        told(trials[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(trial) for trial in trials], indent=1))


if __name__ == "__main__":
    main()
