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
#: A process that was killed is mostly gone at once; one in the middle of a write to a disk that hangs may never be.
_END_SECONDS: Final = 10.0


@dataclass(slots=True)
class _Attempt:
    request_id: int
    #: What its keeper says at the end.
    report: int
    #: Set when the keeper has been reaped: what is to be answered once nothing else is left.
    end: dict[str, Any] | None = None


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
                for key, _ in selector.select(_LOOK_SECONDS if self._ending else None):
                    if key.fileobj is self._control:
                        if not self._receive():
                            return
                    else:
                        with contextlib.suppress(BlockingIOError):
                            os.read(wake_read, 4096)
                self._reap()
        finally:
            self._end_all()

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
        parent = os.getpid()
        report, reporting = os.pipe()
        processor = self._processors.get(request["processor"])
        confined = self._plan is not None and processor is not None and processor.confined
        if self._pid_namespaces is not None and confined:
            self._pid_namespaces.next_child_in_its_own()
        try:
            pid = os.fork()
            if pid == 0:
                self._child(processor, confined, (pipe, printed, spec, reporting), parent)
        finally:
            if self._pid_namespaces is not None and confined:
                self._pid_namespaces.next_child_here()
        for descriptor in (pipe, printed, spec, reporting):
            os.close(descriptor)
        self._children[pid] = _Attempt(request["id"], report)
        self._answer({"id": request["id"], "pid": pid})

    def _child(
        self, processor: Processor | None, confined: bool, descriptors: tuple[int, ...], parent: int
    ) -> NoReturn:
        """In the new process: its keeper, or, elsewhere than on Linux, the attempt itself."""
        pipe, printed, spec_file, report = descriptors
        try:
            os.setsid()
            if sys.platform == "linux":
                keeper.die_with(parent)
            signal.set_wakeup_fd(-1)
            for sig in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
                signal.signal(sig, signal.SIG_DFL)
            self._selector.close()
            self._control.close()
            for descriptor in (
                *self._to_close,
                *self._descriptors,
                *(other.report for other in self._children.values()),
            ):
                os.close(descriptor)
            if self._pid_namespaces is not None:
                self._pid_namespaces.close()
            with os.fdopen(spec_file, "rb") as file:
                spec = json.load(file)

            def work() -> None:
                assert processor is not None
                speak_through(printed)
                os.environ.update(spec.get("env", {}))
                from headway.worker.child import run_attempt

                run_attempt(spec, processor, pipe)

            def forget() -> None:
                os.close(pipe)
                os.close(printed)

            try:
                if processor is None:
                    raise LookupError(f"there is no processor {spec['processor']!r} here")  # noqa: TRY301
                if sys.platform == "linux":
                    needs = Needs.of(spec, processor)
                    keeper.keep(self._plan if confined else None, needs, work, report=report, forget=forget)
                else:
                    os.chdir(spec["output_folder"])
                    work()
            except Exception as error:
                os.write(pipe, _not_started(error))
        finally:
            os._exit(0)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
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
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._children.clear()
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
        strays = kill_all_beneath(os.getpid(), but=self._children.keys())
        if strays and self._ending:
            self._ending[-1].end = {**(self._ending[-1].end or {}), "left": len(strays)}
        return len(strays)

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
