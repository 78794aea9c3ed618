"""uvicorn's HTTP/1.1 connection, which may be handed over once an answer's headers are out: `headway api` runs on it.

Whoever takes a connection over (api/streams/wire.py) writes the rest of the answer to the transport and says when it is
over. Meanwhile the connection keeps nothing of the request, neither task nor parser nor buffers; afterwards it is
uvicorn's again, for the next request or to be closed. What a client sends in between waits, as pipelined requests do.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from headway.api.serving.deadlines import Deadlines


class Taker(Protocol):
    def full(self) -> None:
        """The transport holds bytes that the client has not taken."""

    def room(self) -> None:
        """It holds none any more."""

    def lost(self) -> None:
        """The connection is gone; its file descriptor is valid until this returns."""


#: What the connections of a server have alike; one that is handed over has it here, being one of thousands.
_ALIKE: Final[WeakKeyDictionary[ServerState, dict[str, Any]]] = WeakKeyDictionary()
_OWN: Final = ("transport", "server_state", "_taker", "_keep_alive", "_due")
#: What is made anew for the next request.
_OF_REQUEST: Final = (
    "server",
    "client",
    "cycle",
    "scope",
    "headers",
    "parser",
    "flow",
    "pipeline",
    "url",
    "timeout_keep_alive_task",
    "_running",
    "_refusal",
    "_look",
    "_standing",
)


class StreamProtocol(Deadlines):
    _taker: Taker | None = None
    _keep_alive = True
    _early = b""

    @classmethod
    def under(cls, scope: Scope) -> StreamProtocol | None:
        """The connection of this request, where it can be handed over: its answer is begun, in chunks, in plain text,
        and it is the only one under way. By the server's own `send` (api/app.py)."""
        cycle = getattr(scope.get("headway.send"), "__self__", None)
        if not isinstance(cycle, RequestResponseCycle):
            return None
        protocol = getattr(cycle.on_response, "__self__", None)
        if not isinstance(protocol, cls) or scope["http_version"] != "1.1" or protocol.scheme != "http":
            return None
        begun = cycle.response_started and not cycle.response_complete and cycle.chunked_encoding
        alone = protocol.scope is cycle.scope and not cycle.more_body and not (protocol.pipeline or protocol._held)
        usable = not (cycle.disconnected or protocol.flow.write_paused or protocol.transport.is_closing())
        return protocol if begun and alone and usable else None

    def hand_over(self, taker: Taker) -> int:
        """The file descriptor, for who writes past the transport while that holds nothing."""
        self._keep_alive = self.cycle.keep_alive
        # Else uvicorn would take the end of the application for a broken answer.
        self.cycle.response_complete = True
        self.scope.pop("headway.send", None)  # type: ignore[typeddict-item]
        self.scope.pop("headway.connection", None)  # type: ignore[typeddict-item]
        self._stop_looking()
        self._taker = taker
        mine = self.__dict__
        if self.server_state not in _ALIKE:
            _ALIKE[self.server_state] = {
                name: None if name in _OF_REQUEST else value for name, value in mine.items() if name not in _OWN
            }
        self.__dict__ = {name: mine[name] for name in _OWN if name in mine}
        # From here on the transport says that it is full as long as it holds one byte.
        self.transport.set_write_buffer_limits(high=0)
        fd: int = self.transport.get_extra_info("socket").fileno()
        return fd

    def over(self) -> None:
        """The answer is complete, its last chunk written: the connection is uvicorn's again."""
        self._taker = None
        self._restore()
        self.pipeline = deque()
        self.url = b""
        self.flow = FlowControl(self.transport)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        if self.transport.is_closing():
            return
        self.server, self.client = get_local_addr(self.transport), get_remote_addr(self.transport)
        self.transport.set_write_buffer_limits()
        if not self._keep_alive:
            self.transport.close()
        self.transport.resume_reading()
        self.on_response_complete()
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def _restore(self) -> None:
        for name, value in _ALIKE[self.server_state].items():
            self.__dict__.setdefault(name, value)

    def data_received(self, data: bytes) -> None:
        if self._taker is None:
            super().data_received(data)
            return
        self._early += data
        if len(self._early) > HIGH_WATER_LIMIT:
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        if self._taker is None:
            super().pause_writing()
        else:
            self._taker.full()

    def resume_writing(self) -> None:
        if self._taker is None:
            super().resume_writing()
        else:
            self._taker.room()

    def connection_lost(self, exc: Exception | None) -> None:
        taker, self._taker = self._taker, None
        if taker is not None:
            self._restore()
        super().connection_lost(exc)
        if taker is not None:
            taker.lost()

    def shutdown(self) -> None:
        if self._taker is None:
            super().shutdown()
        else:
            self._keep_alive = False
