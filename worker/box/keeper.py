"""The process between the fork server and an attempt's child: it puts up the child's box, and outlives all that is in
it.

It is process 1 of the child's PID namespace, or, where there is none, its subreaper: whatever the child starts, however
it is detached, stays beneath it. When the child has ended it ends the rest, and only then itself; if it is killed, the
kernel kills what is in the namespace, and elsewhere the fork server finds what is left. It reads nothing that the child
says.

It is made ahead of its attempt: what of the box is the same for all is there when the attempt comes.

The box is whole or the processor does not run: a wall that was found to stand and cannot be put up ends the attempt.
"""

# Paths here are names in other roots, in /proc and in /dev, as the calls of the system want them.
# ruff: noqa: PTH208

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import struct
import sys
import tempfile
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from headway.shared.files.trees import remove_tree
from headway.shared.tasks.processors import Processor
from headway.worker.box import kernel, landlock_rules, namespaces, syscall_filter
from headway.worker.box.descendants import kill_all_beneath
from headway.worker.box.readable import Readable
from headway.worker.box.walls import LANDLOCK, NAMESPACES, Wall, temporary_folder

#: What the keeper tells the fork server at its end: the child's wait status, and how many processes it left behind.
REPORT: Final = struct.Struct("=ii")
#: What it is called, before it has an attempt and from then on; and what its child is.
AHEAD: Final = "headway-ahead"
KEEPER: Final = "headway-keeper"
CHILD: Final = "headway-task"
#: Of the memory of a task; besides it, because it is counted where it is mapped.
SHM_SHARE: Final = 4
_GPU: Final = ("nvidia", "dri", "kfd", "dxg")
#: So many processes and threads of one box: a limit of its user namespace, which the kernel does not hold root to; and,
#: from Linux 6.14, where it has a number of its own, of its PID namespace.
MOST_PROCESSES: Final = 1024
_OWN_PID_MAX: Final = (6, 14)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the fork server found at its start: the walls that stand, and what goes into them."""

    walls: frozenset[Wall]
    readable: Readable
    #: Its /proc shows its own processes alone.
    own_proc: bool
    root: namespaces.Root
    #: A child may have sockets with a name: those of others are out of its reach.
    named_sockets: bool
    #: The seccomp program, for who has no network and for who has.
    programs: dict[bool, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, walls: AbstractSet[Wall], readable: Readable, *, own_proc: bool = True) -> Plan:
        """Raises OSError where there is no seccomp program for this machine."""
        named = Wall.MOUNT in walls or (Wall.LANDLOCK_WRITE in walls and landlock_rules.sees_named_sockets())
        programs = {}
        if Wall.SECCOMP in walls:
            for network in (False, True):
                programs[network] = syscall_filter.child_program(
                    network=network, own_files=Wall.MOUNT in walls, own_processes=Wall.PID in walls, unix_sockets=named
                )
        own_proc = own_proc and {Wall.MOUNT, Wall.PID} <= walls
        return cls(frozenset(walls), readable, own_proc, namespaces.Root(readable), named, programs)


@dataclass(frozen=True, slots=True)
class Needs:
    """What one attempt has of the world: see shared/tasks/processors.py for what a processor may declare."""

    input_path: str | None
    output_folder: str
    memory_bytes: int
    disk_bytes: int | None = None
    network: bool = False
    reads: tuple[str, ...] = ()
    gpu: bool = False

    @classmethod
    def of(cls, spec: dict[str, Any], processor: Processor) -> Needs:
        return cls(
            *(spec["input_path"], spec["output_folder"], spec["memory_bytes"], spec.get("disk_bytes")),
            *(processor.network, processor.reads, processor.gpu),
        )

    def readable(self) -> tuple[str, ...]:
        return (*self.reads, "/sys") if self.gpu else self.reads

    def devices(self) -> list[str]:
        if not self.gpu:
            return []
        return [f"/dev/{name}" for name in sorted(os.listdir("/dev")) if name.startswith(_GPU)]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a keeper is told when there is something to keep."""

    needs: Needs
    #: Runs in the child, inside of the box.
    work: Callable[[], None]
    #: Closes what is the child's alone.
    forget: Callable[[], None]
    #: Says that there is no child, and why.
    failed: Callable[[Exception], None]


def keep(
    plan: Plan | None, wait: Callable[[], Attempt], *, report: int, leave: Callable[[], None], network: bool = False
) -> NoReturn:
    """Makes of the box of `plan`, if there is one, what is the same for all, waits for an attempt, and runs its `work`
    in a child of this process, in the whole of the box. Never returns.

    Where a wall cannot be put up, in this process or in the child, the attempt is told so in place of `work`. `report`
    is a pipe for REPORT; `leave` closes what `wait` hears through; `network`: it is for attempts that have one."""
    trouble, proc = None, -1
    try:
        kernel.name_process(AHEAD)
        if plan is not None and Wall.PID in plan.walls and os.getpid() != 1:
            _go_on_as_process_1(leave)
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        if plan is not None:
            proc = _prepare(plan, network=network)
    except OSError as error:
        trouble = error
    attempt = wait()
    leave()
    try:
        kernel.name_process(KEEPER)
        if trouble is not None:
            raise trouble  # noqa: TRY301
        _run(plan, attempt, proc, report=report)
    except Exception as error:
        attempt.failed(error)
    os._exit(0)


