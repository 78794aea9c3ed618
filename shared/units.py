"""Units that settings and limits are written in."""

from __future__ import annotations

from typing import Final

GIB: Final = 1024**3
DAY_SECONDS: Final = 86_400
