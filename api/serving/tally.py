"""What an API process counts, in plain numbers.

Where something happens a number is raised and nothing else: events go to thousands of connections, and a metric's own
`inc` costs more than the writing of one event. api/serving/api_metrics.py takes the numbers when somebody asks for
them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Kind = Literal["task", "feed", "batch"]
#: How a stream ended; drawn in api/streams/listeners.py.
Reason = Literal["done", "gone", "slow", "drained", "lost", "expired"]

#: Told of bytes that have moved.
Count = Callable[[int], Any]


def uncounted(size_bytes: int) -> None:
    """For what is used without a server."""


class Stream(Protocol):
    """What is to be known of a listener."""

    @property
    def kind(self) -> Kind: ...

    drained: bool
    ended: bool
    why: Reason | None


@dataclass(slots=True)
class Tally:
    #: Events handed to connections, gaps told, states left out for who lags.
    events: int = 0
    gaps: int = 0
    coalesced: int = 0
    upload_bytes: int = 0
    download_bytes: int = 0
    streams: Counter[Kind] = field(default_factory=Counter)
    opened: Counter[Kind] = field(default_factory=Counter)
    ended: Counter[tuple[Kind, Reason]] = field(default_factory=Counter)
    #: By method, route and status.
    requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def stream_opened(self, stream: Stream) -> None:
        self.streams[stream.kind] += 1
        self.opened[stream.kind] += 1

    def stream_ended(self, stream: Stream) -> None:
        self.streams[stream.kind] -= 1
        reason = stream.why or ("done" if stream.ended else "drained" if stream.drained else "gone")
        self.ended[stream.kind, reason] += 1

    def uploaded(self, size_bytes: int) -> None:
        self.upload_bytes += size_bytes

    def downloaded(self, size_bytes: int) -> None:
        self.download_bytes += size_bytes
