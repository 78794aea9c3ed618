"""Downloads beside nginx and FileResponse: the same file on a memory disk, one serving process on one core each.

    .venv/bin/python -m benchmarks.downloads [--mebibytes 256] [--rounds 5] [--seconds 1.5]

In every round each server sends the file again and again for a while, in an order that changes, on one connection that
is kept. The client is pinned to another core and drops the bytes in the kernel (MSG_TRUNC), so that it is not the one
that is measured. CPU seconds are the serving process's, from the scheduler; on loopback they hold the receiver's share
of TCP too. With one core everything shares it. nginx is left out, and it is said, where it is not installed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from tests.processes import Platform, RedisServer, free_port
from tests.waiting import wait_for

NAME: Final = "large.bin"
MIB: Final = 1024 * 1024
CORES: Final = sorted(os.sched_getaffinity(0))


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """FileResponse and nothing else, for uvicorn. The folder comes by the environment."""
    if scope["type"] == "http":
        await FileResponse(Path(os.environ["BENCH_FOLDER"]) / NAME)(scope, receive, send)


@dataclass
class Server:
    name: str
    path: str
    port: int
    pid: int
    megabytes_per_second: list[float] = field(default_factory=list)
    cpu_seconds_per_gibibyte: list[float] = field(default_factory=list)

    def run_for(self, seconds: float) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            _download(sock, self.path)  # the connection is warm, and a digest computed
            cpu, began, received = cpu_seconds(self.pid), time.perf_counter(), 0
            while (took := time.perf_counter() - began) < seconds:
                received += _download(sock, self.path)
            took = time.perf_counter() - began
            self.megabytes_per_second.append(received / took / 1e6)
            self.cpu_seconds_per_gibibyte.append((cpu_seconds(self.pid) - cpu) / received * 1024 * MIB)


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process, by the scheduler's own count."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _download(sock: socket.socket, path: str) -> int:
    """Returns the bytes of the body, all of which have arrived."""
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096) or _closed()
    head, _, rest = head.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert b" 200 " in lines[0], head
    (length,) = (int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
    left = length - len(rest)
    nowhere = bytearray(4 * MIB)
    while left:
        left -= sock.recv_into(nowhere, min(left, len(nowhere)), socket.MSG_TRUNC) or len(_closed())
    return length


def _closed() -> bytes:
    raise ConnectionError("the server closed the connection")


def pin(pid: int, core: int) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


@contextmanager
def process(arguments: list[str], port: int, **env: str) -> Iterator[int]:
    """A process that listens on the port; its pid."""
    started = subprocess.Popen(arguments, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"{arguments[0]} listens", lambda: started.poll() is None and _listens(port), seconds=30)
        yield started.pid
    finally:
        started.terminate()
        started.wait(10)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _headway(stack: ExitStack, folder: Path, scratch: Path) -> Server:
    redis = stack.enter_context(RedisServer(scratch / "redis", appendfsync="no"))
    platform = stack.enter_context(Platform(scratch / "platform", redis.url, HEADWAY_FILES_DIR=str(folder)))
    api = platform.start_api()
    return Server("headway, with all its checks", f"/download/{NAME}", int(platform.url.rsplit(":", 1)[1]), api.pid)


def _file_response(stack: ExitStack, folder: Path) -> Server:
    port = free_port()
    arguments = [sys.executable, "-m", "uvicorn", "benchmarks.downloads:bare", "--port", str(port), "--no-access-log"]
    pid = stack.enter_context(process(arguments, port, BENCH_FOLDER=str(folder)))
    return Server("uvicorn, bare FileResponse", "/", port, pid)


def _nginx(stack: ExitStack, folder: Path, scratch: Path) -> Server:
    """One process, without a master; `sendfile` and `tcp_nopush` as its documentation recommends."""
    port = free_port()
    config = scratch / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {scratch}/nginx.pid; error_log stderr;\n"
        "events { worker_connections 64; }\n"
        "http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n"
        f"  client_body_temp_path {scratch}/a; proxy_temp_path {scratch}/b; fastcgi_temp_path {scratch}/c;\n"
        f"  uwsgi_temp_path {scratch}/d; scgi_temp_path {scratch}/e;\n"
        f"  server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    pid = stack.enter_context(process(["nginx", "-p", str(scratch), "-c", str(config)], port))
    return Server("nginx, sendfile on", f"/{NAME}", port, pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    arguments = parser.parse_args()
    memory = Path("/dev/shm")
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="headway-", dir=memory if memory.is_dir() else None))
        )
        folder.chmod(0o755)  # nginx reads it as somebody else
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headway-")))
        with (folder / NAME).open("wb") as file:
            for _ in range(arguments.mebibytes):
                file.write(os.urandom(MIB))
        servers = [_headway(stack, folder, scratch), _file_response(stack, folder)]
        if shutil.which("nginx"):
            servers.append(_nginx(stack, folder, scratch))
        else:
            print("nginx is not installed: left out")
        for server in servers:
            pin(server.pid, CORES[0])
        os.sched_setaffinity(0, {CORES[-1]})
        for _ in range(arguments.rounds):
            for server in random.sample(servers, len(servers)):
                server.run_for(arguments.seconds)
    print(f"{arguments.mebibytes} MiB, {arguments.rounds} rounds, {len(CORES)} cores; median (lowest to highest)")
    for server in servers:
        speeds, costs = server.megabytes_per_second, server.cpu_seconds_per_gibibyte
        print(
            f"{server.name:30} {statistics.median(speeds):6.0f} MB/s ({min(speeds):.0f} to {max(speeds):.0f})"
            f"   {statistics.median(costs):.2f} CPU s/GiB ({min(costs):.2f} to {max(costs):.2f})"
        )


if __name__ == "__main__":
    main()
