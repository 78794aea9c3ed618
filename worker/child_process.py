"""One child process as the worker knows it: a state machine that only what happens moves, never whoever waits.

                 pid            end
      ASKED ───────────▶ RUNNING ─────▶ ENDED     nothing of it is left: its files may be looked at
        │                   │
        └───── server gone ─┴──────────▶ LOST     the fork server died, and its children with it

    kill     in ASKED it is remembered and done when the pid comes, in RUNNING it is SIGKILL to the group, later it is
             nothing, because the number may be another process's by then. It may be called at any time, any number of
             times, and decides by the state alone: no await, nothing that a cancelled caller could take away
    pid      once, in ASKED; a second one, or one after the end, changes nothing
    end      once; where it comes before the pid (the answers were mixed up), the pid that comes later changes nothing
    a wait   (`started`, `ended`) looks at the state and at an event that is set for good; that it is cancelled or times
             out is nobody's business but the waiter's

The pipe has a life of its own, in worker/sandbox.py: it may close before the process ends, or be held open after it.
The order of the two is nobody's promise, and no state depends on it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from headway.shared.errors import ProcessorFailure
from headway.shared.tasks.models import ErrorType


class State(StrEnum):
    ASKED = "asked"  #: the fork server has been asked for it
    RUNNING = "running"  #: its pid is known
    ENDED = "ended"  #: it is gone, with all that it started
    LOST = "lost"  #: the fork server is gone


@dataclass(frozen=True, slots=True)
class End:
    """How it ended: a wait status, what it used, and how many processes it left behind, which were killed."""

    status: int
    cpu_seconds: float = 0.0
    rss_bytes: int = 0
    left: int = 0


def kill_group(pid: int) -> None:
    """SIGKILL to a child and its group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # just forked, and not yet a group of its own; or gone
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    except PermissionError:
        pass


class ChildProcess:
    """The upper half is for whoever hears the fork server, the lower half for the attempt. Nothing here blocks."""

    def __init__(self, kill: Callable[[int], None] = kill_group) -> None:
        self.state = State.ASKED
        self.pid: int | None = None
        self.end: End | None = None
        self._kill = kill
        self._unwanted = False
        self._known = asyncio.Event()  # no longer ASKED
        self._over = asyncio.Event()  # ENDED or LOST

    def has_pid(self, pid: int) -> None:
        if self.state is State.ASKED:
            self.state, self.pid = State.RUNNING, pid
            self._known.set()
            if self._unwanted:
                self._kill(pid)

    def has_ended(self, end: End) -> None:
        if self.state in (State.ASKED, State.RUNNING):
            self.state, self.end = State.ENDED, end
            self._known.set()
            self._over.set()

    def was_lost(self) -> None:
        if self.state in (State.ASKED, State.RUNNING):
            self.state = State.LOST
            self._known.set()
            self._over.set()

    @property
    def is_over(self) -> bool:
        return self.state in (State.ENDED, State.LOST)

    def kill(self) -> None:
        """SIGKILL to the child and all it started: nothing that runs can refuse it, the GIL or not."""
        self._unwanted = True
        if self.state is State.RUNNING:
            assert self.pid is not None
            self._kill(self.pid)

    async def started(self) -> None:
        """Returns when it runs, or has. Raises ProcessorFailure where the fork server is gone."""
        await self._known.wait()
        if self.state is State.LOST:
            raise server_died()

    async def ended(self, within_seconds: float) -> bool:
        """Whether it is over, waited for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._over.wait()
        return self.is_over


def server_died() -> ProcessorFailure:
    return ProcessorFailure(ErrorType.PROCESSOR_ERROR, "The sandbox's fork server died.", retryable=True)


def how_it_ended(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"was killed by {name}"
    return f"ended with code {os.WEXITSTATUS(status)} without a result"
