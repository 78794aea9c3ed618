"""`headway api` that stops itself, with SIGSTOP, at one of the points where a piece of an upload waits or writes: at
the one whose number the request says in `X-Stop`. Its name is written to the file that STOPPED_AT names. A lock lives
shortly here, so that others need not wait long for it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any

from redis.commands.core import AsyncScript
from starlette.requests import Request

import headway.api.uploads.upload_lock
from headway.api.routes import resumable
from headway.api.uploads import resumable_upload
from headway.cli.main import main
from headway.shared.files.s3 import Bucket
from headway.shared.redis.script_pipeline import ScriptPipeline

LOCK_SECONDS = 1.0

#: Of the request that runs: which of its points is the next, and which is the one.
_points: ContextVar[tuple[Any, int] | None] = ContextVar("points", default=None)


def point(name: str) -> None:
    if (points := _points.get()) is None:
        return
    numbers, at = points
    if next(numbers) == at:
        Path(os.environ["STOPPED_AT"]).write_text(name)
        os.kill(os.getpid(), signal.SIGSTOP)


def awaited(real: Callable[..., Any], name: str) -> Callable[..., Any]:
    @wraps(real)
    async def watched(*args: Any, **kwargs: Any) -> Any:
        point(f"before {name}")
        answer = await real(*args, **kwargs)
        point(f"after {name}")
        return answer

    return watched


def in_thread(real: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(real)
    async def watched(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def worked() -> Any:
            name = getattr(work, "__qualname__", repr(work))
            point(f"in a thread before {name}")
            answer = work(*args, **kwargs)
            point(f"in a thread after {name}")
            return answer

        return await real(worked)

    return watched


def take_piece(real: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(real)
    async def watched(request: Request, *args: Any, **kwargs: Any) -> Any:
        if (at := request.headers.get("x-stop")) is not None:
            _points.set((count(), int(at)))
        return await real(request, *args, **kwargs)

    return watched


if __name__ == "__main__":
    headway.api.uploads.upload_lock.LOCK_SECONDS = LOCK_SECONDS  # type: ignore[misc]
    resumable.take_piece = take_piece(resumable_upload.take_piece)  # type: ignore[attr-defined]
    asyncio.to_thread = in_thread(asyncio.to_thread)
    AsyncScript.__call__ = awaited(AsyncScript.__call__, "a script")  # type: ignore[method-assign]
    ScriptPipeline.call = awaited(ScriptPipeline.call, "a write")  # type: ignore[method-assign]
    for name in ("put", "delete", "delete_folder"):
        setattr(Bucket, name, awaited(getattr(Bucket, name), f"{name} in the bucket"))
    main()
