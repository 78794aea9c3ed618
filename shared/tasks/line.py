"""The line of waiting jobs, and the scripts that change it: line.lua says who goes first.

A job is put in the line by the script that makes its task `queued` (progress.lua), taken out of it by a worker's turn
(worker/turn.lua), and put back where its worker died. `headway:queue`, arq's sorted set, is the way in for versions of
before there was a line and for arq's own client: each turn empties it into the line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

from headway.shared import keys
from headway.shared.redis.script_text import script_text

#: Higher goes first, among an owner's own.
LOWEST: Final = 0
HIGHEST: Final = 9
DEFAULT: Final = 5


@cache
def _line() -> str:
    return f"(function()\n{(files('headway.shared.tasks') / 'line.lua').read_text(encoding='utf-8')}\nend)()"


def script_with_line(lua: str, key_names: Sequence[str], arguments: Sequence[str]) -> str:
    """As script_text; `LINE` is the table of line.lua."""
    return script_text(re.sub(r"\bLINE\b", lambda _: _line(), lua), key_names, arguments)


def line_counts(pipe: Any, now_ms: int) -> None:
    """Asks a pipeline for four numbers: the jobs that are still on arq's queue, that wait, that had a worker which is
    gone, and that workers have."""
    pipe.zcard(keys.QUEUE)
    pipe.zcard(keys.LINE_WAITING)
    pipe.zcount(keys.LINE_RUNNING, "-inf", now_ms)
    pipe.zcount(keys.LINE_RUNNING, f"({now_ms}", "+inf")
