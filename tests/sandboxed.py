"""Runs one attempt of a processor under the real sandbox, as the worker does, and says how it ended.

What a test may rely on: an attempt has ended, one way or the other, within its deadline, or `Attempt.type` is
`timeout`; its child is gone; the outputs are the files that are in its folder.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from headway.shared.cancellation import cancel
from headway.shared.errors import ProcessorFailure
from headway.worker.sandbox import Child, Sandbox

#: The least that every built-in is promised to do its work in, a CSV of a hundred columns included.
MEMORY_BYTES: Final = 256 * 1024 * 1024
DEADLINE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.05


@dataclass(slots=True)
class Attempt:
    """How it ended: `type` is `done` or an error's. `rss_bytes` is the most of its own that was seen in memory."""

    type: str = ""
    text: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, str | None] = field(default_factory=dict)
    progress: list[float] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    checkpoints: list[Any] = field(default_factory=list)
    seconds: float = 0.0
    rss_bytes: int = 0


async def run(
    sandbox: Sandbox,
    processor: str,
    path: Path | None,
    folder: Path,
    *,
    options: Mapping[str, Any] | None = None,
    memory_bytes: int = MEMORY_BYTES,
    seconds: float = DEADLINE_SECONDS,
    restored: Any = None,
) -> Attempt:
    """`folder` is for the outputs; it is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        "processor": processor,
        "options": dict(options or {}),
        "input_path": str(path) if path else None,
        "output_folder": str(folder),
        "filename": path.name if path else None,
        "content_type": None,
        "size_bytes": path.stat().st_size if path else 0,
        "memory_bytes": memory_bytes,
        "attempt": 1 if restored is None else 2,
        "restored": restored,
    }
    attempt = Attempt()
    started = time.monotonic()
    try:
        async with asyncio.timeout(seconds), sandbox.attempt(spec) as child:
            watching = [asyncio.create_task(child.watch()), asyncio.create_task(_look(child, attempt))]
            try:
                async for message in child.messages():
                    _take(attempt, message)
            finally:
                await cancel(*watching)
    except ProcessorFailure as failure:
        attempt.type, attempt.text = str(failure.type), str(failure)
    except TimeoutError:
        attempt.type, attempt.text = "timeout", f"it did not end within {seconds:g} s"
    attempt.seconds = time.monotonic() - started
    return attempt


def _take(attempt: Attempt, message: dict[str, Any]) -> None:
    match message["kind"]:
        case "phase" | "count":
            attempt.progress.append(message["progress"])
        case "log":
            attempt.logs.append(message["message"])
        case "checkpoint":
            attempt.checkpoints.append(message["state"])
        case "done":
            attempt.type, attempt.summary, attempt.outputs = "done", message["summary"], message["outputs"]


async def _look(child: Child, attempt: Attempt) -> None:
    status = Path(f"/proc/{child.pid}/status")
    with suppress(OSError):  # it has ended, or this is not Linux
        while True:
            for line in status.read_text().splitlines():
                if line.startswith("RssAnon:"):
                    attempt.rss_bytes = max(attempt.rss_bytes, int(line.split()[1]) * 1024)
            await asyncio.sleep(_LOOK_SECONDS)
