"""A channel and who listens to it.

Most listeners are caught up: they have had everything there was, and take what comes at once. For them an event is
framed once and written straight to their connections, without a task, a queue or a look at each one's state; what one
read of Redis brought goes out in one write a connection. Everybody else (who reads the truth, is behind, or wants
another format) is handed each event. A connection falls out of step by taking less than it was given, by a hole in the
versions, by the end of the task or by a doubt, and comes back when it has caught up.
"""

from __future__ import annotations

import os
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Final, Protocol

from headway.api.serving.tally import Tally
from headway.api.streams.listeners import Listener
from headway.api.streams.sse import SSE
from headway.shared.tasks.models import TERMINAL, Event

_STATUS: Final = b'"status":"'
_ENDS: Final = frozenset(status.encode()[:4] for status in TERMINAL)
#: Where nearly every state has these very bytes: behind `{"task_id":"…32…","version":…,`.
_PROCESSING: Final = b'"status":"proc'
_AT: Final = len('{"task_id":"","version":,') + 32


def is_end(number: bytes, name: bytes, data: bytes) -> bool:
    """As Event.is_terminal, for a message that nobody has made an Event of."""
    at = _AT + len(number)
    if name or data[at : at + 14] == _PROCESSING:
        return False
    at = data.find(_STATUS, 0, 160) + len(_STATUS)
    return data[at : at + 4] in _ENDS


class Wire(Protocol):
    """What a topic knows of a connection (api/streams/wire.py)."""

    listener: Listener

    def stepped_out(self, version: int, state: Event | None) -> None:
        """It has had everything until now. From here on it waits for its own turn."""

    def fell_short(self, rest: bytes) -> None:
        """The connection did not take the rest of what it was given."""

    def failed(self) -> None:
        """The connection takes nothing any more."""

    def fail(self, error: Exception) -> None:
        """One of the others raised this. Never raises."""


class Topic:
    __slots__ = (
        *("closing", "decode", "listeners", "live", "messages", "tally", "version", "wires", "written_at"),
        *("_gathered", "_more", "_state"),
    )

    def __init__(self, decode: Callable[[bytes], Event], tally: Tally) -> None:
        self.decode = decode
        self.tally = tally
        #: Those that are handed each event.
        self.listeners: set[Listener] = set()
        #: Those caught up, by the file descriptor of the connection.
        self.wires: dict[int, Wire] = {}
        #: Every event arrives from here on.
        self.live = False
        self.messages = 0
        #: The last one that came; None: nobody has kept count.
        self.version: int | None = None
        self.written_at = 0.0
        self.closing: TimerHandle | None = None
        #: What this read has brought for those caught up: the first chunk, and those behind it.
        self._gathered: bytes | None = None
        self._more: list[bytes] = []
        self._state: Event | bytes | None = None

    def __len__(self) -> int:
        return len(self.listeners) + len(self.wires)

    @property
    def anyone(self) -> Listener:
        """One of those who listen; there has to be one."""
        return next(iter(self.listeners), None) or next(iter(self.wires.values())).listener

    def strays_from(self, version: int) -> bool:
        """Whether somebody who should be there is not at this version, which is the newest."""
        caught_up = not self.wires or self.version == version
        return not caught_up or any(listener.newest not in (None, version) for listener in self.listeners)

    def message(self, message: bytes) -> bool:
        """One message of the channel. True: there is something to `write` now, and was not before."""
        self.messages += 1
        begun = False
        if self.wires and self.version is not None:
            number, name, data = message.split(b" ", 2)
            version = int(number)
            if not version or (version == self.version + 1 and not is_end(number, name, data)):
                if version:
                    self.version = version
                if not name:
                    self._state = data
                chunk = SSE.chunk(number, name, data) if version else SSE.passing_chunk(name, data)
                if self._gathered is None:
                    self._gathered = chunk
                    begun = True
                else:
                    self._more.append(chunk)
            elif version > self.version:
                self.write(self.written_at)
                self.step_out()
        if self.listeners:
            event = self.decode(message)
            if event.version and (self.version is None or event.version > self.version):
                self.version = event.version
            for listener in self.listeners:
                try:
                    listener.push(event)
                except Exception as error:
                    listener.fail(error)
        elif not self.wires:
            self.version = None
        return begun

    def write(self, now: float) -> None:
        """Writes what was gathered to everybody caught up."""
        if (data := self._gathered) is None:
            return
        self._gathered = None
        handed = len(self.wires)
        if self._more:
            handed *= 1 + len(self._more)
            data = b"".join((data, *self._more))
            self._more = []
        self.tally.events += handed
        self.written_at = now
        size = len(data)
        write = os.write
        short = []
        for fd in self.wires:
            try:
                if (sent := write(fd, data)) != size:
                    short.append((fd, sent))
            except BlockingIOError:
                short.append((fd, 0))
            except OSError:
                short.append((fd, -1))
        for fd, sent in short:
            wire = self.wires[fd]
            self.out(fd)
            try:
                if sent < 0:
                    wire.failed()
                else:
                    wire.fell_short(data[sent:])
            except Exception as error:
                wire.fail(error)

    def step_in(self, fd: int, wire: Wire, state: Event | None) -> bool:
        """Whether it could: not while this has yet to come to where the listener is, and not in the midst of a read."""
        version = wire.listener.version
        if (self.version is not None and version != self.version) or self._gathered is not None:
            return False
        self.version = version
        if self._state is None:
            self._state = state
        self.listeners.discard(wire.listener)
        self.wires[fd] = wire
        return True

    def step_out(self) -> None:
        for fd in list(self.wires):
            self.out(fd)

    def out(self, fd: int) -> None:
        """From here on it is handed each event, if it was caught up."""
        if (wire := self.wires.pop(fd, None)) is None:
            return
        self.listeners.add(wire.listener)
        assert self.version is not None
        if isinstance(self._state, bytes):
            self._state = Event(self.version, "", self._state)
        try:
            wire.stepped_out(self.version, self._state)
        except Exception as error:
            wire.fail(error)
        if not self.wires:
            self._state = None

    def mark_stale(self) -> None:
        """Everybody reads the truth again."""
        self.write(self.written_at)
        self.step_out()
        self.version = None
        self.tell(lambda listener: listener.mark_stale())

    def tell(self, what: Callable[[Listener], None]) -> None:
        """Everybody but those caught up. An error of one is none of the others'."""
        for listener in list(self.listeners):
            try:
                what(listener)
            except Exception as error:
                listener.fail(error)

    def leave(self, listener: Listener, fd: int | None = None) -> None:
        self.listeners.discard(listener)
        if fd is not None:
            self.wires.pop(fd, None)
