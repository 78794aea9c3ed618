"""A listener of one task, to its end; or to the word `lost`, where Redis came back without the task."""

from __future__ import annotations

from typing import Any

from headway.api.streams.listeners import Item, Listener, Source
from headway.shared import keys
from headway.shared.errors import UnknownTask
from headway.shared.tasks.lost import lost_event
from headway.shared.tasks.models import Event, OwnerId, TaskId
from headway.shared.tasks.reader import Snapshot


class TaskListener(Listener):
    """Watches one task to its end."""

    __slots__ = ("_owner", "last_state", "task_id")
    kind = "task"

    def __init__(self, source: Source, channel: str, task_id: TaskId, owner: OwnerId | None, after: int | None) -> None:
        super().__init__(source, channel, after)
        self.task_id = task_id
        self._owner = owner
        #: What a client saw last, for the word `lost`; the relay's while this is caught up.
        self.last_state: Event | None = None

    async def _read(self) -> list[Item]:
        try:
            truth = await self._source.read_task(self.channel, self.task_id, self._owner, self.version)
        except UnknownTask:
            items: list[Item] = []
            self.why = "lost"
            self._hand_over(lost_event(self.task_id, (self.version or 0) + 1, self.last_state), items)
            return items
        return self._deliver(truth)

    def _hand_over(self, event: Event, items: list[Item]) -> None:
        super()._hand_over(event, items)
        if event.is_state:
            self.last_state = event

    def _deliver(self, truth: Snapshot) -> list[Item]:
        items: list[Item] = []
        if self.version is not None and truth.state.version < self.version:
            # Redis was restored from an older time, or the client invented an id: what is now is the truth.
            self.version = None
        if self.version is None:
            self._hand_over(truth.state, items)
            return items
        history = list(truth.history)
        if truth.missed_from is not None:
            # What was trimmed cannot be replayed; the state that follows stands for it.
            while history and not history[0].is_state:
                history.pop(0)
            history = history or [truth.state]
            self._gap(history[0].version - 1, items)
        for event in history:
            self._hand_over(event, items)
            if self.ended:
                break
        return items

    def _gap_names(self) -> dict[str, str]:
        return {"task_id": self.task_id}

    def ask_version(self, pipe: Any) -> None:
        pipe.hget(keys.state(self.task_id), "version")
