"""One child process an attempt: started from the fork server, heard through a pipe, ended whatever it is doing.

The child gets a spec and two pipes: it sends messages, JSON lines, on the one, and prints into the other.
    spec      task_id, processor, options, input_path, output_folder, filename, content_type, size_bytes, memory_bytes,
              disk_bytes, attempt, restored
    messages  {"kind": "phase" | "count", progress, step, total_steps, message, done, total, unit}
              {"kind": "log", level, message, at}    {"kind": "checkpoint", state, progress}
              {"kind": "done", summary, outputs}     {"kind": "failed", type, message}

It is a stranger. What it says is read by worker/frames.py, what it prints by worker/printed.py, what it holds is
watched by worker/usage.py, and how it lives and ends is worker/child_process.py's state machine. The last word is the
end: the process has a moment to exit by itself, then it is killed, and only when nothing of it is left are its files
looked at.

Whoever enters `Sandbox` owns the fork server; whoever enters `attempt` owns the child, which is gone, with everything
it started, when the block is left.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from headway.shared.cancellation import cancel
from headway.shared.errors import ProcessorFailure
from headway.shared.logging import current_format, get_logger
from headway.shared.tasks.models import ErrorType
from headway.worker.box.descendants import end_adopted, is_adopting
from headway.worker.box.walls import Box, Standing
from headway.worker.child_process import ChildProcess, how_it_ended, server_died
from headway.worker.fork_server_link import ForkServerLink, Used
from headway.worker.frames import Disturbed, FrameReader
from headway.worker.printed import Printed
from headway.worker.usage import DiskUse, memory_failure, over_memory

log = get_logger(__name__)

#: What a child may see of the environment: nothing of ours, so no key and no URL.
ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH")

#: At the end of PATH, in case: what of it lies in a home or in /tmp is behind the box's walls.
SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"

#: Of a pipe at a time: between two of them the loop is everybody's.
READ_BYTES: Final = 64 * 1024

#: How often the memory of a child and all that it started is looked at, and its folder, which takes longer.
WATCH_SECONDS: Final = 0.25
DISK_SECONDS: Final = 1.0
#: A folder with many files in it is measured for at most this share of the time.
DISK_SHARE: Final = 0.05
#: Threads that look at children. One that is held up holds up its own child's watch alone.
WATCHERS: Final = 32

#: A child that can say nothing any more exits by itself within this time or is killed; and one that has said its last
#: word, which has its temporary files to remove, and whoever keeps it what it left running to end.
EXIT_SECONDS: Final = 2.0
TIDY_SECONDS: Final = 15.0
#: A process that was killed is gone at once, but for one that the kernel cannot end (a disk that does not answer).
GONE_SECONDS: Final = 20.0

#: What a fork server that was killed has left to this process is killed, for this long.
ADOPTED_SECONDS: Final = 10.0

#: Importing every processor takes a second or two on a slow machine.
START_SECONDS: Final = 60.0


class Child:
    """One running attempt. `messages` is to be iterated once; it ends when the child has."""

    def __init__(self, process: ChildProcess, pipe: asyncio.StreamReader, spec: dict[str, Any]) -> None:
        self._process = process
        self._pipe = pipe
        self._memory_bytes: int = spec["memory_bytes"]
        self._disk = DiskUse(Path(spec["output_folder"]), spec.get("disk_bytes"))
        self._over: ProcessorFailure | None = None
        #: It said nothing to its end, and did not end by itself.
        self._was_silent = False

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def left(self) -> int:
        """How many processes it left behind when it ended; they were killed."""
        return self._process.end.left if self._process.end else 0

    def kill(self) -> None:
        """SIGKILL to the child and all it started: nothing that runs can refuse it, the GIL or not."""
        self._process.kill()

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Every message, in order; the last is `done`, and nothing of the child is left when it is given.

        Raises ProcessorFailure with the true word where there is none."""
        last: dict[str, Any] | None = None
        try:
            async for message in self._read():
                if message["kind"] in ("done", "failed"):
                    last = message
                else:
                    yield message
        except Disturbed as why:
            self.kill()
            text = f"The processor disturbed its progress pipe: {why}."
            raise ProcessorFailure(ErrorType.PROCESSOR_ERROR, text) from None
        await self._gone(EXIT_SECONDS if last is None else TIDY_SECONDS)
        if last is None:
            raise self._over or self._crash()
        if last["kind"] == "failed":
            failure = self._failure(ErrorType(last["type"]), last["message"])
            failure.again = last.get("again", False)
            raise failure
        if self._process.end is None:
            raise server_died()  # and what it ended, if it did, is not known
        if self._over is not None:
            raise self._over
        yield last

    async def _read(self) -> AsyncIterator[dict[str, Any]]:
        reader = FrameReader(asyncio.get_running_loop().time)
        while not reader.ended and (data := await self._pipe.read(READ_BYTES)):
            for message in reader.feed(data):
                yield message
            await asyncio.sleep(reader.wait_seconds)  # 0: who else has something to do comes first
        reader.close()

    async def _gone(self, exit_seconds: float) -> None:
        """It has said its last word, or closed its pipe. Raises ProcessorFailure where it cannot be ended."""
        if not await self._process.ended(exit_seconds):
            self._was_silent = True
            self.kill()
            if not await self._process.ended(GONE_SECONDS):
                text = "Its process could not be ended, so what it made is not to be trusted."
                raise ProcessorFailure(ErrorType.PROCESSOR_ERROR, text, retryable=True)

    def _crash(self) -> ProcessorFailure:
        end = self._process.end
        if end is None:
            return server_died()
        if self._was_silent:
            text = "The processor disturbed its progress pipe: it closed it and went on."
            return ProcessorFailure(ErrorType.PROCESSOR_ERROR, text)
        return ProcessorFailure(ErrorType.PROCESSOR_ERROR, f"The processor's process {how_it_ended(end.status)}.")

    def _failure(self, kind: ErrorType, message: str) -> ProcessorFailure:
        if kind is ErrorType.MEMORY:
            return memory_failure(self._memory_bytes)
        return ProcessorFailure(kind, message, retryable=kind is ErrorType.STORAGE_FULL)

    async def watch(self, threads: ThreadPoolExecutor | None = None) -> None:
        """Kills the child where it, with all that it started, has more memory or disk than it may."""
        loop = asyncio.get_running_loop()
        look_at_disk = loop.time() + WATCH_SECONDS
        while not self._process.is_over:
            await asyncio.sleep(WATCH_SECONDS)
            over = await loop.run_in_executor(threads, over_memory, self.pid, self._memory_bytes)
            if over is None and (begun := loop.time()) >= look_at_disk:
                over = await loop.run_in_executor(threads, self._disk.over, self.pid)
                look_at_disk = loop.time() + max(DISK_SECONDS, (loop.time() - begun) / DISK_SHARE)
            if over is not None and not self._process.is_over:
                self._over = over
                self.kill()
                return