def _run(plan: Plan | None, attempt: Attempt, proc: int, *, report: int) -> None:
    needs = attempt.needs
    temporary = None if plan is None else _finish(plan, needs, mounted=proc >= 0)
    os.chdir(needs.output_folder)
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    keeper = os.getpid()
    child = os.fork()
    if child == 0:
        os.setsid()
        kernel.name_process(CHILD)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(0)
        for descriptor in (report, folder):
            os.close(descriptor)
        limit(needs)
        if plan is not None and temporary is not None:
            enter(plan, needs, temporary, proc)
        attempt.work()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.close()
        # Not sys.exit: nothing of the fork server's own may run its clean-up here, and a thread of the processor may
        # not keep a child alive that has said its last word.
        os._exit(0)
    attempt.forget()
    status = _wait_for(child)
    left = _end_the_rest(own_namespace=keeper == 1)
    if plan is not None:
        _remove_temporary_files(folder, mounted=proc >= 0)
    with contextlib.suppress(OSError):
        os.write(report, REPORT.pack(status, left))


def _go_on_as_process_1(leave: Callable[[], None]) -> None:
    """Where the fork server could not see to it: the caller goes on in a child that is process 1 of a new PID
    namespace. The process that called is the one that the worker knows; it waits, and neither outlives the other."""
    outer = os.getpid()
    kernel.unshare(kernel.CLONE_NEWPID)
    inner = os.fork()
    if inner == 0:
        die_with(outer)
        return
    leave()
    os.waitpid(inner, 0)
    os._exit(0)


def die_with(parent: int) -> None:
    """SIGKILL to this process when its parent ends."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    # Not getppid: in a PID namespace of its own this process has no parent. This /proc is still the parent's.
    if int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[1]) != parent:
        os._exit(0)  # it ended before we asked


def _prepare(plan: Plan, *, network: bool) -> int:
    """The namespaces, and of the root what is the same for all. Returns a descriptor of a /proc that can be written, or
    -1."""
    namespaces.leave(plan.walls - ({Wall.NETWORK} if network else set()))
    if Wall.MOUNT not in plan.walls:
        return -1
    proc = plan.root.prepare(own_proc=plan.own_proc)
    if plan.own_proc and _linux() >= _OWN_PID_MAX:
        with contextlib.suppress(OSError):  # not ours to set; RLIMIT_NPROC stands
            limit = os.open("sys/kernel/pid_max", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
            os.write(limit, str(MOST_PROCESSES).encode())
            os.close(limit)
    return proc


def _finish(plan: Plan, needs: Needs, *, mounted: bool) -> Path:
    """The rest of the root. Returns the folder for temporary files."""
    if not mounted:
        return _use_for_temporary_files(Path(needs.output_folder))
    with namespaces.in_the_old_root():
        temporary = _use_for_temporary_files(Path(needs.output_folder))
        devices = needs.devices()
    plan.root.finish(
        *(needs.input_path, needs.output_folder, str(temporary)),
        reads=needs.readable(),
        devices=devices,
        shm_bytes=needs.memory_bytes // SHM_SHARE,
    )
    return temporary


def _linux() -> tuple[int, int]:
    major, minor, *_ = re.findall(r"[0-9]+", os.uname().release)
    return int(major), int(minor)


def enter(plan: Plan, needs: Needs, temporary: Path, proc: int) -> None:
    """The walls that a process puts around itself, in this order, for good."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # its own /proc is its own again
    if plan.walls & NAMESPACES:
        uid, gid = os.getuid(), os.getgid()
        kernel.unshare(kernel.CLONE_NEWUSER)
        namespaces.map_user(uid, gid, proc if proc >= 0 else None)
        resource.setrlimit(resource.RLIMIT_NPROC, (MOST_PROCESSES, MOST_PROCESSES))
    if proc >= 0:
        os.close(proc)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if plan.walls & LANDLOCK:
        own_root = Wall.MOUNT in plan.walls
        own_tmp = ("/tmp", "/var/tmp") if own_root else ()  # noqa: S108
        # In a root of its own there is nothing else to read, and what is outside of it is not beneath it.
        places = ["/"] if own_root and plan.own_proc else [*plan.readable.places, *needs.readable()]
        landlock_rules.restrict(
            [*places, *filter(None, [needs.input_path])],
            [needs.output_folder, str(temporary), *own_tmp],
            reading=Wall.LANDLOCK_READ in plan.walls,
            writing=Wall.LANDLOCK_WRITE in plan.walls,
            network=needs.network,
            own_root=own_root,
            own_proc=plan.own_proc,
            devices=needs.devices(),
            listed=() if own_root else plan.readable.listed,
        )
    if plan.programs:
        kernel.load_filter(plan.programs[needs.network])


def limit(needs: Needs) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if needs.disk_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (needs.disk_bytes, needs.disk_bytes))


def _use_for_temporary_files(output_folder: Path) -> Path:
    folder = temporary_folder(output_folder)
    folder.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = os.environ["HOME"] = str(folder)
    tempfile.tempdir = None  # asked again
    return folder


def _remove_temporary_files(folder: int, *, mounted: bool) -> None:
    """Nobody writes there any more. Mostly it is empty, and its going costs a call."""
    name = temporary_folder(Path())
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=folder)
        return
    with contextlib.suppress(OSError):
        if mounted:  # what hangs in them hangs in the folder that is to be removed
            for path in ("/var/tmp", "/tmp"):  # noqa: S108
                kernel.unmount(path)
    with contextlib.suppress(OSError):
        remove_tree(name, at=folder)


def _wait_for(child: int) -> int:
    while True:
        pid, status = os.waitpid(-1, 0)
        if os.WIFSTOPPED(status):  # it asked to be traced by its parent, which this process does not do
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        elif pid == child:
            return status


def _end_the_rest(*, own_namespace: bool) -> int:
    """Kills and reaps until this process has no children. Returns how many there were."""
    ended = 0
    while True:
        if own_namespace:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        else:
            kill_all_beneath(os.getpid())
        try:
            pid, _ = os.waitpid(-1, 0)
        except ChildProcessError:
            return ended
        ended += pid > 0
