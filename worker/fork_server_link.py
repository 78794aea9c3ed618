"""The worker's end of the fork server's socket: asks for children, and tells each one what is answered of it.

Requests and answers are those of worker/forkserver.py. An answer about a child that nobody asked for, or a second one,
is logged and changes nothing; one that cannot be read means that this is no fork server of ours any more. The end of
the socket is the end of all its children. Asking never waits: what the socket does not take goes when it does.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from headway.shared.logging import get_logger
from headway.worker.box.walls import Standing, walls_of
from headway.worker.child_process import ChildProcess, End

log = get_logger(__name__)

#: Answers are short; a line that does not end is none.
_ANSWER_BYTES: Final = 64 * 1024

#: Told of each child that has ended: its processor, the CPU time it took, the memory it held at most.
Used = Callable[[str, float, int], None]


@dataclass(slots=True)
class _Request:
    rest: memoryview
    descriptors: list[int]


class ForkServerLink:
    """`listen` is the service; it returns when the fork server is gone. Whoever makes it closes it."""

    def __init__(self, ours: socket.socket, used: Used = lambda *_: None) -> None:
        ours.setblocking(False)
        self._socket = ours
        self._used = used
        self._requests = 0
        self._children: dict[int, tuple[ChildProcess, str]] = {}
        self._outbox: deque[_Request] = deque()
        self.ready = asyncio.Event()  # or dead
        self.dead = False
        self.standing = Standing()

    def close(self) -> None:
        """The fork server sees the end of its socket, kills what is left and exits."""
        self.forget()
        self._socket.close()

    def fork(self, spec: dict[str, Any], descriptors: Sequence[int]) -> ChildProcess:
        """Asks for a child. The descriptors, of the pipes that it sends and prints through, may be closed when this
        returns. The spec goes in a file of its own, so that the fork server's memory, which every child inherits, never
        holds what another one's task is."""
        process = ChildProcess()
        if self.dead:
            process.was_lost()
            return process
        self._requests += 1
        self._children[self._requests] = (process, spec["processor"])
        line = json.dumps({"id": self._requests, "processor": spec["processor"]}).encode() + b"\n"
        copies = [os.dup(descriptor) for descriptor in descriptors]
        self._outbox.append(_Request(memoryview(line), [*copies, _file_of(spec)]))
        if len(self._outbox) == 1:
            self._send()
        return process

    def _send(self) -> None:
        """As much as the socket takes. A descriptor goes with the first byte of its request."""
        loop = asyncio.get_running_loop()
        try:
            while self._outbox:
                first = self._outbox[0]
                if first.descriptors:
                    sent = socket.send_fds(self._socket, [first.rest], first.descriptors)
                else:
                    sent = self._socket.send(first.rest)
                first.rest = first.rest[sent:]
                _close(first.descriptors)
                if not first.rest:
                    self._outbox.popleft()
        except BlockingIOError:
            loop.add_writer(self._socket, self._send)
        except OSError:
            self.forget()
        else:
            loop.remove_writer(self._socket)

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        buffer = b""
        try:
            while data := await loop.sock_recv(self._socket, _ANSWER_BYTES):
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
                if len(buffer) > _ANSWER_BYTES:
                    log.error("fork server not understood", reason="a line that does not end")
                    return
        except OSError:
            pass
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            log.error("fork server not understood", reason=type(error).__name__)  # noqa: TRY400 - its words are not ours
        finally:
            self.forget()

    def _take(self, answer: dict[str, Any]) -> None:
        if "ready" in answer:
            self.standing = Standing(walls_of(answer["walls"]), dict(answer["missing"]))
            log.info("sandbox ready", walls=answer["walls"])
            self.ready.set()
            return
        request_id = answer["id"]
        process, processor = self._children.get(request_id, (None, ""))
        if process is None:
            log.warning("fork server spoke of no child of ours", request_id=request_id)
        elif "pid" in answer:
            process.has_pid(_whole(answer["pid"], least=2))
        else:
            status, rss_bytes = _whole(answer["status"]), _whole(answer["rss_bytes"])
            end = End(status, float(answer["cpu_seconds"]), rss_bytes, _whole(answer.get("left", 0)))
            del self._children[request_id]
            process.has_ended(end)
            self._used(processor, end.cpu_seconds, end.rss_bytes)

    def forget(self) -> None:
        """The fork server has gone, and its children with it."""
        self.dead = True
        self.ready.set()
        if self._socket.fileno() >= 0 and self._outbox:
            asyncio.get_running_loop().remove_writer(self._socket)
        for request in self._outbox:
            _close(request.descriptors)
        self._outbox.clear()
        for process, _ in self._children.values():
            process.was_lost()
        self._children.clear()


def _whole(value: Any, least: int = 0) -> int:
    """Raises TypeError, ValueError."""
    if type(value) is not int or value < least:
        raise ValueError("not a number that a fork server answers")
    return value


def _file_of(spec: dict[str, Any]) -> int:
    """A descriptor at the start of the spec as JSON, of a file without a name."""
    text = json.dumps(spec).encode()
    if sys.platform == "linux":
        descriptor = os.memfd_create("spec", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.pwrite(descriptor, text, 0)  # to a file in memory, or a small one: all of it
    return descriptor


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
