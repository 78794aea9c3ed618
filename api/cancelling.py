"""To cancel a task, with what has come of its file."""

from __future__ import annotations

from headway.api.lifespan import State
from headway.shared.files.disk import STORAGE_FAULTS, told_by_the_system
from headway.shared.logging import get_logger
from headway.shared.tasks.models import Task

log = get_logger(__name__)


async def cancel_task(state: State, task: Task) -> None:
    """Raises Conflict where it has ended. It is cancelled also where the storage cannot be used: what is there of its
    file is the sweeper's then."""
    await state.publisher.cancel(task)
    if task.upload_expires_at is not None:  # a piece that is still coming removes its own
        try:
            await state.storage.discard_upload(task.task_id)
        except STORAGE_FAULTS as error:
            log.warning("upload left", reason=str(error), **told_by_the_system(error))
