"""One task of another queue as a task of Headway's, by a name that whoever has to do with it knows: its id there.

Who enqueues it announces it, so that it is seen while it waits and a batch is whole from its beginning on. The worker
that runs it begins it, and is its next attempt where it was begun before. Both send the same request with the same
Idempotency-Key, so it is one task, whoever comes first. Nothing here waits for the platform: an Announcer is a thread.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal

import httpx

from headway.client import calls
from headway.client.calls import Address
from headway.client.errors import ClientError, Declined, Unreachable
from headway.client.report_sender import ANSWER_SECONDS
from headway.client.reporting import report

log: Final = logging.getLogger("headway.report")

#: How long a task may wait in its queue: as long as the platform remembers an Idempotency-Key.
WAITS_SECONDS: Final = 24 * 3600
#: Words that wait for the platform; more are dropped, and said.
PENDING: Final = 10_000
#: How long a process that ends waits for what it has announced.
LAST_SECONDS: Final = 2.0
#: For how long a task that is to be cancelled is tried to be told.
TRIES: Final = 60


@dataclass(frozen=True, slots=True)
class Where:
    """The platform, and how its tasks are asked for."""

    url: str | None = None
    key: str | None = None
    lease_seconds: float = 30.0
    patience_seconds: float = LAST_SECONDS


@dataclass(frozen=True, slots=True)
class Work:
    """`producer`: the task's name in its queue; `key`: its queue and its id there; `batch_id`: of the group that it is
    in, if any."""

    producer: str
    key: str
    batch_id: str | None = None

    def begin(self, where: Where, on_cancelled: Callable[[], None] | None = None) -> report:
        """Its job, entered. The next call of the job's raises Cancelled when somebody has cancelled the task."""
        job = report(
            self.name,
            batch_id=self.batch_id,
            idempotency_key=self.key,
            lease_seconds=where.lease_seconds,
            url=where.url,
            key=where.key,
            raise_cancelled=True,
            patience_seconds=where.patience_seconds,
        )
        if on_cancelled is not None:
            job.on_cancelled(on_cancelled)
        return job.__enter__()

    @property
    def name(self) -> str:
        return "".join(c for c in self.producer if c.isprintable())[:100].strip() or "task"


