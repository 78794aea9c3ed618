"""A task's file on its way in, and shown while it is: what the PUT of one piece and the pieces of tus share.

The bytes go to the storage at the speed of the line; beside that, ten times a second, the task's stream is told. So
Redis never slows a line down, and a line that stalls is seen where it stands. Whoever calls owns the upload, and ends
it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

from api.intake import store_raw
from api.lifespan import State
from api.routes.tasks import UPLOAD_SHARE
from shared.cancellation import heed_cancellation
from shared.models import Status, Task, rfc3339, utc_now
from shared.redis import AWAY
from shared.settings import DAY_SECONDS
from shared.storage import StoredFile, Upload

#: Bytes received are shown this often: as often as an eye follows, however fast the line.
SHOW_SECONDS: Final = 0.1
#: How often it is asked whether the upload is to go on: how soon a cancelled one ends.
GUARD_SECONDS: Final = 0.25
#: A whole file on disk is not given up because Redis restarts in that moment.
ENQUEUE_PATIENCE_SECONDS: Final = 15.0
#: A resumable upload of which nothing more comes is kept this long: people close their laptops until the next day.
EXPIRES_SECONDS: Final = DAY_SECONDS

#: Raises what ends the upload.
Guard = Callable[[], Awaitable[None]]


def expiry() -> datetime:
    """When a resumable upload is given up, if from now on nothing comes."""
    return utc_now() + timedelta(seconds=EXPIRES_SECONDS)


async def receive(
    body: AsyncIterator[bytes], state: State, task: Task, upload: Upload, *, limit_bytes: int, guard: Guard
) -> None:
    """Stores the body and shows it. Raises what `guard` and the body do, TooLarge, StorageFull, and Refused where the
    task was cancelled meanwhile."""
    try:
        async with asyncio.TaskGroup() as group:
            showing = group.create_task(_show(state, task, upload, upload.size_bytes, guard), name="show upload")
            await store_raw(body, upload, limit_bytes=limit_bytes, count=state.metrics.tally.uploaded)
            showing.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _show(state: State, task: Task, upload: Upload, first: int, guard: Guard) -> None:
    began = asked = time.monotonic()
    shown = first
    while True:
        heed_cancellation()
        await asyncio.sleep(SHOW_SECONDS)
        now = time.monotonic()
        if now - asked > GUARD_SECONDS:
            asked = now
            await guard()
        if (received := upload.size_bytes) == shown:
            continue
        shown = received
        share = UPLOAD_SHARE * received / task.size_bytes if task.size_bytes else 0
        fields = {
            "message": "Receiving the file",
            "done": received,
            "progress": max(task.progress, round(share, 2)),
            "rate": round((received - first) / (time.monotonic() - began), 1),
        }
        if task.upload_expires_at is not None:
            fields["upload_expires_at"] = rfc3339(expiry())
        # The upload goes on without Redis: what the file is worth does not depend on who is watching.
        with suppress(*AWAY):
            await state.publisher.change(task.task_id, fields, allowed=(Status.UPLOADING,))


async def queue(state: State, task: Task, stored: StoredFile) -> None:
    """The file is whole: `uploading` → `queued`. Raises Refused, QuotaFull; where it raises AWAY it may be queued."""
    fields = {
        "size_bytes": stored.size_bytes,
        "done": stored.size_bytes,
        "total": stored.size_bytes,
        "progress": UPLOAD_SHARE,
        "input_name": stored.name,
        "input_sha256": stored.sha256,
    }
    async with asyncio.timeout(ENQUEUE_PATIENCE_SECONDS):
        await state.patient_publisher.enqueue(task, fields)
