"""Waiting for a condition with a deadline and a description: what tests use where others would sleep.

A test holds that something happens, not how soon: that depends on what else the machine does. So nobody gives up before
PATIENCE_SECONDS. How long things take is measured in benchmarks/.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.02
#: Longer than anything here takes on two cores with other work on each.
PATIENCE_SECONDS = 60.0


async def wait_until(what: str, condition: Callable[[], T | Awaitable[T]], *, seconds: float = 10) -> T:
    """Returns the condition's first true value; fails with `what` after `seconds`, or after PATIENCE_SECONDS."""
    seconds = max(seconds, PATIENCE_SECONDS)
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds} s still not: {what}")
        await asyncio.sleep(POLL_SECONDS)


def wait_for(what: str, condition: Callable[[], T], *, seconds: float = 10) -> T:
    """`wait_until` for tests without an event loop."""
    seconds = max(seconds, PATIENCE_SECONDS)
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds} s still not: {what}")
        time.sleep(POLL_SECONDS)
    return found
