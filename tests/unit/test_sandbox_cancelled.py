"""An attempt that is cancelled while its child is being forked: no child is left, and no other attempt is harmed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from headway.worker.sandbox import Sandbox
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox([]) as started:
        yield started


def spec(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "processor": "rehearsal",
        "options": options,
        "output_folder": str(folder),
        "memory_bytes": 1024**3,
        "input_path": None,
        "filename": None,
        "content_type": None,
        "size_bytes": 0,
        "attempt": 1,
        "restored": None,
    }


def children_of(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def waits_for_an_attempt(pid: int) -> bool:
    """A keeper that was made ahead: itself, or what it waits for."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == "headway-ahead" and all(
            map(waits_for_an_attempt, children_of(pid))
        )
    return False


def attempts_of(server: int) -> list[int]:
    return [pid for pid in children_of(server) if not waits_for_an_attempt(pid)]


async def test_cancelled_at_any_moment_it_leaves_no_child_and_harms_no_other(sandbox: Sandbox, tmp_path: Path) -> None:
    assert sandbox._server is not None
    server = sandbox._server._process.pid

    async def run(**options: Any) -> list[str]:
        async with sandbox.attempt(spec(tmp_path, **options)) as child:
            return [message["kind"] async for message in child.messages()]

    for turns in range(60):  # of the event loop, before it is cancelled
        hanging = asyncio.create_task(run(steps=1, hang_at=1))
        well = asyncio.create_task(run(steps=1, step_seconds=0))
        for _ in range(turns % 12):
            await asyncio.sleep(0)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        assert (await asyncio.wait_for(well, 60))[-1] == "done"
    await wait_until("no child is left", lambda: not attempts_of(server))
    assert sandbox._server._process.pid == server, "it is the same fork server all the time"
