"""The end of a task's trace: when its last event was handed to the connections of those who watched it.

One span for all streams of a task that end together, so that ten thousand watchers are not ten thousand spans; a stream
is never more than one. Where the task's trace goes on stands in its hash (Task.traceparent), which is read once for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from headway.api.streams.listeners import Listener
from headway.api.streams.task_listener import TaskListener
from headway.shared.errors import UnknownTask
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY
from headway.shared.tasks.models import TaskId
from headway.shared.tasks.reader import Reader
from headway.shared.tracing import Tracing

log = get_logger(__name__)


@dataclass(slots=True)
class _Told:
    first_ns: int
    last_ns: int
    streams: int = 1


class LastEvents:
    """`spawn` owns what is started here."""

    def __init__(self, reader: Reader, tracing: Tracing, spawn: Callable[[Coroutine[Any, Any, None]], Any]) -> None:
        self._reader = reader
        self._tracing = tracing
        self._spawn = spawn
        self._told: dict[TaskId, _Told] = {}

    def left(self, listener: Listener) -> None:
        """A stream is over. Never waits."""
        if self._tracing.provider is None or not isinstance(listener, TaskListener):
            return
        if listener.last_state is None or not listener.last_state.is_terminal:
            return
        now = time.time_ns()
        if (told := self._told.get(listener.task_id)) is not None:
            told.last_ns = now
            told.streams += 1
            return
        self._told[listener.task_id] = _Told(now, now)
        self._spawn(self._trace(listener.task_id))

    async def _trace(self, task_id: TaskId) -> None:
        parent = None
        try:
            parent = (await self._reader.task(task_id)).traceparent
        except (UnknownTask, *AWAY):
            pass
        except Exception:  # the streams of others do not depend on it
            log.exception("last event not traced", task_id=task_id)
        told = self._told.pop(task_id)
        if parent is not None:  # else nobody traced it
            times = {"started_ns": told.first_ns, "ended_ns": told.last_ns}
            self._tracing.past("last event sent", parent, **times, task_id=task_id, streams=told.streams)
