"""Start and stop of a worker, on one exit stack: logs, Redis, fork server, subscription, arq's loop.

SIGTERM or Ctrl-C: takes no more, hands running tasks back, exits within 5 s. A second one exits at once.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from contextlib import AsyncExitStack, suppress

from arq.worker import func

from headway.shared import keys
from headway.shared.cancellation import cancel
from headway.shared.errors import ProcessorFailure, SettingsError
from headway.shared.files.place import open_storage
from headway.shared.hidden import hide_from_children
from headway.shared.logging import configure, get_logger
from headway.shared.redis import place
from headway.shared.redis.client import AWAY, RedisClient, connect, trouble_ahead
from headway.shared.redis.memory import words_of_one
from headway.shared.redis.subscription import Subscription
from headway.shared.settings import Settings
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.queue import PROCESS_FILE, stopped_by
from headway.shared.tasks.reader import Reader
from headway.shared.tasks.registry import Registry, load_registry, say_what_was_found
from headway.shared.tasks.silent_producers import SilentProducers
from headway.shared.tracing import tracing_of
from headway.worker.arq_worker import LeasedWorker
from headway.worker.box.descendants import adopt
from headway.worker.box.walls import Box, Standing
from headway.worker.followers import Followers
from headway.worker.jobs import Outcome, Runner, process_file
from headway.worker.leases import Leases, Limits
from headway.worker.sandbox import Sandbox
from headway.worker.sweeper import Sweeper
from headway.worker.wall_notice import WallNotice
from headway.worker.webhook_sender import WebhookSender
from headway.worker.worker_metrics import WorkerMetrics, served

log = get_logger(__name__)

#: arq's own time limit is a backstop behind ours.
ARQ_EXTRA_SECONDS = 60.0

#: CONTRACT section 5: a worker that is told to stop has exited within 5 s, also where Redis does not answer.
STOP_SECONDS = 3.5
LEAVE_SECONDS = 0.3


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Runs a worker until `stop` is set. Raises SettingsError where the data directory cannot be used, ProcessorFailure
    where the sandbox does not come up."""
    worker_id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    storage = open_storage(settings)
    storage.prepare()
    registry = load_registry(settings.processors, settings.app_dir)
    say_what_was_found(registry)
    tracing = tracing_of("headway-worker")
    box = Box.of(settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(tracing)
        metrics = WorkerMetrics(registry.processors, Outcome, unless_told=Outcome.LOST)
        await stack.enter_async_context(served(metrics, settings))
        redis = await stack.enter_async_context(connect(settings, retries=3, on_reconnect=metrics.commands_reconnected))
        await stack.enter_async_context(place.held(redis, settings))
        sandbox = await stack.enter_async_context(
            Sandbox(settings.processors, metrics.child_ended, settings.app_dir, box)
        )
        _refuse_without(box, sandbox.standing)
        metrics.walls_stand(sandbox.standing.walls)
        notice = WallNotice(redis, worker_id, box, sandbox.standing)
        leases = Leases(redis, worker_id, settings.lease_seconds, _limits(settings, registry))
        runner = Runner(
            settings,
            publisher=Publisher(
                redis,
                settings,
                patient=True,
                tracing=tracing,
                on_event=metrics.event_published,
                most_words=lambda: words_of_one(settings.owner_words_bytes, sweeper.memory),
            ),
            reader=Reader(redis, patient=True),
            storage=storage,
            registry=registry,
            sandbox=sandbox,
            tracing=tracing,
            metrics=metrics,
        )
        # Not patient: what is swept can wait for the next round.
        publisher = Publisher(redis, settings, on_event=metrics.event_published)
        followers = Followers(redis, publisher, Reader(redis), storage)
        sweeper = Sweeper(redis, settings, publisher=publisher, storage=storage, worker_id=worker_id)
        worker = LeasedWorker(
            func(process_file, name=PROCESS_FILE),
            redis=redis,
            queue_name=keys.QUEUE,
            leases=leases,
            lease_seconds=settings.lease_seconds,
            max_jobs=settings.worker_concurrency,
            job_timeout_seconds=_longest_seconds(settings, registry) + ARQ_EXTRA_SECONDS,
            on_lost=runner.lost,
            on_strange=lambda: metrics.refuse("queue member"),
            ctx={"runner": runner},
        )

        def on_message(_: str, data: bytes) -> None:
            try:
                task_id = stopped_by(data)
            except ValueError:
                metrics.refuse("message")
                return
            if task_id is None:
                worker.wake()
                followers.wake()
            else:
                runner.stop(task_id, "it was cancelled", Outcome.CANCELLED)

        subscription = Subscription(
            settings,
            on_message=on_message,
            on_subscribed=lambda _: worker.wake(),
            on_reconnect=metrics.subscription_reconnected,
        )
        metrics.reaches_redis = lambda: worker.away is None and subscription.broken is None
        subscription.subscribe(keys.CONTROL)
        log.info("worker ready", worker_id=worker_id, concurrency=settings.worker_concurrency)
        async with asyncio.TaskGroup() as group:
            services = [
                group.create_task(subscription.run(), name="subscription"),
                group.create_task(worker.main(), name="arq"),
                group.create_task(sweeper.run(), name="sweeper"),
                group.create_task(SilentProducers(redis, publisher).run(), name="silent producers"),
                group.create_task(followers.run(), name="followers"),
                group.create_task(WebhookSender(redis, settings, count=metrics.webhook_tried).run(), name="webhooks"),
                group.create_task(_say_trouble(redis), name="trouble"),
                group.create_task(notice.run(), name="walls"),
            ]
            await stop.wait()
            log.info("worker stopping", running=len(worker.tasks))
            worker.allow_pick_jobs = False
            runner.give_back_all()
            if worker.tasks:
                await asyncio.wait(worker.tasks.values(), timeout=STOP_SECONDS)
            await cancel(*worker.tasks.values(), *services)
        with suppress(*AWAY, TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await leases.leave()
                await sweeper.leave()
                await notice.leave()
    log.info("worker stopped")


def _limits(settings: Settings, registry: Registry) -> Limits:
    own = {one.name: one.concurrency for one in registry.processors.values() if one.concurrency is not None}
    return Limits(settings.owner_concurrency, own)


def _longest_seconds(settings: Settings, registry: Registry) -> float:
    """That one attempt may run."""
    return max(settings.task_timeout_seconds, *(one.timeout_seconds or 0 for one in registry.processors.values()))


def _refuse_without(box: Box, standing: Standing) -> None:
    """HEADWAY_CONFINEMENT=required: raises SettingsError that says what is missing, and how to get it."""
    if box.mode == "required" and standing.missing:
        lines = "".join(f"\n  {wall}: {reason}" for wall, reason in standing.missing.items())
        raise SettingsError(
            f"HEADWAY_CONFINEMENT: is required, and these walls are missing around processors:{lines}\n"
            "Example: HEADWAY_CONFINEMENT=best, which runs without them and says so"
        )


async def _say_trouble(redis: RedisClient) -> None:
    with suppress(*AWAY):  # the loops say that themselves, and go on asking
        if (trouble := await trouble_ahead(redis)) is not None:
            log.error("redis not fit for tasks", reason=trouble)


def run(settings: Settings) -> int:
    """A worker process: `headway worker`. Returns the exit code."""
    configure(settings.log_format)
    hide_from_children()
    if sys.platform == "linux":
        adopt()

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if stop.is_set():
                os._exit(1)
            stop.set()

        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, on_signal)
        await serve(settings, stop)

    try:
        asyncio.run(main())
    except ProcessorFailure as error:  # no attempt's, those have ends of their own: the sandbox has not come up
        log.error("worker not started", reason=str(error))  # noqa: TRY400 - the reason is all there is to say
        return 1
    return 0
