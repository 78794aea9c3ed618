"""Who may use a data directory: one `headway up` at a time, and one Redis on its files.

The lock is the kernel's (flock), so it ends with its holders, however they end. A second `up` is refused at once; a
Redis still there is waited for, because the Redis of an `up` that was killed needs a moment to write its last and go.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from headway.cli.exits import usable
from headway.client.errors import WrongUse

#: Redis writes what it holds and is gone in well under a second.
WAIT_SECONDS: Final = 5.0
_LOOK_AGAIN_SECONDS: Final = 0.05


@contextmanager
def sole_use(data_dir: Path) -> Iterator[None]:
    """Holds DATA_DIR/headway.lock. Raises WrongUse if another `headway up` does."""
    file = _open(data_dir / "headway.lock")
    try:
        if not _lock(file):
            holder = os.read(file, 20).decode(errors="replace").strip()
            raise WrongUse(
                f"Another headway up{f' (process {holder})' if holder else ''} is using {data_dir}. "
                "Stop it first, or use another directory: --data-dir DIR"
            )
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(file)


@asynccontextmanager
async def inherited_lock(path: Path) -> AsyncIterator[int]:
    """A locked descriptor to hand to a child: the lock lasts until this process and the child have both let go.

    Waits for an earlier holder. Raises WrongUse when it does not go within WAIT_SECONDS.
    """
    file = _open(path)
    try:
        give_up_at = asyncio.get_running_loop().time() + WAIT_SECONDS
        while not _lock(file):
            if asyncio.get_running_loop().time() > give_up_at:
                raise WrongUse(f"Another Redis is still using {path.parent}; end it, or use another --data-dir.")
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        yield file
    finally:
        os.close(file)


def _open(path: Path) -> int:
    with usable(path.parent):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
