"""API and worker in one process, for the one case that needs it: a Redis that lives in this process's memory.

uvicorn has the main thread, which signals come to; the worker has a thread and an event loop of its own, because a slow
one must not hold the other up. They share nothing but the fake server, which locks and wakes across threads.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import closing, suppress
from typing import Final

from headway.shared.logging import configure, get_logger
from headway.shared.redis.client import connect
from headway.shared.settings import Settings

#: `headway up` kills this process 1.4 s after its SIGTERM; the API has taken its part of that.
WORKER_STOP_SECONDS: Final = 1.0


class _WorkerThread:
    """Runs headway.worker.main.serve. If that ends unasked, the process gets SIGTERM, and whoever watches it starts
    again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self.failed = False
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WORKER_STOP_SECONDS)

    def _run(self) -> None:
        from headway.worker.main import serve

        try:
            asyncio.set_event_loop(self._loop)
            with closing(self._loop):
                self._loop.run_until_complete(serve(self._settings, self._stop))
        except Exception:
            get_logger(__name__).exception("worker thread failed")
        if not self._stop.is_set():
            self.failed = True
            os.kill(os.getpid(), signal.SIGTERM)


async def _make_server(settings: Settings) -> None:
    """Before there are two threads: each would make one of its own if both came first."""
    async with connect(settings):
        pass


def run(settings: Settings, *, host: str, port: int) -> int:
    """Until SIGTERM or Ctrl-C. Answers with the exit code."""
    from headway.api.serving.server import run as run_api

    configure(settings.log_format)
    asyncio.run(_make_server(settings))
    worker = _WorkerThread(settings)
    worker.start()
    try:
        code = run_api(settings, host=host, port=port, workers=1)
    finally:
        worker.stop()
    return 1 if worker.failed else code
