"""What the sweeper sees of a task, for many tasks in one call to Redis."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from headway.shared import keys
from headway.shared.redis.client import RedisClient
from headway.shared.tasks.models import OwnerId, Status, TaskId
from headway.shared.tracing import TRACEPARENT

_FIELDS = [
    *("status", "version", "attempt", "owner", "size_bytes", "created_at", "upload_expires_at", "message"),
    TRACEPARENT,
    "era",
    "input_name",
]


@dataclass(frozen=True, slots=True)
class ScannedTask:
    task_id: TaskId
    status: Status
    version: int
    attempt: int
    owner: OwnerId
    size_bytes: int | None
    created_at: datetime
    #: What Redis keeps it for.
    ttl_ms: int
    #: When a resumable upload is given up; None for every other task.
    upload_expires_at: datetime | None = None
    message: str = ""
    traceparent: str | None = None
    #: That of the last write of it (shared/redis/epoch.py).
    epoch: int = 0
    input_name: str | None = None

    def names(self, entry: str) -> bool:
        """Whether something in its folder is a file of its own: its input, or results that it has or may still get."""
        if entry == f"result-{self.attempt}":
            return self.status in (Status.PROCESSING, Status.COMPLETED)
        return entry == self.input_name or not re.fullmatch(r"input-[0-9a-f]+|result-[0-9]+", entry)


async def look(redis: RedisClient, task_ids: Collection[TaskId]) -> list[ScannedTask]:
    """Those of the tasks that Redis knows. Errors: headway.shared.redis.client.AWAY."""
    if not task_ids:
        return []
    async with redis.pipeline(transaction=False) as pipe:
        for task_id in task_ids:
            pipe.hmget(keys.state(task_id), _FIELDS)
            pipe.pttl(keys.state(task_id))
        answers = await pipe.execute()
    seen = []
    for task_id, values, ttl_ms in zip(task_ids, answers[::2], answers[1::2], strict=True):
        if values[0] is not None:
            status, version, attempt, owner, size_bytes, created_at, expires_at, message, traceparent, epoch, name = (
                json.loads(value or "null") for value in values
            )
            at = datetime.fromisoformat(created_at)
            expires = datetime.fromisoformat(expires_at) if expires_at else None
            state = (Status(status), version, attempt, owner, size_bytes, at, ttl_ms, expires, message, traceparent)
            seen.append(ScannedTask(task_id, *state, epoch or 0, name))
    return seen
