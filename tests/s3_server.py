"""A real S3 process for tests: moto's server, on a port of its own, with its objects in memory."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from headway.shared.cancellation import cancel
from tests.processes import free_port
from tests.waiting import wait_for

#: It imports a second's worth of Python, on a quiet machine.
START_SECONDS = 50.0


class S3Server:
    """Ended by whoever entered it. Another one on the same port has forgotten everything, as moto does."""

    def __init__(self, log: Path, bucket: str = "headway-tests") -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.bucket = bucket
        #: What a process needs to reach it, besides HEADWAY_STORAGE_URL.
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret-that-nobody-may-see",
        }
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> S3Server:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        with httpx.Client(verify=False, timeout=10) as client:  # plain http; asked often while it starts
            wait_for(f"S3 answers; its log: {self._log}", lambda: self._has_bucket(client), seconds=START_SECONDS)

    def _has_bucket(self, client: httpx.Client) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            return client.put(f"{self.endpoint}/{self.bucket}").status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    # What only somebody who looks into the bucket sees.

    def keys(self, prefix: str = "") -> set[str]:
        answer = httpx.get(f"{self.endpoint}/{self.bucket}", params={"list-type": "2", "prefix": prefix})
        return set(_texts("Key", answer.text))

    def unfinished(self, prefix: str = "") -> set[str]:
        """Uploads in parts that were neither completed nor aborted: nobody sees them, and they are paid for."""
        answer = httpx.get(f"{self.endpoint}/{self.bucket}", params={"uploads": "", "prefix": prefix})
        return {key for key in _texts("Key", answer.text) if key.startswith(prefix)}


class Road:
    """The way to the server through a port that can be closed, or open to somebody who never answers."""

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._tasks: list[asyncio.Task[None]] = []
        self._listening: asyncio.Server | None = None

    async def __aenter__(self) -> Road:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self, *, silent: bool = False) -> None:
        self._listening = await asyncio.start_server(self._silence if silent else self._forward, "127.0.0.1", self.port)

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.close()
        await cancel(*self._tasks)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ahead, back = await asyncio.open_connection("127.0.0.1", self._server.port)
        self._tasks += [asyncio.create_task(_copy(reader, back)), asyncio.create_task(_copy(ahead, writer))]

    async def _silence(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.create_task(_copy(reader, None)))
        self._tasks.append(asyncio.create_task(_copy(asyncio.StreamReader(), writer)))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None) -> None:
    try:
        while data := await reader.read(1 << 16):
            if writer is not None:
                writer.write(data)
                await writer.drain()
    except OSError:
        pass
    finally:
        if writer is not None:
            writer.close()


def _texts(tag: str, xml: str) -> Iterator[str]:
    return (found[1] for found in re.finditer(f"<{tag}>([^<]*)</{tag}>", xml))
