"""`concurrent.futures` and `multiprocessing.Pool`: what is submitted to them as one task, with one bar.

    with reported(ProcessPoolExecutor(), "thumbnails") as pool:
        for made in pool.map(thumbnail, files):
            ...

Each call that is submitted is one of the total, and counts when it is done. The block's normal end completes the task;
it fails with an exception, or where calls have raised. A cancelled task cancels the calls that have not begun.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from multiprocessing.pool import AsyncResult, Pool
from typing import Any, Final, TypeVar

from headway.client.reporting import Cancelled, report
from headway.integrations.work import words_of

T = TypeVar("T")

#: How soon a cancelled task is noticed by who waits.
LOOK_SECONDS: Final = 0.2


@contextmanager
def reported(pool: Any, name: str, **asked: Any) -> Iterator[Any]:
    """The pool, whose calls are counted; it is shut down with the block. `asked`: as of `headway.report`, whose job is
    `pool.job`."""
    with pool, report(name, unit=asked.pop("unit", "calls"), **asked) as job:
        counted = ReportedPool(pool, job) if isinstance(pool, Pool) else ReportedExecutor(pool, job)
        yield counted
        counted.wait()
        if counted.failed:
            job.fail(f"{counted.failed} of {counted.total} calls failed; the first: {counted.first}")


class _Counted:
    def __init__(self, job: report) -> None:
        self.job = job
        self.total = self.failed = 0
        self.first = ""
        self._done = 0
        self._changed = threading.Condition()

    def _submitted(self) -> None:
        with self._changed:
            self.total += 1
            self.job.progress_to(self._done, self.total)

    def _over(self, error: BaseException | None) -> None:
        with self._changed:
            self._done += 1
            if error is not None:
                self.failed += 1
                self.first = self.first or words_of(error)
            self.job.progress_to(self._done, self.total)
            self._changed.notify_all()
        if error is not None:
            self.job.log(words_of(error), "error")

    def wait(self) -> None:
        """Until all that was submitted is over."""
        with self._changed:
            while self._done < self.total and not self.job.cancelled:
                self._changed.wait(LOOK_SECONDS)


class ReportedExecutor(_Counted, Executor):
    """An executor whose calls are counted."""

    def __init__(self, executor: Executor, job: report) -> None:
        super().__init__(job)
        self._executor = executor
        self._futures: set[Future[Any]] = set()
        job.on_cancelled(self._cancel)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future = self._executor.submit(fn, *args, **kwargs)
        self._submitted()
        self._futures.add(future)
        future.add_done_callback(self._ended)
        if self.job.cancelled:
            future.cancel()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._executor.shutdown(wait=wait, cancel_futures=cancel_futures)

    def _ended(self, future: Future[Any]) -> None:
        self._futures.discard(future)
        self._over(None if future.cancelled() else future.exception())

    def _cancel(self) -> None:
        for future in list(self._futures):
            future.cancel()


class ReportedPool(_Counted):
    """The calls of a multiprocessing.Pool, one by one. Who waits for one in `map` and its kin gets Cancelled when the
    task is cancelled, and the end of the block ends the pool."""

    def __init__(self, pool: Pool, job: report) -> None:
        super().__init__(job)
        self._pool = pool

    def apply_async(self, func: Callable[..., T], args: Iterable[Any] = (), kwds: Any = None) -> AsyncResult[T]:
        self._submitted()
        return self._pool.apply_async(
            func, tuple(args), kwds or {}, callback=lambda _: self._over(None), error_callback=self._over
        )

    def apply(self, func: Callable[..., T], args: Iterable[Any] = (), kwds: Any = None) -> T:
        return self._got(self.apply_async(func, args, kwds))

    def imap(self, func: Callable[..., T], iterable: Iterable[Any]) -> Iterator[T]:
        results = [self.apply_async(func, (one,)) for one in iterable]
        return (self._got(result) for result in results)

    imap_unordered = imap

    def map(self, func: Callable[..., T], iterable: Iterable[Any]) -> list[T]:
        return list(self.imap(func, iterable))

    def starmap(self, func: Callable[..., T], iterable: Iterable[Iterable[Any]]) -> list[T]:
        results = [self.apply_async(func, one) for one in iterable]
        return [self._got(result) for result in results]

    def _got(self, result: AsyncResult[T]) -> T:
        while not result.ready():
            if self.job.cancelled:
                raise Cancelled
            result.wait(LOOK_SECONDS)
        return result.get()
