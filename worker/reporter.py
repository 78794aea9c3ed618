"""The `job` a processor is handed: counts, phases, logs and outputs, made into messages for the worker.

Counting is cheap: `advance` adds to a number, `track` counts in C, and a thread looks 20 times a second. A change of
phase and a log line are sent at once. Progress is 0 to 100 over the weighted phases and never falls. Runs in the child
process; the messages are plain dicts, see worker/sandbox.py.
"""

from __future__ import annotations

import io
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain, compress, repeat
from operator import length_hint
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast

from headway.shared.files.storage import check_result_name
from headway.shared.json_text import text_of
from headway.shared.tasks.models import TEXT_CHARACTERS, rfc3339, utc_now
from headway.shared.tasks.processors import Processor
from headway.tqdm_hook import hooked
from headway.worker.frames import (
    CHECKPOINT_BYTES,
    MOST_OUTPUTS,
    MOST_UNITS,
    PARTIAL_BYTES,
    UNIT_CHARACTERS,
    check_content_type,
)
from headway.worker.plain import Plain, number, text, words_of

SAMPLE_SECONDS: Final = 0.05
#: Each is a write to Redis, and what is done again after a loss is this much less.
CHECKPOINT_SECONDS: Final = 0.25
#: Each is an event, and stands in all those that follow.
PARTIAL_SECONDS: Final = 0.25
T = TypeVar("T")
Send = Callable[[dict[str, Any]], None]


class _Input(io.FileIO):
    """A file that knows how far it was read, also when it has been closed."""

    _position = 0

    def position(self) -> int:
        try:
            return self.tell()
        except (ValueError, OSError):  # closed, now or while we asked
            return self._position

    def close(self) -> None:
        if not self.closed:
            self._position = self.tell()
        super().close()


