"""How long a task is without a worker after `kill -9`, at random points of its run.

    .venv/bin/python -m benchmarks.takeover [--kills 40]

Two workers; the one that has the task is killed, a new one is started in its place, and the time is taken from the kill
to the next attempt's `processing` event in a watcher's hands. Every task must end once, whole; the script fails else.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path

from tests.processes import Platform, RedisServer
from tests.resilience.test_worker_faults import worker_of
from tests.streams import Frame, assert_true_story, frames_of, opened


def once(platform: Platform, seed: random.Random) -> float:
    """Seconds from the kill to the next attempt."""
    options = json.dumps({"steps": 60, "step_seconds": 0.05})
    task_id = platform.submit("rehearsal", options=options)["task_id"]
    story: list[tuple[float, Frame]] = []

    def watch() -> None:
        with opened(f"{platform.url}/tasks/{task_id}/events?last_event_id=0") as answer:
            story.extend((time.monotonic(), frame) for frame in frames_of(answer))

    watching = threading.Thread(target=watch)
    watching.start()
    while platform.task(task_id)["step"] < 1:
        time.sleep(0.01)
    time.sleep(seed.uniform(0, 1.5))
    victim = worker_of(platform, task_id)
    killed = time.monotonic()
    victim.kill()
    platform.workers.remove(victim)
    platform.start_worker(wait=False)
    watching.join()
    assert_true_story([frame for _, frame in story], first=1)
    assert story[-1][1].status == "completed", story[-1]
    return next(at for at, frame in story if frame.data.get("attempt") == 2) - killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    seed = random.Random(arguments.seed)
    with (
        tempfile.TemporaryDirectory() as name,
        RedisServer(Path(name) / "redis") as redis,
        Platform(Path(name) / "platform", redis.url, HEADWAY_TASK_TIMEOUT_SECONDS="3600") as platform,
    ):
        platform.start_api()
        platform.start_worker()
        platform.start_worker()
        times = [once(platform, seed) for _ in range(arguments.kills)]
    print(
        f"{len(times)} kills, {len(times)} whole ends, p50 {statistics.median(times):.2f} s, worst {max(times):.2f} s"
    )


if __name__ == "__main__":
    main()
