"""The connection under one answer, where the server is uvicorn: how much its client has yet to take, and files sent
into it by the kernel, without a byte of them in Python.

uvicorn writes the headers and counts the answer as it always does; only the file goes around it. So the access log, the
keep-alive and the next request on the connection know no difference. Possible on Linux, without TLS.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import h11
from starlette.types import Scope
from uvicorn.protocols.http import h11_impl, httptools_impl

#: Sent in one go, as much as nginx does; other connections wait for that long, under 1 ms on loopback.
SLICE_BYTES: Final = 2 * 1024 * 1024
#: What a file system says that cannot be sent from without reading: the rest is read.
_IMPOSSIBLE: Final = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW}

#: The first byte of TCP_INFO, of a connection that a reset has ended.
_TCP_CLOSE: Final = 7

Cycle = httptools_impl.RequestResponseCycle | h11_impl.RequestResponseCycle


class Connection:
    def __init__(self, cycle: Cycle) -> None:
        self._cycle = cycle
        self._transport = cycle.transport

    @classmethod
    def of(cls, scope: Scope) -> Connection | None:
        """By the server's own `send` (api/app.py). None: another server, or something stands between it and us."""
        cycle = getattr(scope.get("headway.send"), "__self__", None)
        return cls(cycle) if isinstance(cycle, Cycle) else None

    @property
    def takes_files(self) -> bool:
        return sys.platform == "linux" and self._transport.get_extra_info("sslcontext") is None

    @property
    def closed(self) -> bool:
        return self._transport.is_closing()

    def expects(self, size_bytes: int) -> bool:
        """Whether the headers are out and promise exactly this: nothing in between encodes or holds back the body."""
        cycle = self._cycle
        if isinstance(cycle, httptools_impl.RequestResponseCycle) and cycle.expected_content_length != size_bytes:
            return False
        return cycle.response_started and not cycle.response_complete

    @property
    def waiting_bytes(self) -> int:
        """What was sent and the client's machine has not acknowledged yet."""
        sock = self._transport.get_extra_info("socket")
        if self.closed or sock is None:
            return 0
        return self._transport.get_write_buffer_size() + unacknowledged(sock.fileno())

    async def send_file(
        self, file: int, start: int, end: int, sent: Callable[[int], None], turn: Callable[[], Awaitable[None]]
    ) -> int:
        """Sends the bytes from `start` to before `end`; `sent` is told of each piece, `turn` waited for before it.
        Returns where it stopped: before `end` only if this file cannot be sent like this.

        Raises EOFError where the file has become shorter, ConnectionError where the client has gone.
        """
        with self._own_socket() as sock:
            await self._nothing_before()
            position = start
            while position < end:
                stop = min(position + SLICE_BYTES, end)
                if not _in_memory(file, stop - 1):
                    await asyncio.to_thread(_bring_to_memory, file, position, stop)
                await _writable(sock)
                await turn()
                if self._cycle.disconnected:  # the transport has gone; through our own descriptor we would not notice
                    raise ConnectionResetError
                try:
                    size = os.sendfile(sock, file, position, stop - position)
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno in _IMPOSSIBLE:
                        break
                    raise
                if not size:
                    raise EOFError("the file has become shorter")
                position += size
                sent(size)
            self._account(position - start)
        return position

    @contextmanager
    def _own_socket(self) -> Iterator[int]:
        """A descriptor of our own for the connection: the event loop lets nobody wait on the transport's."""
        transport = self._transport
        if self.closed:
            raise ConnectionResetError
        sock = os.dup(transport.get_extra_info("socket").fileno())
        # From here on the transport tells uvicorn that it is full as long as it holds one byte.
        transport.set_write_buffer_limits(0)
        try:
            yield sock
        finally:
            os.close(sock)
            if not self.closed:
                transport.set_write_buffer_limits()

    async def _nothing_before(self) -> None:
        """Waits until what went through the transport has left it: the headers stand before the file."""
        flow = self._cycle.flow
        while flow.write_paused and not self._cycle.disconnected:
            await flow.drain()
        if self._cycle.disconnected or self._transport.get_write_buffer_size():
            raise ConnectionResetError

    def _account(self, size_bytes: int) -> None:
        """Tells uvicorn that this much of the promised length has been sent."""
        if isinstance(self._cycle, httptools_impl.RequestResponseCycle):
            self._cycle.expected_content_length -= size_bytes
        elif size_bytes:
            # h11's own way for what is sent by sendfile: it only asks for the length.
            self._cycle.conn.send_with_data_passthrough(h11.Data(data=cast(Any, _Length(size_bytes))))


class _Length:
    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        return self._size_bytes


async def _writable(sock: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _in_memory(file: int, position: int) -> bool:
    """Whether this byte can be had without waiting for a disk, which would stop the event loop."""
    if sys.platform != "linux":
        return False
    try:
        os.preadv(file, [bytearray(1)], position, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a memory disk does not know the question
    return True


def _bring_to_memory(file: int, start: int, end: int) -> None:
    """Blocking. Its bytes go nowhere: they are then in the kernel's cache, and the next ones on their way there."""
    if sys.platform == "linux":
        os.posix_fadvise(file, start, 4 * SLICE_BYTES, os.POSIX_FADV_WILLNEED)
    os.pread(file, end - start, start)


def unacknowledged(sock: int) -> int:
    if sys.platform != "linux":
        return 0
    import fcntl
    import termios

    try:
        (size,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    except (OSError, ValueError):  # closed this very moment
        return 0
    return int(size)


def is_reset(sock: int) -> bool:
    """Whether the other side has ended the connection with a reset."""
    if sys.platform != "linux":
        return False
    try:
        with socket.socket(fileno=os.dup(sock)) as asked:
            if asked.family not in (socket.AF_INET, socket.AF_INET6):
                return False
            return asked.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
    except OSError:
        return True
