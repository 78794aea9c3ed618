"""`python -m headway.worker.healthcheck`: is the worker of this machine, or container, well? For health checks; exit
code 0 or 1.

A worker says so to Redis three times a lease, from the loop that does its work: one that hangs, or does not reach
Redis, is not alive however well its process looks. The API counts the same words.
"""

from __future__ import annotations

import asyncio
import socket
import sys

from headway.shared import keys
from headway.shared.errors import SettingsError
from headway.shared.redis.client import AWAY, connect, why_away
from headway.shared.settings import Settings, load_settings

#: As many leases without a word as `/readyz` allows.
SILENT_LEASES = 3
#: A health check that takes longer than this has failed.
PATIENCE_SECONDS = 5


async def why_not(settings: Settings) -> str | None:
    """None where a worker of this host name is alive, else the reason."""
    async with connect(settings) as redis:
        try:
            seconds, microseconds = await redis.time()
            seen = await redis.zrange(keys.WORKERS, 0, -1, withscores=True)
        except AWAY as error:
            return why_away(error)
    since_ms = seconds * 1000 + microseconds / 1000 - SILENT_LEASES * settings.lease_seconds * 1000
    here = f"{socket.gethostname()}:".encode()
    if any(name.startswith(here) and at > since_ms for name, at in seen):
        return None
    return "no worker of this host says that it is alive"


def main() -> None:
    try:
        reason = asyncio.run(asyncio.wait_for(why_not(load_settings()), PATIENCE_SECONDS))
    except TimeoutError:
        reason = "Redis does not answer"
    except SettingsError as error:
        reason = str(error)
    if reason:
        sys.exit(reason)


if __name__ == "__main__":
    main()
