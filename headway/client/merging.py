"""Several streams as one, in the order in which their events come: more tasks than an address has room for.

Each part is a stream of the same feed, with its numbers. Who resumes from one number must miss nothing of any part: so
an event is handed on under the number of the part that is furthest behind, and after a reconnect some may come again.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from headway.client.wire import Event

#: An event that waits to be read, and no more: who reads slowly is sent slowly.
_ROOM: Final = 1
#: What a thread waits, at most, before it sees that nobody reads any more.
_LOOK_SECONDS: Final = 0.2


class _Numbers:
    def __init__(self, parts: int, begun_at: str) -> None:
        self._begun_at = begun_at
        self._last: dict[int, int | None] = dict.fromkeys(range(parts))

    def over(self, part: int) -> None:
        del self._last[part]

    def __bool__(self) -> bool:
        return bool(self._last)

    def told(self, part: int, event: Event) -> Event:
        if event.id.isdigit():
            self._last[part] = int(event.id)
        known = [last for last in self._last.values() if last is not None]
        behind = str(min(known)) if len(known) == len(self._last) else self._begun_at
        return replace(event, id=behind if event.id else "")


async def merged_async(streams: Sequence[AsyncGenerator[Event, None]], begun_at: str) -> AsyncGenerator[Event, None]:
    """Until all are over. What one raises ends all."""
    numbers = _Numbers(len(streams), begun_at)
    coming: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue(_ROOM)

    async def read(part: int, stream: AsyncGenerator[Event, None]) -> None:
        try:
            async for event in stream:
                await coming.put((part, event))
            await coming.put((part, None))
        except Exception as error:
            await coming.put((part, error))
        finally:
            await stream.aclose()

    reading = [asyncio.create_task(read(*one)) for one in enumerate(streams)]
    try:
        while numbers:
            part, event = await coming.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                numbers.over(part)
            else:
                yield numbers.told(part, event)
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


def merged(streams: Sequence[Generator[Event, None, None]], begun_at: str) -> Generator[Event, None, None]:
    """The same by a thread for each. One that waits for its platform ends when that speaks, or the process ends."""
    numbers = _Numbers(len(streams), begun_at)
    coming: queue.Queue[tuple[int, Event | Exception | None]] = queue.Queue(_ROOM)
    left = threading.Event()

    def put(item: Any) -> None:
        while not left.is_set():
            with suppress(queue.Full):
                return coming.put(item, timeout=_LOOK_SECONDS)
        return None

    def read(part: int, stream: Generator[Event, None, None]) -> None:
        try:
            for event in stream:
                put((part, event))
                if left.is_set():
                    break
            put((part, None))
        except Exception as error:
            put((part, error))
        finally:
            stream.close()

    for one in enumerate(streams):
        context = contextvars.copy_context()  # a trace goes on
        threading.Thread(target=context.run, args=(read, *one), daemon=True, name="headway stream").start()
    try:
        while numbers:
            part, event = coming.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                numbers.over(part)
            else:
                yield numbers.told(part, event)
    finally:
        left.set()
