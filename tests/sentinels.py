"""A primary, its replicas and three sentinels on loopback, all real, each killed by its pid."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import pytest
import redis

from tests.processes import START_SECONDS, free_port, redis_binary
from tests.waiting import wait_for

SERVICE: Final = "headway"
#: Short beside what an operator sets (5 s and more), so that a test is short.
DOWN_AFTER_MS: Final = 1000
FAILOVER_TIMEOUT_MS: Final = 3000


class Node:
    """One server, or one sentinel, with a configuration file of its own, which it rewrites."""

    def __init__(self, folder: Path, lines: str, *, sentinel: bool = False, password: str | None = None) -> None:
        self.port = free_port()
        self._folder = folder
        self._sentinel = sentinel
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        common = f'port {self.port}\nbind 127.0.0.1\ndir "{folder}"\nlogfile "{folder / "log"}"\n'
        secret = f"requirepass {password}\n" if password else ""
        (folder / "redis.conf").write_text(common + secret + lines)

    def start(self) -> None:
        command = [redis_binary(), str(self._folder / "redis.conf"), *(["--sentinel"] if self._sentinel else [])]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(f"it answers; its log: {self._folder / 'log'}", self._answers, seconds=START_SECONDS)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None and self._sentinel:
            pytest.skip(f"{redis_binary()} has no sentinel mode")
        assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            return bool(self.ask("PING"))
        except redis.ConnectionError:
            return False

    def ask(self, *command: str) -> Any:
        with redis.Redis(port=self.port, password=self._password, socket_timeout=2) as client:
            return client.execute_command(*command)

    def is_primary(self) -> bool:
        try:
            return bool(self.ask("ROLE")[0] == b"master")
        except redis.ConnectionError:  # it cuts its clients when it changes
            return False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def freeze(self) -> None:
        """As a machine that hangs: its connections live and say nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, as a machine that is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Fleet:
    """Servers, the first one the primary to begin with, and the sentinels that watch them."""

    def __init__(self, folder: Path, *, replicas: int = 1, server_lines: str = "") -> None:
        lines = f'save ""\nappendonly yes\nappendfsync everysec\nrepl-diskless-sync-delay 0\n{server_lines}'
        first = Node(folder / "server-1", lines)
        follow = f"{lines}replicaof 127.0.0.1 {first.port}\n"
        self.servers = [first, *(Node(folder / f"replica-{number}", follow) for number in range(replicas))]
        watch = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {first.port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}\n"
        )
        self.sentinels = [Node(folder / f"sentinel-{number}", watch, sentinel=True) for number in (1, 2, 3)]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    @property
    def primary(self) -> Node:
        """As the first sentinel knows it."""
        port = self._named_by(self.sentinels[0])["port"]
        return next(server for server in self.servers if server.port == int(port))

    def all_name(self, server: Node) -> bool:
        return all(self._named_by(sentinel)["port"] == str(server.port) for sentinel in self.sentinels)

    def _named_by(self, sentinel: Node) -> dict[str, str]:
        told = [text.decode() for text in sentinel.ask("SENTINEL", "MASTER", SERVICE)]
        return dict(zip(told[::2], told[1::2], strict=True))

    def is_ready(self) -> bool:
        """A failover would succeed now: everybody knows everybody, and the replicas have what the primary has."""
        replicas = len(self.servers) - 1
        told = self._named_by(self.sentinels[0])
        if (told["flags"], told["num-slaves"], told["num-other-sentinels"]) != ("master", str(replicas), "2"):
            return False
        flags = [
            replica[replica.index(b"flags") + 1] for replica in self.sentinels[0].ask("SENTINEL", "REPLICAS", SERVICE)
        ]
        return flags == [b"slave"] * replicas and self._replicated_to() == replicas

    def _replicated_to(self) -> int:
        """After a full copy a replica is `connected` a second before anything new is sent to it."""
        with redis.Redis(port=self.primary.port, db=9, single_connection_client=True) as client:
            try:
                client.set("probe", 1, px=1000)
                return int(client.wait(len(self.servers) - 1, 100))
            except redis.ResponseError:  # it takes no writes without replicas
                return 0

    def wait_ready(self, seconds: float = 60) -> None:
        """Sentinels look every ten seconds and think for eight; here they hurry, until all is well."""
        self._look_every(250)
        wait_for("primary, replica and sentinels know each other", self.is_ready, seconds=seconds)
        self._look_every(None)

    def _look_every(self, ms: int | None) -> None:
        periods = ("info-period", str(ms or 10_000), "publish-period", str(ms or 2_000))
        with suppress(redis.ResponseError):  # before 7.0 there is no hurrying
            for sentinel in self.sentinels:
                sentinel.ask("SENTINEL", "DEBUG", *periods)

    def promote(self) -> None:
        """A planned failover."""
        self.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE)

    def __enter__(self) -> Fleet:
        with ExitStack() as stack:
            stack.callback(self.kill)
            for node in (*self.servers, *self.sentinels):
                node.start()
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        for node in (*self.sentinels, *self.servers):
            node.kill()
