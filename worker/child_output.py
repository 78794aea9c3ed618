"""In a child alone: what it prints, warns or logs goes into the pipe that the worker reads lines from, as plain text.

Whatever printed it: Python, a library in C, a program that the processor started. The worker says whose the lines are
(worker/printed.py). The child's loggers write as Python's do where nobody has set them up.
"""

from __future__ import annotations

import logging
import os
import sys
import threading


def speak_through(descriptor: int) -> None:
    """From here on both standard descriptors are the pipe, and nothing else is open to where the worker's log goes."""
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    # New streams: those that there are may believe that they write to a file, where the worker's log is one. And each
    # line at once: a child may be killed at any moment.
    sys.stdout, sys.stderr = (
        open(number, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
        for number in (1, 2)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger().handlers = [handler]
    sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__
    sys.unraisablehook = sys.__unraisablehook__
