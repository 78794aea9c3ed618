"""In a child alone: what it prints, warns or logs goes into the pipe that the worker reads lines from, as plain text.

Whatever printed it: Python, a library in C, a program that the processor started. The worker says whose the lines are
(worker/printed.py). The child's loggers write as Python's do where nobody has set them up.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import TextIO


def speak_through(descriptor: int) -> None:
    """From here on both standard descriptors are the pipe, and nothing else is open to where the worker's log goes."""
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    # New ones, because the old know of what kind the old descriptors were. Each line at once: a child may be killed.
    sys.stdout, sys.stderr = map(_lines_to, (1, 2))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger().handlers = [handler]
    sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__
    sys.unraisablehook = sys.__unraisablehook__


def _lines_to(descriptor: int) -> TextIO:
    """Open for as long as the process lives."""
    return open(descriptor, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
