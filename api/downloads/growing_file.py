"""A result file that is read while its processor writes it (`?follow=1`): what there is, what comes, to the end.

What was sent is a whole file only where the task completes and the result is what was sent: else the connection is cut.
So no client takes the half of one attempt, or the halves of two, for a result. Where the files are in a bucket, what a
worker writes cannot be seen from here, and the file comes when it is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Final

from headway.api.lifespan import State
from headway.shared.errors import ExportCut, UnknownFile, UnknownTask
from headway.shared.files.storage import results_folder
from headway.shared.redis.client import AWAY
from headway.shared.tasks.models import Status, Task

#: Between two looks at a file that has not grown.
LOOK_SECONDS: Final = 0.2
PIECE_BYTES: Final = 64 * 1024


async def growing(state: State, task: Task, name: str) -> AsyncGenerator[bytes, None]:
    """Raises ExportCut where the rest will not come."""
    file, position, digest = None, 0, hashlib.sha256()
    try:
        while True:
            seen = await _look(state, task)
            if position and seen.attempt != task.attempt:
                raise ExportCut("Another attempt has begun.")
            task = seen
            if file is None:
                file = await _opened(state, task, name)
            while file is not None and (data := await asyncio.to_thread(os.pread, file, PIECE_BYTES, position)):
                position += len(data)
                digest.update(data)
                yield data
            if task.status.is_terminal:
                async for data in _rest(state, task, name, position, digest):
                    yield data
                return
            if state.relay.draining:
                raise ExportCut("This server is being stopped.")
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        if file is not None:
            os.close(file)


async def _look(state: State, task: Task) -> Task:
    """As it is now. While Redis is away, as it was."""
    with suppress(*AWAY):
        try:
            return await state.reader.task(task.task_id)
        except UnknownTask:
            raise ExportCut("The task is gone.") from None
    return task


async def _opened(state: State, task: Task, name: str) -> int | None:
    if task.live is None or name not in task.live.names:
        return None
    try:
        return await state.storage.open_growing(task.live.folder, name)
    except UnknownFile:  # not made yet, or in its place already
        return None


async def _rest(
    state: State, task: Task, name: str, position: int, digest: hashlib._Hash
) -> AsyncGenerator[bytes, None]:
    """Of the result, what was not sent yet."""
    files = task.result.files if task.status is Status.COMPLETED and task.result is not None else []
    found = next((file for file in files if file.name == name), None)
    if found is None:
        raise ExportCut(f"The task is {task.status}, without this file.")
    content = await state.storage.result(task.task_id, task.results_name or results_folder(task.attempt), name)
    async for data in content.read(position, content.size_bytes):
        digest.update(data)
        yield data
    if digest.hexdigest() != found.sha256:
        raise ExportCut("The result is not what its processor had written before.")
