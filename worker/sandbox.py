"""One child process an attempt: started from the fork server, heard through a pipe, ended whatever it is doing.

The child gets a spec and sends messages, JSON lines:
    spec      task_id, processor, options, input_path, output_folder, filename, content_type, size_bytes, memory_bytes,
              attempt, restored
    messages  {"kind": "phase" | "count", progress, step, total_steps, message, done, total, unit}
              {"kind": "log", level, message, at}    {"kind": "checkpoint", state, progress}
              {"kind": "done", summary, outputs}     {"kind": "failed", type, message}

Whoever enters `Sandbox` owns the fork server; whoever enters `attempt` owns the child, which is gone, with everything
it started, when the block is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from headway.shared.cancellation import cancel
from headway.shared.errors import ProcessorFailure
from headway.shared.logging import current_format, get_logger
from headway.shared.tasks.models import ErrorType

log = get_logger(__name__)

#: What a child may see of the environment: nothing of ours, so no key and no URL.
ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH")

#: A message with a summary of 1 MiB, escaped, still fits; a longer line is an error, not more memory.
LINE_BYTES: Final = 8 * 1024 * 1024

#: How often the memory of a child is looked at, where the kernel's own limit does not count it.
WATCH_SECONDS: Final = 0.25

#: Importing every processor takes a second or two on a slow machine.
START_SECONDS: Final = 60.0


#: Told of each child that has ended: its processor, the CPU time it took, the memory it held at most.
Used = Callable[[str, float, int], None]


class Child:
    """One running attempt. `messages` is to be iterated once; it ends when the child has."""

    def __init__(self, pid: int, pipe: asyncio.StreamReader, ended: asyncio.Future[int], memory_bytes: int) -> None:
        self.pid = pid
        self._pipe = pipe
        self._ended = ended
        self._memory_bytes = memory_bytes
        self._over_memory = False

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Every message, in order. Raises ProcessorFailure with the true word where the last one was not `done`."""
        last: dict[str, Any] = {}
        try:
            while line := await self._pipe.readline():
                last = json.loads(line)
                if last["kind"] == "failed":
                    last = {"kind": "failed", "type": ErrorType(last["type"]), "message": str(last["message"])}
                    break
                yield last
        except (ValueError, LookupError, TypeError, RecursionError):  # not ours: somebody wrote to the pipe
            self.kill()
            raise ProcessorFailure(ErrorType.PROCESSOR_ERROR, "The processor disturbed its progress pipe.") from None
        if last.get("kind") == "done":
            return
        if last.get("kind") == "failed" and last["type"] != ErrorType.MEMORY:
            error_type = ErrorType(last["type"])
            raise ProcessorFailure(error_type, last["message"], retryable=error_type is ErrorType.STORAGE_FULL)
        status = await self._ended if last.get("kind") != "failed" else 0
        if self._over_memory or last.get("kind") == "failed":
            limit = f"{self._memory_bytes / 1024**2:.0f} MiB"
            raise ProcessorFailure(
                ErrorType.MEMORY, f"It needed more than {limit} of memory (HEADWAY_TASK_MEMORY_BYTES)."
            )
        raise ProcessorFailure(ErrorType.PROCESSOR_ERROR, f"The processor's process {how_it_ended(status)}.")

    async def watch_memory(self) -> None:
        """Kills the child when its resident memory passes the limit: what is mapped is not under RLIMIT_DATA."""
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        statm = Path(f"/proc/{self.pid}/statm")
        while sys.platform == "linux":
            await asyncio.sleep(WATCH_SECONDS)
            try:
                _, resident, shared, *_ = statm.read_text().split()
            except OSError:
                return
            if (int(resident) - int(shared)) * page_bytes > self._memory_bytes:
                self._over_memory = True
                self.kill()
                return

    def kill(self) -> None:
        """SIGKILL to the child and all it started: nothing that runs can refuse it, the GIL or not."""
        if not self._ended.done():
            kill_child(self.pid)


