"""Traces (OpenTelemetry): one trace a task, from the request that queued it to the last event that a watcher is sent.

    POST /tasks           the request, FastAPI's own span (api/app.py)
    └─ enqueue            shared/tasks/progress.py; its context goes into the job's payload (shared/tasks/queue.py)
       └─ process NAME    an attempt, worker/jobs.py; a later one stands beside it and is linked to the one before
          ├─ start child, finish
          └─ last event sent  to whoever watched, api/streams/last_events.py

Off, unless the standard environment variables say where to send them. Off, nothing of OpenTelemetry is imported here
and a span costs one comparison. A collector that is away, slow or refuses costs spans and one line in the log, never a
task or a request; leaving takes LEAVE_SECONDS at most. What a span says is ours: ids, names of processors, counts; no
key, no token, no file name, no text of an error.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final, Literal

from headway.shared.errors import SettingsError
from headway.shared.version import VERSION

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

Service = Literal["headway-api", "headway-worker"]
Kind = Literal["internal", "producer", "consumer"]

#: W3C Trace Context's header: what a job's payload and a task's hash hold.
TRACEPARENT: Final = "traceparent"

#: For the last spans to reach the collector. The API has 2 s for its whole stop, and its requests get 1 s of them.
LEAVE_SECONDS: Final = 0.4

#: The first that is set is named in errors.
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Span:
    """One span, or none where tracing is off: then every method does nothing."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span | None = None) -> None:
        self._span = span

    def set(self, **attributes: str | int | float | None) -> None:
        if self._span is not None:
            self._span.set_attributes(_named(attributes))

    def rename(self, name: str) -> None:
        if self._span is not None:
            self._span.update_name(name)

    def event(self, name: str, **attributes: str | int | float | None) -> None:
        if self._span is not None:
            self._span.add_event(name, _named(attributes))

    def link(self, traceparent: str | None) -> None:
        """To a span that this one follows and is no child of."""
        if self._span is not None and (other := _read(traceparent)) is not None:
            self._span.add_link(other)

    def fail(self, reason: str) -> None:
        """`reason` is a word of a closed set, or a class."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_attribute("error.type", reason)
            self._span.set_status(StatusCode.ERROR)


_NO_SPAN: Final = Span()


class Tracing:
    """The spans of one service in one process. Entered by whoever starts it; until then spans go nowhere."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        """None: off."""
        #: For FastAPI.
        self.provider = provider
        self._tracer = provider.get_tracer("headway", VERSION) if provider is not None else None

    def span(
        self,
        name: str,
        kind: Kind = "internal",
        *,
        parent: str | None = None,
        link: str | None = None,
        **attributes: str | int | float | None,
    ) -> AbstractContextManager[Span]:
        """A span for as long as the block lasts, and the current one in it.

        `parent` and `link` are traceparents; without a parent it is the current span's child. Of an error that leaves
        the block only the class is kept."""
        if self._tracer is None:
            return nullcontext(_NO_SPAN)
        return self._start(self._tracer, name, kind, parent, link, attributes)

    @contextmanager
    def _start(
        self,
        tracer: trace.Tracer,
        name: str,
        kind: Kind,
        parent: str | None,
        link: str | None,
        attributes: dict[str, Any],
    ) -> Iterator[Span]:
        from opentelemetry.trace import SpanKind

        with tracer.start_as_current_span(
            name,
            _under(parent),
            SpanKind[kind.upper()],
            _named(attributes),
            record_exception=False,
            set_status_on_exception=False,
        ) as started:
            span = Span(started)
            span.link(link)
            try:
                yield span
            except Exception as error:
                span.fail(type(error).__name__)
                raise

    def past(
        self, name: str, parent: str, *, started_ns: int, ended_ns: int, **attributes: str | int | float | None
    ) -> None:
        """A span that is over, by Unix time."""
        if self._tracer is not None:
            span = self._tracer.start_span(name, _under(parent), attributes=_named(attributes), start_time=started_ns)
            span.end(ended_ns)

    def event(self, name: str, **attributes: str | int | float | None) -> None:
        """A moment in the current span."""
        if self._tracer is not None:
            from opentelemetry.trace import get_current_span

            Span(get_current_span()).event(name, **attributes)

    def here(self) -> str | None:
        """The traceparent of the current span; None where there is none."""
        if self._tracer is None:
            return None
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        return carrier.get(TRACEPARENT)

    async def __aenter__(self) -> Tracing:
        if self.provider is not None:
            from headway.shared.span_export import export_spans

            export_spans(self.provider)
        return self

    async def __aexit__(self, *_: object) -> None:
        if (provider := self.provider) is None:
            return
        loop, gone = asyncio.get_running_loop(), asyncio.Event()

        def leave() -> None:
            provider.shutdown()
            with suppress(RuntimeError):  # nobody waited that long
                loop.call_soon_threadsafe(gone.set)

        # Not the loop's executor: its threads are waited for at the end, however long they take.
        threading.Thread(target=leave, name="last spans", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await gone.wait()


#: For who traces nothing.
OFF: Final = Tracing()


def tracing_of(service: Service) -> Tracing:
    """By the environment. Raises SettingsError where traces are wanted and cannot be sent."""
    if not is_wanted():
        return Tracing()
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider

    ours = {"service.name": service, "service.version": VERSION}
    resource = Resource.create({**ours, **OTELResourceDetector().detect().attributes})
    return Tracing(TracerProvider(resource=resource, shutdown_on_exit=False))


def is_wanted() -> bool:
    """Whether the environment asks for traces. Raises SettingsError where it asks for what cannot be done."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    none = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
    if (name := _first_set(_ENDPOINTS)) is None or disabled or none:
        return False
    _check(name)
    return True


def _check(name: str) -> None:
    if not re.match(r"https?://[^/]", os.environ[name]):
        raise SettingsError(f"{name}: is not an http:// or https:// URL. Example: {name}=http://127.0.0.1:4318")
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    if exporter != "otlp":
        raise SettingsError(
            "OTEL_TRACES_EXPORTER: only otlp and none are known here. Example: OTEL_TRACES_EXPORTER=otlp"
        )
    protocol = _first_set(_PROTOCOLS)
    if protocol is not None and os.environ[protocol].strip() != "http/protobuf":
        raise SettingsError(
            f"{protocol}: only http/protobuf is spoken here (a collector takes it on port 4318). "
            f"Example: {protocol}=http/protobuf"
        )
    for package in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        if not _is_installed(package):
            raise SettingsError(
                f"{name}: traces need packages that are not installed. Install them with "
                "pip install 'headway[tracing]', or unset the variable."
            )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # not even what it lies in
        return False


def _first_set(names: tuple[str, ...]) -> str | None:
    return next((name for name in names if os.environ.get(name)), None)


def _named(attributes: dict[str, Any]) -> dict[str, Any]:
    return {f"headway.{name}": value for name, value in attributes.items() if value is not None}


def _under(traceparent: str | None) -> Context | None:
    """What a span is started in to be that one's child. None: in the current context."""
    if (parent := _read(traceparent)) is None:
        return None
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    return set_span_in_context(NonRecordingSpan(parent))


def _read(traceparent: str | None) -> trace.SpanContext | None:
    """None for what is none: a stranger may have written it."""
    if traceparent is None or not re.fullmatch(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", traceparent):
        return None
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found = get_current_span(TraceContextTextMapPropagator().extract({TRACEPARENT: traceparent})).get_span_context()
    return found if found.is_valid else None
