"""Cancellation that cannot be swallowed.

Until Python 3.12 `asyncio.wait_for` returns normally when it is cancelled in the tick in which what it waits for is
done, and redis-py uses it to send every command: a loop around a command may never hear that it was cancelled. So
whoever ends a task asks until it has ended, and a loop that nobody ends by hand (in a TaskGroup) asks itself.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

#: Between two askings: rarely needed, and short beside every deadline for stopping.
AGAIN_SECONDS: Final = 0.1


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
