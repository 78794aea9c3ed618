"""Whether a file fits: asked before a byte of it is read, on the disk and in what its owner's files may hold; and taken
before a byte of it is written.

What comes in may still be more than was said, so both are looked at again: the disk at each chunk
(shared/files/directory.py), the owner's bytes as they come (`reserved`) and in the step that makes the file a task's
(shared/tasks/progress.lua).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headway.api.lifespan import State
from headway.shared.errors import QuotaFull
from headway.shared.files.storage import StoredFile, Upload
from headway.shared.tasks.models import OwnerId, TaskId
from headway.shared.tasks.reserved_bytes import Reservation

#: A reservation outlives the longest pause of a sender by this.
SPARE_SECONDS = 60.0


async def check_capacity(state: State, owner: OwnerId, size_bytes: int | None) -> None:
    """Raises StorageFull, QuotaFull. `size_bytes` is what is certain to come; None: nobody knows."""
    expected_bytes = size_bytes or 0
    await state.storage.check_capacity(expected_bytes)
    if quota_bytes := int(state.settings.owner_quota_bytes):
        held_bytes = await state.reader.stored_bytes(owner)
        if held_bytes + max(expected_bytes, 1) > quota_bytes:
            raise QuotaFull.of(held_bytes, quota_bytes)


@asynccontextmanager
async def reserved(
    state: State, owner: OwnerId, task_id: TaskId, upload: Upload, *, least_bytes: int = 0, most_bytes: int = 0
) -> AsyncIterator[Upload]:
    """The upload, whose bytes are its owner's before they are written. Between `least_bytes` and `most_bytes` will
    come, and are taken at once. Raises QuotaFull, as does the upload's `write`."""
    quota_bytes = int(state.settings.owner_quota_bytes)
    if not quota_bytes:
        yield upload
        return
    life_seconds = 2 * state.settings.receive_timeout_seconds + SPARE_SECONDS
    reservation = Reservation(state.redis, owner, task_id, quota_bytes=quota_bytes, life_seconds=life_seconds)
    try:
        if most_bytes:
            await reservation.cover(least_bytes, most_bytes)
        yield _Covered(upload, reservation)
    finally:
        await asyncio.shield(reservation.settle())


class _Covered:
    """An Upload."""

    def __init__(self, upload: Upload, reservation: Reservation) -> None:
        self._upload = upload
        self._reservation = reservation

    @property
    def size_bytes(self) -> int:
        return self._upload.size_bytes

    async def write(self, data: bytes) -> None:
        await self._reservation.cover(self._upload.size_bytes + len(data))
        await self._upload.write(data)

    async def rewind(self, size_bytes: int) -> None:
        await self._upload.rewind(size_bytes)

    async def pause(self) -> None:
        await self._upload.pause()

    async def commit(self) -> StoredFile:
        return await self._upload.commit()

    async def abort(self) -> None:
        await self._upload.abort()
