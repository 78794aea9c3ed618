"""`report`: the progress of work that no worker of Headway's runs, with the `job` that a processor has.

    with report("nightly-report", total=len(rows)) as job:
        for row in job.track(rows):
            ...
        job.summary["rows"] = len(rows)

The block's normal end completes the task, with `job.summary`; an exception fails it. Nothing here makes the work wait
for the platform, but for the last word: a thread sends what is new, at most ten times a second, and signs of life. A
platform that is away is said once in the log (`headway.report`), and told what was last when it is there again. A
process that is killed says nothing more, so the platform ends its task as `worker_lost` after `lease_seconds`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Literal, Self, TypeVar

from headway.client import calls
from headway.client.calls import Address
from headway.client.report_sender import ANSWER_SECONDS, Sender
from headway.tqdm_hook import hooked

T = TypeVar("T")

#: Where nothing is new a sign of life comes this often: how soon a cancelled task is noticed.
ALIVE_SECONDS: Final = 2.0
#: How long the block's beginning waits for the task to be known, and its end for the last word to be heard.
BEGIN_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 5.0
#: Lines and phases that wait for the platform; the oldest lines go first, and are counted.
PENDING: Final = 1000
#: Of one request; the platform takes 100 reports and 64 KiB.
REPORTS: Final = 50
REPORT_BYTES: Final = 40_000
LINE_CHARACTERS: Final = 500
MOST_UNITS: Final = 2**53
CHECKPOINT_BYTES: Final = 64 * 1024
Level = Literal["info", "warning", "error"]


#: Those of this process that have begun.
_begun: Final[weakref.WeakSet[report]] = weakref.WeakSet()


def _in_a_fork() -> None:
    """The thread is the parent's, and so is the task; the lock may have been held by it."""
    for job in _begun:
        job._lock = threading.Lock()


os.register_at_fork(after_in_child=_in_a_fork)


class Cancelled(Exception):
    """Somebody has cancelled the task."""


