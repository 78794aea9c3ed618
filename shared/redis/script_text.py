"""The text of a script: its arguments have names, the keys of shared/keys.py stand in it by theirs.

`KEY.state` and `ARG.attempt` stand for KEYS[n] and ARGV[n]; the last name of the arguments is where a list begins, so
`ARG.fields` is that number. A name of keys.FILLED_IN in quotes, at their start, is the key itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from headway.shared import keys
from headway.shared.redis.client import channel_on


def script_text(lua: str, key_names: Sequence[str], arguments: Sequence[str], redis: Any) -> str:
    """For the database that this client uses; None for a script that names no channel."""
    lua = re.sub(r"\bKEY\.(\w+)", lambda found: f"KEYS[{key_names.index(found[1]) + 1}]", lua)
    lua = re.sub(rf"\bARG\.{arguments[-1]}\b", str(len(arguments)), lua)
    lua = re.sub(r"\bARG\.(\w+)", lambda found: f"ARGV[{arguments.index(found[1]) + 1}]", lua)
    for name in keys.FILLED_IN:
        lua = re.sub(rf"(?<=')\b{name}\b(?=\$?')", _spelled(name, redis), lua)
    return lua


def _spelled(name: str, redis: Any) -> str:
    spelled: str = getattr(keys, name)
    return channel_on(redis, spelled) if name in keys.CHANNELS and redis is not None else spelled
