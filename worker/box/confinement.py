"""Which walls stand around this machine's children: each is put up alone around a probe, which then tries what it is to
refuse.

Nothing is believed: not the version of the kernel, not that a call came back well. A wall of which one trial is done,
or that cannot be put up, is missing, with the reason; the others are then tried together, with what a processor must
still be able to do. Called once, by the fork server (worker/forkserver.py), before it is ready. Linux alone.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headway.worker.box import keeper, kernel, namespaces
from headway.worker.box.keeper import Needs, Plan
from headway.worker.box.readable import Readable, readable_by_children
from headway.worker.box.walls import NAMESPACES, Box, Standing, Wall, why

#: A probe takes milliseconds. One that hangs is a wall that does not stand.
_PROBE_SECONDS: Final = 20.0
_SHM_BYTES: Final = 64 * 1024 * 1024
_SWITCHED_OFF: Final = "it was left out by HEADWAY_CONFINEMENT_WITHOUT"

#: What each wall is to refuse.
_REFUSES: Final = {
    Wall.MOUNT: ("read", "write"),
    Wall.PID: ("signal",),
    Wall.IPC: ("shared memory",),
    Wall.NETWORK: ("connect", "abstract socket"),
    Wall.LANDLOCK_READ: ("read",),
    Wall.LANDLOCK_WRITE: ("write",),
    Wall.SECCOMP: ("socket", "trace", "namespace"),
}
_MUST_WORK: Final = ("own input", "own output", "null device", "temporary file", "start a process")


def find(box: Box, modules: Iterable[str]) -> tuple[Plan | None, Standing]:
    """The plan for confined processors, None where nothing is to be put around them; and what is told of it."""
    if box.mode == "off":
        return None, Standing(frozenset(), {"all": "HEADWAY_CONFINEMENT is off"})
    readable = readable_by_children(modules, box.paths, box.hidden)
    missing: dict[str, str] = dict.fromkeys(sorted(box.without), _SWITCHED_OFF)
    wanted = set(Wall) - box.without
    if wanted & NAMESPACES and not kernel.has_administration():
        try:
            namespaces.be_administrator_of_own()
        except OSError as error:
            missing |= {str(wall): why(wall, error) for wall in wanted & NAMESPACES}
            wanted -= NAMESPACES
    with _targets() as targets:
        standing = set()
        for wall in Wall:
            if wall in wanted:
                if (reason := _try(Plan.of, {wall}, readable, targets, wall)) is None:
                    standing.add(wall)
                else:
                    missing[wall] = reason
        return _together(standing, readable, targets, missing)


def _together(
    standing: set[Wall], readable: Readable, targets: _Targets, missing: dict[str, str]
) -> tuple[Plan | None, Standing]:
    first = ""
    for own_proc in (True, False):
        plan = Plan.of(standing, readable, own_proc=own_proc)
        found = _probe(plan, targets)
        reason = _judge(found, [name for wall in standing for name in _REFUSES[wall]], _MUST_WORK, Wall.MOUNT)
        if reason is None:
            if not own_proc and {Wall.MOUNT, Wall.PID} <= standing and Wall.LANDLOCK_READ not in standing:
                missing["proc"] = first
            return plan if standing else None, Standing(frozenset(standing), missing)
        if own_proc:
            first = reason
    # Each holds alone and they do not hold together: none of the namespaces then, which are what can be in each other's
    # way.
    if standing & NAMESPACES:
        missing |= {str(wall): f"it does not go with the others: {reason}" for wall in standing & NAMESPACES}
        return _together(standing - NAMESPACES, readable, targets, missing)
    missing |= {str(wall): f"it keeps a processor from its work: {reason}" for wall in standing}
    return None, Standing(frozenset(), missing)


def _try(
    plan_of: Callable[..., Plan], walls: AbstractSet[Wall], readable: Readable, targets: _Targets, wall: Wall
) -> str | None:
    try:
        plan = plan_of(walls, readable)
    except OSError as error:
        return why(wall, error)
    except ValueError as error:
        return str(error)
    return _judge(_probe(plan, targets), _REFUSES[wall], (), wall)


def _judge(found: dict[str, Any], refused: Iterable[str], works: Iterable[str], wall: Wall) -> str | None:
    """None, or why the wall does not stand."""
    if (failed := found.get("failed")) is not None:
        return why(wall, OSError(*failed))
    for name in refused:
        if found.get(name) != "refused":
            return f"it was put up and did not hold: {name} was {found.get(name, 'not tried')}"
    for name in works:
        if found.get(name) != "done":
            return f"{name}: {found.get(name, 'not tried')}"
    return None


@dataclass(frozen=True, slots=True)
class _Targets:
    """What a probe tries to get at, all of it the fork server's own, and what it must get at."""

    folder: Path
    port: int
    abstract: str
    segment: int
    pid: int

    @property
    def secret(self) -> Path:
        return self.folder / "outside" / "secret"

    def needs(self) -> Needs:
        return Needs(str(self.folder / "input"), str(self.folder / "output"), _SHM_BYTES)


