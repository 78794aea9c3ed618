"""One stream on the bare transport: the fast way from a listener to its client, with no task while nothing is special.

What it keeps is what api/streams/sse.py keeps: the same bytes, the same heartbeat, send deadline and end. A task runs
only while the listener has the truth to read. A client that does not take what it was given is full: nothing more is
written until the transport is empty again, its listener's bounded queue coalesces meanwhile, and it is cut if it takes
nothing for the send time-out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

from headway.api.serving.counted_log import counted_line
from headway.api.serving.protocol import StreamProtocol
from headway.api.streams.listeners import Item, Listener
from headway.api.streams.sse import FIRST_COMMENT_SECONDS, NOTHING_YET, SSE, Encoder, cut, encoded
from headway.api.streams.task_listener import TaskListener
from headway.api.streams.timer_wheel import TimerWheel
from headway.api.streams.topic import Topic
from headway.shared.cancellation import heed_cancellation
from headway.shared.logging import get_logger
from headway.shared.tasks.models import Event

log = get_logger(__name__)

LAST_CHUNK: Final = b"0\r\n\r\n"


class Carrier(Protocol):
    """What a wire needs of the relay."""

    timer_wheel: TimerWheel
    heartbeat_seconds: float
    send_timeout_seconds: float

    def wake(self, wire: Wire) -> None:
        """Calls `proceed` soon."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...


