"""uvicorn's HTTP/1.1 connection with what it has no limit for: slow, long or broken headers, bodies that nobody waits
for, and more connections than there are files to open.

A client that holds a connection without asking for anything is closed in time, so that however many do it, those who do
ask are answered. What is refused here, before there is a request, is told as a problem too (api/problems.py).
"""

from __future__ import annotations

import asyncio
import logging
import resource
from functools import cache
from typing import Any, Final

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from headway.api.problems import FULL, LONG_HEADERS, MALFORMED, SLOW_HEADERS, Problem, problem_response
from headway.api.serving.lingering import LINGER_SECONDS

#: From the connection, or from the first byte of a later request, to the end of its headers: long for the worst phone,
#: short for who would hold a thousand connections.
HEADERS_SECONDS: Final = 10.0
HEADERS_BYTES: Final = 64 * 1024
#: Files that the process opens besides: Redis, uploads, downloads.
RESERVED_FILES: Final = 256


@cache
def most_connections() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, soft - RESERVED_FILES) if soft != resource.RLIM_INFINITY else 1_000_000


#: Of what uvicorn says about a connection only errors are wanted: with a line for each broken request a stranger could
#: fill the disk.
_log = logging.getLogger(__name__)
_log.setLevel(logging.ERROR)


class Deadlines(HttpToolsProtocol):
    #: Closes the connection, unless what it waits for comes before.
    _due: asyncio.TimerHandle | None = None
    _in_headers = False
    _headers_bytes = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _log

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            self._refuse(FULL, "This process has as many connections as it can. Try again in a moment.")
        else:
            self._close_in(HEADERS_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._never_mind()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_headers:
            return
        self._headers_bytes += len(data)
        if self._headers_bytes > HEADERS_BYTES:
            self._refuse(LONG_HEADERS, f"The request's headers are longer than {HEADERS_BYTES} bytes.")
        elif self._due is None:
            self._close_in(HEADERS_SECONDS)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._headers_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # else it is a trailer: nobody reads those, and they may have no end
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._never_mind()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._due is not None and self.cycle is not None and self.cycle.response_complete:
            self._close_in(self.timeout_keep_alive)  # uvicorn has forgotten its own timer at the first byte of the body

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            self._close_in(LINGER_SECONDS)  # a body that nobody asked for, as with a GET

    def send_400_response(self, msg: str) -> None:
        self._refuse(MALFORMED, "This is not HTTP/1.1 as RFC 9112 has it.")

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
        under_way = self.cycle is not None and not self.cycle.response_complete
        if not (self.pipeline or (under_way and self.cycle.response_started)):
            self.transport.write(self._raw(problem_response(problem, detail, headers={"Connection": "close"})))
        if under_way:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _raw(self, answer: Response) -> bytes:
        headers = [*self.server_state.default_headers, *answer.raw_headers]
        lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        return b"%b%b\r\n%b" % (STATUS_LINE[answer.status_code], lines, bytes(answer.body))
