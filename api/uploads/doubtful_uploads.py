"""Files whose queueing was answered by nobody: their tasks are asked, at once and until they answer.

A write whose answer was lost may have been done, or be done yet. So a file stays where its task names it, goes where
the task does not, and until it is known it stays: it is asked for again every few seconds, for as long as this process
lives. What a process leaves undecided is removed by the sweeper, late (worker/orphaned_files.py).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from redis.exceptions import ResponseError

from headway.api.serving.counted_log import counted_line
from headway.shared.cancellation import cancel, heed_cancellation
from headway.shared.errors import RedisAway, UnknownTask
from headway.shared.files.disk import STORAGE_FAULTS
from headway.shared.files.storage import StoredFile, Upload
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY, RedisError
from headway.shared.tasks.models import TaskId
from headway.shared.tasks.reader import Reader

log = get_logger(__name__)

ASK_SECONDS: Final = 5.0
#: Far more than can be on their way at once; those above it are the sweeper's.
MOST: Final = 10_000


def was_refused(error: BaseException) -> bool:
    """Whether Redis has answered that it did not do it (it is full, a replica, busy): progress.lua changes nothing
    then. A try before it that was done would have been answered as such."""
    said = error.__cause__ if isinstance(error, RedisAway) else error
    return isinstance(said, ResponseError)


@dataclass(frozen=True, slots=True)
class _Doubt:
    task_id: TaskId
    stored: StoredFile
    upload: Upload


class Doubtful:
    """Entered by the lifespan."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._doubts: list[_Doubt] = []

    async def __aenter__(self) -> Doubtful:
        self._asking = asyncio.create_task(self._ask_again_and_again(), name="doubtful uploads")
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(self._asking)
        for doubt in self._doubts:
            counted_line(log.warning, "upload left undecided", task_id=doubt.task_id, name=doubt.stored.name)

    async def ask(self, task_id: TaskId, stored: StoredFile, upload: Upload) -> None:
        """Whether the task has this committed file; it is removed where not, and asked about later where nobody
        answers."""
        doubt = _Doubt(task_id, stored, upload)
        if not await self._decided(doubt) and len(self._doubts) < MOST:
            counted_line(log.info, "upload in doubt", task_id=task_id, name=stored.name)
            self._doubts.append(doubt)

    async def _decided(self, doubt: _Doubt) -> bool:
        try:
            task = await self._reader.task(doubt.task_id)
        except (*AWAY, RedisError):
            return False
        except UnknownTask:
            task = None
        if task is None or task.input_name != doubt.stored.name:
            try:
                await doubt.upload.abort()
            except STORAGE_FAULTS:
                return False
        return True

    async def _ask_again_and_again(self) -> None:
        while True:
            heed_cancellation()
            await asyncio.sleep(ASK_SECONDS)
            for doubt in list(self._doubts):
                if not await self._decided(doubt):
                    break  # nor will the others be
                self._doubts.remove(doubt)
                counted_line(log.info, "upload decided", task_id=doubt.task_id, name=doubt.stored.name)
