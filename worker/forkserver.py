"""The warm fork server: one small process that has imported every processor and forks a child for each attempt.

Forking costs milliseconds where starting Python costs a second; and it must not be the worker that forks, because a
process with an event loop and threads cannot be forked safely. It has no Redis connection and a scrubbed environment.
It ends when the worker does: its socket closes, it kills its children's process groups, and exits; if it is killed
itself, the kernel kills the children (PR_SET_PDEATHSIG, Linux).

Started as `python -m worker.forkserver FD LOG-FORMAT MODULE…`. Protocol on the socket FD, JSON lines:
request, with three ancillary descriptors (the pipe that the child sends through, the one that it prints into, a file
with its spec): {"id", "processor"}; answers: {"ready", "walls"}, {"id", "pid"}, {"id", "status", "cpu_seconds",
"rss_bytes", "left"} when the child has ended, status as of waitpid, and how many that it left behind were killed.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn, cast

from shared.logging import Format, configure
from shared.processors import Processor, load_registry
from worker.confinement import confine, gain_no_rights, has_landlock, leave_the_network
from worker.said import speak_through

PR_SET_PDEATHSIG = 1
_MOST_DESCRIPTORS = 16


def die_with(parent_pid: int, sig: int) -> None:
    """Asks the kernel to send `sig` to this process when its parent ends. Linux only; elsewhere it does nothing."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, sig, 0, 0, 0)
    if os.getppid() != parent_pid:  # it ended before we asked
        os.kill(os.getpid(), sig)


class ForkServer:
    def __init__(self, control: socket.socket, processors: dict[str, Processor], *, offline: bool) -> None:
        """`offline`: this process has left the network already, and so have its children."""
        self._control = control
        self._processors = processors
        self._offline = offline
        self._children: dict[int, int] = {}  # pid → request id
        self._buffer = b""
        self._descriptors: list[int] = []

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
        self._answer({"ready": True, "walls": ["network"] * self._offline + ["landlock"] * has_landlock()})
        try:
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._control:
                        if not self._receive():
                            return
                    else:
                        with contextlib.suppress(BlockingIOError):
                            os.read(wake_read, 4096)
                self._reap()
        finally:
            for pid in self._children:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

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
            mine, self._descriptors = self._descriptors[:3], self._descriptors[3:]
            self._fork(json.loads(line), *mine)
        return True

    def _fork(self, request: dict[str, Any], pipe: int, printed: int, spec: int) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._child(spec, pipe, printed, parent)
        for descriptor in (pipe, printed, spec):
            os.close(descriptor)
        self._children[pid] = request["id"]
        self._answer({"id": request["id"], "pid": pid})

    def _child(self, spec_file: int, pipe: int, printed: int, parent: int) -> NoReturn:
        try:
            os.setsid()
            speak_through(printed)
            with os.fdopen(spec_file, encoding="utf-8") as file:
                spec = json.load(file)
            die_with(parent, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            for sig in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
                signal.signal(sig, signal.SIG_DFL)
            self._selector.close()
            self._control.close()
            for descriptor in (*self._to_close, *self._descriptors):
                os.close(descriptor)
            os.chdir(spec["output_folder"])
            processor = self._processors[spec["processor"]]
            if processor.confined:
                if not self._offline:
                    leave_the_network()
                confine(Path(spec["output_folder"]))
            from worker.child import run_attempt

            run_attempt(spec, processor, pipe)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.close()
            sys.stderr.close()
            # Not sys.exit: nothing of the fork server's own may run its clean-up here, and a thread of the processor
            # may not keep a child alive that has said its last word.
            os._exit(0)

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (request_id := self._children.pop(pid, None)) is not None:
                left = 0
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)  # what it may have started itself
                    left = 1
                rss_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
                cpu_seconds = usage.ru_utime + usage.ru_stime
                used = {"cpu_seconds": cpu_seconds, "rss_bytes": rss_bytes, "left": left}
                self._answer({"id": request_id, "status": status, **used})

    def _answer(self, message: dict[str, Any]) -> None:
        self._control.sendall(json.dumps(message).encode() + b"\n")


def main(descriptor: int, log_format: Format, modules: list[str]) -> None:
    configure(log_format)
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, signal.SIG_IGN)  # a Ctrl-C reaches the whole group; we end when the worker has
    control = socket.socket(fileno=descriptor)
    registry = load_registry(modules)

    importlib.import_module("worker.child")  # not at the top: only here are its limits and libraries wanted
    for processor in registry.processors.values():
        for name in processor.preload:
            importlib.import_module(name)
    gain_no_rights()
    # A namespace for all of them costs nothing an attempt; where one may use the network, each gets its own.
    offline = all(processor.confined for processor in registry.processors.values()) and leave_the_network()
    gc.collect()
    gc.freeze()  # the pages of what was imported stay shared with the children
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        ForkServer(control, dict(registry.processors), offline=offline).serve()
    os._exit(0)  # nothing to clean up, and libraries that were only imported for the children stay quiet


if __name__ == "__main__":
    main(int(sys.argv[1]), cast(Format, sys.argv[2]), sys.argv[3:])
