"""Celery 5: its tasks as reported ones.

    from headway.integrations.celery import report_tasks
    report_tasks(app)

where the app is made, so that who enqueues and who works both have it. What a task says by `self.update_state(meta=
{"current": 3, "total": 10})` is its progress; `headway.integrations.current_job()` has more. A retry is the next
attempt; `revoke` is a cancel, and a cancel is a `revoke`, which ends a prefork worker's child; a worker that is killed
is `worker_lost` after `lease_seconds`; a group, or a chord with its body, is a batch of the group's id.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any, Final

from billiard.process import current_process
from celery import Celery, signals

from headway.integrations.work import (
    Announcer,
    Outcome,
    Where,
    Work,
    current_job,
    ends,
    set_current,
    summed_up,
    told_by,
    tried_again,
    words_of,
)

#: The header of a chord's body that says which batch it is in.
BATCH: Final = "headway_batch"
#: Chords whose body is announced, of the newest.
REMEMBERED: Final = 1000


def report_tasks(
    app: Celery,
    *,
    only: Collection[str] | None = None,
    lease_seconds: float = 30.0,
    url: str | None = None,
    key: str | None = None,
) -> None:
    """From now on the tasks of `app` are reported. `only`: the names of those that are. `url` and `key`: as of
    `headway.report`. Raises WrongUse for what is no URL or no key."""
    _Tasks(app, only, Where(url, key, lease_seconds, patience_seconds=0.0)).connect()


class _Tasks:
    def __init__(self, app: Celery, only: Collection[str] | None, where: Where) -> None:
        self._app = app
        self._only = None if only is None else frozenset(only)
        self._where = where
        self._announcer = Announcer(where)
        #: Of this process: the jobs that run, by the task's id, and those whose end may still be on its way.
        self._jobs: dict[str, Any] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._ending: list[Any] = []
        self._chords: OrderedDict[str, None] = OrderedDict()

    def connect(self) -> None:
        handlers: list[tuple[Any, Callable[..., None]]] = [
            (signals.before_task_publish, self._published),
            (signals.task_prerun, self._begins),
            (signals.task_success, self._succeeded),
            (signals.task_failure, self._failed),
            (signals.task_retry, self._retried),
            (signals.task_postrun, self._ends),
            (signals.task_revoked, self._revoked),
            (signals.worker_process_shutdown, self._last_words),
            (signals.worker_shutdown, self._last_words),
        ]
        for signal, handler in handlers:
            signal.connect(handler, weak=False)
        original = self._app.Task.update_state
        jobs = self._jobs

        def update_state(task: Any, task_id: Any = None, state: Any = None, meta: Any = None, **more: Any) -> None:
            original(task, task_id=task_id, state=state, meta=meta, **more)
            if (job := jobs.get(task_id or task.request.id)) is not None:
                told_by(job, meta)

        self._app.Task.update_state = update_state

    def _wanted(self, name: str) -> bool:
        return name in self._only if self._only is not None else not name.startswith("celery.")

    def _work(self, name: str, task_id: str, batch_id: str | None) -> Work:
        return Work(name, f"celery {task_id}", batch_id)

    # Who enqueues.

    def _published(self, sender: str = "", headers: Any = None, body: Any = None, **_: Any) -> None:
        if not isinstance(headers, dict) or not isinstance(body, tuple | list) or len(body) < 3:
            return  # the protocol of Celery 3
        group = headers.get("group")
        chord = body[2].get("chord") if isinstance(body[2], dict) else None
        if sender == "celery.chord_unlock" and len(body[0]) > 1:
            group, chord = body[0][0], body[0][1]
        if chord and group:
            self._body_of_chord(chord, str(group))
        if self._wanted(sender) and not headers.get("retries"):
            self._announcer.announce(self._work(sender, headers["id"], headers.get(BATCH) or group))

    def _body_of_chord(self, body: Any, group: str) -> None:
        """It is in the batch of its chord from the beginning on, and knows that when it is run."""
        name, options = body.get("task"), body.get("options")
        if not isinstance(options, dict) or not options.get("task_id") or not self._wanted(str(name)):
            return
        options["headers"] = {**(options.get("headers") or {}), BATCH: group}
        if options["task_id"] not in self._chords:
            self._chords[options["task_id"]] = None
            while len(self._chords) > REMEMBERED:
                self._chords.popitem(last=False)
            self._announcer.announce(self._work(str(name), options["task_id"], group))

    # Who works.

    def _begins(self, sender: Any = None, task_id: str = "", task: Any = None, **_: Any) -> None:
        if (task.app is not self._app and task.app.main != self._app.main) or not self._wanted(task.name):
            return
        request = task.request

        def cancelled() -> None:
            forked = current_process().name != "MainProcess"  # type: ignore[no-untyped-call]
            self._app.control.revoke(task_id, terminate=forked)

        batch_id = _batch_of(request)
        job = self._work(task.name, task_id, batch_id).begin(self._where, cancelled)
        self._jobs[task_id] = job
        set_current(job)

    def _succeeded(self, sender: Any = None, result: Any = None, **_: Any) -> None:
        if (job := self._jobs.get(sender.request.id)) is not None:
            summed_up(job, result)

    def _failed(self, task_id: str = "", exception: Any = None, **_: Any) -> None:
        self._outcomes[task_id] = Outcome("fail", words_of(exception))

    def _retried(self, request: Any = None, reason: Any = None, **_: Any) -> None:
        self._outcomes[request.id] = tried_again(getattr(reason, "exc", None) or reason)

    def _ends(self, task_id: str = "", state: Any = None, **_: Any) -> None:
        outcome = self._outcomes.pop(task_id, None)
        if outcome is None and state == "REJECTED":
            outcome = Outcome("again", "It was put back into its queue")
        elif outcome is None and state is None:  # its process is told to go
            outcome = Outcome("leave")
        if (job := self._jobs.pop(task_id, None)) is None:
            return
        set_current(None)
        ends(job, outcome)
        self._ending = [one for one in self._ending if not one.over] + [job]

    def _revoked(self, request: Any = None, **_: Any) -> None:
        name = getattr(request, "name", None) or getattr(request, "task", None)
        if isinstance(name, str) and self._wanted(name):
            self._announcer.cancel(self._work(name, request.id, _batch_of(request)))

    def _last_words(self, **_: Any) -> None:
        """The process ends: what its tasks have said last is heard first, if that can be soon."""
        for job in self._ending:
            job.wait_for_the_end(2.0)


def _batch_of(request: Any) -> str | None:
    headers = getattr(request, "headers", None) or {}
    found = getattr(request, BATCH, None) or headers.get(BATCH) or getattr(request, "group", None)
    return str(found) if found else None


__all__ = ["current_job", "report_tasks"]