class report:
    """Makes a task for the block, and is its `job`. `with` and `async with`; once.

    `url` and `key` are those of the environment (HEADWAY_URL, HEADWAY_API_KEY) where they are not given. `phases`:
    names, or names with weights. `raise_cancelled`: the next call of the job's raises Cancelled when somebody has
    cancelled the task; else look at `job.cancelled`. `keep`: a file in which the task stands until it has ended, so
    that the program that is started again after a kill goes on with it, as its next attempt, from `job.restored`.
    `idempotency_key`: the same of work that has a name of its own: who begins under it again, within a day and wherever
    it runs, is the next attempt. Raises WrongUse for what is no URL or no key, and nothing else of its own.
    """

    def __init__(
        self,
        producer: str,
        *,
        total: int | None = None,
        unit: str | None = None,
        title: str | None = None,
        phases: Mapping[str, float] | Iterable[str] | None = None,
        batch_id: str | None = None,
        lease_seconds: float = 30.0,
        url: str | None = None,
        key: str | None = None,
        raise_cancelled: bool = False,
        keep: str | Path | None = None,
        idempotency_key: str | None = None,
        alive_seconds: float = ALIVE_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        url = url or os.environ.get("HEADWAY_URL") or calls.DEFAULT_URL
        self._address = Address(url, key or os.environ.get("HEADWAY_API_KEY") or None, ANSWER_SECONDS)
        asked: dict[str, Any] = {"producer": producer, "total": total, "unit": unit, "title": title}
        asked |= {"batch_id": batch_id, "lease_seconds": lease_seconds}
        if phases is not None:
            asked["phases"] = dict(phases) if isinstance(phases, Mapping) else list(phases)
        self._declared = frozenset(asked.get("phases", ()))
        self._asked = {name: value for name, value in asked.items() if value is not None}
        self._raises = raise_cancelled
        self._alive_seconds = min(alive_seconds, lease_seconds / 3)
        self._patience_seconds = patience_seconds
        #: The task's id, once the platform knows it.
        self.task_id: str | None = None
        self.attempt = 1
        #: The last checkpoint of the attempt before, where there was one. Known when the block begins, if the platform
        #: is there.
        self.restored: Any = None
        self._keep = Path(keep) if keep is not None else None
        self._key = idempotency_key
        self._on_cancelled: Callable[[], None] | None = None
        #: What the task's result says, if the block ends well. JSON.
        self.summary: dict[str, Any] = {}
        #: Somebody has cancelled the task: the work is to stop.
        self.cancelled = False
        self._done: float = 0
        self._total: float | None = total
        self._unit = unit
        self._plan: dict[str, float] = {}
        self._spent = 0.0
        self._pending: deque[dict[str, Any]] = deque()
        self._dropped = 0
        self._lock = threading.Lock()
        self._sent: tuple[Any, ...] = (0, total, unit)
        self._seq = 0
        self._outputs: dict[str, str | None] = {}
        self._folder: Path | None = None
        self._sender: Sender | None = None
        self._pid = os.getpid()

    # What the work calls.

    def advance(self, n: float = 1) -> None:
        """`n` more are done."""
        self._done += n
        if self._raises and self.cancelled:
            raise Cancelled

    def progress_to(self, done: float, total: float | None = None) -> None:
        """`done` are done, of `total` where it is given."""
        if total is not None:
            self._total = total
        self._done = done
        self._check()

    @property
    def count(self) -> tuple[float, float | None]:
        """What is done, of the total."""
        return self._done, self._total

    def track(
        self, iterable: Iterable[T], *, total: float | None = None, unit: str | None = None, done: int = 0
    ) -> Iterator[T]:
        """Counts what it passes on. The total is `len(iterable)` where it has one."""
        if total is None and isinstance(iterable, Sized):
            total = done + len(iterable)
        if total is not None:
            self._total = total
        self._unit, self._done = unit or self._unit, done
        return self._counted(iterable)

    def _counted(self, iterable: Iterable[T]) -> Iterator[T]:
        for item in iterable:
            yield item
            self._done += 1
            self._check()

    def plan(self, phases: Mapping[str, float]) -> None:
        """The phases that come, with their weights; before the first one."""
        if any(weight <= 0 for weight in phases.values()):
            raise ValueError("a phase's weight is greater than 0")
        self._plan = dict(phases)

    def phase(
        self,
        name: str,
        *,
        weight: float | None = None,
        total: int | None = None,
        unit: str | None = None,
        done: int = 0,
    ) -> AbstractContextManager[None]:
        """From now on the work is in this phase, and counts in it."""
        if not isinstance(name, str) or not name.strip():
            raise ValueError("a phase needs a name")
        if weight is not None and not 0 < weight < math.inf:
            raise ValueError("a phase's weight is greater than 0")
        if weight is None and name in self._plan:
            share, left = self._plan[name] / sum(self._plan.values()), max(0.0, 1.0 - self._spent)
            self._spent += share
            weight = min(1e9, share / (left - share)) if left - share > 1e-9 else 1e9
        said: dict[str, Any] = {"phase": _line(name, 100), "total": _units(total), "done": _units(done) or 0}
        if self._declared and name not in self._declared:  # the platform knows no such phase: its name is shown
            said["message"] = said.pop("phase")
        elif weight is not None:
            said["weight"] = weight
        said |= {"unit": _line(unit, 100)} if unit is not None else {}
        with self._lock:
            self._done, self._total, self._unit = done, total, unit
            self._sent = (said["done"], said["total"], said.get("unit"))
            self._say(said)
        self._check()
        return nullcontext()

    def message(self, text: str) -> None:
        """What is shown beside the bar."""
        with self._lock:
            self._say({"message": str(text)[:LINE_CHARACTERS]})

    def log(self, text: str, level: Level = "info") -> None:
        """A line for the people who watch."""
        if level not in ("info", "warning", "error"):
            raise ValueError("a log's level is info, warning or error")
        with self._lock:
            line = str(text)[:LINE_CHARACTERS].encode("utf-8", "replace").decode()
            self._say({"log": [{"message": line, "level": level}]})
        self._check()

    def checkpoint(self, state: Any) -> None:
        """Keeps `state` (JSON, at most 64 KiB) with the task."""
        kept = json.dumps(state, allow_nan=False)
        if len(kept) > CHECKPOINT_BYTES // 2:
            raise ValueError(f"a checkpoint is at most {CHECKPOINT_BYTES // 2} bytes of JSON; this one is {len(kept)}")
        with self._lock:
            for said in self._pending:
                said.pop("checkpoint", None)
            self._say({"checkpoint": json.loads(kept)})

    def create_output(self, name: str, content_type: str | None = None, *, live: bool = False) -> BinaryIO:
        """A result file, sent when the block ends well, also where it is `live`."""
        return Path(self.output_path(name, content_type)).open("wb")

    def output_path(self, name: str, content_type: str | None = None) -> str:
        """As `create_output`, for who writes it by its path."""
        if not name or name.startswith(".") or "/" in name or "\\" in name or not name.isprintable():
            raise ValueError(f"{name!r} is not a name for a result file: use one plain name without folders")
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="headway-report-"))
        self._outputs[name] = content_type
        return str(self._folder / name)

    def tqdm_hook(self) -> AbstractContextManager[None]:
        """Inside it the bars that tqdm draws count for this job: the outermost is a phase."""
        return hooked(self)

    def _check(self) -> None:
        if self._raises and self.cancelled:
            raise Cancelled

    def _say(self, said: dict[str, Any]) -> None:
        """In its order. Called under the lock."""
        if len(self._pending) >= PENDING:
            oldest = next((place for place, one in enumerate(self._pending) if "log" in one), 0)
            del self._pending[oldest]
            self._dropped += 1
        self._pending.append(said)

    # The block.

    def __enter__(self) -> Self:
        if self._sender is not None:
            raise RuntimeError("a report is entered once; make another one")
        self._sender = Sender(self)
        _begun.add(self)
        self._sender.start()
        # What there may be to go on from is worth a longer wait.
        goes_on = self._keep is not None and self._keep.exists()
        self._sender.begun.wait(self._patience_seconds if goes_on else BEGIN_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._sender is not None
        if os.getpid() != self._pid:  # a fork of the work's: the task is its parent's
            return
        try:
            if error is None or (isinstance(error, SystemExit) and not error.code):
                self._sender.end("complete", {})
            else:
                self._sender.end("fail", {"message": _words_of(error), "retryable": False})
            if self._patience_seconds > 0:
                self._sender.wait(self._patience_seconds)
        finally:
            if self._folder is not None and self._sender.ended.is_set():
                shutil.rmtree(self._folder, ignore_errors=True)

    def fail(self, message: str, *, retryable: bool = False) -> None:
        """Ends the task as `failed`, without an exception. What is said later does not count."""
        if self._sender is None:
            return
        self._sender.end("fail", {"message": message[:LINE_CHARACTERS] or "It failed", "retryable": retryable})

    def again(self, message: str, *, within_seconds: float) -> None:
        """Ends this attempt and not the task: another one comes under the same `idempotency_key`, at most so much
        later. Else the task is `worker_lost` then. What is said later does not count."""
        if self._sender is None:
            return
        seconds = max(1, min(24 * 3600, math.ceil(within_seconds)))
        self._sender.end("again", {"message": message[:LINE_CHARACTERS], "lease_seconds": seconds})

    def leave(self) -> None:
        """Ends the reports and nothing else, for a process that has to go: the platform notices it."""
        if self._sender is not None:
            self._sender.end("leave", {})

    def on_cancelled(self, call: Callable[[], None]) -> None:
        """`call` is called once, by the thread of reports, when it hears that somebody has cancelled the task."""
        self._on_cancelled = call
        if self.cancelled:
            call()

    @property
    def over(self) -> bool:
        """The last word was heard, or nobody wants to hear it."""
        return self._sender is not None and self._sender.ended.is_set()

    def wait_for_the_end(self, seconds: float) -> None:
        """After a block that did not wait (`patience_seconds=0`)."""
        if self._sender is not None:
            self._sender.ended.wait(seconds)

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    # What the sender asks for.

    def _take(self) -> list[dict[str, Any]]:
        """What is new, as reports with numbers: it is sent until it is heard, and counts once."""
        taken: list[dict[str, Any]] = []
        with self._lock:
            size = 0
            while self._pending and len(taken) < REPORTS:
                size += len(json.dumps(self._pending[0]))
                if taken and size > REPORT_BYTES:
                    break
                taken.append(self._pending.popleft())
            if self._dropped and taken:
                word = f"{self._dropped} lines were dropped: the platform was away"
                taken.insert(0, {"log": [{"message": word, "level": "warning"}]})
                self._dropped = 0
            counted = (_units(self._done) or 0, _units(self._total), self._unit)
            if not self._pending and counted != self._sent:
                done, total, unit = self._sent = counted
                taken.append({"done": done, "total": total} | ({} if unit is None else {"unit": _line(unit, 100)}))
        for said in taken:
            self._seq += 1
            said |= {"attempt": self.attempt, "seq": self._seq}
        return taken


def _units(count: float | None) -> int | None:
    if count is None:
        return None
    return max(0, min(MOST_UNITS, math.floor(count))) if math.isfinite(count) else MOST_UNITS


def _line(text: str, characters: int) -> str:
    """One that the platform takes as a name."""
    plain = "".join(c if c.isprintable() else " " for c in text.encode("utf-8", "replace").decode())
    return plain[:characters]


def _words_of(error: BaseException) -> str:
    name = type(error).__name__
    try:
        said = str(error).strip().partition("\n")[0]
    except Exception:
        said = ""
    return f"{name}: {said}"[:LINE_CHARACTERS].encode("utf-8", "replace").decode() if said else name


__all__ = ["Cancelled", "report"]
