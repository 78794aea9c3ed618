"""Dramatiq: its messages as reported tasks, by a middleware:

    broker.add_middleware(Reported())

A retry is the next attempt; a cancel raises Cancelled in the actor's thread, and is not retried; a worker that is
killed is `worker_lost` after `lease_seconds`; messages with the option `headway_batch` are a batch of that name:
`actor.send_with_options(args=(1,), headway_batch="nightly")`. `headway.integrations.current_job()` is the job.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from dramatiq import Broker, Message, Middleware
from dramatiq.broker import MessageProxy
from dramatiq.middleware import SkipMessage
from dramatiq.middleware.threading import Interrupt, raise_thread_exception

from headway.client.reporting import report
from headway.integrations.work import (
    Announcer,
    Outcome,
    Where,
    Work,
    current_job,
    ends,
    set_current,
    summed_up,
    tried_again,
    words_of,
)


class Cancelled(Interrupt):
    """Somebody has cancelled the task."""


@dataclass(slots=True)
class _Running:
    job: report
    thread: int
    message: Any
    #: The actor runs at this moment, and can be interrupted.
    inside: bool = True
    error: BaseException | None = None


class Reported(Middleware):
    """`only`: the names of the actors that are reported; None: all. `url` and `key`: as of `headway.report`."""

    def __init__(
        self,
        *,
        only: Collection[str] | None = None,
        lease_seconds: float = 30.0,
        url: str | None = None,
        key: str | None = None,
    ) -> None:
        self._only = None if only is None else frozenset(only)
        self._where = Where(url, key, lease_seconds)
        self._announcer = Announcer(self._where)
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()

    @property
    def actor_options(self) -> set[str]:
        return {"headway_batch"}

    def _wanted(self, message: Any) -> bool:
        return self._only is None or message.actor_name in self._only

    @staticmethod
    def _work(message: Any) -> Work:
        return Work(message.actor_name, f"dramatiq {message.message_id}", message.options.get("headway_batch"))

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        if self._wanted(message) and not message.options.get("retries"):
            self._announcer.announce(self._work(message))

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        if not self._wanted(message):
            return
        message_id = message.message_id
        job = self._work(message).begin(self._where, lambda: self._interrupt(message_id))
        with self._lock:
            self._running[message_id] = _Running(job, threading.get_ident(), message)
        set_current(job)

    def _interrupt(self, message_id: str) -> None:
        with self._lock:
            running = self._running.get(message_id)
            if running is not None and running.inside:
                running.message.options["throws"] = Cancelled  # of this process alone: it is not enqueued again
                raise_thread_exception(running.thread, Cancelled)  # type: ignore[no-untyped-call]

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        with self._lock:
            running = self._running.get(message.message_id)
            if running is not None:
                running.inside = False
        if running is None:
            return
        running.error = exception
        if exception is None:
            summed_up(running.job, result)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        self.after_process_message(broker, message, exception=SkipMessage())
        message.fail()

    # What becomes of a message is known when the broker is told, whatever other middlewares there are.

    def before_ack(self, broker: Broker, message: MessageProxy) -> None:
        running = self._ended(message)
        if running is not None:
            ends(running.job, None if running.error is None else tried_again(running.error))

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        running = self._ended(message)
        if running is not None:
            ends(running.job, Outcome("fail", words_of(running.error)))

    def _ended(self, message: MessageProxy) -> _Running | None:
        with self._lock:
            running = self._running.pop(message.message_id, None)
        if running is not None:
            set_current(None)
        return running


__all__ = ["Cancelled", "Reported", "current_job"]
