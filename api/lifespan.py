"""What the API holds open, on one exit stack, as one typed State; and the stop signal that ends the streams.

uvicorn tells an application to stop only after every response has ended, and a stream does not end by itself. So the
signal is caught here, in front of uvicorn's own handler: streams are told first, then uvicorn stops as it always does.
It works the same under `headway api`, `uvicorn api.main:app`, and each process of `--workers`.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from headway.api.access.head_room import HeadRoom
from headway.api.access.installation_secret import InstallationSecret
from headway.api.access.keyring import Keyring
from headway.api.access.limits import Limits
from headway.api.access.sessions import Sessions
from headway.api.access.tokens import Tokens
from headway.api.access.tokens_of_settings import tokens_of
from headway.api.downloads.file_digests import FileDigests
from headway.api.producing.producers import Producers
from headway.api.serving.api_metrics import ApiMetrics
from headway.api.serving.descriptors import raise_open_files
from headway.api.serving.shutdown import Shutdown
from headway.api.serving.storage_check import StorageCheck
from headway.api.serving.turns import Turns
from headway.api.streams.places import Places
from headway.api.streams.relay import Relay
from headway.api.uploads.doubtful_uploads import Doubtful
from headway.api.uploads.idempotency import Idempotency
from headway.api.uploads.upload_digests import UploadDigests
from headway.shared.cancellation import cancel
from headway.shared.files.place import open_storage
from headway.shared.files.storage import Storage
from headway.shared.logging import get_logger
from headway.shared.redis import place
from headway.shared.redis.client import RedisClient, connect
from headway.shared.settings import Settings
from headway.shared.tasks.idempotency import Answers
from headway.shared.tasks.line import Line
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from headway.shared.tasks.registry import Registry, say_what_was_found
from headway.shared.tasks.silent_producers import SilentProducers
from headway.shared.tracing import Tracing

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class State:
    """Everything a request can reach, by name and type."""

    settings: Settings
    redis: RedisClient
    publisher: Publisher
    #: Waits for a Redis that is away, for what must not be lost; the caller sets the deadline.
    patient_publisher: Publisher
    reader: Reader
    line: Line
    relay: Relay
    producers: Producers
    stop: Shutdown
    storage: Storage
    storage_check: StorageCheck
    #: Of the files in HEADWAY_FILES_DIR.
    digests: FileDigests
    upload_digests: UploadDigests
    doubtful: Doubtful
    registry: Registry
    idempotency: Idempotency
    keyring: Keyring
    secret: InstallationSecret
    #: Of somebody else's login; None: none are taken.
    tokens: Tokens | None
    sessions: Sessions
    limits: Limits
    turns: Turns
    metrics: ApiMetrics


def lifespan_of(settings: Settings, keyring: Keyring, tracing: Tracing, registry: Registry) -> Callable[[Any], Any]:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[Mapping[str, Any]]:
        raise_open_files()
        storage = open_storage(settings)
        await asyncio.to_thread(storage.prepare)  # here for who mounts this app; whoever runs it has done so already
        say_what_was_found(registry)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(tracing)
            metrics = ApiMetrics()
            await stack.enter_async_context(metrics.shown())
            redis = await stack.enter_async_context(connect(settings, on_reconnect=metrics.commands_reconnected))
            await stack.enter_async_context(place.held(redis, settings))
            reader = Reader(redis)
            relay = await stack.enter_async_context(Relay(reader, settings, metrics, tracing))
            folder = None if settings.storage_url else settings.data_dir
            storage_check = await stack.enter_async_context(StorageCheck(storage, folder))
            digests = await stack.enter_async_context(FileDigests())
            doubtful = await stack.enter_async_context(Doubtful(reader))
            head_room = await stack.enter_async_context(HeadRoom(redis, settings))
            sessions = await stack.enter_async_context(Sessions(redis))
            tokens = await stack.enter_async_context(tokens_of(settings))
            publisher = Publisher(redis, settings, tracing=tracing, most_words=head_room.most_words)
            await stack.enter_async_context(_in_background(SilentProducers(redis, publisher).run(), "silent producers"))
            limits = {one.name: one.concurrency for one in registry.processors.values() if one.concurrency is not None}
            line = Line(redis, limits)
            await stack.enter_async_context(_in_background(Places(relay, line, publisher).run(), "places"))
            secret = InstallationSecret(redis, keyring)
            await secret.look_ahead()
            stack.enter_context(before_stopping(relay.drain))
            stop = Shutdown()
            stack.enter_context(before_stopping(stop.begin))
            yield {
                "headway": State(
                    # The keyring has what is needed of them.
                    settings=settings.model_copy(update={"api_keys": {}, "jwt_key": None}),
                    redis=redis,
                    publisher=publisher,
                    patient_publisher=Publisher(redis, settings, patient=True, tracing=tracing),
                    reader=reader,
                    line=line,
                    relay=relay,
                    producers=Producers(publisher, reader),
                    stop=stop,
                    storage=storage,
                    storage_check=storage_check,
                    digests=digests,
                    upload_digests=UploadDigests(),
                    doubtful=doubtful,
                    registry=registry,
                    idempotency=Idempotency(Answers(redis), reader),
                    keyring=keyring,
                    secret=secret,
                    tokens=tokens,
                    sessions=sessions,
                    limits=Limits(settings, redis, head_room),
                    turns=Turns(),
                    metrics=metrics,
                ),
            }

    return lifespan


@asynccontextmanager
async def _in_background(service: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    running = asyncio.create_task(service, name=name)
    try:
        yield
    finally:
        await cancel(running)


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
