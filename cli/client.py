"""The platform's HTTP interface as the terminal uses it: small, typed, asynchronous.

`Client` is entered by a command and closed by it. Whatever goes wrong is a CliError (cli/exits.py): Unreachable where
nobody answers, Declined where the platform says no. `events` follows a task's stream as a browser's EventSource would:
it resumes by Last-Event-ID, waits as the server asks, and ends with the terminal event or a 204.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypedDict
from urllib.parse import quote

import httpx
from httpx_sse import SSEError, aconnect_sse

from cli.exits import Declined, Unreachable, WrongUse

if TYPE_CHECKING:  # shared.models brings pydantic: a third of a client command's start
    from shared.models import TaskId

#: Several heartbeats of the server's default: a stream silent for longer is half-open, and is asked for again.
STREAM_SILENCE_SECONDS: Final = 60.0
#: A large upload's answer comes after its fsync.
ANSWER_SECONDS: Final = 300.0
CONNECT_SECONDS: Final = 5.0
#: A platform that restarts is back well within this. After it, `watch` says so instead of hanging in a script for ever.
GIVE_UP_SECONDS: Final = 60.0
LONGEST_WAIT_SECONDS: Final = 5.0
#: What a proxy or a restarting platform answers; a client that waits gets a better one.
_PASSING: Final = frozenset({502, 503, 504})
_CHUNK_BYTES: Final = 256 * 1024
_TERMINAL: Final = frozenset({"completed", "failed", "cancelled"})


class TaskView(TypedDict, total=False):
    """What the terminal reads of a task, or of a state event, which leaves out what never changes."""

    task_id: TaskId
    processor: str
    filename: str | None
    size_bytes: int | None
    status: str
    progress: float
    step: int
    total_steps: int
    message: str
    done: int
    total: int | None
    unit: str | None
    rate: float | None
    eta_seconds: float | None
    attempt: int
    version: int
    created_at: str
    started_at: str | None
    finished_at: str | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    links: dict[str, str]


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event: `name` is empty for a state; `raw` is its data as it came, `data` the same, read."""

    id: str
    name: str
    raw: str
    data: dict[str, Any]

    @property
    def is_terminal(self) -> bool:
        return not self.name and self.data.get("status") in _TERMINAL


