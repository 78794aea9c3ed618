"""Python's clients and curl, each as its documentation says, telling what it was handed as JSON lines.

    python -m tests.integration.stream_clients.python_clients httpx-sse URL URL …

The URLs are watched at the same time, each until its server has said that there is no more: `{"run", "id", "event",
"data"}` for an event, `{"run", "ended"}` at the end. A client that does not reconnect by itself is asked again by hand,
with the last id it handed over.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta

import aiohttp
import httpx
import urllib3
from aiohttp_sse_client.client import EventSource  # type: ignore[import-untyped]
from httpx_sse import connect_sse
from ld_eventsource import SSEClient as LaunchDarklyClient  # type: ignore[import-untyped]
from ld_eventsource.actions import Event, Fault  # type: ignore[import-untyped]
from ld_eventsource.config import ConnectStrategy, ErrorStrategy  # type: ignore[import-untyped]
from ld_eventsource.errors import HTTPStatusError  # type: ignore[import-untyped]
from sseclient import SSEClient

from tests.streams import parse_block

#: id, event, data
Tell = Callable[[str | None, str | None, str], None]

READ_SECONDS = 20.0


def resume(last: str) -> dict[str, str]:
    return {"Last-Event-ID": last} if last else {}


def httpx_sse(url: str, tell: Tell) -> None:
    last = ""
    with httpx.Client(timeout=READ_SECONDS) as client:
        while True:
            try:
                with connect_sse(client, "GET", url, headers=resume(last)) as source:
                    if source.response.status_code != 200:
                        return
                    for event in source.iter_sse():
                        tell(event.id, event.event, event.data)
                        last = event.id
            except httpx.RemoteProtocolError:
                continue  # cut


def sseclient_py(url: str, tell: Tell) -> None:
    last = ""
    with urllib3.PoolManager(timeout=READ_SECONDS, retries=False) as pool:
        while True:
            headers = {"Accept": "text/event-stream", **resume(last)}
            answer = pool.request("GET", url, headers=headers, preload_content=False)
            if answer.status != 200:
                return
            try:
                for event in SSEClient(answer).events():
                    tell(event.id, event.event, event.data)
                    last = event.id or last
            except urllib3.exceptions.ProtocolError:
                continue
            finally:
                answer.close()


def launchdarkly_eventsource(url: str, tell: Tell) -> None:
    strategy = ConnectStrategy.http(url, urllib3_request_options={"timeout": READ_SECONDS})
    with LaunchDarklyClient(
        strategy, initial_retry_delay=0.1, error_strategy=ErrorStrategy.always_continue()
    ) as client:
        for action in client.all:
            if isinstance(action, Event):
                tell(action.id, action.event, action.data)
            elif isinstance(action, Fault) and isinstance(action.error, HTTPStatusError):
                return


def aiohttp_sse_client(url: str, tell: Tell) -> None:
    """Reconnects by itself after an end, but raises after a cut; what is no stream is a ConnectionError."""

    async def run() -> None:
        last = ""
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with EventSource(
                        url, session=session, headers=resume(last), reconnection_time=timedelta(seconds=0.1)
                    ) as source:
                        async for event in source:
                            tell(event.last_event_id, event.type, event.data)
                            last = event.last_event_id
                except aiohttp.ClientPayloadError:
                    continue
                except ConnectionError:
                    return

    asyncio.run(run())


def curl(url: str, tell: Tell) -> None:
    last = ""
    while True:
        headers = [part for name, value in resume(last).items() for part in ("-H", f"{name}: {value}")]
        command = ["curl", "--silent", "--no-buffer", "--fail", "--max-time", f"{READ_SECONDS:g}"]
        command += ["--write-out", "%{stderr}%{http_code}", *headers, url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            block = b""
            for line in process.stdout:
                block += line
                if line == b"\n":
                    if (frame := parse_block(block.removesuffix(b"\n\n"))) is not None:
                        data = block.partition(b"data: ")[2].partition(b"\n")[0].decode()
                        tell(str(frame.id), frame.name, data)
                        last = str(frame.id)
                    block = b""
            if process.stderr.read() != b"200":
                return


CLIENTS: dict[str, Callable[[str, Tell], None]] = {
    "httpx-sse": httpx_sse,
    "sseclient-py": sseclient_py,
    "launchdarkly-eventsource": launchdarkly_eventsource,
    "aiohttp-sse-client": aiohttp_sse_client,
    "curl": curl,
}


def main(name: str, *urls: str) -> None:
    lock = threading.Lock()

    def say(line: dict[str, object]) -> None:
        with lock:
            print(json.dumps(line), flush=True)

    def watch(run: int, url: str) -> None:
        def tell(event_id: str | None, event: str | None, data: str) -> None:
            say({"run": run, "id": event_id, "event": event or "message", "data": data})

        CLIENTS[name](url, tell)
        say({"run": run, "ended": True})

    threads = [threading.Thread(target=watch, args=numbered) for numbered in enumerate(urls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
