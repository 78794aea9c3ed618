"""The word that a server stops which gets no signal: uvicorn's `--limit-max-requests`, gunicorn's `--max-requests`.

Such a server closes its door and waits for its connections, and a stream never ends by itself. It tells each of its
connections to finish; so something of ours stands among them, and hears it too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.types import Scope


class StopWord:
    """Has what uvicorn calls of a connection. Leaves when it was called, because the server waits for all to leave."""

    def __init__(self, connections: set[Any], stops: tuple[Callable[[], None], ...]) -> None:
        self._connections = connections
        self._stops = stops

    def shutdown(self) -> None:
        self._connections.discard(self)
        for stop in self._stops:
            stop()


def hear_the_stop(scope: Scope, *stops: Callable[[], None]) -> bool:
    """Calls them once when the server of this request tells its connections to finish. False: it cannot be heard of
    this server, or by this request."""
    cycle = getattr(scope.get("headway.send"), "__self__", None)
    protocol = getattr(getattr(cycle, "on_response", None), "__self__", None)
    connections = getattr(getattr(protocol, "server_state", None), "connections", None)
    if not isinstance(connections, set):
        return False
    connections.add(StopWord(connections, stops))
    return True
