"""The warm fork server: one small process that has imported every processor and forks a child for each attempt.

Forking costs milliseconds where starting Python costs a second; and it must not be the worker that forks, because a
process with an event loop and threads cannot be forked safely. It has no Redis connection and a scrubbed environment,
and it never reads what an attempt is about: what it knows, every later child knows. It ends when the worker does: its
socket closes, it kills its keepers (worker/box/keeper.py), and exits; if it is killed itself, the kernel kills them
(PR_SET_PDEATHSIG, Linux).

Started as `python -m headway.worker.forkserver FD LOG-FORMAT APP-DIR MODULE…`, with a Box (worker/box/walls.py) in its
environment. Protocol on the socket FD, JSON lines: request {"id", "processor"}, with three descriptors as ancillary
data: the progress pipe, the pipe for what is printed, and a file with the spec (worker/sandbox.py); answers: {"ready",
"walls", "missing"}, {"id", "pid"} (of the keeper), {"id", "status", "left", "cpu_seconds", "rss_bytes"} when nothing of
the attempt is alive: status as of waitpid, and how many processes its child had left behind.
"""

# Paths here are names in other roots, in /proc and in /dev, as the calls of the system want them.

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, cast

from headway.shared.hidden import hide_from_children
from headway.shared.logging import Format, configure
from headway.shared.tasks.processors import Processor
from headway.shared.tasks.registry import load_registry
from headway.worker.box.descendants import kill_all_beneath
from headway.worker.box.walls import Box, Standing, Wall, in_order
from headway.worker.child_output import speak_through

if sys.platform == "linux":
    from headway.worker.box import confinement, keeper, kernel
    from headway.worker.box.keeper import Needs
    from headway.worker.box.namespaces import PidNamespaces

_MOST_DESCRIPTORS: Final = 48
#: While something of an attempt is still ending, it is looked at this often.
_LOOK_SECONDS: Final = 0.02
#: Nobody asks for anything: time to make a keeper ahead, which takes as long from who is at work.
_IDLE_SECONDS: Final = 0.1
#: A process that was killed is mostly gone at once; one in the middle of a write to a disk that hangs may never be.
_END_SECONDS: Final = 10.0


@dataclass(slots=True)
class _Attempt:
    request_id: int
    #: What its keeper says at the end.
    report: int
    #: Set when the keeper has been reaped: what is to be answered once nothing else is left.
    end: dict[str, Any] | None = None


@dataclass(slots=True)
class _Keeper:
    """One that waits for its attempt."""

    pid: int
    #: Where it is told.
    link: socket.socket
    report: int


