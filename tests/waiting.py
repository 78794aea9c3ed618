"""Waiting for a condition with a deadline and a description: what tests use where others would sleep."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.02


async def wait_until(what: str, condition: Callable[[], T | Awaitable[T]], *, seconds: float = 10) -> T:
    """Returns the condition's first true value; fails with `what` after `seconds`."""
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
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds} s still not: {what}")
        time.sleep(POLL_SECONDS)
    return found
