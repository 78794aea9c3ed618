"""Whether a file fits, asked before a byte of it is read: on the disk, and in what its owner's files may hold.

What comes in may still be more than was said, so both are looked at again: the disk at each chunk
(shared/files/directory.py), the owner's bytes in the step that makes the file a task (shared/tasks/progress.lua).
"""

from __future__ import annotations

from headway.api.lifespan import State
from headway.shared.errors import QuotaFull
from headway.shared.tasks.models import OwnerId


async def check_capacity(state: State, owner: OwnerId, size_bytes: int | None) -> None:
    """Raises StorageFull, QuotaFull. `size_bytes` is what is certain to come; None: nobody knows."""
    expected_bytes = size_bytes or 0
    await state.storage.check_capacity(expected_bytes)
    if quota_bytes := int(state.settings.owner_quota_bytes):
        held_bytes = await state.reader.stored_bytes(owner)
        if held_bytes + max(expected_bytes, 1) > quota_bytes:
            raise QuotaFull.of(held_bytes, quota_bytes)
