"""A download's place: under the limits of its owner, of its address and of all, and in the turns on the event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from starlette.types import Scope

from headway.api.access.identity import names_of
from headway.api.lifespan import State

#: Waits for the next turn (api/serving/turns.py).
Turn = Callable[[], Awaitable[None]]


async def _at_once() -> None:
    """Where there is nobody to take turns with."""


@contextmanager
def downloading(scope: Scope) -> Iterator[Turn]:
    """A place for one download for as long as the block lasts, and what it waits for before each piece. Raises TooMany
    where its owner, its address or all have as many as they may."""
    state: State | None = scope.get("state", {}).get("headway")
    if state is None or "headway.identity" not in scope:
        yield _at_once  # used without a server
        return
    names = names_of(scope)
    with state.limits.downloads.held(*names), state.limits.all_downloads.held("all"):
        yield lambda: state.turns.wait(names[0])