class Reporter:
    """Implements headway.shared.tasks.processors.Job. `sampling` is entered around the processor's run."""

    def __init__(
        self,
        processor: Processor,
        *,
        options: Any,
        input_path: Path | None,
        output_folder: Path,
        filename: str | None,
        content_type: str | None,
        size_bytes: int,
        memory_bytes: int,
        attempt: int,
        restored: Any,
        send: Send,
    ) -> None:
        self.options = options
        self.filename = filename
        self.content_type = content_type
        self.size_bytes = size_bytes
        self.memory_bytes = memory_bytes
        self.attempt = attempt
        self.restored = restored
        self.outputs: dict[str, str | None] = {}
        self._input_path = input_path
        self._output_folder = output_folder
        self._send = send
        self._lock = threading.Lock()
        self._declared: dict[str, tuple[int, float, float]] = {}  # step, share of those before it, its own share
        self._declare(processor.phases)
        self._checkpoint: dict[str, Any] | None = None  # that has not been sent yet
        self._checkpointed = float("-inf")
        self._partial: dict[str, Any] | None = None  # the same
        self._showed = float("-inf")
        self._step = 0
        self._name = "Processing"
        self._spent = 0.0  # of the whole, by the phases before this one
        self._share = 1.0  # of the whole, this phase's
        self._done: float = 0
        self._total: float | None = None
        self._unit: str | None = None
        self._given: tuple[float | None, str | None] = (None, None)  # total and unit, by the phase
        self._reading: _Input | None = None
        self._tracked: repeat[bool] | None = None  # shorter by one with each item that `track` has passed on
        self._progress = 0.0
        self._sent: tuple[Any, ...] = ()

    # What a processor calls.

    @property
    def input_path(self) -> str:
        if self._input_path is None:
            raise FileNotFoundError("this task has no file")
        return str(self._input_path)

    def open_input(self) -> BinaryIO:
        raw = _Input(self.input_path)
        if self._total is None:
            self._reading, self._total, self._unit = raw, self.size_bytes, "bytes"
        return io.BufferedReader(raw, 1024 * 1024)

    def create_output(self, name: str, content_type: str | None = None, *, live: bool = False) -> BinaryIO:
        path = Path(self.output_path(name, content_type))
        if not live:
            return path.open("wb")
        file = cast(BinaryIO, path.open("wb", buffering=0))  # whoever reads along sees each write at once
        with self._lock:
            self._send({"kind": "live", "name": name})
        return file

    def output_path(self, name: str, content_type: str | None = None) -> str:
        check_content_type(content_type if content_type is None else text(content_type, "content_type"))
        check_result_name(text(name, "name"))
        if len(self.outputs) >= MOST_OUTPUTS and name not in self.outputs:
            raise ValueError(f"at most {MOST_OUTPUTS} result files; put many small ones into an archive")
        self.outputs[name] = content_type
        return str(self._output_folder / name)

    def plan(self, phases: Mapping[str, float]) -> None:
        if self._step:
            raise RuntimeError("plan the phases before the first one starts")
        weights = {text(name, "the name of a phase"): _weight(weight) for name, weight in phases.items()}
        self._declare(weights)

    def _declare(self, phases: Mapping[str, float]) -> None:
        self._declared, before, whole = {}, 0.0, sum(phases.values())
        for step, (name, weight) in enumerate(phases.items(), start=1):
            self._declared[name] = (step, before / whole, weight / whole)
            before += weight

    def phase(
        self,
        name: str,
        *,
        weight: float | None = None,
        total: int | None = None,
        unit: str | None = None,
        done: int = 0,
    ) -> AbstractContextManager[None]:
        name, unit = text(name, "name"), unit if unit is None else text(unit, "unit")
        weight = weight if weight is None else _weight(weight)
        given_total, given_done = _total(total), number(done, "done")
        with self._lock:
            if self._step:
                self._spent += self._share
            self._step += 1
            if name in self._declared and weight is None:
                step, before, share = self._declared[name]
                # What was left out before it is done: a resumed attempt begins in the middle.
                self._step, self._spent = max(self._step, step), max(self._spent, before)
                self._share = min(max(0.0, 1.0 - self._spent), share)
            else:
                given = 1.0 if weight is None else weight
                self._share = max(0.0, 1.0 - self._spent) * given / (given + 1)
            self._name, self._done, self._total, self._unit = name, given_done, given_total, unit
            self._reading = self._tracked = None
            self._given = (given_total, unit)
            state = self._state()
            self._sent = tuple(state.values())
            self._send({"kind": "phase", **state})
        return nullcontext()

    def advance(self, n: int = 1) -> None:
        self._done += n if type(n) is int else number(n, "n")

    def progress_to(self, done: int, total: int | None = None) -> None:
        if total is not None:
            self._total = total if type(total) is int and total >= 0 else _total(total)
        self._done, self._tracked = done if type(done) is int else number(done, "done"), None

    def track(
        self, iterable: Iterable[T], *, total: int | None = None, unit: str | None = None, done: int = 0
    ) -> Iterator[T]:
        given, begun = _total(total), number(done, "done")
        unit = unit if unit is None else text(unit, "unit")
        if given is None and isinstance(iterable, Sized):
            given = begun + len(iterable)
        # An input that is read line by line has no count of lines, but its bytes are an honest measure already.
        counts = given is not None or self._reading is None
        if counts:
            self._total = self._given[0] if given is None else given
            self._unit = self._given[1] if unit is None else unit
            self._done, self._reading = begun, None
            self._tracked = None
        if not counts:
            return iter(iterable)
        # Counting stays in C: `compress` takes one from `left` with each item, and its length is asked when sampled.
        self._tracked = left = repeat(True, sys.maxsize)

        def finish() -> Iterator[T]:
            with self._lock:
                if self._tracked is left:
                    self._done, self._tracked = self._done + sys.maxsize - length_hint(left), None
            yield from ()

        return chain(compress(iterable, left), finish())

    def log(self, text: str, level: str = "info") -> None:
        if level not in ("info", "warning", "error"):
            raise ValueError("a log's level is info, warning or error")
        try:
            message = str(text)[:TEXT_CHARACTERS]
        except Exception as error:
            raise TypeError(f"text has no words: {words_of(error)[:TEXT_CHARACTERS]}") from error
        with self._lock:
            self._send({"kind": "log", "level": level, "message": message, "at": rfc3339(utc_now())})

    def tqdm_hook(self) -> AbstractContextManager[None]:
        return hooked(self)

    def checkpoint(self, state: Any) -> None:
        kept = text_of(Plain().of(state, "state"))  # at once: the processor may go on to change it
        if len(kept) > CHECKPOINT_BYTES:
            raise ValueError(f"a checkpoint is at most {CHECKPOINT_BYTES} bytes of JSON; this one is {len(kept)}")
        with self._lock:
            progress = self._state()["progress"]
            self._checkpoint = {"kind": "checkpoint", "state": json.loads(kept), "progress": progress}
            self._send_checkpoint()

    def partial(self, value: Any) -> None:
        shown = text_of(Plain().of(value, "value"))  # at once, as a checkpoint
        if len(shown) > PARTIAL_BYTES:
            raise ValueError(f"a partial result is at most {PARTIAL_BYTES} bytes of JSON; this one is {len(shown)}")
        with self._lock:
            self._partial = {"kind": "partial", "value": json.loads(shown)}
            self._send_partial()

    # What the child process calls.

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Sends the counts while the processor runs, and once more when it has returned."""
        stop = threading.Event()
        thread = threading.Thread(target=self._sample, args=(stop,), daemon=True, name="progress")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        with self._lock:
            self._send_count()
            self._showed = float("-inf")
            self._send_partial()

    def _sample(self, stop: threading.Event) -> None:
        while not stop.wait(SAMPLE_SECONDS):
            with self._lock:
                self._send_count()
                self._send_checkpoint()
                self._send_partial()

    def _send_partial(self) -> None:
        now = time.monotonic()
        if self._partial is not None and now - self._showed >= PARTIAL_SECONDS:
            self._send(self._partial)
            self._partial, self._showed = None, now

    def _send_checkpoint(self) -> None:
        now = time.monotonic()
        if self._checkpoint is not None and now - self._checkpointed >= CHECKPOINT_SECONDS:
            self._send(self._checkpoint)
            self._checkpoint, self._checkpointed = None, now

    def _send_count(self) -> None:
        if (state := self._state()) and (now := tuple(state.values())) != self._sent:
            self._sent = now
            self._send({"kind": "count", **state})

    def _state(self) -> dict[str, Any]:
        if (reading := self._reading) is not None:
            self._done = reading.position()
        done, total = self._done, self._total
        if (left := self._tracked) is not None:
            done += max(0, sys.maxsize - length_hint(left) - 1)  # the one that is being worked on does not count yet
        fraction = max(0.0, min(1.0, _whole(done) / total if total > 1 else done / total)) if total else 0.0
        self._progress = max(self._progress, 100 * min(1.0, self._spent + self._share * fraction))
        return {
            "progress": self._progress,
            "step": self._step,
            "total_steps": max(self._step, len(self._declared)),
            "message": self._name[:TEXT_CHARACTERS],
            "done": _whole(done),
            "total": total if total is None else _whole(total),
            "unit": self._unit if self._unit is None else self._unit[:UNIT_CHARACTERS],
        }


def _whole(units: float) -> int:
    """What is said of a count: a whole number that a client can read."""
    if type(units) is int and -MOST_UNITS <= units <= MOST_UNITS:
        return units
    return max(-MOST_UNITS, min(MOST_UNITS, math.floor(units))) if math.isfinite(units) else MOST_UNITS


def _total(total: Any) -> float | None:
    """Raises TypeError, ValueError."""
    if total is None:
        return None
    if (found := number(total, "total")) < 0:
        raise ValueError("total must be 0 or more")
    return found


def _weight(weight: Any) -> float:
    """Raises TypeError, ValueError."""
    if (found := number(weight, "weight")) > 0:
        return found
    raise ValueError("a phase's weight is greater than 0")
