"""One client watching one task three times at once, each time through a proxy of single bytes: whole, cut again and
again, and a task that there is not. What it was handed is kept beside the truth, for the tests to compare."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from headway.shared.json_text import text_of
from headway.shared.redis.client import connect
from headway.shared.settings import Settings
from headway.shared.tasks.models import TaskId
from headway.shared.tasks.progress import EVENT_BYTES, Publisher
from tests.browser.conftest import NAMES
from tests.integration.stream_clients.processors import ROOT
from tests.npm import installed
from tests.one_byte_proxy import Exchange, OneByteProxy
from tests.processes import Platform
from tests.streams import Frame, watch
from tests.waiting import wait_until

HERE: Final = Path(__file__).parent

#: Those that reconnect by themselves after a cut; the others are asked again by hand.
RECONNECTING: Final = ("chromium", "eventsource", "@microsoft/fetch-event-source", "launchdarkly-eventsource")
CLIENTS: Final = (*RECONNECTING, "httpx-sse", "sseclient-py", "aiohttp-sse-client", "curl")

#: Behind an id; inside an event's data, in the middle of an escape; behind its data, before the empty line.
CUTS: Final = (b"\nid: 4\n", b'"message":"2 Z\\u00', b'"error":null}\n')

#: All three at once, on a machine that runs other tests beside this one.
RUN_SECONDS: Final = 45.0


@dataclass(frozen=True)
class Told:
    """An event as the client handed it over."""

    id: str
    event: str
    data: str


@dataclass
class Run:
    told: list[Told] = field(default_factory=list)
    #: The client has given up for good.
    ended: bool = False
    #: What was asked, and answered, on the way.
    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def events(self) -> list[Told]:
        """What is left when an application passes over messages without data."""
        return [told for told in self.told if told.data]


@dataclass(frozen=True)
class Observation:
    truth: list[Frame]
    whole: Run
    cut: Run
    unknown: Run


def expected(truth: list[Frame]) -> list[Told]:
    return [Told(str(frame.id), frame.name or "message", text_of(frame.data)) for frame in truth]


async def observe(client: str, platform: Platform, gate: Path) -> Observation:
    command, env = _command(client)
    options = json.dumps({"gate": str(gate), "gates": 1, "step_seconds": 0.25})
    task_id = platform.submit("telling", options=options)["task_id"]
    await asyncio.to_thread(platform.wait, task_id, "processing")
    await _emit_a_large_event(platform, task_id)
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(OneByteProxy(platform.url, cuts=cuts)) for cuts in ((), CUTS, ())]
        paths = [f"/tasks/{task}/events?last_event_id=0" for task in (task_id, task_id, "0" * 32)]
        urls = [proxy.url + path for proxy, path in zip(proxies, paths, strict=True)]
        process = await asyncio.create_subprocess_exec(
            *command, *urls, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            async with asyncio.timeout(RUN_SECONDS):
                output = asyncio.create_task(process.communicate())
                # The first half is history for everybody, the second is made while they watch.
                await wait_until(
                    f"{client} watches",
                    lambda: all(proxy.streams and proxy.streams[0].head for proxy in proxies) or output.done(),
                    seconds=RUN_SECONDS,
                )
                (gate / "1").touch()
                stdout, stderr = await output
        except TimeoutError:
            left = [[(e.status, e.was_cut, e.ended, bytes(e.body[-200:])) for e in proxy.streams] for proxy in proxies]
            raise AssertionError(f"{client} did not come to an end: {left}, {platform.task(task_id)}") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, stderr.decode()
        runs = [Run(exchanges=proxy.streams) for proxy in proxies]
    for line in stdout.splitlines():
        said = json.loads(line)
        run = runs[said["run"]]
        run.ended = said.get("ended", False)
        if not run.ended:
            run.told.append(Told(said["id"], said["event"], said["data"]))
    truth = await asyncio.to_thread(watch, platform.url, task_id, 0)
    return Observation(truth, *runs)


async def _emit_a_large_event(platform: Platform, task_id: str) -> None:
    """A log line that fills an event to the last byte that the contract allows."""
    settings = Settings(redis_url=platform.redis_url)
    async with connect(settings) as redis:
        publisher = Publisher(redis, settings)
        empty = {"task_id": task_id, "level": "info", "message": ""}
        frame = f"id: 9\nevent: log\ndata: {text_of(empty)}\n\n"  # one of the first nine events
        filled = {**empty, "message": "x" * (EVENT_BYTES - len(frame))}
        assert await publisher.emit(TaskId(task_id), "log", filled) <= 9


def _command(client: str) -> tuple[list[str], dict[str, str]]:
    """How the client is started. Skips the test where what it needs is not here."""
    env = dict(os.environ)
    if client == "chromium":
        if not any(map(shutil.which, NAMES)):
            pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
        return [sys.executable, "-m", "tests.integration.stream_clients.chromium_client"], env
    if client in ("eventsource", "@microsoft/fetch-event-source"):
        if (node := shutil.which("node")) is None:
            pytest.skip("there is no node here")
        return [node, str(HERE / "node_clients.cjs"), client], env | {"NODE_CLIENTS": str(installed(HERE))}
    if client == "curl" and shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    return [sys.executable, "-m", "tests.integration.stream_clients.python_clients", client], env
