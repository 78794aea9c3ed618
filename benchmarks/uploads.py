"""Uploads beside a bare `request.stream()` to a file, Starlette's UploadFile and nginx: one file, to a memory disk.

    .venv/bin/python -m benchmarks.uploads [--mebibytes 256] [--rounds 5]

In every round each server takes the file once, in an order that changes; curl sends it, from another core. CPU seconds
are the serving process's, all its threads, by the scheduler. The bare server stores 1 MiB at a time in a thread and
does nothing else: no limit, no hash, no task. So what Headway is held against is that and the sha256 of the same bytes,
which is taken in the same round. Peak memory is VmHWM of the process over all rounds, less what it had before the
first. With one core everything shares it. What is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from benchmarks.downloads import CORES, MIB, cpu_seconds, pin, process
from tests.processes import Platform, RedisServer, free_port

CHUNK_BYTES: Final = MIB


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """`request.stream()` to a file, 1 MiB at a time in a thread, fsynced. The folder comes by the environment."""
    if scope["type"] != "http":
        return
    pending = bytearray()
    with (Path(os.environ["BENCH_FOLDER"]) / "bare").open("wb", buffering=0) as file:
        async for chunk in Request(scope, receive).stream():
            pending += chunk
            if len(pending) >= CHUNK_BYTES:
                await asyncio.to_thread(file.write, pending)
                pending = bytearray()
        await asyncio.to_thread(file.write, pending)
        await asyncio.to_thread(os.fsync, file.fileno())
    await Response(status_code=201)(scope, receive, send)


async def upload_file(scope: Scope, receive: Receive, send: Send) -> None:
    """Starlette's own form: spooled whole, then copied."""
    if scope["type"] != "http":
        return
    async with Request(scope, receive).form() as form:
        source = form["file"].file  # type: ignore[union-attr]
        with (Path(os.environ["BENCH_FOLDER"]) / "form").open("wb") as file:
            await asyncio.to_thread(shutil.copyfileobj, source, file, CHUNK_BYTES)
    await Response(status_code=201)(scope, receive, send)


@dataclass
class Server:
    name: str
    pid: int
    #: The arguments of curl for one upload, made ready anew each time.
    curl: Callable[[], list[str]]
    megabytes_per_second: list[float] = field(default_factory=list)
    cpu_seconds_per_gibibyte: list[float] = field(default_factory=list)
    memory_before: int = 0

    def take(self, size_bytes: int) -> None:
        arguments = self.curl()
        cpu, began = cpu_seconds(self.pid), time.perf_counter()
        subprocess.run(
            ["taskset", "--cpu-list", str(CORES[-1]), "curl", "--silent", "--show-error", "--fail", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        took = time.perf_counter() - began
        self.megabytes_per_second.append(size_bytes / took / 1e6)
        self.cpu_seconds_per_gibibyte.append((cpu_seconds(self.pid) - cpu) / size_bytes * 1024 * MIB)


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _headway(platform: Platform, file: Path) -> list[Server]:
    pid = platform.apis[0].pid
    about = {"processor": "checksum", "filename": "a.bin", "size_bytes": file.stat().st_size}
    previous: list[str] = []

    def cleared() -> None:
        """The memory disk holds one of ours at a time."""
        while previous:
            task = f"{platform.url}/tasks/{previous.pop()}"
            httpx.post(f"{task}/cancel")
            httpx.delete(task).raise_for_status()

    def noted(answer: httpx.Response) -> dict[str, object]:
        task: dict[str, object] = answer.raise_for_status().json()
        previous.append(str(task["task_id"]))
        return task

    def put() -> list[str]:
        cleared()
        task = noted(httpx.post(f"{platform.url}/tasks", json=about))
        return ["--upload-file", str(file), f"{platform.url}/tasks/{task['task_id']}/upload"]

    def tus() -> list[str]:
        cleared()
        metadata = "filename YS5iaW4=,processor Y2hlY2tzdW0="
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(about["size_bytes"]), "Upload-Metadata": metadata}
        answer = httpx.post(f"{platform.url}/uploads", headers=headers).raise_for_status()
        task_id = answer.headers["Headway-Task-Id"]
        previous.append(task_id)
        sent = ["Tus-Resumable: 1.0.0", "Upload-Offset: 0", "Content-Type: application/offset+octet-stream"]
        options = [part for header in sent for part in ("--header", header)]
        return ["--request", "PATCH", *options, "--upload-file", str(file), f"{platform.url}/uploads/{task_id}"]

    def form() -> list[str]:
        cleared()
        # The last form's task: only curl saw its answer.
        previous.extend(task["task_id"] for task in httpx.get(f"{platform.url}/tasks").json()["tasks"])
        cleared()
        return ["--form", "processor=checksum", "--form", f"file=@{file}", f"{platform.url}/tasks"]

    return [Server("headway, PUT", pid, put), Server("headway, tus", pid, tus), Server("headway, multipart", pid, form)]


def _bare(stack: ExitStack, folder: Path, file: Path) -> list[Server]:
    servers = []
    for name, label in (("bare", "uvicorn, bare stream to a file"), ("upload_file", "uvicorn, Starlette's UploadFile")):
        port = free_port()
        arguments = [
            sys.executable,
            "-m",
            "uvicorn",
            f"benchmarks.uploads:{name}",
            "--port",
            str(port),
            "--no-access-log",
        ]
        pid = stack.enter_context(process(arguments, port, BENCH_FOLDER=str(folder), TMPDIR=str(folder)))
        url = f"http://127.0.0.1:{port}/"
        how = ["--upload-file", str(file)] if name == "bare" else ["--form", f"file=@{file}"]
        servers.append(Server(label, pid, lambda how=how, url=url: [*how, url]))  # type: ignore[misc]
    return servers


def _nginx(stack: ExitStack, folder: Path, scratch: Path, file: Path) -> Server | None:
    """PUT by its dav module, one process without a master; None where its build has no such module."""
    port = free_port()
    config = scratch / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {scratch}/nginx.pid; error_log stderr;\n"
        "events { worker_connections 64; }\n"
        f"http {{ access_log off; client_max_body_size 0; client_body_temp_path {folder}/nginx;\n"
        f"  proxy_temp_path {scratch}/b; fastcgi_temp_path {scratch}/c;\n"
        f"  uwsgi_temp_path {scratch}/d; scgi_temp_path {scratch}/e;\n"
        f"  server {{ listen 127.0.0.1:{port}; root {folder}; location / {{ dav_methods PUT; }} }} }}\n"
    )
    check = subprocess.run(["nginx", "-t", "-p", str(scratch), "-c", str(config)], capture_output=True, check=False)
    if check.returncode:
        return None
    pid = stack.enter_context(process(["nginx", "-p", str(scratch), "-c", str(config)], port))
    return Server("nginx, PUT", pid, lambda: ["--upload-file", str(file), f"http://127.0.0.1:{port}/from-nginx"])


