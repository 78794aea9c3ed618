"""A write to Redis may swallow the cancellation of its task (shared/cancellation.py); publishing ends all the same."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from headway.shared.tasks.progress import Claim
from headway.worker.attempt import Attempt, Workplace
from tests.contract.test_progress_channel import a_task


class Swallowing:
    """A publisher whose write ends normally when it is cancelled, as `asyncio.wait_for` may before Python 3.12."""

    def __init__(self) -> None:
        self.writing = asyncio.Event()
        self.publisher = self

    async def change(self, *_: object, **__: object) -> int:
        self.writing.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 1
        return 0


async def test_publishing_ends_also_where_a_write_swallowed_its_cancellation() -> None:
    place: Any = Swallowing()
    attempt = Attempt(Claim(a_task(), 1, "token", False), cast(Workplace, place))
    await attempt._updates.put({})
    publishing = asyncio.create_task(attempt._publish())
    await place.writing.wait()
    publishing.cancel()
    done, _ = await asyncio.wait({publishing}, timeout=10)
    assert done
    assert publishing.cancelled()
