"""How long a task is without a worker after `kill -9`, at random points of its run.

    .venv/bin/python -m benchmarks.takeover [--kills 200] [--lanes 3] [--seed 1] [--json FILE]

Two workers; the one that has the task is killed, a new one is started in its place, and the time is taken from the kill
to the next attempt's `processing` event in a watcher's hands. Every task must end once, whole; the script fails else.
A lane is a platform with a Redis of its own: most of a kill's time is waiting for a lease, so several share a machine.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.processes import Platform, RedisServer
from tests.resilience.test_worker_faults import worker_of
from tests.streams import Frame, assert_true_story, frames_of, opened

OPTIONS = json.dumps({"steps": 60, "step_seconds": 0.05})


class Watched:
    """A task, and its whole story with the time at which each event came."""

    def __init__(self, platform: Platform) -> None:
        self.task_id: str = platform.submit("rehearsal", options=OPTIONS)["task_id"]
        self.story: list[tuple[float, Frame]] = []
        self._url = f"{platform.url}/tasks/{self.task_id}/events?last_event_id=0"
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        while platform.task(self.task_id)["step"] < 1:
            time.sleep(0.03)

    def _watch(self) -> None:
        with opened(self._url) as answer:
            self.story.extend((time.monotonic(), frame) for frame in frames_of(answer))

    def resumed(self) -> tuple[float, Frame]:
        """Waits for the end, which must be whole and right. The first event of the second attempt."""
        self._thread.join()
        assert_true_story([frame for _, frame in self.story], first=1)
        assert self.story[-1][1].status == "completed", self.story[-1]
        return next(
            (at, frame)
            for at, frame in self.story
            if frame.data.get("attempt") == 2 and frame.data.get("status") == "processing"
        )


def once(platform: Platform, seed: random.Random) -> float:
    """Seconds from the kill to the next attempt."""
    watched = Watched(platform)
    time.sleep(seed.uniform(0, 1.5))
    victim = worker_of(platform, watched.task_id)
    killed = time.monotonic()
    victim.kill()
    platform.workers.remove(victim)
    platform.start_worker(wait=False)
    return watched.resumed()[0] - killed


def lane(folder: Path, kills: int, seed: random.Random) -> list[float]:
    with (
        RedisServer(folder / "redis") as redis,
        Platform(folder / "platform", redis.url, HEADWAY_TASK_TIMEOUT_SECONDS="3600") as platform,
    ):
        platform.start_api()
        platform.start_worker()
        platform.start_worker()
        return [once(platform, seed) for _ in range(kills)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--lanes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    shares = [len(range(number, arguments.kills, arguments.lanes)) for number in range(arguments.lanes)]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.lanes) as lanes:
        running = [
            lanes.submit(lane, Path(name) / str(number), share, random.Random(arguments.seed + number))
            for number, share in enumerate(shares)
        ]
        times = [seconds for one in running for seconds in one.result()]
    p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
    print(
        f"{len(times)} kills, {len(times)} whole ends: p50 {statistics.median(times):.2f} s, p99 {p99:.2f} s, "
        f"worst {max(times):.2f} s"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(times))


if __name__ == "__main__":
    main()