def hash_seconds(file: Path) -> float:
    """CPU seconds a GiB of the sha256 alone, read 1 MiB at a time."""
    began = time.process_time()
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as source:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
    return (time.process_time() - began) / file.stat().st_size * 1024 * MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    memory = Path("/dev/shm")
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="headway-", dir=memory if memory.is_dir() else None))
        )
        folder.chmod(0o777)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headway-")))
        file = scratch / "large.bin"
        with file.open("wb") as sink:
            for _ in range(arguments.mebibytes):
                sink.write(os.urandom(MIB))
        redis = stack.enter_context(RedisServer(scratch / "redis", appendfsync="no"))
        env = {"HEADWAY_DATA_DIR": str(folder / "data"), "HEADWAY_MAX_UPLOAD_BYTES": "100GiB"}
        platform = stack.enter_context(Platform(scratch / "platform", redis.url, **env))
        platform.start_api()
        servers = _headway(platform, file) + _bare(stack, folder, file)
        nginx = _nginx(stack, folder, scratch, file) if shutil.which("nginx") else None
        if nginx is None:
            print("nginx with its dav module is not installed: left out")
        else:
            servers.append(nginx)
        for server in servers:
            pin(server.pid, CORES[0])
            server.memory_before = peak_bytes(server.pid)
        hashes = []
        for _ in range(arguments.rounds):
            hashes.append(hash_seconds(file))
            for server in random.sample(servers, len(servers)):
                server.take(file.stat().st_size)
        peaks = {server.name: peak_bytes(server.pid) - server.memory_before for server in servers}
    print(f"{arguments.mebibytes} MiB, {arguments.rounds} rounds, {len(CORES)} cores; median (lowest to highest)")
    print(f"{'sha256 alone':32} {statistics.median(hashes):.2f} CPU s/GiB ({min(hashes):.2f} to {max(hashes):.2f})")
    plain = next(server for server in servers if "bare" in server.name).cpu_seconds_per_gibibyte
    for server in servers:
        speeds, costs = server.megabytes_per_second, server.cpu_seconds_per_gibibyte
        ratios = [(cost - hashed) / bare for cost, hashed, bare in zip(costs, hashes, plain, strict=True)]
        beside = (
            f"   {statistics.median(ratios):.2f} of the bare one, beside the hash" if "headway" in server.name else ""
        )
        print(
            f"{server.name:32} {statistics.median(speeds):5.0f} MB/s ({min(speeds):.0f} to {max(speeds):.0f})"
            f"   {statistics.median(costs):.2f} CPU s/GiB ({min(costs):.2f} to {max(costs):.2f})"
            f"   +{peaks[server.name] / MIB:.0f} MiB{beside}"
        )
    print(json.dumps({server.name: server.cpu_seconds_per_gibibyte for server in servers}))


if __name__ == "__main__":
    main()
