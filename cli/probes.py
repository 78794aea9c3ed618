"""What `headway doctor` measures, each as a client behind the user's own URL sees it: plain requests on connections of
their own, because the Python client would resume over the very cuts that are looked for.

A probe judges nothing; cli/findings.py does. Whatever task a probe makes, it takes away again.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import httpx

from headway import AsyncClient, ClientError, Declined, Task
from headway.client.calls import Address, path_of

#: Events this far apart, over this long in all: long beside a network's trembling, short beside a person's patience.
PACE_SECONDS: Final = 0.25
PACED_STEPS: Final = 20
#: More than the six connections that a browser opens to a site over HTTP/1.1.
STREAMS: Final = 8
#: The platform itself speaks within 0.3 s.
SPEAK_SECONDS: Final = 8.0
#: One of them that is refused keeps the others waiting for it this long.
TOGETHER_SECONDS: Final = 2.0
#: nginx takes bodies of 1 MiB unless told otherwise.
UPLOAD_BYTES: Final = 2 * 1024 * 1024
#: A file that is sent slowly: over what an eye sees, in pieces that are counted as they come.
SLOW_BYTES: Final = 1024 * 1024
SLOW_SECONDS: Final = 3.0
SLOW_PIECES: Final = 12
#: A stream that should speak and does not is given up.
PATIENCE_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Came:
    """One event: when it was made by the platform's clock, and when it came by ours, in seconds."""

    made: float
    came: float


@dataclass(slots=True)
class Paced:
    """Events made one by one, as they came. `cut`: the connection broke before the last."""

    headers: httpx.Headers
    events: list[Came] = field(default_factory=list)
    cut: bool = False


