"""What a process has started, however it was detached: found, killed, and reaped where it was left to this one.

A process whose parent ends becomes a child of the nearest ancestor that asked for it (PR_SET_CHILD_SUBREAPER); so what
is beneath such an ancestor stays beneath it. Linux alone.
"""

# Paths here are names in other roots, in /proc and in /dev, as the calls of the system want them.
# ruff: noqa: PTH208

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37
_LOOK_SECONDS: Final = 0.05


def kill_all_beneath(pid: int, *, but: AbstractSet[int] = frozenset()) -> list[int]:
    """SIGKILL to every descendant, parents first, but for those children and what is beneath them. What is started
    meanwhile is found the next time: its parent is gone by then. Returns the children."""
    mine = [child for child in children_of(pid) if child not in but]
    waiting = list(mine)
    while waiting:
        one = waiting.pop()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGKILL)
        waiting += children_of(one)
    return mine


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text(encoding="ascii").split())
    except FileNotFoundError:
        if not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
            return _children_by_status(pid)  # a kernel without CONFIG_PROC_CHILDREN
    except OSError:
        pass
    return found


def _children_by_status(pid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                rest = Path(f"/proc/{name}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
                if int(rest.split()[1]) == pid:
                    found.append(int(name))
    return found


def adopt() -> None:
    """From here on what is left behind by this process's descendants becomes its child. For a process that has no
    others."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def is_adopting() -> bool:
    answer = ctypes.c_int()
    ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0)
    return bool(answer.value)


async def end_adopted(seconds: float) -> None:
    """Kills and reaps every child of this process, and what is beneath, until there is none or the time is over."""
    deadline = asyncio.get_running_loop().time() + seconds
    while left := kill_all_beneath(os.getpid()):
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - it does not wait
        if asyncio.get_running_loop().time() > deadline:
            return
        await asyncio.sleep(_LOOK_SECONDS)
