"""The share that downloads, and strangers, have of the event loop.

What is made or copied for a download, and what is answered to somebody without a key, keeps the loop from everybody
else for about a millisecond at a time. With hundreds of them at once a small question would wait for hundreds of
those. So they take turns: one piece of one download, or one request, owners and addresses one after another; and where
others have something to do, a pause as long as the turn took. Who is alone waits for nobody. Who has gone meanwhile
needs no turn: it is told so, and takes no time of those behind it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

#: What a round of the loop takes in which nobody has anything to do but to give the next turn, with room.
IDLE_SECONDS: Final = 0.0003
#: A pause is no longer, whatever the piece before it took.
PAUSE_SECONDS: Final = 0.01


#: Whether a turn is still wanted.
Wanted = Callable[[], bool]
#: Begins what a turn is for; False: it is not wanted any more.
Begin = Callable[[], bool]


class Gone(Exception):
    """Whoever waited for a turn has gone, so there is nobody to work for."""


class Turns:
    """Of one event loop."""

    def __init__(self) -> None:
        #: By owner or address, who is next first; those that were cancelled meanwhile are among them.
        self._waiting: dict[str, deque[Begin]] = {}
        self._given = False
        self._began = 0.0

    async def wait(self, owner: str, wanted: Wanted = lambda: True) -> None:
        """Returns when what comes next, without an `await`, is this owner's turn. Raises Gone, without a turn, where it
        is not wanted any more when its time comes."""
        loop = asyncio.get_running_loop()
        if not self._given:
            self._given = True
            self._begin()
            loop.call_soon(self._over)
            return
        turn = loop.create_future()

        def begin() -> bool:
            if turn.done():
                return False
            if not wanted():
                turn.set_exception(Gone)
                return False
            turn.set_result(None)
            return True

        self._waiting.setdefault(owner, deque()).append(begin)
        await turn

    def call(self, owner: str, begin: Begin) -> None:
        """The same for who waits for nothing: `begin` is called when it is this owner's turn."""
        self._waiting.setdefault(owner, deque()).append(begin)
        if not self._given:
            self._given = True
            self._give()

    def _begin(self) -> None:
        self._began = asyncio.get_running_loop().time()

    def _over(self) -> None:
        """Whoever had the turn has done what it was for."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        loop.call_soon(self._others, now - self._began, now)

    def _others(self, took: float, then: float) -> None:
        """A round later: whether others had something to do in it."""
        loop = asyncio.get_running_loop()
        if loop.time() - then > IDLE_SECONDS and self._waiting:
            loop.call_later(min(took, PAUSE_SECONDS), self._give)
        else:
            self._give()

    def _give(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            owner, turns = next(iter(self._waiting.items()))
            begin = turns.popleft()
            del self._waiting[owner]
            if turns:
                self._waiting[owner] = turns  # behind the others
            loop.call_soon(self._begin)
            if begin():
                loop.call_soon(self._over)
                return
        self._given = False