def ends(job: report, outcome: Outcome | None) -> None:
    """Tells the end of the attempt. None: it is done."""
    if outcome is not None and outcome.how == "fail":
        job.fail(outcome.message)
    elif outcome is not None and outcome.how == "leave":
        job.leave()
    elif outcome is not None:
        job.again(outcome.message, within_seconds=WAITS_SECONDS)
    job.__exit__(None, None, None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`again`: another attempt comes. `leave`: the process is told to go in the middle, so somebody else says what
    becomes of the task, or nobody."""

    how: Literal["fail", "again", "leave"]
    message: str = ""


def words_of(error: BaseException | None) -> str:
    said = "" if error is None else str(error).strip().partition("\n")[0]
    name = "" if error is None else type(error).__name__
    return ": ".join(part for part in (name, said) if part)[:500] or "It failed"


def tried_again(error: BaseException | None) -> Outcome:
    return Outcome("again", f"It is tried again after {words_of(error)}"[:500])


def summed_up(job: report, result: Any) -> None:
    """What a task returned is its summary, where that is JSON and small."""
    try:
        text = json.dumps(result, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return
    if result is not None and len(text) < 4096:
        job.summary |= result if isinstance(result, dict) else {"result": result}


def told_by(job: report, meta: Any) -> None:
    """What people write by themselves about how far they are: `current` or `done` of `total`, `progress` or `percent`,
    and a word in `status`, `message` or `description`."""
    if not isinstance(meta, Mapping):
        return
    word = next((meta[name] for name in ("message", "status", "description") if isinstance(meta.get(name), str)), None)
    if word is not None:
        job.message(word)
    done = next((meta[name] for name in ("current", "done") if _is_number(meta.get(name))), None)
    total = meta.get("total")
    if done is None:
        done = next((meta[name] for name in ("percent", "progress") if _is_number(meta.get(name))), None)
        total = 100
    if done is not None:
        job.progress_to(done, total if _is_number(total) else None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53


_current: ContextVar[report | None] = ContextVar("headway job", default=None)


def current_job() -> report:
    """The job of the task that runs here; where none is reported, one that nobody hears, so that it can be called all
    the same."""
    return _current.get() or _nobody()


def set_current(job: report | None) -> None:
    _current.set(job)


def _nobody() -> report:
    return report("nobody")


class Announcer:
    """Tells the platform of tasks that wait, and of those that are revoked: in their order, by a thread of its own."""

    def __init__(self, where: Where) -> None:
        self._where = where
        self._url = where.url or os.environ.get("HEADWAY_URL") or calls.DEFAULT_URL
        self._address = Address(self._url, where.key or os.environ.get("HEADWAY_API_KEY") or None, ANSWER_SECONDS)
        self._begin()
        os.register_at_fork(after_in_child=self._begin)
        atexit.register(self._flush)

    def _begin(self) -> None:
        """Also in a fork: the thread is the parent's, and so is what waits for it."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._words: queue.Queue[tuple[Work, bool, float]] = queue.Queue(PENDING)
        self._dropped = False

    def announce(self, work: Work) -> None:
        """It waits in its queue."""
        self._say(work, False)

    def cancel(self, work: Work) -> None:
        """It will not be run, or no further."""
        self._say(work, True)

    def _say(self, work: Work, cancelled: bool) -> None:
        try:
            self._words.put_nowait((work, cancelled, time.monotonic()))
        except queue.Full:
            if not self._dropped:
                self._dropped = True
                log.warning("tasks are no longer announced: %s wait for the platform already", PENDING)
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="headway announcer", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        away = False
        with httpx.Client(**self._address.http_options) as http:
            while True:
                work, cancelled, _ = self._words.get()
                tries = 0
                while True:
                    try:
                        self._tell(http, work, cancelled)
                        away = False
                    except Unreachable as error:
                        if not away:
                            away = True
                            log.warning("%s Tasks that wait are told when it is back.", error)
                        tries += 1
                        if tries < TRIES:
                            time.sleep(1)
                            continue
                    except ClientError as error:
                        log.warning("a task was not announced: %s", error)
                    except Exception:
                        log.exception("a task was not announced")
                    break
                self._words.task_done()

    def _tell(self, http: httpx.Client, work: Work, cancelled: bool) -> None:
        asked: dict[str, Any] = {"producer": work.name, "lease_seconds": self._where.lease_seconds}
        asked |= {"batch_id": work.batch_id} if work.batch_id is not None else {}
        made = self._ask(http, "/tasks", asked | {"waits_seconds": WAITS_SECONDS}, {"Idempotency-Key": work.key})
        if cancelled:
            with contextlib.suppress(Declined):  # it has ended
                self._ask(http, f"/tasks/{made['task_id']}/cancel", None, {})

    def _ask(self, http: httpx.Client, path: str, body: Any, headers: Mapping[str, str]) -> dict[str, Any]:
        try:
            response = http.post(self._address.at(path), json=body, headers=dict(headers))
            self._address.check(response)
            answer = response.json()
        except httpx.RequestError as error:
            raise self._address.unreachable(error) from None
        except ValueError:
            raise self._address.stranger() from None
        except Declined as error:
            if error.status in (408, 429) or error.status >= 500:
                raise Unreachable(str(error)) from None
            raise
        return answer if isinstance(answer, dict) else {}

    def _flush(self) -> None:
        until = time.monotonic() + LAST_SECONDS
        while self._words.unfinished_tasks and self._thread is not None and time.monotonic() < until:
            time.sleep(0.01)
