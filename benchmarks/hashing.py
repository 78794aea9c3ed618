"""What full progress costs the work: `checksum` of a large file, and a loop that reports every unit.

    .venv/bin/python -m benchmarks.hashing [--rounds 7] [--bytes 1073741824] [--units 1000000] [--json FILE]

Each pair is run in turns in one run, its order changing, and what is printed is the median of the rounds' ratios with
the least and the most. The file lies on /dev/shm where there is one.

    checksum    the worker's own way: a child of the fork server, from the request to the child's last word, with every
                message read and metered; beside a bare loop in a process that is warm, with the same two digests, the
                same buffers and threads, which reports to nobody. By the wall, and by the child's own clock.
    units       a processor in a child whose loop does the same work a unit: one counts in a local variable, the others
                say `job.advance(1)`, `job.advance(100)` every 100 units, or iterate over `job.track(…)`. What a call
                costs is given in nanoseconds a unit, too.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blake3 import blake3

from headway.shared.tasks.meter import Meter
from headway.shared.tasks.processors import Job, Options, processor
from headway.worker.processors.checksum import BUFFER_BYTES
from headway.worker.sandbox import Sandbox

WAYS = ("local", "advance", "advance-100", "track", "track-unsized")


class Units(Options):
    way: str = "local"
    units: int = 1_000_000
    work_bytes: int = 4096


@processor("units", description="A loop of small work", options=Units, needs_file=False)
def units(job: Job) -> dict[str, Any]:
    """The work of a unit is a CRC of a few kilobytes, a little under a microsecond of C."""
    options: Units = job.options
    work, data, count, done = zlib.crc32, bytes(options.work_bytes), range(options.units), 0
    job.phase("Units", total=options.units, unit="units")
    advance = job.advance
    began = time.perf_counter()
    match options.way:
        case "local":
            for _ in count:
                work(data)
                done += 1
        case "advance":
            for _ in count:
                work(data)
                advance(1)
        case "advance-100":
            for _ in count:
                work(data)
                done += 1
                if not done % 100:
                    advance(100)
        case "track":
            for _ in job.track(count):
                work(data)
        case "track-unsized":
            for _ in job.track(iter(count), total=options.units):
                work(data)
        case _:
            raise ValueError(options.way)
    return {"seconds": time.perf_counter() - began}


@processor("timed-checksum", description="checksum, and its own time")
def timed_checksum(job: Job) -> dict[str, Any]:
    from headway.worker.processors.checksum import checksum

    began = time.perf_counter()
    summary = dict(checksum(job) or {})
    return summary | {"seconds": time.perf_counter() - began}


def bare(path: Path) -> dict[str, Any]:
    """As the processor `checksum` does it, without a job."""
    began = time.perf_counter()
    sha256, other = hashlib.sha256(), blake3()
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as ahead:

        def read(buffer: memoryview) -> memoryview:
            chunk = buffer[: file.readinto(buffer)]
            other.update(chunk)
            return chunk

        free, next_free = (memoryview(bytearray(BUFFER_BYTES)) for _ in range(2))
        coming = ahead.submit(read, free)
        while chunk := coming.result():
            free, next_free = next_free, free
            coming = ahead.submit(read, free)
            sha256.update(chunk)
    seconds = time.perf_counter() - began
    return {"sha256": sha256.hexdigest(), "blake3": other.hexdigest(), "seconds": seconds}


class WarmBare:
    """The bare loop in a process of its own, which has imported what it needs."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.hashing", "--bare", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


async def attempt(sandbox: Sandbox, name: str, folder: Path, path: Path | None, **options: Any) -> dict[str, Any]:
    """One attempt in a child, its messages metered. Its summary, with `wall` and how many counts came."""
    began = time.perf_counter()
    spec = {
        "processor": name,
        "options": options,
        "input_path": str(path) if path else None,
        "output_folder": str(folder),
        "filename": path.name if path else None,
        "content_type": None,
        "size_bytes": path.stat().st_size if path else 0,
        "memory_bytes": 1024**3,
        "attempt": 1,
        "restored": None,
    }
    meter, counts, done = Meter(0.0, time.monotonic()), 0, {}
    async with sandbox.attempt(spec) as child:
        async for message in child.messages():
            if message["kind"] in ("phase", "count"):
                meter.read(message, time.monotonic())
                counts += 1
            elif message["kind"] == "done":
                done = message["summary"] | {"wall": time.perf_counter() - began}
    return done | {"counts": counts}


def line(label: str, ratios: list[float], note: str) -> str:
    median, least, most = statistics.median(ratios), min(ratios), max(ratios)
    return f"{label}: {median:.3f} ({least:.3f}–{most:.3f}) of the bare loop's speed; {note}"


async def checksums(sandbox: Sandbox, folder: Path, path: Path, rounds: int) -> dict[str, list[float]]:
    warm = WarmBare(path)
    try:
        warm()
        await attempt(sandbox, "timed-checksum", folder, path)
        whole, inside, speeds, counts = [], [], [], 0
        for number in range(rounds):
            if number % 2:
                child, alone = await attempt(sandbox, "timed-checksum", folder, path), warm()
            else:
                alone, child = warm(), await attempt(sandbox, "timed-checksum", folder, path)
            assert (child["sha256"], child["blake3"]) == (alone["sha256"], alone["blake3"])
            whole.append(alone["seconds"] / child["wall"])
            inside.append(alone["seconds"] / child["seconds"])
            speeds.append(path.stat().st_size / alone["seconds"] / 1e6)
            counts = child["counts"]
    finally:
        warm.close()
    note = f"bare {statistics.median(speeds):,.0f} MB/s, {counts} counts in the last"
    print(line("checksum, from the request to the last word", whole, note))
    print(line("checksum, within the child", inside, "no fork, no hand-over"), flush=True)
    return {"whole": whole, "inside": inside}


async def many_units(sandbox: Sandbox, folder: Path, count: int, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
            done = await attempt(sandbox, "units", folder, None, way=way, units=count)
            seconds[way].append(done["seconds"])
    local = statistics.median(seconds["local"])
    print(f"a unit takes {local / count * 1e9:,.0f} ns, {count / local:,.0f} a second, counted in a local variable")
    for way in WAYS[1:]:
        pairs = list(zip(seconds["local"], seconds[way], strict=True))
        cost = statistics.median(told - alone for alone, told in pairs) / count * 1e9
        print(line(way, [alone / told for alone, told in pairs], f"{cost:+.0f} ns a unit"), flush=True)
    return seconds


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder, path = Path(name), Path(name) / "large.bin"
        with path.open("wb") as file:
            for _ in range(0, arguments.bytes, 1 << 20):
                file.write(os.urandom(1 << 20))
        async with Sandbox(["benchmarks.hashing"]) as sandbox:
            hashed = await checksums(sandbox, folder, path, arguments.rounds)
            counted = await many_units(sandbox, folder, arguments.units, arguments.rounds)
    return {"checksum": hashed, "units": counted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bytes", type=int, default=1 << 30)
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        for _ in sys.stdin:
            print(json.dumps(bare(arguments.bare)), flush=True)
        return
    found = asyncio.run(run(arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
