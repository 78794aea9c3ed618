"""What a claim costs Redis in a long line: a worker's turn that lets go of one job and takes another.

    .venv/bin/python -m benchmarks.line [--turns 2000]

Each row is a line of so many jobs of so many owners on a server of its own; workers hold so many besides.
CPU is what the server says that it used (user and system) for all turns, divided by their number.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from headway.shared import keys
from headway.shared.redis.client import RedisClient, connect
from headway.shared.settings import Settings
from headway.shared.tasks.line import script_with_line
from headway.worker.leases import Leases
from tests.processes import RedisServer

ROWS = ((1, 1, 0), (100, 10, 0), (100_000, 1, 0), (100_000, 10_000, 0), (100_000, 10_000, 5_000))
FILL = """
local line = LINE
for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local place = {processor = 'checksum', owner = 'owner' .. i % ARGV[3], priority = '5', batch = '', order = i + 1}
  line.put(string.format('%032x.1', i), place)
end
"""


async def cpu_seconds(redis: RedisClient) -> float:
    used = await redis.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


async def measure(jobs: int, owners: int, held: int, turns: int) -> float:
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder) / "redis", appendfsync="no") as server:
        async with connect(Settings(redis_url=server.url)) as redis:
            fill = redis.register_script(script_with_line(FILL, (), ("from", "end"), redis))
            # As many more as are held, and as are taken, so that the line is as long at the end.
            for at in range(0, jobs + held, 1000):
                await fill(args=[at, min(at + 999, jobs + held - 1), owners])
            others, leases = Leases(redis, "others", 3600), Leases(redis, "ours", 3600)
            for _ in range(0, held, 500):
                await others.turn(500)
            ended: list[str] = []
            before = await cpu_seconds(redis)
            for number in range(turns):
                ended = list((await leases.turn(1, ended=ended)).taken)
                if jobs < turns:  # a short line is filled again
                    at = jobs + held + number
                    await fill(args=[at, at, owners])
            spent = await cpu_seconds(redis) - before
            assert await redis.zcard(keys.LINE_RUNNING) >= held
    return spent / turns * 1e6


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--turns", type=int, default=2000)
    turns = parser.parse_args().turns
    print("waiting  owners  held  µs of Redis a turn")
    for jobs, owners, held in ROWS:
        print(f"{jobs:>7} {owners:>7} {held:>5}  {await measure(jobs, owners, held, turns):.0f}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
