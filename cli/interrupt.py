"""Ctrl-C while a task is watched on a terminal: it asks whether to leave the task running or to cancel it.

The work goes on while it asks. A second Ctrl-C leaves, and so does the end of the input. Where there is nobody to ask
(stdin or stderr is no terminal) nothing here is used, and Ctrl-C leaves at once.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from headway.cli.exits import complain
from headway.client.errors import ClientError, Declined

if TYPE_CHECKING:
    from headway import AsyncClient
    from headway.cli.bar import Display
    from headway.cli.watched import Watched

T = TypeVar("T")


class Left(Exception):
    """Whoever watched has gone."""


def can_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


async def asking(work: Coroutine[Any, Any, T], client: AsyncClient, display: Display, watched: Watched) -> T:
    """The work, with a question at Ctrl-C. Raises Left."""
    async with _heard(signal.SIGINT) as interrupted:
        working = asyncio.create_task(work)
        try:
            while not await _comes_first(interrupted, working):
                interrupted.clear()
                display.pause()
                answer = await _answer(interrupted, working, watched)
                if answer == "leave":
                    raise Left
                if answer == "cancel":
                    await _cancel(client, watched)
                display.resume()
            return working.result()
        finally:
            working.cancel()
            await asyncio.wait({working})


@asynccontextmanager
async def _heard(number: signal.Signals) -> AsyncIterator[asyncio.Event]:
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(number, event.set)
    try:
        yield event
    finally:
        loop.remove_signal_handler(number)


async def _comes_first(interrupted: asyncio.Event, working: asyncio.Task[Any]) -> bool:
    """Whether the work is done; else Ctrl-C came."""
    waiting = asyncio.create_task(interrupted.wait())
    await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return working.done()


async def _answer(interrupted: asyncio.Event, working: asyncio.Task[Any], watched: Watched) -> str:
    if not watched.tasks:
        return "leave"
    leaving = "leave (what is not sent whole cannot run)" if watched.sending else "leave it running"
    complain(f"\n[l] {leaving}   [c] cancel it   [Enter] watch on")
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop.add_reader(sys.stdin.fileno(), lambda: lines.put_nowait(sys.stdin.readline()))
    try:
        line = asyncio.create_task(lines.get())
        again = asyncio.create_task(interrupted.wait())
        await asyncio.wait({line, again, working}, return_when=asyncio.FIRST_COMPLETED)
        line.cancel()
        again.cancel()
        if again.done() or (line.done() and not line.cancelled() and line.result() == ""):
            return "leave"
        said = line.result().strip().lower() if line.done() and not line.cancelled() else ""
        return {"l": "leave", "leave": "leave", "c": "cancel", "cancel": "cancel"}.get(said, "go on")
    finally:
        loop.remove_reader(sys.stdin.fileno())


async def _cancel(client: AsyncClient, watched: Watched) -> None:
    for task_id in watched.tasks:
        try:
            await client.cancel(task_id)
        except Declined:
            pass  # it has ended meanwhile
        except ClientError as error:
            complain(str(error))
            return