@contextmanager
def _targets() -> Iterator[_Targets]:
    folder = Path(tempfile.mkdtemp(prefix="headway-walls-"))
    libc = ctypes.CDLL(None)
    segment = libc.shmget(0, 4096, 0o600)
    try:
        (folder / "outside").mkdir()
        (folder / "output").mkdir()
        (folder / "outside" / "secret").write_text("secret")
        (folder / "input").write_text("input")
        abstract = f"\0{folder.name}"
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as named:
            named.bind(abstract)
            named.listen()
            yield _Targets(folder, server.getsockname()[1], abstract, segment, os.getpid())
    finally:
        libc.shmctl(segment, 0, None)  # IPC_RMID
        shutil.rmtree(folder, ignore_errors=True)


def _probe(plan: Plan, targets: _Targets) -> dict[str, Any]:
    """Puts up the plan's walls and tries everything inside. Returns what came of each trial, or `failed`."""
    read, write = os.pipe()
    own = namespaces.PidNamespaces() if Wall.PID in plan.walls else None
    try:
        try:
            if own is not None:
                own.next_child_in_its_own()
            pid = os.fork()
        except OSError as error:
            os.close(write)
            return {"failed": (error.errno, error.strerror, error.filename)}
        if pid == 0:
            _be_probe(plan, targets, read, write)
    finally:
        if own is not None:
            with suppress(OSError):
                own.next_child_here()
            own.close()
    os.close(write)
    said = b""
    while select.select([read], [], [], _PROBE_SECONDS)[0] and (data := os.read(read, 65536)):
        said += data
    os.close(read)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        found: dict[str, Any] = json.loads(said)
    except ValueError:
        return {}
    return found


def _be_probe(plan: Plan, targets: _Targets, read: int, write: int) -> None:
    try:
        os.close(read)

        def failed(error: Exception) -> None:
            about = (getattr(error, name, None) for name in ("errno", "strerror", "filename"))
            _tell(write, {"failed": tuple(about)})

        attempt = keeper.Attempt(
            targets.needs(),
            work=lambda: _tell(write, dict(_trials(targets))),
            forget=lambda: os.close(write),
            failed=failed,
        )
        keeper.keep(plan, lambda: attempt, report=os.open(os.devnull, os.O_WRONLY), leave=lambda: None)
    finally:
        os._exit(0)


def _tell(pipe: int, found: dict[str, Any]) -> None:
    os.write(pipe, json.dumps(found).encode())


def _trials(targets: _Targets) -> Iterator[tuple[str, str]]:
    libc = ctypes.CDLL(None, use_errno=True)

    def call(answer: int) -> None:
        if answer < 0:
            raise OSError(ctypes.get_errno(), "")

    def reach(family: socket.AddressFamily, address: Any) -> None:
        with socket.socket(family) as one:
            one.settimeout(5)
            one.connect(address)

    def in_a_child(act: Callable[[], int]) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(act() != 0)
        if os.waitpid(pid, 0)[1]:
            raise OSError(errno.EPERM, "it did not end well")

    def temporary_file() -> None:
        with tempfile.TemporaryFile() as file:
            file.write(b"x")

    output = Path(targets.needs().output_folder)
    trials: dict[str, Callable[[], Any]] = {
        "read": targets.secret.read_bytes,
        "write": lambda: targets.secret.write_bytes(b"changed"),
        "signal": lambda: os.kill(targets.pid, 0),
        "shared memory": lambda: call(libc.shmctl(targets.segment, 2, ctypes.create_string_buffer(256))),  # IPC_STAT
        "connect": lambda: reach(socket.AF_INET, ("127.0.0.1", targets.port)),
        "abstract socket": lambda: reach(socket.AF_UNIX, targets.abstract),
        "socket": lambda: socket.socket(socket.AF_INET).close(),
        "trace": lambda: in_a_child(lambda: libc.ptrace(0, 0, None, None)),  # PTRACE_TRACEME
        "namespace": lambda: kernel.unshare(kernel.CLONE_NEWUSER),
        "own input": (targets.folder / "input").read_bytes,
        "own output": lambda: (output / "made").write_bytes(b"x"),
        "null device": lambda: Path(os.devnull).write_bytes(b"x"),
        "temporary file": temporary_file,
        "start a process": lambda: in_a_child(lambda: 0),
    }
    for name, attempt in trials.items():
        try:
            attempt()
        except OSError as error:
            yield name, "refused" if name not in _MUST_WORK else f"refused ({error.strerror})"
        else:
            yield name, "done"
