"""Work that is broken off at one of its waits, whatever it waits for: the loop's own futures are counted, so no wait is
forgotten and none has to be named."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")

#: While what it waits for is under way; or when that is done, and before it learns of it.
When = Literal["under way", "done"]
WHEN: tuple[When, ...] = ("under way", "done")


@dataclass
class Break:
    """Work that is awaited through `run` is cancelled at its wait number `at`, the first being 0."""

    at: int
    when: When
    passed: int = 0

    @property
    def happened(self) -> bool:
        return self.passed > self.at

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
        while True:
            try:
                waits_for = work.send(None) if error is None else work.throw(error)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            error = None
            is_now = self.passed == self.at
            self.passed += 1
            if is_now and self.when == "under way":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                yield waits_for
            except BaseException as raised:
                error = raised
            else:
                if is_now and self.when == "done":
                    error = asyncio.CancelledError()