class Client:
    """One platform, at `url`, as the owner of `key` (None: open mode)."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL:
            raise WrongUse(f"{url!r} is not a URL. Example: --url http://127.0.0.1:8000") from None
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise WrongUse(f"{url!r} is not the URL of a platform. Example: --url http://127.0.0.1:8000")
        if key is not None and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise WrongUse("HEADWAY_API_KEY: a key is printable characters without spaces.")
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            # Reading the certificates takes longer than a whole request on loopback.
            verify=parsed.scheme == "https",
            # A proxy for the world outside cannot reach this machine's own loopback.
            trust_env=not _is_loopback(parsed.host),
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def create(self, announced: Mapping[str, Any]) -> TaskView:
        """`POST /tasks`: with a filename the task awaits its file at `links.upload`, without one it is queued."""
        # Escaped, so that a file's name that is not UTF-8 does not stop at our own encoder.
        content = json.dumps(dict(announced)).encode()
        return await self._json("POST", "/tasks", content=content, headers={"Content-Type": "application/json"})

    async def upload(self, link: str, path: Path, size_bytes: int) -> TaskView:
        """Sends the file while reading it. Raises WrongUse if it is no longer `size_bytes` long."""
        headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
        try:
            return await self._json("PUT", link, content=_read(path), headers=headers)
        except httpx.LocalProtocolError:
            raise WrongUse(f"{path} changed while it was being sent; it was {size_bytes} bytes before.") from None

    async def task(self, task_id: TaskId) -> TaskView:
        return await self._json("GET", _path(task_id))

    async def act(self, task_id: TaskId, action: str) -> TaskView:
        """`cancel` or `retry`."""
        return await self._json("POST", f"{_path(task_id)}/{action}")

    async def tasks(self, filters: Mapping[str, str], limit: int) -> AsyncIterator[TaskView]:
        """Newest first, at most `limit`, asked for in pages."""
        cursor: str | None = None
        while limit > 0:
            params = {**filters, "limit": str(min(limit, 100))} | ({"cursor": cursor} if cursor else {})
            page: Any = await self._json("GET", "/tasks", params=params)
            for task in page["tasks"][:limit]:
                yield task
            limit -= len(page["tasks"])
            cursor = page.get("next_cursor")
            if not cursor or not page["tasks"]:
                return

    @asynccontextmanager
    async def download(self, link: str) -> AsyncIterator[AsyncIterator[bytes]]:
        try:
            async with self._http.stream("GET", self._at(link)) as response:
                await _check(response, self.url)
                yield response.aiter_bytes(_CHUNK_BYTES)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    async def events(self, task_id: TaskId, *, patient: bool = False) -> AsyncGenerator[StreamEvent, None]:
        """Each event once, in order, until the terminal one. Close it (`aclosing`) when leaving earlier.

        A first connection that fails raises Unreachable at once, unless `patient`; later ones are tried again for
        GIVE_UP_SECONDS, from the last id seen.
        """
        link, last_id = self._at(f"{_path(task_id)}/events"), ""
        wait_seconds, failures, give_up_at = 1.0, 0, asyncio.get_running_loop().time() + GIVE_UP_SECONDS
        while True:
            problem: Exception | None = None
            headers = {"Last-Event-ID": last_id} if last_id else {}
            timeout = httpx.Timeout(STREAM_SILENCE_SECONDS, connect=CONNECT_SECONDS)
            try:
                async with aconnect_sse(self._http, "GET", link, headers=headers, timeout=timeout) as source:
                    if source.response.status_code == 204:
                        return
                    await _check(source.response, self.url)
                    patient = True
                    async for sse in source.aiter_sse():
                        if sse.retry is not None:
                            wait_seconds = min(sse.retry / 1000, LONGEST_WAIT_SECONDS)
                        if not sse.data:  # httpx-sse hands out frames of comments and retry lines too
                            continue
                        last_id, failures = sse.id or last_id, 0
                        give_up_at = asyncio.get_running_loop().time() + STREAM_SILENCE_SECONDS + GIVE_UP_SECONDS
                        name = "" if sse.event == "message" else sse.event
                        event = StreamEvent(sse.id, name, sse.data, json.loads(sse.data))
                        yield event
                        if event.is_terminal:
                            return
            except SSEError:
                raise Unreachable(f"{self.url} answers, but not as Headway does.") from None
            except httpx.TransportError as error:
                problem = self._unreachable(error)
            except Declined as error:
                if error.status not in _PASSING:
                    raise
                problem = error
            if problem and (not patient or asyncio.get_running_loop().time() > give_up_at):
                raise problem
            failures += 1
            delay = min(wait_seconds * 1.5 ** (failures - 1), LONGEST_WAIT_SECONDS)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - spreads clients, guards nothing

    async def _json(self, method: str, link: str, **sent: Any) -> TaskView:
        try:
            response = await self._http.request(method, self._at(link), **sent)
        except httpx.LocalProtocolError:
            raise
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        await _check(response, self.url)
        try:
            answer: TaskView = response.json()
        except ValueError:
            raise Unreachable(f"{self.url} answers, but not as Headway does.") from None
        return answer

    def _at(self, link: str) -> str:
        """A link of the platform's, on the platform we were pointed to: the key goes nowhere else."""
        if link.startswith("/"):
            return self.url + link
        if link.startswith(self.url + "/"):
            return link
        raise Unreachable(f"{self.url} points elsewhere ({link}); its key is not sent there.")

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        late = isinstance(error, httpx.TimeoutException)
        why = "it does not answer in time" if late else str(error) or "the connection was lost"
        return Unreachable(f"{self.url} cannot be reached: {why}. Is it running? Start it with: headway up")


def _path(task_id: TaskId) -> str:
    return f"/tasks/{quote(task_id, safe='')}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk


async def _check(response: httpx.Response, url: str) -> None:
    if response.status_code < 400:
        return
    await response.aread()
    if "json" not in response.headers.get("content-type", "") and response.status_code not in _PASSING:
        raise Unreachable(f"{url} answers {response.status_code}, but not as Headway does. Is --url right?")
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    raise Declined(response.status_code, problem if isinstance(problem, dict) else {})