class ForkServer:
    def __init__(
        self, control: socket.socket, processors: dict[str, Processor], *, standing: Standing, plan: Any
    ) -> None:
        """`plan`: what a confined processor is put into, None where nothing is."""
        self._control = control
        self._processors = processors
        self._standing = standing
        self._plan = plan
        self._children: dict[int, _Attempt] = {}  # by the pid of the keeper
        self._ending: list[_Attempt] = []
        #: A keeper with most of its box made, for whichever confined attempt comes next.
        self._ahead: _Keeper | None = None
        self._wants_one_ahead = plan is not None and sys.platform == "linux"
        self._buffer = b""
        self._descriptors: list[int] = []
        has_own = plan is not None and Wall.PID in plan.walls
        self._pid_namespaces = PidNamespaces() if has_own else None

    def serve(self) -> None:
        """Returns when the worker has gone."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._to_close = (wake_read, wake_write)
        selector = selectors.DefaultSelector()
        selector.register(self._control, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        self._selector = selector
        self._answer({"ready": True, "walls": in_order(self._standing.walls), "missing": dict(self._standing.missing)})
        try:
            while True:
                idle_seconds = _IDLE_SECONDS if self._wants_one_ahead else None
                events = selector.select(_LOOK_SECONDS if self._ending else idle_seconds)
                if not events and not self._ending:
                    self._make_one_ahead()
                for key, _ in events:
                    if key.fileobj is self._control:
                        if not self._receive():
                            return
                    else:
                        with contextlib.suppress(BlockingIOError):
                            os.read(wake_read, 4096)
                self._reap()
        finally:
            self._end_all()

    def _make_one_ahead(self) -> None:
        """When nobody asks for anything. It knows nothing that the attempt before it did not."""
        if self._wants_one_ahead and self._ahead is None:
            with contextlib.suppress(OSError):
                self._ahead = self._new_keeper(confined=True)
        self._wants_one_ahead = False

    def _receive(self) -> bool:
        size = array.array("i").itemsize
        data, ancillary, _, _ = self._control.recvmsg(1 << 20, socket.CMSG_SPACE(_MOST_DESCRIPTORS * size))
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._descriptors += array.array("i", payload[: len(payload) - len(payload) % size])
        if not data:
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            pipe, printed, spec, *self._descriptors = self._descriptors
            self._fork(json.loads(line), pipe, printed, spec)
        return True

    def _fork(self, request: dict[str, Any], pipe: int, printed: int, spec: int) -> None:
        processor = self._processors.get(request["processor"])
        given = (pipe, printed, spec)
        try:
            pid, report = self._give(processor, given)
        except OSError as error:  # no more processes may be had, or no more descriptors
            os.write(pipe, _not_started(error))
            self._answer({"id": request["id"], "status": 0, "left": 0, "cpu_seconds": 0, "rss_bytes": 0})
        else:
            self._children[pid] = _Attempt(request["id"], report)
            self._answer({"id": request["id"], "pid": pid})
        finally:
            for descriptor in given:
                os.close(descriptor)

    def _give(self, processor: Processor | None, given: tuple[int, int, int]) -> tuple[int, int]:
        """Has an attempt kept. Returns the pid of its keeper, and what that reports through. Raises OSError."""
        confined = self._plan is not None and processor is not None and processor.confined
        network = processor is not None and processor.network
        if sys.platform != "linux":
            return self._new_child(given)
        ahead, self._wants_one_ahead = self._ahead, confined
        if confined and not network and ahead is not None:
            self._ahead = None
            with contextlib.suppress(OSError):  # it has gone, and another takes its place
                return self._tell(ahead, given)
            os.close(ahead.report)
        return self._tell(self._new_keeper(confined=confined, network=network, held=given), given)

    def _tell(self, one: _Keeper, given: tuple[int, int, int]) -> tuple[int, int]:
        try:
            socket.send_fds(one.link, [b"!"], given)
        finally:
            one.link.close()
        return one.pid, one.report

    def _new_keeper(self, *, confined: bool, network: bool = False, held: Sequence[int] = ()) -> _Keeper:
        """`held`: what this process has open for an attempt; the keeper gets its own by its link. Raises OSError."""
        parent = os.getpid()
        ours, theirs = socket.socketpair()
        report, reporting = os.pipe()
        own_namespace = self._pid_namespaces if confined else None
        try:
            if own_namespace is not None:
                own_namespace.next_child_in_its_own()
            pid = os.fork()
            if pid == 0:
                ours.close()
                for descriptor in (report, *held):  # a pipe that a keeper holds too is not closed when its child does
                    os.close(descriptor)
                self._be_keeper(theirs, reporting, parent, confined=confined, network=network)
        except OSError:
            ours.close()
            os.close(report)
            raise
        finally:
            if own_namespace is not None:
                own_namespace.next_child_here()
            theirs.close()
            os.close(reporting)
        return _Keeper(pid, ours, report)

    def _be_keeper(self, link: socket.socket, report: int, parent: int, *, confined: bool, network: bool) -> NoReturn:
        try:
            self._begin(parent)
            plan = self._plan if confined else None
            keeper.keep(plan, lambda: self._wait(link), report=report, leave=link.close, network=network)
        finally:
            os._exit(0)

    def _begin(self, parent: int) -> None:
        """In a new process, which keeps nothing of this one's."""
        os.setsid()
        if sys.platform == "linux":
            keeper.die_with(parent)
        signal.set_wakeup_fd(-1)
        for sig in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, signal.SIG_DFL)
        self._selector.close()
        self._control.close()
        if self._ahead is not None:
            self._ahead.link.close()
            os.close(self._ahead.report)
        reports = (other.report for other in self._children.values())
        for descriptor in (*self._to_close, *self._descriptors, *reports):
            os.close(descriptor)
        if self._pid_namespaces is not None:
            self._pid_namespaces.close()

    def _wait(self, link: socket.socket) -> keeper.Attempt:
        """In a keeper: the attempt that it is there for. Where none comes any more, its process ends."""
        _, given, *_ = socket.recv_fds(link, 1, 3)
        if not given:
            os._exit(0)
        pipe, printed, spec_file = given
        spec = _read(spec_file)
        processor = self._processors.get(spec["processor"])

        def work() -> None:
            assert processor is not None
            self._work(spec, processor, pipe, printed)

        def forget() -> None:
            os.close(pipe)
            os.close(printed)

        def failed(error: Exception) -> None:
            os.write(pipe, _not_started(error))

        if processor is None:
            failed(LookupError(f"there is no processor {spec['processor']!r} here"))
            os._exit(0)
        return keeper.Attempt(Needs.of(spec, processor), work, forget, failed)

    def _new_child(self, given: tuple[int, int, int]) -> tuple[int, int]:
        """Elsewhere than on Linux: the attempt itself, without a keeper."""
        parent, (report, reporting) = os.getpid(), os.pipe()
        os.close(reporting)
        pid = os.fork()
        if pid != 0:
            return pid, report
        pipe, printed, spec_file = given
        try:
            self._begin(parent)
            spec = _read(spec_file)
            try:
                os.chdir(spec["output_folder"])
                self._work(spec, self._processors[spec["processor"]], pipe, printed)
            except Exception as error:
                os.write(pipe, _not_started(error))
        finally:
            os._exit(0)

    def _work(self, spec: dict[str, Any], processor: Processor, pipe: int, printed: int) -> None:
        speak_through(printed)
        os.environ.update(spec.get("env", {}))
        from headway.worker.child import run_attempt

        run_attempt(spec, processor, pipe)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if self._ahead is not None and pid == self._ahead.pid:
                self._ahead.link.close()
                os.close(self._ahead.report)
                self._ahead = None
            if (attempt := self._children.pop(pid, None)) is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)  # what it may have started itself, where it has no keeper
                rss_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
                attempt.end = {"cpu_seconds": usage.ru_utime + usage.ru_stime, "rss_bytes": rss_bytes}
                attempt.end |= _reported(attempt.report, status)
                self._ending.append(attempt)
        if self._ending and not self._kill_strays():
            for attempt in self._ending:
                self._answer({"id": attempt.request_id, **(attempt.end or {})})
            self._ending.clear()

    def _end_all(self) -> None:
        """What a keeper leaves behind is this process's a moment after its end: so it is looked at until there is
        nothing."""
        for pid in self._keepers():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._children.clear()
        self._ahead = None
        deadline = time.monotonic() + _END_SECONDS
        while self._kill_strays() and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(_LOOK_SECONDS)

    def _kill_strays(self) -> int:
        """Ends what keepers that were killed have left to this process. Returns how many are still to end."""
        if sys.platform != "linux":
            return 0
        strays = kill_all_beneath(os.getpid(), but=self._keepers())
        if strays and self._ending:
            self._ending[-1].end = {**(self._ending[-1].end or {}), "left": len(strays)}
        return len(strays)

    def _keepers(self) -> set[int]:
        return {*self._children, *([] if self._ahead is None else [self._ahead.pid])}

    def _answer(self, message: dict[str, Any]) -> None:
        self._control.sendall(json.dumps(message).encode() + b"\n")


