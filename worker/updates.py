"""What a child said and is still to be published, in order, and never more of it than Redis and the loop can bear.

Counts replace each other. Log lines that come faster than they are published are joined, the lines of one moment to one
event; where even that waits, the pipe is not read and the processor waits, which loses nothing. What one task's history
may hold of its own words is bounded: when the last events are full of them, fewer lines are joined, and long ones cut.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

from headway.shared.json_text import text_of

#: Updates that wait for Redis; this bounds phases and logs.
PENDING_UPDATES: Final = 1000
#: So many lines are an event each, as they come; what waits behind them is joined.
ALONE: Final = 100
#: Of joined lines: an event with them stays far under what one may be on the wire.
JOINED_BYTES: Final = 2048
#: Of texts in the last events of one task, and what each may have when there is no more.
HISTORY_EVENTS: Final = 1000
HISTORY_TEXT_BYTES: Final = 256 * 1024
LEAST_TEXT_BYTES: Final = 100


class Updates:
    """One writer, one reader."""

    def __init__(self) -> None:
        self._pending: deque[tuple[str, dict[str, Any], bool]] = deque()
        self._kept: deque[int] = deque(maxlen=HISTORY_EVENTS)
        self._kept_bytes = 0
        self._changed = asyncio.Condition()
        self._closed = False

    async def put(self, fields: dict[str, Any], *, name: str = "", replaces: bool = False) -> None:
        """`replaces`: the fields stand for what the last one said of them, if that is still waiting."""
        async with self._changed:
            if replaces and self._pending and self._pending[-1][2]:
                fields = self._pending.pop()[1] | fields
            elif name == "log" and len(self._pending) >= ALONE and self._joined(fields):
                return
            while len(self._pending) >= PENDING_UPDATES:
                await self._changed.wait()
            self._pending.append((name, fields, replaces))
            self._changed.notify_all()

    def _joined(self, fields: dict[str, Any]) -> bool:
        name, last, _ = self._pending[-1]
        if name != "log" or last["level"] != fields["level"]:
            return False
        message = f"{last['message']}\n{fields['message']}"
        if len(text_of(message)) > JOINED_BYTES:
            return False
        self._pending[-1] = (name, last | {"message": message}, False)
        return True

    async def take(self) -> tuple[str, dict[str, Any]] | None:
        """The next one, or None when closed and empty."""
        async with self._changed:
            while not self._pending:
                if self._closed:
                    return None
                await self._changed.wait()
            name, fields, _ = self._pending.popleft()
            if "message" in fields:
                said, rest = self._fitting(fields["message"], joined=name == "log")
                if rest:
                    self._pending.appendleft((name, fields | {"message": rest}, False))
                fields = fields | {"message": said}
            self._changed.notify_all()
            return name, fields

    def _fitting(self, text: str, *, joined: bool) -> tuple[str, str]:
        """What may be said now, and the lines that are left for the next event. One that is too long alone is cut."""
        if len(self._kept) == self._kept.maxlen:
            self._kept_bytes -= self._kept[0]
        size, rest = len(text_of(text)), ""
        if size > (most := max(LEAST_TEXT_BYTES, HISTORY_TEXT_BYTES - self._kept_bytes)):
            at = len(text)
            while at > 0 and len(text_of(text[:at])) > most:
                at = text.rfind("\n", 0, min(at, most)) if joined else -1
            if at > 0:
                text, rest = text[:at], text[at + 1 :]
            else:
                first, _, rest = text.partition("\n") if joined else (text, "", "")
                while len(text_of(first)) > most:
                    first = first[: len(first) * 3 // 4]
                text = first + "…"
            size = len(text_of(text))
        self._kept.append(size)
        self._kept_bytes += size
        return text, rest

    async def close(self) -> None:
        async with self._changed:
            self._closed = True
            self._changed.notify_all()
