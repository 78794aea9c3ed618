"""A collector of traces for tests: takes OTLP over HTTP as a real one does, and keeps the spans."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class CollectedSpan:
    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    #: Span ids.
    links: tuple[str, ...]
    events: tuple[str, ...]
    attributes: dict[str, Any]
    failed: bool
    #: All of it as text, for what must not be in it.
    text: str


class Collector:
    """Entered, it listens on a port of its own."""

    def __init__(self) -> None:
        self.spans: list[CollectedSpan] = []
        self.requests = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Collector:
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, body: bytes) -> None:
        self.requests += 1
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                self.spans.append(
                    CollectedSpan(
                        service,
                        span.name,
                        span.kind,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        tuple(link.span_id.hex() for link in span.links),
                        tuple(event.name for event in span.events),
                        {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes},
                        span.status.code == span.status.STATUS_CODE_ERROR,
                        str(span),
                    )
                )

    def trace(self, trace_id: str) -> dict[str, CollectedSpan]:
        """The spans of a trace by their names, of two with the same the newer."""
        return {span.name: span for span in list(self.spans) if span.trace_id == trace_id}

    def named(self, name: str, **attributes: Any) -> list[CollectedSpan]:
        wanted = {f"headway.{key}": value for key, value in attributes.items()}
        return [span for span in list(self.spans) if span.name == name and wanted.items() <= span.attributes.items()]
