"""What idle feeds cost Redis: every command it counts while they are opened, while nothing happens, and after a break.

    .venv/bin/python -m benchmarks.idle_feeds [--feeds 1000] [--tasks 1000] [--minutes 2]

One `headway api`, one owner, `GET /events` as often as there are feeds, tasks that wait. Commands are those of INFO
commandstats, those inside of scripts too; the PINGs of the subscription are left out. `opened` is until every feed was
shown every task, `idle` a minute's share of the minutes after the first, `break` what follows when Redis cuts the
subscription (CLIENT KILL), until nothing more is asked, and `absent` what follows when all come back with the id of the
first event, until all have read the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from pathlib import Path

from redis import Redis

from benchmarks.watchers import Crowd, allow_many_files
from headway.api.submission import draft
from headway.shared.redis.client import connect
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, Status
from headway.shared.tasks.progress import Publisher
from tests.processes import Platform, RedisServer

NOT_COUNTED = {"info", "config|resetstat", "ping", "client|kill"}
#: Longer than the relay leaves silence alone, so that a window has each look in it.
MINUTE_SECONDS = 60.0
QUIET_SECONDS = 3.0


def counted(redis: Redis) -> Counter[str]:
    stats: dict[str, dict[str, int]] = redis.info("commandstats")  # type: ignore[assignment]
    names = {name.removeprefix("cmdstat_"): about["calls"] for name, about in stats.items()}
    return Counter({name: calls for name, calls in names.items() if name not in NOT_COUNTED})


def cpu_seconds(redis: Redis) -> float:
    used: dict[str, float] = redis.info("cpu")  # type: ignore[assignment]
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


class Window:
    """What Redis did since it was made."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._cpu = cpu_seconds(redis)
        self._begun = time.monotonic()
        redis.config_resetstat()

    def told(self, label: str, minutes: float = 1) -> None:
        found = counted(self._redis)
        seconds = time.monotonic() - self._begun
        cpu_ms = (cpu_seconds(self._redis) - self._cpu) * 1000 / minutes
        names = ", ".join(f"{name} {count / minutes:,.0f}" for name, count in found.most_common(6))
        print(
            f"{label}: {sum(found.values()) / minutes:,.0f} commands, {cpu_ms:,.0f} ms of Redis' CPU, {seconds:.1f} s; "
            f"{names}",
            flush=True,
        )


async def quiet(redis: Redis) -> None:
    """Until Redis was asked nothing for QUIET_SECONDS."""
    before = None
    while (now := counted(redis)) != before:
        before = now
        await asyncio.sleep(QUIET_SECONDS)


async def run(feeds: int, tasks: int, minutes: int) -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        RedisServer(Path(name) / "redis", appendfsync="no") as server,
        Platform(Path(name) / "platform", server.url) as platform,
        Redis.from_url(server.url) as redis,
    ):
        settings = Settings(redis_url=server.url)
        async with connect(settings) as client:
            publisher = Publisher(client, settings)
            for _ in range(tasks):
                await publisher.create(draft("rehearsal", owner=ANYONE, status=Status.QUEUED, options={}))
        platform.start_api()
        port = int(platform.url.rsplit(":", 1)[1])

        print(f"{feeds:,} feeds of {tasks:,} tasks", flush=True)
        crowd, window = Crowd("127.0.0.1", port), Window(redis)
        await crowd.add_all(["/events"] * feeds)
        if not await crowd.until("all are shown", lambda seen: len(seen.ids) >= tasks, 600):
            raise SystemExit("not every feed was shown every task")
        window.told("opened")

        await asyncio.sleep(MINUTE_SECONDS)  # the first look into silence learns what was heard
        window = Window(redis)
        await asyncio.sleep(minutes * MINUTE_SECONDS)
        window.told("idle, a minute", minutes)

        window = Window(redis)
        redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await quiet(redis)
        window.told("break")
        await crowd.close()

        absent = Crowd("127.0.0.1", port)
        window = Window(redis)
        await absent.add_all(["/events?last_event_id=1"] * feeds)
        if not await absent.until("all are told", lambda seen: seen.ids[-1:] == [tasks], 600):
            raise SystemExit("not every feed was told the rest")
        window.told("absent")
        await absent.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--feeds", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--minutes", type=int, default=2)
    arguments = parser.parse_args()
    allow_many_files(2 * arguments.feeds + 2000)
    asyncio.run(run(arguments.feeds, arguments.tasks, arguments.minutes))


if __name__ == "__main__":
    main()
