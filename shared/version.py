"""The version that is installed, read once: it is in a file, and later there may be no descriptor left to open one."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

VERSION: Final = version("headway")
