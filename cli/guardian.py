"""Where the kernel does not tell children of their parent's death (macOS): a process that waits for it instead.

`headway up` writes `+PID` for each child it starts and `-PID` for each it has waited for. The end of that pipe, which
no way of dying can prevent, is the sign: those left get SIGTERM, and SIGKILL if they are there after GRACE_SECONDS.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import BinaryIO, Final

GRACE_SECONDS: Final = 1.5
_LOOK_AGAIN_SECONDS: Final = 0.02


def guard(lines: BinaryIO) -> None:
    """Returns when the pipe has ended and nobody of those named is left."""
    left: set[int] = set()
    for line in lines:
        (left.add if line.startswith(b"+") else left.discard)(int(line[1:]))
    left = _send(left, signal.SIGTERM)
    give_up_at = time.monotonic() + GRACE_SECONDS
    while left and time.monotonic() < give_up_at:
        time.sleep(_LOOK_AGAIN_SECONDS)
        left = _send(left, 0)
    _send(left, signal.SIGKILL)


def _send(pids: Iterable[int], number: int) -> set[int]:
    """Answers with those that are still there."""
    there = set()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            there.add(pid)
    return there


if __name__ == "__main__":
    guard(sys.stdin.buffer)
