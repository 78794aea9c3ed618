"""Cancellation that cannot be swallowed.

Until Python 3.12 `asyncio.wait_for` returns normally when it is cancelled in the tick in which what it waits for is
done, and redis-py uses it to send every command: a loop around a command may never hear that it was cancelled. So
whoever ends a task asks until it has ended, and a loop that nobody ends by hand (in a TaskGroup) asks itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, ParamSpec, TypeVar

#: Between two askings: rarely needed, and short beside every deadline for stopping.
AGAIN_SECONDS: Final = 0.1

P = ParamSpec("P")
T = TypeVar("T")


async def cancel(*tasks: asyncio.Task[Any], why: str | None = None) -> None:
    """Cancels tasks until they are done. Their errors stay theirs."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel(why)
        _, pending = await asyncio.wait(pending, timeout=AGAIN_SECONDS)


def heed_cancellation() -> None:
    """Raises CancelledError where this task was cancelled and went on. For the head of a loop."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As asyncio.to_thread, for what changes something. A thread does not stop: whoever is cancelled here hears it when
    the thread has ended, and finds all that it does done."""
    running = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        running.cancelled() or running.exception()
        raise