class Sandbox:
    """Owns the fork server, and starts another if that one should die."""

    def __init__(self, modules: list[str], used: Used = lambda *_: None, app_dir: Path = Path()) -> None:
        """`modules` are looked up in `app_dir` first."""
        self._modules = [str(app_dir.absolute()), *modules]
        self._used = used
        self._server: _Server | None = None
        self._starting = asyncio.Lock()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Sandbox:
        await self._live_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _live_server(self) -> _Server:
        async with self._starting:
            if self._server is None or self._server.dead:
                if self._server is not None:
                    log.error("fork server died; starting another")
                    await self._stack.aclose()
                self._server = await self._stack.enter_async_context(_Server(self._modules, self._used))
            return self._server

    @asynccontextmanager
    async def attempt(self, spec: dict[str, Any]) -> AsyncIterator[Child]:
        server = await self._live_server()
        read, write = os.pipe()
        try:
            reader = asyncio.StreamReader(limit=LINE_BYTES)
            # From here on the transport alone closes `read`: a number closed twice is soon another attempt's pipe.
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb", buffering=0)
            )
            try:
                pid, ended = await server.fork(spec, write)
            except BaseException:
                transport.close()
                raise
        finally:
            os.close(write)
        child = Child(pid, reader, ended, spec["memory_bytes"])
        try:
            yield child
        finally:
            child.kill()
            transport.close()
            with suppress(ProcessorFailure):
                await asyncio.shield(ended)


class _Server:
    def __init__(self, modules: list[str], used: Used) -> None:
        self._modules = modules
        self._used = used
        self._processors: dict[int, str] = {}
        self._requests = 0
        self._starts: dict[int, asyncio.Future[int]] = {}
        self._ends: dict[int, asyncio.Future[int]] = {}
        self._ready = asyncio.Event()
        self.dead = False

    async def __aenter__(self) -> _Server:
        ours, theirs = socket.socketpair()
        self._sending = ours.dup()
        self._sending.setblocking(True)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-P",  # of the current folder only what was named: a `redis.py` that lies there is not ours
                    "-m",
                    "headway.worker.forkserver",
                    str(theirs.fileno()),
                    current_format(),
                    *self._modules,
                ),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.stderr,
                env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._listening = asyncio.create_task(self._listen(reader), name="fork server answers")
        try:
            await self._until_ready()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _until_ready(self) -> None:
        why = "ended before it was ready: the lines above say why"
        try:
            await asyncio.wait_for(self._ready.wait(), START_SECONDS)
        except TimeoutError:
            self.dead = True
            why = (
                f"was not ready after {START_SECONDS:g} s: give the machine more CPU or memory, or find the module of "
                "HEADWAY_PROCESSORS whose import does not end, and start the worker again"
            )
        if self.dead:
            raise ProcessorFailure(ErrorType.PROCESSOR_ERROR, f"The fork server {why}.", retryable=True)

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        self._sending.close()  # the fork server sees the end of its socket, kills what is left and exits
        await cancel(self._listening)
        try:
            await asyncio.wait_for(self._process.wait(), 2)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def fork(self, spec: dict[str, Any], pipe: int) -> tuple[int, asyncio.Future[int]]:
        """Starts a child. Returns its pid and the future of its wait status."""
        loop = asyncio.get_running_loop()
        self._requests += 1
        request_id = self._requests
        self._processors[request_id] = spec["processor"]
        started = self._starts[request_id] = loop.create_future()
        ended = self._ends[request_id] = loop.create_future()
        if self.dead:
            self._forget()
        else:
            line = json.dumps({"id": request_id, "spec": spec}).encode() + b"\n"
            try:
                sent = socket.send_fds(self._sending, [line], [pipe])
                self._sending.sendall(line[sent:])
            except OSError:
                self._forget()
        try:
            return await asyncio.shield(started), ended
        except asyncio.CancelledError:
            started.add_done_callback(_kill_unwanted)
            raise

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                answer = json.loads(line)
                if "ready" in answer:
                    self._ready.set()
                    log.info("sandbox ready", walls=answer["walls"])
                elif "pid" in answer:
                    self._starts.pop(answer["id"]).set_result(answer["pid"])
                else:
                    processor = self._processors.pop(answer["id"])
                    self._used(processor, answer["cpu_seconds"], answer["rss_bytes"])
                    self._ends.pop(answer["id"]).set_result(answer["status"])
        except OSError:
            pass
        finally:
            self._forget()

    def _forget(self) -> None:
        """The fork server has gone, and its children with it."""
        self.dead = True
        self._ready.set()
        for future in (*self._starts.values(), *self._ends.values()):
            if not future.done():
                future.set_exception(
                    ProcessorFailure(ErrorType.PROCESSOR_ERROR, "The sandbox's fork server died.", retryable=True)
                )
                future.exception()  # whoever waits is told; where nobody does, that is no error
        self._starts.clear()
        self._ends.clear()
        self._processors.clear()


def kill_child(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # just forked, and not yet a group of its own; or gone
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    except PermissionError:
        pass


def _kill_unwanted(started: asyncio.Future[int]) -> None:
    """The attempt was cancelled before its child was there."""
    if not started.cancelled() and started.exception() is None:
        kill_child(started.result())


def how_it_ended(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"was killed by {name}"
    return f"ended with code {os.WEXITSTATUS(status)} without a result"
