"""A listener of a batch's roll-up, until every task of it has ended."""

from __future__ import annotations

from typing import Any

from headway.api.streams.listeners import Item, Listener, Source
from headway.shared import keys
from headway.shared.errors import UnknownTask
from headway.shared.tasks.models import Event, OwnerId


class BatchListener(Listener):
    """Watches the roll-up of a batch until every task of it has ended. Only the newest state matters."""

    __slots__ = ("_batch_id", "_owner", "_seen")
    kind = "batch"

    def __init__(self, source: Source, channel: str, owner: OwnerId, batch_id: str, after: int | None) -> None:
        super().__init__(source, channel, None)
        self._owner = owner
        self._batch_id = batch_id
        self._seen = after

    async def _read(self) -> list[Item]:
        items: list[Item] = []
        try:
            state = await self._source.reader.batch(self._owner, self._batch_id)
        except UnknownTask:
            self.ended = True
            return items
        if self.version is None or state.version != self.version:
            self._hand_over(state, items)
        return items

    def _hand_over(self, event: Event, items: list[Item]) -> None:
        self.version = event.version
        items.append((event, None))
        self.ended = self.ended or batch_has_ended(event)

    def ask_version(self, pipe: Any) -> None:
        pipe.hget(keys.BATCH_STATE % keys.of_batch(self._owner, self._batch_id), "version")


def batch_has_ended(event: Event) -> bool:
    return b'"status":"ended"' in event.data