class Wire:
    __slots__ = (
        *(
            "listener",
            "slot",
            "_begun",
            "_carrier",
            "_complete",
            "_opened",
            "_encoder",
            "_fd",
            "_full_since",
            "_held_bytes",
        ),
        *("_loop", "_over", "_protocol", "_task", "_topic", "_touched_at", "_woken"),
    )

    def __init__(
        self,
        carrier: Carrier,
        topic: Topic,
        protocol: StreamProtocol,
        listener: Listener,
        encoder: Encoder,
        opened: AbstractAsyncContextManager[Any],
    ) -> None:
        self._carrier = carrier
        self._topic = topic
        self._protocol = protocol
        self.listener = listener
        self._encoder = encoder
        self._opened = opened
        self._loop = asyncio.get_running_loop()
        self._begun = False
        #: The last chunk is written.
        self._complete = False
        self._over = False
        self._woken = False
        #: Since when the client has taken nothing of what the transport holds; None: it holds nothing.
        self._full_since: float | None = None
        self._held_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._touched_at = self._loop.time()
        self.slot = -1
        self._fd = protocol.hand_over(self)
        listener.wire = self
        carrier.timer_wheel.set(self, self._touched_at + carrier.heartbeat_seconds)
        self.wake()

    # What the listener and the relay call.

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._carrier.wake(self)

    def proceed(self) -> None:
        """Does whatever can be done without waiting. Who calls it gives its error to `fail`."""
        self._woken = False
        listener = self.listener
        if self._over or self._protocol.transport.is_closing():  # which `lost` will hear in a moment
            return
        if listener.error is not None:
            raise listener.error
        if self._complete:
            if self._full_since is None:
                self._finish()
        elif listener.drained or listener.ended:
            self._end(b"")
        elif self._task is not None or self._full_since is not None:
            pass
        elif listener.stale:
            self._task = self._carrier.spawn(self._catch_up())
        else:
            items = listener.take()
            if items or not (self._begun or listener.stale):
                self._send(items or [NOTHING_YET])
            if self.listener.stale:  # it found a hole
                self.wake()
            else:
                self._step_in()

    async def _catch_up(self) -> None:
        """Tells what is new in the truth, with comments while it cannot be had."""
        heartbeat_seconds = self._carrier.heartbeat_seconds
        patience = heartbeat_seconds if self._begun else min(FIRST_COMMENT_SECONDS, heartbeat_seconds)
        listener = self.listener
        try:
            try:
                while self._has_to_read():
                    heed_cancellation()
                    items: list[Item]
                    try:
                        async with asyncio.timeout(patience):
                            items = await listener.catch_up()
                    except TimeoutError:
                        if self._begun:
                            self._write(self._encoder.heartbeat(None))
                            items = []
                        else:
                            items = [NOTHING_YET]
                    if items:
                        self._send(items)
                    patience = heartbeat_seconds
            finally:
                self._task = None
            self.proceed()
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Cuts this stream, and says why. Its client comes back and reads the truth. Never raises."""
        counted_line(log.error, "stream failed", exc_info=error, **self._about())
        self.failed()

    def _about(self) -> dict[str, str]:
        """For a line of the log."""
        listener = self.listener
        return {"task_id": listener.task_id} if isinstance(listener, TaskListener) else {"channel": listener.channel}

    def _has_to_read(self) -> bool:
        listener = self.listener
        ends = self._over or listener.drained or listener.ended
        return listener.stale and self._full_since is None and not ends

    def _step_in(self) -> None:
        listener = self.listener
        if self._over or not (type(listener) is TaskListener and type(self._encoder) is SSE and listener.caught_up):
            return
        empty = self._protocol.transport.get_write_buffer_size() == 0
        if empty and self._topic.step_in(self._fd, self, listener.last_state):
            listener.last_state = None

    # What the topic calls.

    def stepped_out(self, version: int, state: Event | None) -> None:
        self.listener.version = version
        if isinstance(self.listener, TaskListener):
            self.listener.last_state = state
        self._touched_at = max(self._touched_at, self._topic.written_at)

    def fell_short(self, rest: bytes) -> None:
        self._protocol.transport.write(rest)
        self.wake()  # should it have taken the rest after all

    def failed(self) -> None:
        if not self._over:
            self._protocol.transport.abort()

    # Writing. The transport is empty, or full and written to no more, but for the end.

    def _send(self, items: list[Item]) -> None:
        body = encoded(self._encoder, items)
        if not self._begun:
            self._begun = True
            body = self._encoder.first() + body
        if self.listener.ended:
            self._end(body)
        else:
            self._write(body)

    def _write(self, body: bytes, more: bytes = b"") -> None:
        self._touched_at = self._loop.time()
        if self._protocol.transport.is_closing():  # the client has left, which `lost` will hear in a moment
            return
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        self._protocol.transport.write(chunk + more)

    def _end(self, body: bytes) -> None:
        if self.listener.drained:
            body += self._encoder.goodbye()
        self._write(body, LAST_CHUNK)
        self._complete = True
        if self._full_since is None or self.listener.drained:
            self._finish()
        # Else it is over when the client has taken it, or is cut.

    def _finish(self) -> None:
        self._leave()
        self._protocol.over()

    def _leave(self) -> None:
        self._over = True
        self._topic.leave(self.listener, self._fd)
        self._carrier.timer_wheel.forget(self)
        self.listener.wire = None
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._carrier.spawn(self._closed())

    async def _closed(self) -> None:
        await self._opened.__aexit__(None, None, None)

    # What the connection calls.

    def full(self) -> None:
        self._held_bytes = self._protocol.transport.get_write_buffer_size()
        self._full_since = self._loop.time()
        self._carrier.timer_wheel.set(self, self._full_since + self._carrier.send_timeout_seconds)
        self._topic.out(self._fd)

    def room(self) -> None:
        self._full_since = None
        self.wake()

    def lost(self) -> None:
        if not self._over:
            self._leave()

    # What the clock calls.

    def look(self, now: float) -> float | None:
        if self._over:
            return None
        heartbeat_seconds, send_timeout_seconds = self._carrier.heartbeat_seconds, self._carrier.send_timeout_seconds
        if self._full_since is not None:
            held_bytes = self._protocol.transport.get_write_buffer_size()
            if held_bytes != self._held_bytes:  # slowly, but it takes
                self._held_bytes, self._full_since = held_bytes, now
            elif now - self._full_since >= send_timeout_seconds:
                counted_line(log.info, "slow client dropped", **self._about())
                self.listener.why = "slow"
                cut(self._protocol.transport)
            return self._full_since + send_timeout_seconds
        if self._task is not None:  # which sends its own
            return now + heartbeat_seconds
        caught_up = self._topic.wires.get(self._fd) is self
        touched_at = max(self._touched_at, self._topic.written_at) if caught_up else self._touched_at
        if now >= touched_at + heartbeat_seconds:
            self._write(self._encoder.heartbeat(self._topic.version if caught_up else self.listener.newest))
            touched_at = now
        return touched_at + heartbeat_seconds
