"""uvicorn's HTTP/1.1 connection with what it has no limit for: slow, long or broken headers, bodies that nobody waits
for, answers that nobody reads, requests sent ahead without an end, and more connections than there are files to open.

A client that holds a connection without asking for anything is closed in time, so that however many do it, those who do
ask are answered. What is refused here, before there is a request, is told as a problem too (api/problems.py).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from starlette.responses import Response
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from headway.api.access.crowd import Crowd, network_of
from headway.api.downloads.sendfile import is_reset, unacknowledged
from headway.api.problems import FULL, LONG_HEADERS, MALFORMED, SLOW_HEADERS, Problem, problem_response
from headway.api.serving.counted_log import CountedErrors, counted_line
from headway.api.serving.lingering import LINGER_SECONDS
from headway.api.streams.sse import cut
from headway.shared.logging import get_logger

#: From the connection, or from the first byte of a later request, to the end of its headers: long for the worst phone,
#: short for who would hold a thousand connections.
HEADERS_SECONDS: Final = 10.0
HEADERS_BYTES: Final = 64 * 1024
#: The same for who came when only the places of operators were left.
SPARE_SECONDS: Final = 2.0
#: What those places are for.
PROBES: Final = frozenset({b"/healthz", b"/readyz", b"/metrics"})
#: Requests of one connection that wait for the one before them; what comes after them is not parsed yet, a slice of
#: what was read excepted: a request takes 20 bytes and 50 µs, so it is a small one, but for bodies.
PIPELINED: Final = 16
SLICE_BYTES: Final = 512
BODY_SLICE_BYTES: Final = 64 * 1024

log = get_logger(__name__)
#: Of what uvicorn says about a connection only errors are wanted: with a line for each broken request a stranger could
#: fill the disk.
_log = logging.getLogger(__name__)
_log.setLevel(logging.ERROR)
_log.addFilter(CountedErrors())


class _Refused(Exception):
    """The parser is to go no further."""


class Deadlines(HttpToolsProtocol):
    #: Closes the connection, unless what it waits for comes before.
    _due: asyncio.TimerHandle | None = None
    _in_headers = False
    #: As they come, and as they are.
    _headers_bytes = 0
    _fields_bytes = 0
    _refusal: tuple[Problem, str] | None = None
    #: The request that is being answered; `cycle` is uvicorn's for the one that was read last.
    _running: RequestResponseCycle | None = None
    #: Read, and from `_parsed` on not parsed yet.
    _held = b""
    _parsed = 0
    #: Looks whether the client takes what it was sent.
    _look: asyncio.TimerHandle | None = None
    _standing: tuple[int, int] | None = None
    _standing_since = 0.0
    #: It has one of the operators' places.
    _spare = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _log

    @property
    def _crowd(self) -> Crowd:
        return Crowd.of(self.server_state, self.config)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        place = self._crowd.arrive(self, self.client[0] if self.client else "")
        self._spare = place == "spare"
        if place == "full":
            self.give_way()
        else:
            self._close_in(SPARE_SECONDS if self._spare else HEADERS_SECONDS)
            if place == "in" and self._crowd.is_dense:
                self.loop.call_soon(self._begin_in_turn)  # reading begins when this has returned

    def _begin_in_turn(self) -> None:
        """What it sends is not read before it is its address's turn on the loop (api/serving/turns.py)."""
        state = self.app_state.get("headway")
        if state is not None and not self.transport.is_closing():
            self.transport.pause_reading()
            state.turns.call(f"address {network_of(self.client[0] if self.client else '')}", self._begin)

    def _begin(self) -> bool:
        if self.transport is None or self.transport.is_closing():
            return False
        self.transport.resume_reading()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._never_mind()
        self._stop_looking()
        self._crowd.leave(self)
        waiting = [cycle for cycle, _ in self.pipeline or ()]
        super().connection_lost(exc)
        self._held = b""
        # uvicorn tells it only to the request that was read last; another one would write to what is closed.
        for cycle in (self._running, *waiting):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        if self.pipeline:
            self.pipeline.clear()

    def give_way(self) -> None:
        detail = "This process has as many connections as it can. Try again in a moment."
        if self._running is not None and not self._running.response_complete and self._running.response_started:
            cut(self.transport)
        else:
            self._refuse(FULL, detail)

    def has_left(self) -> bool:
        """Whether its client has. The loop may not have heard of it, because it does not listen to a connection that is
        read no further for the time being; then it is closed here."""
        if self.transport is None or self.transport.is_closing():
            return True
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not is_reset(sock.fileno()):
            return False
        if self._running is not None:
            self._running.disconnected = True
        cut(self.transport)
        return True

    def known(self) -> None:
        """Somebody was let in by this connection."""
        self._crowd.known(self)

    def data_received(self, data: bytes) -> None:
        self._held = self._held[self._parsed :] + data
        self._parsed = 0
        self._parse()
        if len(self._held) - self._parsed > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def _parse(self) -> None:
        """What was read, a slice at a time, as long as not too many requests wait."""
        while self._held and len(self.pipeline) < PIPELINED and not self.transport.is_closing():
            in_body = self.cycle is not None and self.cycle.more_body
            end = self._parsed + (BODY_SLICE_BYTES if in_body else SLICE_BYTES)
            data, self._parsed = self._held[self._parsed : end], end
            if end >= len(self._held):
                self._held, self._parsed = b"", 0
            super().data_received(data)
            if not self._in_headers:
                continue
            self._headers_bytes += len(data)
            if self._headers_bytes > HEADERS_BYTES:
                self._refuse(LONG_HEADERS, f"The request's headers are longer than {HEADERS_BYTES} bytes.")
            elif self._due is None:
                self._close_in(HEADERS_SECONDS)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["headway.connection"] = self  # type: ignore[typeddict-unknown-key]
        self.scope["headway.peer"] = self.client  # type: ignore[typeddict-unknown-key]
        self._in_headers = True
        self._headers_bytes = self._fields_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count_field(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # else it is a trailer: nobody reads those, and they may have no end
            self._count_field(len(name) + len(value) + len(": \r\n"))
            super().on_header(name, value)

    def _count_field(self, size_bytes: int) -> None:
        self._fields_bytes += size_bytes
        if self._fields_bytes > HEADERS_BYTES:
            self._reject(LONG_HEADERS, f"The request's headers are longer than {HEADERS_BYTES} bytes.")

    def _reject(self, problem: Problem, detail: str) -> None:
        """Within a call of the parser's, which ends it."""
        self._refusal = problem, detail
        raise _Refused

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._never_mind()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            self._reject(MALFORMED, "A request has one Host header, no more and no fewer (RFC 9112, 3.2).")
        probe = self.url.partition(b"?")[0] in PROBES
        if self._spare and not probe:
            self._reject(FULL, "This process has as many connections as it can. Try again in a moment.")
        super().on_headers_complete()
        if self._spare:
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._due is not None and self.cycle is not None and self.cycle.response_complete:
            self._close_in(self.timeout_keep_alive)  # uvicorn has forgotten its own timer at the first byte of the body

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            self._close_in(LINGER_SECONDS)  # a body that nobody asked for, as with a GET
        if self.transport.get_write_buffer_size():
            self._look_soon()
        if self._held:
            self.loop.call_soon(self._parse)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_soon()

    # A client that takes nothing of its answer. Streams and downloads have their own look at it.

    def _look_soon(self) -> None:
        state = self.app_state.get("headway")
        if self._look is None and state is not None:
            seconds: float = state.settings.send_timeout_seconds
            self._look = self.loop.call_later(seconds / 4, self._look_now, seconds)

    def _look_now(self, seconds: float) -> None:
        self._look = None
        waiting = self.transport.get_write_buffer_size()
        sock = self.transport.get_extra_info("socket")
        if not waiting or sock is None or sock.fileno() < 0:
            self._standing = None
            return
        standing = waiting, unacknowledged(sock.fileno())
        now = self.loop.time()
        if standing != self._standing:
            self._standing, self._standing_since = standing, now
        elif now - self._standing_since >= seconds:
            counted_line(log.info, "slow client dropped")
            cut(self.transport)
            return
        self._look = self.loop.call_later(seconds / 4, self._look_now, seconds)

    def _stop_looking(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def send_400_response(self, msg: str) -> None:
        refusal, self._refusal = self._refusal, None
        self._refuse(*refusal or (MALFORMED, "This is not HTTP/1.1 as RFC 9112 has it."))

    def _unsupported_upgrade_warning(self) -> None:
        """Nobody has to know: the request is answered as if it had not asked."""

    def _close_in(self, seconds: float) -> None:
        self._never_mind()
        self._due = self.loop.call_later(seconds, self._too_late)

    def _never_mind(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _too_late(self) -> None:
        self._due = None
        if self._in_headers:
            self._refuse(SLOW_HEADERS, f"The request's headers took longer than {HEADERS_SECONDS:g} s.")
        else:
            self.transport.close()

    def _refuse(self, problem: Problem, detail: str) -> None:
        """The answer to what is no request; none where another answer is on its way, of which it would become a part.
        A request that turned out to be broken in its body is as one whose client has left."""
        self._never_mind()
        self._in_headers = False
        if self.transport.is_closing():
            return
        running = self._running if self._running is not None and not self._running.response_complete else None
        if not (self.pipeline or (running is not None and running.response_started)):
            self.transport.write(self._raw(problem_response(problem, detail, headers={"Connection": "close"})))
        if running is not None:
            running.disconnected = True
            running.message_event.set()
        self.transport.close()
        self._look_soon()

    def _raw(self, answer: Response) -> bytes:
        headers = [*self.server_state.default_headers, *answer.raw_headers]
        lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        return b"%b%b\r\n%b" % (STATUS_LINE[answer.status_code], lines, bytes(answer.body))
