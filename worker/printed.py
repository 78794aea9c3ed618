"""What a processor prints, made into lines of the worker's log that carry its task.

Both of a child's standard descriptors are the writing end of a pipe of its own; it has none of the worker's. So what it
writes, with Python or past it, can neither stop, empty nor forge the log. All of it is read, but no faster than
READ_BYTES_A_SECOND, and of what is read no more becomes lines than the allowances take; what was left out is said.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, cast

from headway.shared.logging import get_logger
from headway.worker.frames import Allowance

log = get_logger(__name__)

#: A line longer than this is cut in two.
LINE_BYTES: Final = 16 * 1024
#: Beyond it the pipe is left alone for a moment, and whoever prints waits: it costs the worker's loop little.
READ_BYTES_A_SECOND: Final = 8 * 1024 * 1024
#: Of lines and of their text, and of one attempt's as a whole.
LINES_A_SECOND: Final = 100
LINES_AT_ONCE: Final = 2000
BYTES_A_SECOND: Final = 32 * 1024
BYTES_AT_ONCE: Final = 512 * 1024
MOST_BYTES: Final = 16 * 1024 * 1024
#: What the pipe may still hold when the child has ended.
_PIPE_BYTES: Final = 64 * 1024


class Printed(asyncio.Protocol):
    """Give it to `connect_read_pipe`. `close` says what is left; the transport is closed by it."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        self._about = dict(about)
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._read = Allowance(READ_BYTES_A_SECOND, READ_BYTES_A_SECOND, now)
        self._lines = Allowance(LINES_A_SECOND, LINES_AT_ONCE, now)
        self._bytes = Allowance(BYTES_A_SECOND, BYTES_AT_ONCE, now)
        self._left = MOST_BYTES
        self._rest = b""
        self._dropped = 0
        self._later: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.ReadTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._take(data)
        wait = self._read.take(len(data), self._loop.time())
        if wait and self._later is None:
            self._transport.pause_reading()
            self._later = self._loop.call_later(wait, self._go_on)

    def _go_on(self) -> None:
        self._later = None
        self._transport.resume_reading()

    def close(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if not self._transport.is_closing():
            with suppress(OSError):  # BlockingIOError: nothing more is in it
                self._take(os.read(self._transport.get_extra_info("pipe").fileno(), _PIPE_BYTES))
            self._transport.close()
        self._say(self._rest)
        self._rest = b""
        self._say_what_was_dropped()

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > LINE_BYTES:
            lines.append(self._rest[:LINE_BYTES])
            self._rest = self._rest[LINE_BYTES:]
        for line in lines:
            self._say(line)

    def _say(self, line: bytes) -> None:
        while len(line) > LINE_BYTES:
            self._say(line[:LINE_BYTES])
            line = line[LINE_BYTES:]
        text = line.rstrip(b"\r").rpartition(b"\r")[2]  # a bar that was drawn over itself is what it was last
        if not text:
            return
        now = self._loop.time()
        if self._left < len(text) or self._lines.peek(now) or self._bytes.peek(now):
            self._dropped += 1
            return
        self._say_what_was_dropped()
        self._lines.take(1, now)
        self._bytes.take(len(text), now)
        self._left -= len(text)
        log.info("processor printed", text=text.decode("utf-8", "replace"), **self._about)

    def _say_what_was_dropped(self) -> None:
        if self._dropped:
            log.warning("processor printed too much", lines_left_out=self._dropped, **self._about)
            self._dropped = 0
