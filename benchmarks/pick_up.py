"""From a POST to the first `processing` event in a client's hands, and to the end: one small file after the other.

    .venv/bin/python -m benchmarks.pick_up [--posts 300]

Real Redis, API and worker; the client opens the stream as soon as it has the answer, replaying from the beginning. The
time is the client's, from before the POST; the child process of the attempt is part of it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from tests.processes import Platform, RedisServer
from tests.streams import frames_of


def once(client: httpx.Client, url: str) -> tuple[float, float, float]:
    """Milliseconds to the answer, to the first `processing` event, and to `completed`."""
    began = time.perf_counter()
    answer = client.post(f"{url}/tasks", data={"processor": "checksum"}, files={"file": ("a.bin", b"headway")})
    answered = time.perf_counter()
    processing = 0.0
    with client.stream("GET", f"{url}{answer.json()['links']['events']}?last_event_id=0") as stream:
        for frame in frames_of(stream):
            if not processing and frame.status == "processing":
                processing = time.perf_counter()
    return (answered - began) * 1000, (processing - began) * 1000, (time.perf_counter() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--posts", type=int, default=300)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        RedisServer(Path(name) / "redis", appendfsync="no") as redis,
        Platform(Path(name) / "platform", redis.url) as platform,
    ):
        platform.start_api()
        platform.start_worker()
        with httpx.Client(timeout=30) as client:
            for _ in range(10):
                once(client, platform.url)
            rows = [once(client, platform.url) for _ in range(arguments.posts)]
    for label, values in zip(("answered", "processing", "completed"), zip(*rows, strict=True), strict=True):
        cuts = statistics.quantiles(values, n=100)
        print(f"{label}: p50 {statistics.median(values):.1f} ms, p90 {cuts[89]:.1f} ms, p99 {cuts[98]:.1f} ms")


if __name__ == "__main__":
    main()