class Sandbox:
    """Owns the fork server, and starts another if that one should die."""

    def __init__(
        self, modules: list[str], used: Used = lambda *_: None, app_dir: Path = Path(), box: Box | None = None
    ) -> None:
        """`modules` are looked up in `app_dir` first. `box`: what is put around the children; the default is every wall
        that this machine has."""
        self._modules = [str(app_dir.absolute()), *modules]
        self._used = used
        self._box = Box() if box is None else box
        self._server: _Server | None = None
        self._starting = asyncio.Lock()
        self._stack = AsyncExitStack()
        self.threads = ThreadPoolExecutor(WATCHERS, thread_name_prefix="watch")

    async def __aenter__(self) -> Sandbox:
        await self._live_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        self.threads.shutdown(wait=False, cancel_futures=True)

    async def _live_server(self) -> _Server:
        async with self._starting:
            if self._server is None or self._server.link.dead:
                if self._server is not None:
                    log.error("fork server died; starting another")
                    await self._stack.aclose()
                self._server = await self._stack.enter_async_context(_Server(self._modules, self._used, self._box))
            return self._server

    @asynccontextmanager
    async def attempt(self, spec: dict[str, Any]) -> AsyncIterator[Child]:
        server = await self._live_server()
        async with AsyncExitStack() as stack:
            pipe = asyncio.StreamReader(limit=READ_BYTES)
            about: dict[str, Any] = {name: spec[name] for name in ("task_id", "attempt") if name in spec}
            printed = Printed(about)
            sending = await _pipe_to(asyncio.StreamReaderProtocol(pipe), stack)
            printing = await _pipe_to(printed, stack)
            stack.callback(printed.close)
            try:
                process = server.link.fork(spec, (sending, printing))
            finally:
                os.close(sending)
                os.close(printing)
            try:
                await process.started()
                yield Child(process, pipe, spec)
            finally:
                process.kill()
                if not await process.ended(GONE_SECONDS):
                    log.error("child does not end", pid=process.pid, **about)

    @property
    def standing(self) -> Standing:
        """Which walls the fork server found to stand, when it started."""
        return Standing() if self._server is None else self._server.link.standing


async def _pipe_to(protocol: asyncio.Protocol, stack: AsyncExitStack) -> int:
    """A pipe that `protocol` reads until the stack is left. Returns its writing end, which is the caller's to close."""
    read, write = os.pipe()
    try:
        # From here on the transport alone closes `read`: a number closed twice is soon another attempt's pipe.
        file = os.fdopen(read, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, file)
    except BaseException:
        os.close(write)
        raise
    stack.callback(transport.close)
    return write


def _environment() -> dict[str, str]:
    found = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    path = [*filter(None, found.get("PATH", "").split(os.pathsep)), *SYSTEM_PATH.split(os.pathsep)]
    return found | {"PATH": os.pathsep.join(dict.fromkeys(path))}


class _Server:
    """The fork server's process, and the link to it."""

    def __init__(self, modules: list[str], used: Used, box: Box) -> None:
        self._modules = modules
        self._used = used
        self._box = box
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> _Server:
        async with AsyncExitStack() as stack:
            ours, theirs = socket.socketpair()
            with theirs:
                self.link = ForkServerLink(ours, self._used)
                stack.callback(self.link.close)
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # of the current folder only what was named: a `redis.py` that lies there is not ours
                    *("-m", "headway.worker.forkserver", str(theirs.fileno()), current_format()),
                    *self._modules,
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=sys.stderr,
                    env=_environment() | self._box.environment(),
                )
            stack.push_async_callback(self._end)
            listening = asyncio.create_task(self._listen(), name="fork server answers")
            stack.push_async_callback(cancel, listening)
            await self._until_ready()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _until_ready(self) -> None:
        why = "ended before it was ready: the lines above say why"
        try:
            await asyncio.wait_for(self.link.ready.wait(), START_SECONDS)
        except TimeoutError:
            self.link.forget()
            why = (
                f"was not ready after {START_SECONDS:g} s: give the machine more CPU or memory, or find the module of "
                "HEADWAY_PROCESSORS whose import does not end, and start the worker again"
            )
        if self.link.dead:
            raise ProcessorFailure(ErrorType.PROCESSOR_ERROR, f"The fork server {why}.", retryable=True)

    async def _listen(self) -> None:
        await self.link.listen()
        if sys.platform == "linux" and is_adopting():
            await self._process.wait()
            await end_adopted(ADOPTED_SECONDS)

    async def _end(self) -> None:
        self.link.close()
        try:
            await asyncio.wait_for(self._process.wait(), 2)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
