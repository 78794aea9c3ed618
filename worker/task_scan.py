"""What the sweeper sees of a task, for many tasks in one call to Redis."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from headway.shared import keys
from headway.shared.files.storage import attempt_of, results_folder
from headway.shared.logging import get_logger
from headway.shared.redis.client import RedisClient
from headway.shared.tasks.models import OwnerId, Status, TaskId
from headway.shared.tracing import TRACEPARENT

log = get_logger(__name__)

#: Nobody retries a task more often, and each attempt is a name to look for.
MOST_ATTEMPTS: Final = 100_000

_TASK_ID: Final = re.compile(rb"(?:^|:)([0-9a-f]{32})\Z")
_FIELDS = [
    *("status", "version", "attempt", "owner", "size_bytes", "created_at", "upload_expires_at", "message"),
    TRACEPARENT,
    "era",
    "input_name",
    "results_name",
    "producer",
    "produced",
    "not_before",
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
    results_name: str | None = None
    #: How long its outside producer may be silent; None where a worker runs it. And the files that it has sent.
    lease_seconds: float | None = None
    produced: frozenset[str] = frozenset()
    not_before: datetime | None = None

    def names(self, entry: str) -> bool:
        """Whether something in its folder is a file of its own: its input, or results that it has or may still get."""
        if (made_by := attempt_of(entry)) is not None:
            if self.status is Status.PROCESSING:
                return made_by == self.attempt
            return self.status is Status.COMPLETED and entry == (self.results_name or results_folder(self.attempt))
        if entry in self.produced or entry == self.input_name:
            return True
        return not re.fullmatch(r"input-[0-9a-f]+", entry)


def task_ids(names: Iterable[bytes]) -> Iterator[TaskId]:
    """Those of the names, of a set's members or of states' keys, that are a task's; the others are nobody's of ours."""
    for name in names:
        if (found := _TASK_ID.search(name)) is not None:
            yield TaskId(found[1].decode())


async def look(redis: RedisClient, task_ids: Collection[TaskId]) -> list[ScannedTask]:
    """Those of the tasks that Redis knows. One that cannot be read is said once and left out; the others go on. Errors:
    headway.shared.redis.client.AWAY."""
    if not task_ids:
        return []
    async with redis.pipeline(transaction=False) as pipe:
        for task_id in task_ids:
            pipe.hmget(keys.state(task_id), _FIELDS)
            pipe.pttl(keys.state(task_id))
        answers = await pipe.execute(raise_on_error=False)
    seen = []
    for task_id, values, ttl_ms in zip(task_ids, answers[::2], answers[1::2], strict=True):
        if isinstance(values, Exception) and not str(values).startswith("WRONGTYPE"):
            raise values
        try:
            if values[0] is not None:
                seen.append(_read(task_id, values, ttl_ms))
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError):
            _say_unreadable(task_id)
    return seen


def _read(task_id: TaskId, values: list[bytes | None], ttl_ms: int) -> ScannedTask:
    """Raises LookupError, ValueError, TypeError, AttributeError, RecursionError for what progress.lua never wrote."""
    status, version, attempt, owner, size_bytes, created_at, expires_at, message, traceparent, *rest = (
        json.loads(value or "null") for value in values
    )
    epoch, input_name, results_name, producer, produced, not_before = rest
    for number, most in ((version, 2**53), (attempt, MOST_ATTEMPTS), (epoch or 0, 2**53), (size_bytes or 0, 2**53)):
        if type(number) is not int or not 0 <= number <= most:
            raise ValueError("no number of ours")
    at = datetime.fromisoformat(created_at)
    expires = datetime.fromisoformat(expires_at) if expires_at else None
    state = (Status(status), version, attempt, OwnerId(owner.strip()), size_bytes, at, ttl_ms, expires, message)
    lease_seconds = float(producer["lease_seconds"]) if producer else None
    stored = frozenset(file["stored"] for file in (produced or {}).values())
    due = datetime.fromisoformat(not_before) if not_before else None
    names = (input_name, results_name)
    return ScannedTask(task_id, *state, traceparent, epoch or 0, *names, lease_seconds, stored, due)


@lru_cache(maxsize=1000)
def _say_unreadable(task_id: TaskId) -> None:
    """Once."""
    log.error("state of a task not understood", task_id=task_id)
