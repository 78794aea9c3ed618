"""`headway run -- COMMAND…`: any command as a task. Its output passes through, and is the task's log and progress.

The command's end is the task's, and its exit code ours. It runs whether the platform is there or not
(headway/client/reporting.py). A cancelled task is SIGTERM for it, and SIGKILL after `grace_seconds`; signals that we
get are its. What it leaves running in the background is waited for only while it writes.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import PurePath
from types import FrameType
from typing import Any, Final

from headway.cli.exits import complain
from headway.cli.progress_words import ProgressWords, without_escapes
from headway.client.errors import WrongUse
from headway.client.reporting import report

#: How soon a cancelled task is noticed.
ALIVE_SECONDS: Final = 0.5
LOOK_SECONDS: Final = 0.1
#: After the command's end: how long nothing comes until its output is over, whoever still has it open.
QUIET_SECONDS: Final = 1.0
#: A line that has no end is one after this much.
LINE_BYTES: Final = 64 * 1024
#: As shells have them.
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
_FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(
    command: Sequence[str],
    *,
    url: str,
    key: str | None,
    title: str | None = None,
    total: int | None = None,
    pattern: str | None = None,
    grace_seconds: float = 10.0,
) -> int:
    """The command's exit code; of one that a signal ended, 128 and its number. Raises WrongUse."""
    try:
        words = ProgressWords(pattern, total)
    except re.error as error:
        raise WrongUse(f"--pattern: {pattern!r} is no regular expression: {error}") from None
    producer = "".join(c for c in PurePath(command[0]).name if c.isprintable())[:100].strip() or "command"
    job = report(producer, title=title, total=total, url=url, key=key, alive_seconds=ALIVE_SECONDS)
    with job:
        # A terminal's Ctrl-C goes to all who are in the foreground; else the command has a group of its own.
        alone = not sys.stdin.isatty()
        try:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"PYTHONUNBUFFERED": "1"} | os.environ,
                process_group=0 if alone else None,
            )
        except (OSError, ValueError) as error:
            message = f"{command[0]} cannot be run: {getattr(error, 'strerror', None) or error}."
            job.fail(message)
            complain(message)
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        code = _see_to_its_end(process, job, words, total, grace_seconds, alone)
        job.summary["exit_code"] = code
        if code:
            job.fail(_words_of(process.returncode))
    return code


def _see_to_its_end(
    process: subprocess.Popen[bytes],
    job: report,
    words: ProgressWords,
    total: int | None,
    grace_seconds: float,
    alone: bool,
) -> int:
    def tell(number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number) if alone else process.send_signal(number)

    lines = _Lines(job, words, total)
    assert process.stdout is not None
    assert process.stderr is not None
    pipes = [_Pipe(process.stdout.fileno(), 1, lines.take), _Pipe(process.stderr.fileno(), 2, lines.take)]
    with process, _forwarded(tell, but=() if alone else (signal.SIGINT,)):
        for pipe in pipes:
            pipe.start()
        kill_at: float | None = None
        while process.poll() is None:
            if job.cancelled and kill_at is None:
                tell(signal.SIGTERM)
                kill_at = time.monotonic() + grace_seconds
            elif kill_at is not None and time.monotonic() > kill_at:
                tell(signal.SIGKILL)
                kill_at = float("inf")
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_SECONDS)
        for pipe in pipes:
            pipe.finish()
    code = process.returncode
    return code if code >= 0 else 128 - code


@contextmanager
def _forwarded(tell: Callable[[int], None], *, but: Sequence[signal.Signals]) -> Iterator[None]:
    """Signals that we get are the command's, which may well go on. `but`: it has them already."""

    def forward(number: int, _: FrameType | None) -> None:
        if number not in but:
            tell(number)

    before: dict[signal.Signals, Any] = {one: signal.signal(one, forward) for one in _FORWARDED}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


class _Lines:
    """Both streams' lines become the log and the progress of the job."""

    def __init__(self, job: report, words: ProgressWords, total: int | None) -> None:
        self._job, self._words, self._total = job, words, total
        self._lock = threading.Lock()
        self._count = 0
        self._understood = False

    def take(self, line: bytes, *, redrawn: bool) -> None:
        """`redrawn`: it ended with a carriage return, so the next one takes its place."""
        text = without_escapes(line.decode("utf-8", "replace")).rstrip()
        with self._lock:
            reading = self._words.read(text)
            if reading.done is not None:
                self._understood = True
                self._job.progress_to(reading.done, reading.total)
            self._count += not redrawn
            if self._total is not None and not self._understood and not redrawn:
                self._job.progress_to(self._count, self._total)
            if text and not reading.quiet and not (redrawn and reading.done is not None):
                self._job.log(text)


class _Pipe(threading.Thread):
    """Passes a stream of the command on, byte for byte, and tells its lines."""

    def __init__(self, source: int, target: int, take: Callable[..., None]) -> None:
        super().__init__(name="headway run", daemon=True)
        self._source, self._target, self._take = source, target, take
        self._waiting_since: float | None = None
        self._open = True
        self._redrawn = False

    def run(self) -> None:
        rest = b""
        while True:
            self._waiting_since = time.monotonic()
            data = os.read(self._source, 64 * 1024)
            self._waiting_since = None
            if not data:
                break
            self._pass_on(data)
            rest = self._split(rest + data)
        if rest:
            self._take(rest, redrawn=self._redrawn)

    def _pass_on(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view and self._open:
                view = view[os.write(self._target, view) :]
        except OSError:  # nobody reads it any more; the command need not know
            self._open = False

    def _split(self, data: bytes) -> bytes:
        """Tells the whole lines, and returns what is not one yet."""
        start = 0
        for found in re.finditer(rb"\r\n|\r(?!\n|\Z)|\n", data):
            self._redrawn = found[0] == b"\r"
            self._take(data[start : found.start()], redrawn=self._redrawn)
            start = found.end()
        rest = data[start:]
        if len(rest) > LINE_BYTES:
            self._take(rest, redrawn=False)
            return b""
        if rest.endswith(b"\r"):  # it may be half of a line's end; what is drawn before it is seen now
            self._redrawn = True
            self._take(rest[:-1], redrawn=True)
            return b""
        return rest

    def finish(self) -> None:
        """The command has ended: its output is over when it is closed, or when nothing comes."""
        while self.is_alive():
            self.join(LOOK_SECONDS)
            since = self._waiting_since
            if since is not None and time.monotonic() - since > QUIET_SECONDS:
                return


def _words_of(code: int) -> str:
    if code >= 0:
        return f"It exited with {code}."
    try:
        return f"It was ended by {signal.Signals(-code).name}."
    except ValueError:
        return f"It was ended by signal {-code}."
