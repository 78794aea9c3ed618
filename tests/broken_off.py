"""Work that is broken off wherever it waits: the loop's own futures are looked at, so no wait is forgotten and none
has to be named."""

from __future__ import annotations

import asyncio
import types
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Generator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

T = TypeVar("T")

#: While what it waits for is under way; or when that is done, and before it learns of it.
When = Literal["under way", "done"]
WHEN: tuple[When, ...] = ("under way", "done")
#: The lines of ours through which something is waited for, and how often they have been before: one command to Redis is
#: two or three waits, or four where its answer is late.
Place = tuple[tuple[str, ...], int]

OURS: Final = Path(__file__).parent.parent.resolve()
LIBRARIES: Final = OURS / ".venv"


@dataclass
class Break:
    """Work that is awaited through `run` is cancelled at this place, if it comes there."""

    at: Place | None
    when: When
    happened: bool = False
    places: list[Place] = field(default_factory=list)

    async def run(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What the work returns; None where it ended as cancelled."""

        async def stepped() -> T:
            return await self._stepped(work)

        running = asyncio.create_task(stepped())  # which alone is cancelled
        await asyncio.wait([running])
        return None if running.cancelled() else running.result()

    @types.coroutine
    def _stepped(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        error: BaseException | None = None
        times: Counter[tuple[str, ...]] = Counter()
        while True:
            try:
                waits_for = work.send(None) if error is None else work.throw(error)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            error = None
            lines = _lines_of(work)
            times[lines] += 1
            self.places.append((lines, times[lines]))
            is_here = self.places[-1] == self.at
            self.happened = self.happened or is_here
            if is_here and self.when == "under way":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                yield waits_for
            except BaseException as raised:
                error = raised
            else:
                if is_here and self.when == "done":
                    error = asyncio.CancelledError()


async def everywhere(when: When) -> AsyncIterator[Break]:
    """First one that breaks nothing, then one for each place that any of them came to. An answer that was there already
    is not waited for, so a place that is not come to is tried again."""
    broken = Break(None, when)
    yield broken
    left, known = list(broken.places), set(broken.places)
    for at in left:
        for _ in range(3):
            broken = Break(at, when)
            yield broken
            new = [place for place in dict.fromkeys(broken.places) if place not in known]
            left += new
            known.update(new)
            if broken.happened:
                break


def _lines_of(work: Any) -> tuple[str, ...]:
    lines = []
    while (frame := getattr(work, "cr_frame", None)) is not None:
        if (module := _module_of(frame.f_code.co_filename)) is not None:
            lines.append(f"{module}:{frame.f_lineno}")
        work = work.cr_await
    return tuple(lines)


@cache
def _module_of(file: str) -> str | None:
    """None where it is none of ours."""
    path = Path(file).resolve()
    return path.stem if path.is_relative_to(OURS) and not path.is_relative_to(LIBRARIES) else None
