"""Lines of the log that anybody can cause, as often as they like: counted, at most one a minute of a kind.

The first of a kind is written as it is. Those of the next minute are one line at its end, that of the last of them,
with how many there were in `count`. What a client does is no error; an error of ours may still be one that anybody can
cause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

LINE_SECONDS: Final = 60.0


@dataclass(slots=True)
class _Kind:
    loop: asyncio.AbstractEventLoop
    line: Callable[..., Any]
    fields: dict[str, Any]
    count: int = 0


_kinds: dict[str, _Kind] = {}


def counted_line(line: Callable[..., Any], event: str, **fields: Any) -> None:
    """`line` is a method of a logger. On the event loop; elsewhere every line is written."""
    kind = _kinds.get(event)
    if kind is not None and not kind.loop.is_closed():
        kind.count += 1
        kind.line, kind.fields = line, fields
        return
    line(event, **fields)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    _kinds[event] = _Kind(loop, line, fields)
    loop.call_later(LINE_SECONDS, _minute_over, loop, event)


def _minute_over(loop: asyncio.AbstractEventLoop, event: str) -> None:
    kind = _kinds.pop(event)
    if kind.count:
        kind.line(event, **kind.fields, count=kind.count)
        _kinds[event] = _Kind(loop, kind.line, kind.fields)
        loop.call_later(LINE_SECONDS, _minute_over, loop, event)


class CountedErrors(logging.Filter):
    """For a logger of uvicorn's: what comes of a client that has left is nothing to tell, and of errors of one kind one
    a minute is written, with its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConnectionError) or "handler is closed" in str(error):
            return False
        written = False

        def write(_: str) -> None:
            nonlocal written
            written = True

        def say(_: str, *, count: int = 0) -> None:
            logging.getLogger(record.name).warning("%s: %s more", type(error).__name__, count)

        kind = f"{record.name} {type(error).__name__} {record.msg if error is None else ''}"
        counted_line(write, kind)
        if kind in _kinds:
            _kinds[kind].line = say
        return written
