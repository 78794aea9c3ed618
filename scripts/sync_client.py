"""Makes headway/client/sync.py from headway/client/aio.py: the same client without an event loop, word for word.

After a change in aio.py: `python -m scripts.sync_client`. tests/unit/test_client_twins.py fails until then.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOM: Final = Path(__file__).parents[1] / "headway" / "client"

OPENING = '''"""Client: the platform, for programs without an event loop. Made from aio.py, which is where to change it:
this is the same, word for word but for `await` (scripts/sync_client.py). Threads may share one."""
'''

#: In this order.
WORDS = (
    ("await asyncio.to_thread(file.announced)", "file.announced()"),
    ("await asyncio.sleep", "time.sleep"),
    ("await ", ""),
    ('for task in page["tasks"]:\n                yield task', 'yield from page["tasks"]'),
    ("async def", "def"),
    ("async with", "with"),
    ("async for", "for"),
    ("AsyncClient", "Client"),
    ("merged_async", "merged"),
    ("AsyncGenerator[Event, None]", "Generator[Event, None, None]"),
    (
        "AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence",
        "Callable, Collection, Generator, Iterator, Mapping, Sequence",
    ),
    ("AsyncGenerator, AsyncIterator, Callable, Collection", "Callable, Collection, Generator, Iterator"),
    ("AsyncIterator", "Iterator"),
    ("__aenter__", "__enter__"),
    ("__aexit__", "__exit__"),
    ("aclos", "clos"),
    ("aread", "read"),
    ("aiter_", "iter_"),
    ("import asyncio\nimport os\n", "import os\nimport time\n"),
)


def twin(source: str) -> str:
    text = OPENING + source[source.index('"""\n', 3) + 4 :]
    text = re.sub(r"await asyncio\.to_thread\((\w+\.\w+)(?:, (\w+))?\)", r"\1(\2)", text)
    for ours, theirs in WORDS:
        text = text.replace(ours, theirs)
    return text


if __name__ == "__main__":
    (ROOM / "sync.py").write_text(twin((ROOM / "aio.py").read_text(encoding="utf-8")), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", ROOM / "sync.py"], check=True)
