"""Logs are events with fields, one line a change of state: `task claimed  task_id=… attempt=2`.

Everything goes through structlog to stderr, uvicorn's, arq's and Python's own words included: coloured for a terminal,
else one JSON object a line, a traceback too. What concerns a task carries its `task_id`: whoever begins a request or an
attempt binds it to the context (structlog.contextvars), and where a span is current its ids are there as well.
`configure` is called once, by whoever starts the process.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any, Final, Literal, TextIO, cast

import structlog
import structlog.tracebacks

Format = Literal["console", "json"]

#: uvicorn gives the line's parts; whose the line is, the process that has them writes.
_ACCESS: Final = ("client", "method", "path", "http_version", "status")

#: Logging is the process's own, and so is its format.
_format: Format = "console"


def configure(log_format: Format | None, *, stream: TextIO = sys.stderr, level: int = logging.INFO) -> None:
    """`log_format` None means: `console` on a terminal, else `json`."""
    global _format
    _format = log_format or ("console" if stream.isatty() else "json")
    renderer: Any
    if _format == "json":
        renderer = structlog.processors.JSONRenderer()
        # Without the frames' locals: they hold settings, and settings hold keys.
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        exceptions: list[Any] = [structlog.processors.ExceptionRenderer(transformer)]
        sys.excepthook = _process_broke
        threading.excepthook = _thread_broke
        sys.unraisablehook = _error_lost
        logging.captureWarnings(True)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        exceptions = [_printable]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_requested, *_SHARED],
            pass_foreign_args=True,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *exceptions, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "arq", "arq.worker", "py.warnings"):
        logger = logging.getLogger(name)
        # Without handlers and on its own, uvicorn's access log is one that was turned off.
        if name != "uvicorn.access" or logger.handlers:
            logger.propagate = True
        logger.handlers = []
    # arq's own lines repeat ours and hold the arguments of jobs.
    logging.getLogger("arq").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )


def current_format() -> Format:
    """For a process that this one starts."""
    return _format


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    logger: Any = structlog.stdlib.get_logger(name)
    return cast(structlog.typing.FilteringBoundLogger, logger)


def _requested(_: Any, __: str, fields: Any) -> Any:
    """A line of uvicorn's access log as an event with fields. Without the query, which may be anything."""
    args = fields.pop("positional_args", ())
    if fields["_record"].name == "uvicorn.access" and isinstance(args, tuple) and len(args) == len(_ACCESS):
        fields |= dict(zip(_ACCESS, args, strict=True)) | {"event": "request"}
        fields["path"] = str(fields["path"]).partition("?")[0]
    return fields


def _traced(_: Any, __: str, fields: Any) -> Any:
    """The ids of the current span. OpenTelemetry is not imported to find that there is none."""
    if (trace := sys.modules.get("opentelemetry.trace")) is not None:
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            fields["trace_id"], fields["span_id"] = f"{span.trace_id:032x}", f"{span.span_id:016x}"
    return fields


_SHARED: Final[list[Any]] = [
    structlog.contextvars.merge_contextvars,
    _traced,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def _printable(_: Any, __: str, fields: Any) -> Any:
    """A stranger's path may hold what clears a terminal or writes over its lines."""
    for name, value in fields.items():
        if isinstance(value, str) and not value.isprintable() and name not in ("exception", "stack"):
            shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
            fields[name] = "".join(shown)
    return fields


# What Python prints by itself when nobody caught an error, as lines of the log.


def _process_broke(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if not issubclass(kind, Exception):  # Ctrl-C
        sys.__excepthook__(kind, error, trace)
        return
    get_logger(__name__).critical("process broke", exc_info=(kind, error, trace))


def _thread_broke(broke: threading.ExceptHookArgs) -> None:
    if broke.exc_value is not None and broke.exc_type is not SystemExit:
        exc_info = (broke.exc_type, broke.exc_value, broke.exc_traceback)
        get_logger(__name__).error("thread broke", thread=getattr(broke.thread, "name", None), exc_info=exc_info)


def _error_lost(lost: Any) -> None:
    """Raised where nobody can catch it: in a destructor, say."""
    error = lost.exc_value
    exc_info = (type(error), error, lost.exc_traceback) if error is not None else None
    get_logger(__name__).error("error lost", where=repr(lost.object), why=lost.err_msg, exc_info=exc_info)
