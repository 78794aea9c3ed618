"""Logs are events with fields, one line a change of state: `task claimed  task_id=… attempt=2`.

Everything goes through structlog to stderr, uvicorn's and arq's own records included: coloured for a terminal, else
one JSON object a line. `configure` is called once, by whoever starts the process.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, TextIO, cast

import structlog
import structlog.tracebacks

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure(
    log_format: Literal["console", "json"] | None, *, stream: TextIO = sys.stderr, level: int = logging.INFO
) -> None:
    """`log_format` None means: `console` on a terminal, else `json`."""
    chosen = log_format or ("console" if stream.isatty() else "json")
    renderer: Any
    if chosen == "json":
        renderer = structlog.processors.JSONRenderer()
        # Without the frames' locals: they hold settings, and settings hold keys.
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        exceptions: list[Any] = [structlog.processors.ExceptionRenderer(transformer)]
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        exceptions = [_printable]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *exceptions, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "arq", "arq.worker"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    # arq's own lines repeat ours and hold the arguments of jobs.
    logging.getLogger("arq").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )


def _printable(_: Any, __: str, fields: Any) -> Any:
    """A stranger's path may hold what clears a terminal or writes over its lines."""
    for name, value in fields.items():
        if isinstance(value, str) and not value.isprintable() and name not in ("exception", "stack"):
            shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
            fields[name] = "".join(shown)
    return fields


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    logger: Any = structlog.stdlib.get_logger(name)
    return cast(structlog.typing.FilteringBoundLogger, logger)
