"""How soon one is answered beside somebody greedy: `GET /session` of an owner, alone and next to each kind of load.

    .venv/bin/python -m benchmarks.neighbours [--seconds 10] [--only downloads,gzip]

A real API and Redis; the greedy client is a process of its own, the healthy one asks on one connection, 50 times a
second. Prints a table for docs/faults.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import httpx

from tests.processes import Platform, RedisServer

KEYS: Final = {"greedy": "the-secret-key-of-greedy-4711", "healthy": "the-secret-key-of-healthy-0815"}
PAUSE_SECONDS: Final = 0.02
STYLE: Final = b"GET /static/style.css HTTP/1.1\r\nHost: x\r\n\r\n"

Greed = Callable[[str, int], Awaitable[None]]


def key(owner: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[owner]}"}


async def _ask(host: str, port: int, head: str, *, source: str | None = None) -> None:
    """One request, read to its end, and again."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(host, port, local_addr=(source, 0) if source else None)
            try:
                writer.write(head.encode())
                while await reader.read(1 << 20):
                    pass
            finally:
                writer.close()
        await asyncio.sleep(0.01)


def _get(path: str, *more: str) -> str:
    lines = [f"GET {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {KEYS['greedy']}", "Connection: close", *more]
    return "\r\n".join(lines) + "\r\n\r\n"


async def downloads(host: str, port: int) -> None:
    head = _get("/download-large-csv?rows=1000000")
    await asyncio.gather(*(_ask(host, port, head) for _ in range(300)))


async def gzip(host: str, port: int) -> None:
    head = _get("/download-large-csv?rows=1000000", "Accept-Encoding: gzip")
    await asyncio.gather(*(_ask(host, port, head) for _ in range(300)))


async def files(host: str, port: int) -> None:
    await asyncio.gather(*(_ask(host, port, _get("/download/large.bin")) for _ in range(300)))


async def unread(host: str, port: int) -> None:
    """Pipelined, without a key, and never read."""
    socks = []
    while True:
        with contextlib.suppress(OSError):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((host, port))
            sock.setblocking(False)
            sock.send(STYLE * 400)
            socks.append(sock)
        for one in socks[:-400]:
            one.close()
        del socks[:-400]
        await asyncio.sleep(0.005)


async def _sockets(host: str, port: int, sources: int) -> None:
    """5,000 that say nothing but a byte every few seconds, and come again when they are closed."""
    writers: dict[int, asyncio.StreamWriter] = {}
    while True:
        for number in range(5000):
            with contextlib.suppress(OSError):
                writer = writers.get(number)
                if writer is None or writer.is_closing():
                    place = (f"127.0.1.{number % sources + 1}", 0)
                    _, writers[number] = await asyncio.open_connection(host, port, local_addr=place)
                    writers[number].write(b"POST /session HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
                else:
                    writer.write(b" ")
            if number % 10 == 0:
                await asyncio.sleep(0.01)


async def one_address(host: str, port: int) -> None:
    await _sockets(host, port, 1)


async def fifty_addresses(host: str, port: int) -> None:
    await _sockets(host, port, 50)


async def transfers(host: str, port: int) -> None:
    """A reader of one file, again and again."""
    body = json.dumps({"processor": "checksum", "filename": "a", "size_bytes": 5})
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=key("greedy"), timeout=60) as client:
        made = await client.post("/tasks", content=body, headers={"Content-Type": "application/json"})
        await client.put(made.json()["links"]["upload"], content=b"hello")
        path = f"/tasks/{made.json()['task_id']}/input?transfer=1"
    await asyncio.gather(*(_ask(host, port, _get(path)) for _ in range(20)))


async def wrong_keys(host: str, port: int) -> None:
    body = '{"key": "nobody-has-this-key-at-all"}'
    head = f"POST /session HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    await asyncio.gather(*(_ask(host, port, head) for _ in range(50)))


GREEDY: Final[dict[str, tuple[str, Greed]]] = {
    one.__name__: (what, one)
    for what, one in (
        ("300 downloads of a table at once, by one owner", downloads),
        ("300 of them compressed", gzip),
        ("300 downloads of a file of 64 MiB", files),
        ("400 connections with 400 requests each that read no answer", unread),
        ("5,000 connections of one address, a byte at a time", one_address),
        ("5,000 of fifty addresses", fifty_addresses),
        ("20 readers that download with `?transfer=1` without a pause", transfers),
        ("50 that try wrong keys without a pause", wrong_keys),
    )
}


async def measured(url: str, seconds: float) -> list[float]:
    took = []
    async with httpx.AsyncClient(base_url=url, headers=key("healthy"), timeout=60) as client:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            (await client.get("/session")).raise_for_status()
            took.append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(PAUSE_SECONDS)
    return took


def row(what: str, took: list[float]) -> str:
    ordered = sorted(took)
    p99 = ordered[int(len(ordered) * 0.99)]
    return f"| {what} | {statistics.median(ordered):.1f} | {p99:.1f} | {ordered[-1]:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--only", default=",".join(GREEDY))
    parser.add_argument("--greedy", nargs=3, metavar=("KIND", "HOST", "PORT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.greedy:
        kind, host, port = asked.greedy
        asyncio.run(GREEDY[kind][1](host, int(port)))  # type: ignore[arg-type]
        return
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(RedisServer(folder / "redis", appendfsync="no"))
        platform = stack.enter_context(Platform(folder / "platform", server.url, HEADWAY_API_KEYS=json.dumps(KEYS)))
        (platform.files_dir / "large.bin").write_bytes(bytes(64 * 1024 * 1024))
        platform.start_api()
        host, port = platform.url.removeprefix("http://").split(":")
        print("| beside | p50 ms | p99 ms | worst ms |\n| --- | --- | --- | --- |")
        print(row("nobody", asyncio.run(measured(platform.url, asked.seconds))), flush=True)
        for kind in asked.only.split(","):
            command = [sys.executable, "-m", "benchmarks.neighbours", "--greedy", kind, host, port]
            greedy = subprocess.Popen(command)
            try:
                asyncio.run(measured(platform.url, 2))  # until it has begun
                print(row(GREEDY[kind][0], asyncio.run(measured(platform.url, asked.seconds))), flush=True)
            finally:
                greedy.kill()
                greedy.wait()


if __name__ == "__main__":
    main()