def _reported(report: int, status: int) -> dict[str, int]:
    """What the keeper said of its child, else how it ended itself."""
    left = 0
    if sys.platform == "linux":
        os.set_blocking(report, False)
        with contextlib.suppress(BlockingIOError):
            if len(told := os.read(report, keeper.REPORT.size)) == keeper.REPORT.size:
                status, left = keeper.REPORT.unpack(told)
    os.close(report)
    return {"status": status, "left": left}


def _read(spec_file: int) -> dict[str, Any]:
    with os.fdopen(spec_file, "rb") as file:
        spec: dict[str, Any] = json.load(file)
    return spec


def _not_started(error: Exception) -> bytes:
    text = getattr(error, "strerror", None) or str(error)
    message = {"kind": "failed", "type": "processor_error", "message": f"Its process could not be set up: {text}."}
    return json.dumps(message).encode() + b"\n"


def main(descriptor: int, log_format: Format, modules: list[str]) -> None:
    hide_from_children()
    configure(log_format)
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, signal.SIG_IGN)  # a Ctrl-C reaches the whole group; we end when the worker has
    control = socket.socket(fileno=descriptor)
    box = Box.from_environment()
    app_dir, *named = modules
    registry = load_registry(named, Path(app_dir))

    importlib.import_module("headway.worker.child")  # not at the top: only here are its limits and libraries wanted
    for processor in registry.processors.values():
        for name in processor.preload:
            importlib.import_module(name)
    plan, standing = None, Standing(frozenset(), {"all": "there are no such walls but on Linux"})
    if sys.platform == "linux":
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)  # nothing that is started here may do more than this process
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        plan, standing = confinement.find(box, {processor.origin for processor in registry.processors.values()})
    if plan is not None and not plan.named_sockets:
        multiprocessing.set_start_method("fork")  # from Python 3.14 the default is a server on a named socket
    gc.collect()
    gc.freeze()  # the pages of what was imported stay shared with the children
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        ForkServer(control, dict(registry.processors), standing=standing, plan=plan).serve()
    os._exit(0)  # nothing to clean up, and libraries that were only imported for the children stay quiet


if __name__ == "__main__":
    main(int(sys.argv[1]), cast(Format, sys.argv[2]), sys.argv[3:])
