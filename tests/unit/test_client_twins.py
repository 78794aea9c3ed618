"""The two Python clients are one: headway/client/sync.py is headway/client/aio.py without its event loop, word for
word.

After a change in aio.py: `python -m tests.unit.test_client_twins`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOM = Path(__file__).parents[2] / "headway" / "client"

OPENING = '''"""Client: the platform, for programs without an event loop. Made from aio.py, which is where to change it:
this is the same, word for word but for `await` (tests/unit/test_client_twins.py). Threads may share one."""
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
    ("AsyncGenerator[Event, None]", "Generator[Event, None, None]"),
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


def test_the_client_without_an_event_loop_is_the_one_with_it() -> None:
    made = twin((ROOM / "aio.py").read_text(encoding="utf-8"))
    there = (ROOM / "sync.py").read_text(encoding="utf-8")
    assert ast.dump(ast.parse(there)) == ast.dump(ast.parse(made))


if __name__ == "__main__":
    (ROOM / "sync.py").write_text(twin((ROOM / "aio.py").read_text(encoding="utf-8")), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", ROOM / "sync.py"], check=True)
