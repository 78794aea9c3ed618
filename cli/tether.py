"""Ties a child of `headway up` to it, then becomes that child (Linux): `python tether.py PARENT COMMAND…`.

The kernel sends SIGTERM to this process when PARENT ends, and goes on doing so after the exec. It is a program of its
own and not subprocess's `preexec_fn`, because that runs Python between fork and exec, which a process with threads must
not do. It imports next to nothing: each start of a child waits for it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel knew
        sys.exit(1)
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell is what we want
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")
