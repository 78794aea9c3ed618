"""The processes of `headway up`: started, kept alive, ended with it, whatever ends it.

Each child leads a session of its own, so that a terminal's Ctrl-C reaches `up` alone, which ends the others in order:
API and worker, then Redis, all within STOP_SECONDS. When `up` is killed, the kernel sends its children SIGTERM (Linux,
cli/tether.py); elsewhere a guardian does (cli/guardian.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, NoReturn, Self

from headway.cli.exits import ExitCode
from headway.client.errors import ClientError, WrongUse

#: From the signal, when what is left of the API and the worker is killed. An answer to Ctrl-C takes 2 s at most, and
#: Redis and this process itself need what remains.
KILL_SECONDS: Final = 1.2
STOP_SECONDS: Final = 1.5
#: A child that lived this long was well: the next start is not put off.
WELL_SECONDS: Final = 10.0
FIRST_WAIT_SECONDS: Final = 0.2
LONGEST_WAIT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path | None = None
    pass_fds: tuple[int, ...] = ()
    log: Path | None = None  #: takes stdout and stderr; None: they are ours
    umask: int = -1  #: -1: ours


class Child:
    """One command, running. `keep_alive` starts it again when it dies."""

    def __init__(self, command: Command, guard: Callable[[str], None]) -> None:
        self.command = command
        self._guard = guard
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0

    @property
    def returncode(self) -> int | None:
        """None while it runs; -9 when SIGKILL ended it."""
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        with ExitStack() as stack:
            out: IO[bytes] | None = None
            if self.command.log is not None:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                out = stack.enter_context(os.fdopen(os.open(self.command.log, flags, 0o600), "ab"))
                self._log_start = out.tell()
            self._process = await asyncio.create_subprocess_exec(
                *tethered(self.command.argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.command.env,
                cwd=self.command.cwd,
                pass_fds=self.command.pass_fds,
                start_new_session=True,
                umask=self.command.umask,
            )
        self._guard(f"+{self._process.pid}")

    async def keep_alive(self, say: Callable[[str], None]) -> NoReturn:
        """Raises WrongUse if it refuses to start (exit 2: it has said why). However else it ends, it starts again."""
        now = asyncio.get_running_loop().time
        wait_seconds = FIRST_WAIT_SECONDS
        while True:
            started_at = now()
            await self.wait()
            self._guard(f"-{self._pid}")
            if self.returncode == ExitCode.WRONG_USE:
                said = f" It said:\n{self.log_end()}" if self.command.log else ""
                raise WrongUse(f"The {self.command.name} refused to start.{said}")
            wait_seconds = FIRST_WAIT_SECONDS if now() - started_at > WELL_SECONDS else wait_seconds
            say(f"The {self.command.name} {_how(self.returncode)}; starting it again.")
            await asyncio.sleep(wait_seconds)
            wait_seconds = min(wait_seconds * 2, LONGEST_WAIT_SECONDS)
            await self.start()

    def log_end(self) -> str:
        """The last lines it has written to its log since it was started, at most ten."""
        lines: list[str] = []
        if self.command.log is not None:
            with suppress(OSError), self.command.log.open("rb") as file:
                file.seek(max(self._log_start, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().decode(errors="replace").splitlines()[-10:]
        return "\n".join(f"  {line}" for line in lines) or "  (nothing)"

    async def wait(self) -> None:
        assert self._process is not None
        await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """To its whole session, which is there as long as it has not been waited for."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(self._pid, number)
                else:
                    self._process.send_signal(number)

    async def end(self, kill_at: float) -> None:
        """SIGTERM, and SIGKILL at `kill_at` on the loop's clock. Returns when it is gone."""
        if self._process is None:
            return
        self.send(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(kill_at):
                await self.wait()
        self.send(signal.SIGKILL)
        await self.wait()

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid


class Children:
    """All of them. Leaving it ends them, those started with `last` after the others."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._first: list[Child] = []
        self._last: list[Child] = []
        self._guardian: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        if not sys.platform.startswith("linux"):
            argv = [sys.executable, "-P", "-m", "headway.cli.guardian"]
            self._guardian = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)  # noqa: ASYNC220
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        begun = asyncio.get_running_loop().time()
        await self._end(self._first, begun + KILL_SECONDS)
        await self._end(self._last, begun + STOP_SECONDS)
        if self._guardian is not None:
            assert self._guardian.stdin is not None
            self._guardian.stdin.close()
            self._guardian.wait()

    async def start(self, command: Command, *, last: bool = False) -> Child:
        child = Child(command, self._guard)
        (self._last if last else self._first).append(child)
        await child.start()
        return child

    async def keep_alive(self) -> NoReturn:
        """Watches over those started so far. Raises the first error that one of them cannot be kept alive for."""
        try:
            async with asyncio.TaskGroup() as group:
                for child in (*self._first, *self._last):
                    group.create_task(child.keep_alive(self._say))
        except ExceptionGroup as failed:
            ours, _ = failed.split(ClientError)
            raise (ours or failed).exceptions[0] from None
        raise AssertionError("keepers never return")

    def kill(self) -> None:
        """For whoever cannot wait: a second Ctrl-C."""
        for child in (*self._first, *self._last):
            child.send(signal.SIGKILL)

    async def _end(self, children: Iterable[Child], kill_at: float) -> None:
        async with asyncio.TaskGroup() as group:
            for child in children:
                group.create_task(child.end(kill_at))

    def _guard(self, line: str) -> None:
        if self._guardian is not None and self._guardian.stdin is not None:
            with suppress(OSError):
                self._guardian.stdin.write(line.encode() + b"\n")
                self._guardian.stdin.flush()


def tethered(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The command as one that ends with this process, where the kernel can see to that."""
    if not sys.platform.startswith("linux"):
        return argv
    return (sys.executable, "-I", "-S", str(Path(__file__).with_name("tether.py")), str(os.getpid()), *argv)


def _how(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"
