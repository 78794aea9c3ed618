"""How long a task is without a worker after SIGTERM, and whether it goes on from its checkpoint.

    .venv/bin/python -m benchmarks.hand_over [--trials 20] [--seed 1] [--json FILE]

Two workers; the one that has the task is told to stop at a random point, and the time is taken from the signal to the
next attempt's `processing` event in a watcher's hands. That attempt must begin where the first one's bar was, every
task must end once, whole, and the stopped worker must exit with 0; the script fails else.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.takeover import Watched
from tests.processes import Platform, RedisServer
from tests.resilience.test_worker_faults import worker_of

#: Of 60 steps; a checkpoint is kept at most 4 times a second, which is 5 steps, and the step at the signal.
STEPS_AGAIN = 7


def once(platform: Platform, seed: random.Random) -> tuple[float, float, int]:
    """Seconds to the next attempt, to the exit of the stopped worker, and the steps that were done again."""
    watched = Watched(platform)
    time.sleep(seed.uniform(0.3, 1.5))
    stopped = worker_of(platform, watched.task_id)
    told = time.monotonic()
    stopped.signal(signal.SIGTERM)
    code = stopped.wait(10)
    gone = time.monotonic()
    at, frame = watched.resumed()
    before = max(one.data["step"] for _, one in watched.story if one.data.get("attempt") == 1 and not one.name)
    first = next(one.data["step"] for _, one in watched.story if one.id > frame.id and one.data.get("step"))
    again = before - first + 1
    assert code == 0, code
    assert again <= STEPS_AGAIN, f"{again} steps were done again"
    platform.workers.remove(stopped)
    platform.start_worker()
    return at - told, gone - told, again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seed = random.Random(arguments.seed)
    with (
        tempfile.TemporaryDirectory() as name,
        RedisServer(Path(name) / "redis") as redis,
        Platform(Path(name) / "platform", redis.url) as platform,
    ):
        platform.start_api()
        platform.start_worker()
        platform.start_worker()
        rows = [once(platform, seed) for _ in range(arguments.trials)]
    print(
        f"{len(rows)} hand-overs, {len(rows)} whole ends, {max(row[2] for row in rows)} steps of 60 done again at most"
    )
    for label, column in (("the next attempt's first event", 0), ("the stopped worker's exit", 1)):
        values = [row[column] for row in rows]
        print(f"{label}: p50 {statistics.median(values):.2f} s, worst {max(values):.2f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
