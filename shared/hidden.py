"""What a process of ours knows, its environment above all, is not for others of its user to read in /proc.

Called by the API, the worker and the fork server. The kernel then lets nobody without CAP_SYS_PTRACE look at their
memory, environment or descriptors (prctl(2), PR_SET_DUMPABLE), and writes no core file of them. Linux alone.
"""

from __future__ import annotations

import ctypes
import sys

_PR_SET_DUMPABLE = 4


def hide_from_children() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
