"""How spans leave a process: batched by a thread of OpenTelemetry's, by OTLP over HTTP, with nothing private in them.

Imported only where tracing is on. The batch is bounded (OTEL_BSP_MAX_QUEUE_SIZE, 2048): over it spans are dropped.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from headway.shared.logging import get_logger

log = get_logger(__name__)

#: Parts of a path that are ours: an id of a task, a word of a route. Others are names that somebody chose.
_OURS: Final = re.compile(r"[0-9a-f]{32}|[a-z.-]{0,20}")
_TASK_ID: Final = re.compile(r"(?<=/)[0-9a-f]{32}(?=/|$)")
_NAMED: Final = re.compile(r"(/files/|/download/|/batches/).+")


def export_spans(provider: TracerProvider) -> None:
    """From here on the provider's spans are sent. Starts a thread, which `provider.shutdown` ends."""
    provider.add_span_processor(_Discreet())
    provider.add_span_processor(BatchSpanProcessor(_Exporter(OTLPSpanExporter())))


class _Discreet(SpanProcessor):
    """Takes out of a request's span what FastAPI puts there and a stranger, or an owner, has written."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        attributes = span.attributes or {}
        if "url.query" in attributes:
            span.set_attribute("url.query", "REDACTED")
        if isinstance(path := attributes.get("url.path"), str):
            span.set_attribute("url.path", plain_path(path))
            if (task_id := _TASK_ID.search(path)) is not None:
                span.set_attribute("headway.task_id", task_id[0])


def plain_path(path: str) -> str:
    parts = _NAMED.sub(r"\1REDACTED", path).split("/")
    return "/".join(part if _OURS.fullmatch(part) else "REDACTED" for part in parts)


class _Exporter(SpanExporter):
    """A collector that is away is said once, and once more when it is back: OpenTelemetry would say it at each try."""

    def __init__(self, exporter: OTLPSpanExporter) -> None:
        self._exporter = exporter
        self._away = False
        self._why = "it does not answer"
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(self._keep)

    def _keep(self, record: logging.LogRecord) -> bool:
        self._why = record.getMessage()
        return False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        sent = self._exporter.export(spans)
        away = sent is not SpanExportResult.SUCCESS
        if away and not self._away:
            log.warning("traces not sent", reason=self._why)
        elif self._away and not away:
            log.info("traces sent again")
        self._away = away
        return sent

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
