"""RQ: its jobs as reported ones, by the worker's class:

    rq worker --worker-class headway.integrations.rq.ReportedWorker

What a job says by `job.meta["progress"] = 42; job.save_meta()` is its progress; `headway.integrations.current_job()`
has more. A retry is the next attempt; a job that is stopped is cancelled, and one that is cancelled is stopped; a horse
that is killed is `worker_lost` after 30 s (HEADWAY_REPORT_LEASE_SECONDS); an RQ group is a batch. `ReportedQueue` shows
jobs while they wait, too. The platform is HEADWAY_URL with HEADWAY_API_KEY.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

from rq import Queue, SimpleWorker, Worker
from rq.command import send_stop_job_command
from rq.job import Job, Retry

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


@cache
def _where() -> Where:
    return Where(lease_seconds=float(os.environ.get("HEADWAY_REPORT_LEASE_SECONDS") or 30))


@cache
def _announcer() -> Announcer:
    return Announcer(_where())


def _work(job: Job) -> Work:
    return Work(job.func_name or "job", f"rq {job.id}", job.group_id)


class ReportedJob(Job):
    """What is performed is reported; `report` at the end of the horse waits for its last word."""

    _tell: Callable[[Any], None] | None = None

    def perform(self) -> Any:
        def cancelled() -> None:
            send_stop_job_command(self.connection, self.id)

        job = _work(self).begin(_where(), cancelled)
        self._tell = lambda meta: told_by(job, meta)
        set_current(job)
        outcome: Outcome | None = None
        try:
            result = super().perform()
            if isinstance(result, Retry):
                outcome = tried_again(None)
            else:
                summed_up(job, result)
            return result  # noqa: TRY300
        except BaseException as error:
            outcome = tried_again(error) if self.should_retry else Outcome("fail", words_of(error))
            raise
        finally:
            self._tell = None
            set_current(None)
            ends(job, outcome)

    def save_meta(self) -> None:
        super().save_meta()  # type: ignore[no-untyped-call]
        if self._tell is not None:
            self._tell(self.meta)


class _Reporting:
    """Of a worker: its jobs are ReportedJobs, and those that are stopped are cancelled."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        worker: Any = self
        if not issubclass(worker.job_class, ReportedJob):
            worker.job_class = type("ReportedJob", (ReportedJob, worker.job_class), {})

    def handle_job_failure(self, job: Job, *more: Any, **named: Any) -> Any:
        stopped = self._stopped_job_id == job.id  # type: ignore[attr-defined]
        result = super().handle_job_failure(job, *more, **named)  # type: ignore[misc]
        if stopped:
            _announcer().cancel(_work(job))
        return result


class ReportedWorker(_Reporting, Worker):
    """`rq worker --worker-class headway.integrations.rq.ReportedWorker`"""


class ReportedSimpleWorker(_Reporting, SimpleWorker):
    """The same of a worker without a horse, which cannot stop a job that does not report."""


class ReportedQueue(Queue):
    """A queue whose jobs are seen while they wait."""

    job_class = ReportedJob

    def _enqueue_job(self, job: Job, *more: Any, **named: Any) -> Job:
        if not job.started_at:
            _announcer().announce(_work(job))
        return super()._enqueue_job(job, *more, **named)


__all__ = ["ReportedJob", "ReportedQueue", "ReportedSimpleWorker", "ReportedWorker", "current_job"]
