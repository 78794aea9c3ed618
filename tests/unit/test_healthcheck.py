"""`python -m headway.worker.healthcheck`: what a container's health check is told."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

from headway.shared import keys
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.worker.healthcheck import SILENT_LEASES, why_not

HERE = f"{socket.gethostname()}:1:ab"


async def say(client: RedisClient, worker: str, *, seconds_ago: float = 0) -> None:
    await client.zadd(keys.WORKERS, {worker: (time.time() - seconds_ago) * 1000})


async def test_a_worker_of_this_host_that_has_just_spoken_is_alive(
    settings: Settings, redis_client: RedisClient
) -> None:
    await say(redis_client, HERE)
    assert await why_not(settings) is None


async def test_silence_or_the_word_of_another_host_is_not_life(settings: Settings, redis_client: RedisClient) -> None:
    assert await why_not(settings) is not None
    await say(redis_client, "elsewhere:1:ab")
    await say(redis_client, HERE, seconds_ago=SILENT_LEASES * settings.lease_seconds + 1)
    assert await why_not(settings) == "no worker of this host says that it is alive"


def test_without_redis_the_check_fails_in_words_and_without_a_traceback(settings: Settings) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "headway.worker.healthcheck"],
        env={"HEADWAY_REDIS_URL": "redis://127.0.0.1:1/0", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Redis" in done.stderr
