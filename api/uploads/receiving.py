"""A task's file on its way in, and shown while it is: what the PUT of one piece and the pieces of tus share.

The bytes go to the storage at the speed of the line; beside that, ten times a second, the task's stream is told. So
Redis never slows a line down, and a line that stalls is seen where it stands. Whoever calls owns the upload, and ends
it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Final

from headway.api.lifespan import State
from headway.api.uploads.doubtful_uploads import was_refused
from headway.api.uploads.multipart_upload import store_raw
from headway.shared.cancellation import heed_cancellation
from headway.shared.errors import NotTheAnnouncedFile, QuotaFull, RedisAway, Refused, TooMany
from headway.shared.files.storage import StoredFile, Upload
from headway.shared.redis.client import AWAY
from headway.shared.tasks.models import ErrorType, Status, Task, TaskId, rfc3339, utc_now
from headway.shared.units import DAY_SECONDS

#: The part of the bar that an announced upload takes; the processing takes the rest. A task whose file came with the
#: POST starts at 0, because nobody could watch before.
UPLOAD_SHARE: Final = 20.0
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
    """The file is whole: `uploading` → `queued`; or `failed`, where it is not the file that was announced.

    Raises NotTheAnnouncedFile, Refused, QuotaFull. Where it raises AWAY or CancelledError it may be queued.
    """
    if task.declared_sha256 not in (None, stored.sha256):
        raise await not_the_announced(state, task, f"its SHA-256 is {stored.sha256}, not {task.declared_sha256}")
    fields = {
        "size_bytes": stored.size_bytes,
        "done": stored.size_bytes,
        "total": stored.size_bytes,
        "progress": UPLOAD_SHARE,
        "input_name": stored.name,
        "input_sha256": stored.sha256,
    }
    async with _patience():
        await state.patient_publisher.enqueue(task, fields)


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    """Around what waits for a Redis that is away: raises AWAY where it has been for too long."""
    try:
        async with asyncio.timeout(ENQUEUE_PATIENCE_SECONDS):
            yield
    except TimeoutError:
        raise RedisAway(f"Redis did not answer within {ENQUEUE_PATIENCE_SECONDS:g} s") from None


async def not_the_announced(state: State, task: Task, why: str) -> NotTheAnnouncedFile:
    """Ends the task as `failed`; answers with the error to raise."""
    error = NotTheAnnouncedFile(f"This is not the file that was announced: {why}. Submit the file again.")
    async with _patience():
        await state.patient_publisher.fail(task.task_id, ErrorType.BAD_INPUT, str(error), allowed=(Status.UPLOADING,))
    return error


async def abort_unless_queued(
    state: State, task_id: TaskId, upload: Upload, stored: StoredFile, error: BaseException
) -> None:
    """Removes a committed file whose task was not queued. Where it may have been, because the answer was lost, the task
    is asked until it answers (api/uploads/doubtful_uploads.py)."""
    if isinstance(error, Refused | QuotaFull | TooMany | NotTheAnnouncedFile) or was_refused(error):
        await upload.abort()
    else:
        await state.doubtful.ask(task_id, stored, upload)
