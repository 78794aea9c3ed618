"""The two streams of a command that `headway run` runs: passed on byte for byte, and read line by line.

Where ours is a terminal the command gets a pseudo-terminal of the same size, so that it draws and colours as it does
without us; where it is not, a pipe. Nothing is changed on the way: the pseudo-terminal leaves line ends alone, because
the terminal behind it sees to them. Beneath lines that a command writes, and draws nothing itself, there is a bar.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Final

from headway.cli.progress_words import ProgressWords, without_escapes
from headway.client.reporting import report

LOOK_SECONDS: Final = 0.1
#: After the command's end: how long nothing comes until its output is over, whoever still has it open.
QUIET_SECONDS: Final = 1.0
#: A line that has no end is one after this much.
LINE_BYTES: Final = 64 * 1024
BAR_CELLS: Final = 30


class Streams:
    """What the command gets as its stdout and stderr, and where we read them."""

    def __init__(self) -> None:
        self._masters: dict[int, int] = {}
        self._slaves: list[int] = []
        self._terminals: list[tuple[int, int]] = []
        output, errors = sys.stdout.isatty(), sys.stderr.isatty()
        self.for_output = self._terminal(1) if output else self._pipe(1)
        same = output and errors and os.fstat(1).st_rdev == os.fstat(2).st_rdev
        # One terminal is one stream, in the order in which it is written.
        self.for_errors = self.for_output if same else self._terminal(2) if errors else self._pipe(2)

    def _pipe(self, target: int) -> int:
        source, given = os.pipe()
        self._masters[target] = source
        self._slaves.append(given)
        return given

    def _terminal(self, target: int) -> int:
        master, slave = pty.openpty()
        mode = termios.tcgetattr(slave)
        mode[1] &= ~termios.OPOST
        termios.tcsetattr(slave, termios.TCSANOW, mode)
        self._masters[target] = master
        self._slaves.append(slave)
        self._terminals.append((target, master))
        self._resize()
        return slave

    def _resize(self, *_: Any) -> None:
        for target, master in self._terminals:
            with suppress(OSError):
                size = fcntl.ioctl(target, termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
                fcntl.ioctl(master, termios.TIOCSWINSZ, size)

    @contextmanager
    def resized(self) -> Iterator[None]:
        """While it is open, the command's terminal is as large as ours. It is told as any other is: by SIGWINCH."""
        if not self._terminals:
            yield
            return
        before = signal.signal(signal.SIGWINCH, self._resize)
        try:
            yield
        finally:
            signal.signal(signal.SIGWINCH, before)

    def pipes(self, take: Callable[..., None], bar: Bar | None) -> list[Pipe]:
        """After the command has begun: its end of each is no longer ours."""
        self.close()
        return [Pipe(source, target, take, bar) for target, source in self._masters.items()]

    def close(self) -> None:
        """The ends that were for the command; what is read is read to its end."""
        while self._slaves:
            os.close(self._slaves.pop())


class Bar:
    """A line beneath the command's lines, on a terminal. Where the command draws, it is not ours to draw."""

    def __init__(self, job: report) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._drawn = self._given_up = False

    @contextmanager
    def aside(self, data: bytes) -> Iterator[None]:
        """While the command's `data` is written."""
        with self._lock:
            if re.search(rb"\r(?!\n|\Z)|\x1b\[[0-9;?]*[A-HJKhlsu]", data):
                self._given_up = True
            self._erase()
            yield
            if data.endswith(b"\n") and not self._given_up:
                self._draw()

    def erase(self) -> None:
        with self._lock:
            self._erase()

    def _erase(self) -> None:
        if self._drawn:
            self._drawn = False
            self._write("\r\x1b[2K")

    def _draw(self) -> None:
        done, total = self._job.count
        if not total:
            return
        share = min(1.0, done / total)
        full = int(share * BAR_CELLS)
        self._write(f"\r[{'#' * full}{'.' * (BAR_CELLS - full)}] {share:.0%}  {done:,.0f}/{total:,.0f}")
        self._drawn = True

    def _write(self, text: str) -> None:
        with suppress(OSError):
            os.write(2, text.encode())


class Lines:
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


class Pipe(threading.Thread):
    """Passes a stream of the command on, byte for byte, and tells its lines."""

    def __init__(self, source: int, target: int, take: Callable[..., None], bar: Bar | None) -> None:
        super().__init__(name="headway run", daemon=True)
        self._source, self._target, self._take, self._bar = source, target, take, bar
        self._waiting_since: float | None = None
        self._open = True
        self._redrawn = False

    def run(self) -> None:
        rest = b""
        while True:
            self._waiting_since = time.monotonic()
            try:
                data = os.read(self._source, 64 * 1024)
            except OSError:  # so a pseudo-terminal ends
                data = b""
            self._waiting_since = None
            if not data:
                break
            with self._bar.aside(data) if self._bar is not None else nullcontext():
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
