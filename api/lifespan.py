"""What the API holds open, on one exit stack, as one typed State; and the stop signal that ends the streams.

uvicorn tells an application to stop only after every response has ended, and a stream does not end by itself. So the
signal is caught here, in front of uvicorn's own handler: streams are told first, then uvicorn stops as it always does.
It works the same under `headway api`, `uvicorn api.main:app`, and each process of `--workers`.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from api.descriptors import raise_open_files
from api.digests import Digests
from api.doubtful import Doubtful
from api.head_room import HeadRoom
from api.idempotency import Idempotency
from api.keyring import Keyring
from api.limits import Limits
from api.metrics import ApiMetrics
from api.relay import Relay
from api.sessions import Sessions
from api.stopping import Stop
from api.turns import Turns
from api.upload_digests import UploadDigests
from shared.feed import Feed
from shared.idempotency import Answers
from shared.logging import get_logger
from shared.processors import Registry, load_registry
from shared.progress import Publisher
from shared.redis import RedisClient, connect
from shared.settings import Settings
from shared.storage import Storage, open_storage
from shared.tracing import Tracing

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class State:
    """Everything a request can reach, by name and type."""

    settings: Settings
    redis: RedisClient
    publisher: Publisher
    #: Waits for a Redis that is away, for what must not be lost; the caller sets the deadline.
    patient_publisher: Publisher
    feed: Feed
    relay: Relay
    stop: Stop
    storage: Storage
    #: Of the files in HEADWAY_FILES_DIR.
    digests: Digests
    upload_digests: UploadDigests
    doubtful: Doubtful
    registry: Registry
    idempotency: Idempotency
    keyring: Keyring
    sessions: Sessions
    limits: Limits
    turns: Turns
    metrics: ApiMetrics


def lifespan_of(settings: Settings, keyring: Keyring, tracing: Tracing) -> Callable[[Any], Any]:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[Mapping[str, Any]]:
        raise_open_files()
        storage = open_storage(settings)
        registry = load_registry(settings.processors)
        for module, reason in registry.broken.items():
            log.error("processor module not loaded", module=module, reason=reason)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(tracing)
            metrics = ApiMetrics()
            await stack.enter_async_context(metrics.shown())
            redis = await stack.enter_async_context(connect(settings, on_reconnect=metrics.commands_reconnected))
            feed = Feed(redis)
            relay = await stack.enter_async_context(Relay(feed, settings, metrics, tracing))
            digests = await stack.enter_async_context(Digests())
            doubtful = await stack.enter_async_context(Doubtful(feed))
            head_room = await stack.enter_async_context(HeadRoom(redis, settings))
            sessions = await stack.enter_async_context(Sessions(redis))
            stack.enter_context(before_stopping(relay.drain))
            stop = Stop()
            stack.enter_context(before_stopping(stop.begin))
            yield {
                "headway": State(
                    settings=settings.model_copy(update={"api_keys": {}}),  # the keyring has what is needed of them
                    redis=redis,
                    publisher=Publisher(redis, settings, tracing=tracing, most_words=head_room.most_words),
                    patient_publisher=Publisher(redis, settings, patient=True, tracing=tracing),
                    feed=feed,
                    relay=relay,
                    stop=stop,
                    storage=storage,
                    digests=digests,
                    upload_digests=UploadDigests(storage),
                    doubtful=doubtful,
                    registry=registry,
                    idempotency=Idempotency(Answers(redis), feed),
                    keyring=keyring,
                    sessions=sessions,
                    limits=Limits(settings, redis, head_room),
                    turns=Turns(),
                    metrics=metrics,
                ),
            }

    return lifespan


@contextmanager
def before_stopping(drain: Callable[[], None]) -> Iterator[None]:
    """Calls `drain` on the event loop when SIGTERM or SIGINT arrives, then whatever handled the signal before.

    Does nothing outside the main thread, where signals cannot be caught: whoever runs the server there drains itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {sig: signal.getsignal(sig) for sig in (signal.SIGTERM, signal.SIGINT)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(drain)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for sig in before:
        signal.signal(sig, on_signal)
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
