"""What an API process measures: its streams, requests and bytes, taken from its Tally when somebody asks.

With several processes on one port each also hands its numbers to the others' files twice a second, so that whichever is
asked knows them all (shared/metric_registry.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol, get_args

from prometheus_client import Gauge
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headway.api.serving.tally import Kind, Reason, Tally
from headway.shared.cancellation import cancel
from headway.shared.metric_registry import Metrics, shared_dir

#: From a bare server's fraction of a millisecond to what somebody would call broken.
DELAY_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: From a question about a task to the upload of gigabytes.
REQUEST_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: How late the others may know, with several processes.
SHOW_SECONDS: Final = 0.5

#: Other methods are one label: a stranger invents them.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: No route was reached: refused before it, or a path that leads nowhere.
NO_ROUTE: Final = "none"
#: nginx's: the client left before there was an answer.
CLIENT_LEFT: Final = 499


class ApiMetrics(Metrics):
    def __init__(self) -> None:
        super().__init__(shared_dir())
        self.tally = Tally()
        self._streams = Gauge(
            *("headway_streams", "Event streams open now", ["kind"]),
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        self._opened = self.counter("headway_streams_opened", "Event streams opened", "kind")
        self._ended = self.counter("headway_streams_ended", "Event streams that are over", "kind", "reason")
        self._events = self.counter("headway_stream_events", "Events handed to connections")
        self._gaps = self.counter("headway_stream_gaps", "Gaps told to watchers")
        left_out = "Events left out for watchers that lag: newer states stand for them"
        self._coalesced = self.counter("headway_stream_coalesced", left_out)
        self._upload_bytes = self.counter("headway_upload_bytes", "Bytes of files received")
        self._download_bytes = self.counter("headway_download_bytes", "Bytes of files and tables sent")
        self._requests = self.counter("headway_http_requests", "Requests answered", "method", "route", "status")
        delay = "From the making of an event to its write to the connections, by the clocks of both; sampled"
        self.publish_to_send = self.histogram("headway_publish_to_send_seconds", delay, DELAY_SECONDS)
        took = "From a request to the end of its answer, streams left out"
        self._request_seconds = self.histogram("headway_http_request_seconds", took, REQUEST_SECONDS, "route")
        for kind in get_args(Kind):  # there before the first one, so that a first one is a rise
            self._streams.labels(kind)
            self._opened.labels(kind)
            for reason in get_args(Reason):
                self._ended.labels(kind, reason)

    def pour(self) -> None:
        """Moves what was tallied since the last time to where it is read."""
        tally = self.tally
        for counter, amount in (
            (self._events, tally.events),
            (self._gaps, tally.gaps),
            (self._coalesced, tally.coalesced),
            (self._upload_bytes, tally.upload_bytes),
            (self._download_bytes, tally.download_bytes),
        ):
            counter.inc(amount)
        tally.events = tally.gaps = tally.coalesced = tally.upload_bytes = tally.download_bytes = 0
        for kind, count in tally.streams.items():
            self._streams.labels(kind).set(count)
        for kind, count in tally.opened.items():
            self._opened.labels(kind).inc(count)
        for labels, count in tally.ended.items():
            self._ended.labels(*labels).inc(count)
        for request, count in tally.requests.items():
            self._requests.labels(*request).inc(count)
        for counted in (tally.opened, tally.ended, tally.requests):
            counted.clear()

    def current(self) -> Collector:
        self.pour()
        return self.collector()

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """While the block lasts, the other processes of the port know this one's numbers."""
        if self.shared_dir is None:
            yield
            return
        showing = asyncio.create_task(self._show(), name="metrics")
        try:
            yield
        finally:
            await cancel(showing)
            self.pour()

    async def _show(self) -> None:
        while True:
            self.pour()
            await asyncio.sleep(SHOW_SECONDS)

    def request_ended(self, scope: Scope, status: int, seconds: float | None) -> None:
        route = str(scope.get("headway.route") or getattr(scope.get("route"), "path", NO_ROUTE))
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self.tally.requests[method, route, str(status)] += 1
        if seconds is not None:
            self._request_seconds.labels(route).observe(seconds)


class Measured(Protocol):
    """What the lifespan shares with each request (api/lifespan.py), as far as it is asked here."""

    @property
    def metrics(self) -> ApiMetrics: ...


async def counted(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Calls the application, and counts the request when its answer is complete or a stream somebody else's."""
    state: Measured | None = scope["state"].get("headway") if "state" in scope else None
    if scope["type"] != "http" or state is None:
        await app(scope, receive, send)
        return
    began = time.monotonic()
    status, streams = 0, False

    async def noting(message: Message) -> None:
        nonlocal status, streams
        if message["type"] == "http.response.start":
            status = message["status"]
            # Said of what is sent as it comes into being, which lasts as long as somebody watches.
            streams = any(name == b"x-accel-buffering" for name, _ in message.get("headers", ()))
        await send(message)

    try:
        await app(scope, receive, noting)
    except Exception:
        status = status or 500
        raise
    finally:
        seconds = None if streams else time.monotonic() - began
        state.metrics.request_ended(scope, status or CLIENT_LEFT, seconds)
