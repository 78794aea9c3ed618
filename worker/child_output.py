"""What a processor prints, as lines of the log that carry its task; a terminal gets it as it is.

In a child alone. Lines of its own loggers (`logging`) and warnings come the same way. What a library in C writes past
Python to the two descriptors is not seen here, and stays as it is.
"""

from __future__ import annotations

import io
import sys
from typing import Any, Final

from structlog.contextvars import bind_contextvars

from headway.shared.logging import get_logger

log = get_logger(__name__)

#: A line longer than this is cut in two.
LINE_BYTES: Final = 16 * 1024


def speak_for(task_id: str | None, attempt: int, *, as_json: bool) -> None:
    """From here on, whatever this process prints or logs is said of this attempt."""
    if task_id is not None:
        bind_contextvars(task_id=task_id, attempt=attempt)
    if as_json:
        sys.stdout, sys.stderr = _logged("stdout", 1), _logged("stderr", 2)


def _logged(name: str, descriptor: int) -> io.TextIOWrapper:
    lines = io.BufferedWriter(_Lines(name, descriptor))
    return io.TextIOWrapper(lines, encoding="utf-8", errors="backslashreplace", line_buffering=True)


class _Lines(io.RawIOBase):
    """Logs each line that is written. Closed, it logs what had no end."""

    def __init__(self, name: str, descriptor: int) -> None:
        self._name = name
        self._descriptor = descriptor
        self._rest = b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """For who starts a process that prints to the same place."""
        return self._descriptor

    def write(self, data: Any) -> int:
        *lines, self._rest = (self._rest + bytes(data)).split(b"\n")
        while len(self._rest) > LINE_BYTES:
            lines.append(self._rest[:LINE_BYTES])
            self._rest = self._rest[LINE_BYTES:]
        for line in lines:
            self._say(line)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._say(self._rest)
        super().close()

    def _say(self, line: bytes) -> None:
        text = line.rstrip(b"\r").rpartition(b"\r")[2]  # a bar that was drawn over itself is what it was last
        if text:
            log.info("processor printed", text=text.decode("utf-8", "replace"), to=self._name)