@dataclass(slots=True)
class Idle:
    """A stream with nothing to say. `cut_after_seconds` is how long it was silent before somebody cut it, or None."""

    watched_seconds: float
    cut_after_seconds: float | None = None
    comments: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: httpx.Headers
    body: bytes
    seconds: float

    def json(self) -> dict[str, Any]:
        """Empty for what is no JSON object."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class Slow:
    """The answer to a file that was sent slowly, and what its stream said had come while it was sent."""

    answer: Answer
    seen: list[int]


class Probes:
    """Bound to one URL and key. Raises ClientError where nobody answers at all."""

    def __init__(self, url: str, key: str | None) -> None:
        self._address = Address(url, key)
        self.url = self._address.url
        self.client = AsyncClient(url, key)
        self._http = httpx.AsyncClient(**self._address.http_options)

    async def aclose(self) -> None:
        await self.client.aclose()
        await self._http.aclose()

    async def ask(self, method: str, path: str, **sent: Any) -> Answer:
        begun = time.monotonic()
        try:
            response = await self._http.request(method, self._address.at(path), **sent)
        except httpx.TransportError as error:
            raise self._address.unreachable(error) from None
        return Answer(response.status_code, response.headers, response.content, time.monotonic() - begun)

    async def skew_seconds(self, task: Task, before: float, after: float) -> float:
        """How far the platform's clock is ahead of ours, by a task made between two moments of ours."""
        made = _at(task["created_at"])
        return made - after if made > after else min(0.0, made - before)

    @asynccontextmanager
    async def waiting_task(self) -> AsyncIterator[tuple[Task, float]]:
        """A task that waits for its file, so that its stream says nothing; and how far the platform's clock is ahead
        of ours."""
        body = {"processor": "checksum", "filename": "headway-doctor.bin", "size_bytes": UPLOAD_BYTES}
        before = time.time()
        task = await self.client.create(body)
        after = time.time()
        async with self._gone_at_the_end(task):
            yield task, await self.skew_seconds(task, before, after)

    @asynccontextmanager
    async def _gone_at_the_end(self, task: Task) -> AsyncIterator[None]:
        try:
            yield
        finally:
            with suppress(ClientError):
                with suppress(Declined):
                    await self.client.cancel(task["task_id"])
                await self.client.delete(task["task_id"])

    @asynccontextmanager
    async def _stream(self, path: str, patience_seconds: float | None) -> AsyncIterator[httpx.Response]:
        # As a browser asks, who takes compressed answers.
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "gzip, deflate"}
        timeout = httpx.Timeout(patience_seconds, connect=5.0)
        async with self._http.stream("GET", self._address.at(path), headers=headers, timeout=timeout) as response:
            yield response

    async def paced(self, *, workers: bool) -> Paced:
        """Events made one by one, by a worker if there is one, else by the API alone."""
        if not workers:
            return await self._listen("/sse-updates?seconds=5")
        options = {"steps": PACED_STEPS, "step_seconds": PACE_SECONDS}
        task = await self.client.create({"processor": "rehearsal", "options": options})
        async with self._gone_at_the_end(task):
            return await self._listen(f"{path_of(task['task_id'])}/events")

    async def _listen(self, path: str) -> Paced:
        paced = Paced(httpx.Headers())
        try:
            async with self._stream(path, PATIENCE_SECONDS) as response:
                paced.headers = response.headers
                buffer = ""
                async for text in response.aiter_text():
                    came = time.time()
                    *lines, buffer = (buffer + text).split("\n")
                    paced.events.extend(Came(made, came) for made in _made(lines))
        except httpx.TransportError:
            paced.cut = True
        return paced

    async def idle(self, task: Task, seconds: float) -> Idle:
        """Holds a stream that says nothing for `seconds`, or until it is cut."""
        begun = said = time.monotonic()
        idle = Idle(seconds)
        cut = True
        try:
            path = f"{path_of(task['task_id'])}/events"
            async with asyncio.timeout(seconds), self._stream(path, None) as response:
                async for text in response.aiter_text():
                    said = time.monotonic()
                    idle.comments += sum(line.startswith(":") for line in text.split("\n"))
        except httpx.TransportError:
            pass
        except TimeoutError:
            cut = False
        idle.watched_seconds = time.monotonic() - begun
        if cut:
            idle.cut_after_seconds = time.monotonic() - said
        return idle

    async def streams_at_once(self, task: Task) -> int:
        """How many of STREAMS streams speak while the others are open."""
        together = asyncio.Barrier(STREAMS)

        path = f"{path_of(task['task_id'])}/events"

        async def one() -> bool:
            spoke = False
            try:
                async with self._stream(path, SPEAK_SECONDS) as answer:
                    async for _ in answer.aiter_text():
                        spoke = answer.status_code == 200
                        break
                    async with asyncio.timeout(TOGETHER_SECONDS):
                        await together.wait()
            except (httpx.TransportError, TimeoutError, asyncio.BrokenBarrierError):
                pass
            return spoke

        return sum(await asyncio.gather(*(one() for _ in range(STREAMS))))

    async def upload(self, task: Task) -> Answer:
        return await self.ask("PUT", task["links"]["upload"], content=bytes(UPLOAD_BYTES))

    async def slow_upload(self) -> Slow:
        body = {"processor": "checksum", "filename": "headway-doctor-slow.bin", "size_bytes": SLOW_BYTES}
        task = await self.client.create(body)
        sending = True
        seen: list[int] = []
        async with self._gone_at_the_end(task):
            listening = asyncio.Event()

            async def listen() -> None:
                try:
                    async with self._stream(f"{path_of(task['task_id'])}/events", PATIENCE_SECONDS) as response:
                        async for line in response.aiter_lines():
                            listening.set()
                            if sending and line.startswith("data: {"):
                                seen.append(json.loads(line[6:]).get("done") or 0)
                except httpx.TransportError:
                    pass
                finally:
                    listening.set()

            async def pieces() -> AsyncIterator[bytes]:
                for _ in range(SLOW_PIECES):
                    yield bytes(SLOW_BYTES // SLOW_PIECES)
                    await asyncio.sleep(SLOW_SECONDS / SLOW_PIECES)
                if rest := SLOW_BYTES % SLOW_PIECES:
                    yield bytes(rest)

            hearing = asyncio.create_task(listen())
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(SPEAK_SECONDS):
                        await listening.wait()
                headers = {"Content-Length": str(SLOW_BYTES)}
                answer = await self.ask("PUT", task["links"]["upload"], content=pieces(), headers=headers)
            except ClientError:  # the line was cut
                answer = Answer(0, httpx.Headers(), b"", 0.0)
            finally:
                sending = False
                hearing.cancel()
                await asyncio.gather(hearing, return_exceptions=True)
        return Slow(answer, seen)

    async def from_our_page(self) -> Answer:
        """A change as a browser asks for it whose page came from this URL; of nothing that is there."""
        url = httpx.URL(self.url)
        headers = {"Origin": f"{url.scheme}://{url.netloc.decode()}"}
        if url.scheme == "https":  # by plain http a browser says it to this machine alone
            headers["Sec-Fetch-Site"] = "same-origin"
        return await self.ask("POST", f"/tasks/{'0' * 32}/cancel", headers=headers)

    async def protocol(self) -> str | None:
        """What a TLS server chooses of HTTP/2 and HTTP/1.1; None without TLS."""
        url = httpx.URL(self.url)
        if url.scheme != "https":
            return None
        context = ssl.create_default_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        try:
            async with asyncio.timeout(5.0):
                _, writer = await asyncio.open_connection(url.host, url.port or 443, ssl=context)
        except (OSError, TimeoutError):
            return None
        try:
            chosen: str | None = writer.get_extra_info("ssl_object").selected_alpn_protocol()
            return chosen or "http/1.1"
        finally:
            writer.close()


def _made(lines: list[str]) -> Iterator[float]:
    """When the events were made that these lines hold, by their own word."""
    for line in lines:
        if not line.startswith("data: {"):
            continue
        data = json.loads(line[6:])
        if (at := data.get("updated_at") or data.get("timestamp")) is not None:
            yield _at(at)


def _at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
