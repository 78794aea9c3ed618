"""A `headway up` as its user has it, with everything it started known by pid: from the /proc of Linux."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import wait_for

#: A loaded machine with two cores starts three Pythons slowly.
START_SECONDS = 45.0


@dataclass(frozen=True)
class Seen:
    """A process, told from another that has its number later by when it was started."""

    pid: int
    started: str
    command: str

    @property
    def is_there(self) -> bool:
        return self in processes().values()


def processes() -> dict[int, Seen]:
    """All that run, zombies left out: those have ended and wait for their parent."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if fields[0] not in "ZX":
                found[int(stat.parent.name)] = Seen(int(stat.parent.name), fields[19], command)
    return found


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


#: As tests start it, and as a user's shell does.
MODULE = (sys.executable, "-m", "headway.cli.main")
SCRIPT = (str(Path(sys.executable).with_name("headway")),)


class Up:
    """One `headway up` on a free port, known by its pid. Leaving it kills it and what it started."""

    def __init__(self, folder: Path, *arguments: str, command: Sequence[str] = MODULE, **env: str) -> None:
        self.data_dir = folder / "data"
        self._out, self._err = folder / "up.out", folder / "up.err"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
        argv = ["up", "--port", "0", "--data-dir", str(self.data_dir), *arguments]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen([*command, *argv], env=environ | env, stdout=out, stderr=err, cwd=folder)
        self._known: set[Seen] = set()

    def __enter__(self) -> Up:
        return self

    def __exit__(self, *_: object) -> None:
        known = self.descendants()
        self.process.kill()
        self.process.wait()
        for seen in known:
            with contextlib.suppress(ProcessLookupError):
                if seen.is_there:
                    os.kill(seen.pid, signal.SIGKILL)

    @property
    def said(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def complained(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def url(self) -> str:
        """Waits until it says where it is."""

        def address() -> str | None:
            assert self.process.poll() is None, self.said + self.complained
            found = re.search(r"Headway is at (\S+)", self.said)
            return found and found.group(1)

        return wait_for("`up` says where it is", address, seconds=START_SECONDS) or ""

    def descendants(self) -> set[Seen]:
        """Those it has now, and those it had when this was last asked and are still there."""
        everyone = processes()
        family = {self.process.pid}
        while more := {pid for pid in everyone if pid not in family and parent_of(pid) in family}:
            family |= more
        self._known = {everyone[pid] for pid in family if pid in everyone and pid != self.process.pid} | {
            seen for seen in self._known if seen in everyone.values()
        }
        return self._known

    def child(self, name: str) -> Seen | None:
        return next((seen for seen in self.descendants() if name in seen.command), None)

    def interrupt(self) -> float:
        """Ctrl-C; answers how long it took to end."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        return time.monotonic() - begun


def headway(*arguments: str, url: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
    environ |= env | ({"HEADWAY_URL": url} if url else {})
    return subprocess.run(
        [sys.executable, "-m", "headway.cli.main", *arguments], env=environ, capture_output=True, text=True, timeout=60
    )
