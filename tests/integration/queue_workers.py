"""Real workers of other queues, each a process of its own with a module of tasks, for the tests of
headway.integrations."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.processes import Platform, free_port
from tests.waiting import wait_for


class Tasks:
    """The tasks of one platform, as its list has them."""

    def __init__(self, platform: Platform) -> None:
        self.url = platform.url

    def all(self, **query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/tasks", params={"limit": "100"} | query).json()["tasks"]
        return found

    def one(self, name: str, what: str, seen: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The newest task of that name, once it is as it should be."""

        def found() -> dict[str, Any] | None:
            tasks = self.all(processor=name)
            return tasks[0] if tasks and seen(tasks[0]) else None

        task = wait_for(f"{name}: {what}", found)
        assert task is not None
        return task

    def ended(self, name: str, status: str) -> dict[str, Any]:
        task = self.one(name, f"it is {status}", lambda task: task["status"] in ("completed", "failed", "cancelled"))
        assert task["status"] == status, task
        return task

    def batch(self, batch_id: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.url}/batches/{batch_id}")
        found: dict[str, Any] = answer.json()
        return found if answer.status_code == 200 else {"counts": {}, "total": 0}

    def cancel(self, task: dict[str, Any]) -> None:
        assert httpx.post(f"{self.url}/tasks/{task['task_id']}/cancel").status_code == 202

    def states(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        """Of a task that has ended: all that it has been."""
        link = f"{self.url}/tasks/{task['task_id']}/events?last_event_id=0"
        lines = httpx.get(link, headers={"Accept": "text/event-stream"}).text.splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def module(folder: Path, name: str, source: str) -> None:
    (folder / f"{name}.py").write_text(textwrap.dedent(source))


@contextmanager
def worker(folder: Path, environment: Mapping[str, str], *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """In a session of its own, all of which is killed at the end."""
    log = (folder / "worker.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        log.close()


def sends(folder: Path, environment: Mapping[str, str], script: str) -> str:
    """A program that enqueues, and ends. What it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class RabbitServer:
    """A RabbitMQ of the test's own, with a name server (epmd) of its own."""

    SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._epmd = {"ERL_EPMD_PORT": str(free_port()), "ERL_EPMD_ADDRESS": "127.0.0.1"}
        plugins, settings = folder / "plugins", folder / "rabbitmq.conf"
        plugins.write_text("[].")
        settings.write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\n")
        self._environment = self._epmd | {
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"headway{self.port}@localhost",
            "RABBITMQ_CONFIG_FILE": str(settings.with_suffix("")),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}",
        }
        self._folder = folder

    def __enter__(self) -> RabbitServer:
        self._log = (self._folder / "out").open("ab")
        self._names = subprocess.Popen(["epmd"], env=os.environ | self._epmd, stdout=self._log, stderr=self._log)
        self._process = subprocess.Popen(
            [str(self.SCRIPT)],
            env=os.environ | self._environment,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        wait_for("RabbitMQ answers", self._answers)
        return self

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "out").read_text(errors="replace")
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1):
                return True
        except OSError:
            return False

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)
        self._names.kill()
        self._names.wait(30)
        self._log.close()


def said(folder: Path) -> str:
    return (folder / "worker.log").read_text(errors="replace") if (folder / "worker.log").exists() else ""
