"""`headway run -- COMMAND…`: any command as a task. Its output passes through, and is the task's log and progress.

The command's end is the task's, and its exit code ours. It runs whether the platform is there or not
(headway/client/reporting.py). A cancelled task is SIGTERM for it, and SIGKILL after `grace_seconds`; signals that we
get are its. What it leaves running in the background is waited for only while it writes. Where our output is a
terminal, so is its: a pseudo-terminal of ours (cli/run_streams.py); else it has pipes.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import PurePath
from types import FrameType
from typing import Any, Final

from headway.cli.exits import complain
from headway.cli.progress_words import ProgressWords
from headway.cli.run_streams import LOOK_SECONDS, Bar, Lines, Streams
from headway.client.errors import WrongUse
from headway.client.reporting import report

#: How soon a cancelled task is noticed.
ALIVE_SECONDS: Final = 0.5
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
    quiet: bool = False,
) -> int:
    """The command's exit code; of one that a signal ended, 128 and its number. `quiet`: nothing is written but what
    the command writes. Raises WrongUse."""
    if quiet:
        logging.getLogger("headway.report").disabled = True
    try:
        words = ProgressWords(pattern, total)
    except re.error as error:
        raise WrongUse(f"--pattern: {pattern!r} is no regular expression: {error}") from None
    producer = "".join(c for c in PurePath(command[0]).name if c.isprintable())[:100].strip() or "command"
    job = report(producer, title=title, total=total, url=url, key=key, alive_seconds=ALIVE_SECONDS)
    with job:
        # A terminal's Ctrl-C goes to all who are in the foreground; else the command has a group of its own.
        alone = not sys.stdin.isatty()
        streams = Streams()
        try:
            process = subprocess.Popen(
                command,
                stdout=streams.for_output,
                stderr=streams.for_errors,
                env={"PYTHONUNBUFFERED": "1"} | os.environ,
                process_group=0 if alone else None,
            )
        except (OSError, ValueError) as error:
            streams.close()
            message = f"{command[0]} cannot be run: {getattr(error, 'strerror', None) or error}."
            job.fail(message)
            complain(message)
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        bar = None if quiet or not sys.stderr.isatty() else Bar(job)
        code = _see_to_its_end(process, job, Lines(job, words, total), streams, bar, grace_seconds, alone)
        job.summary["exit_code"] = code
        if code:
            job.fail(_words_of(process.returncode))
    return code


def _see_to_its_end(
    process: subprocess.Popen[bytes],
    job: report,
    lines: Lines,
    streams: Streams,
    bar: Bar | None,
    grace_seconds: float,
    alone: bool,
) -> int:
    def tell(number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number) if alone else process.send_signal(number)

    pipes = streams.pipes(lines.take, bar)
    with process, _forwarded(tell, but=() if alone else (signal.SIGINT,)), streams.resized():
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
        if bar is not None:
            bar.erase()
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


def _words_of(code: int) -> str:
    if code >= 0:
        return f"It exited with {code}."
    try:
        return f"It was ended by {signal.Signals(-code).name}."
    except ValueError:
        return f"It was ended by signal {-code}."
