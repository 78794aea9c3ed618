"""AsyncClient: the platform, for programs with an event loop. client.py is the same, word for word but for `await`:
it is made from this by scripts/sync_client.py, and a test checks that it still is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx

from headway.client import calls
from headway.client.calls import Address, Call
from headway.client.errors import ClientError, Declined, WrongUse
from headway.client.files import CHUNK_BYTES, Incoming, Outgoing, Source, outgoing
from headway.client.following import SILENCE_SECONDS, SPEAK_SECONDS, Ends, Following, NoStream
from headway.client.merging import merged_async
from headway.client.wire import Batch, BatchCancelled, Event, ResultFile, Task

T = TypeVar("T")
PAGE: Final = 100


class AsyncClient:
    """One platform, at `url`, as the owner of `key` (None: open mode). Enter it, or close it with `aclose`. A key may
    be a function, which is asked before each request: a stream whose token ends goes on with the next one.

    `answer_seconds` is how long an answer is waited for, `patience_seconds` how long a stream waits for a
    platform that is away, at a time, before it says so.
    """

    def __init__(
        self,
        url: str = calls.DEFAULT_URL,
        key: calls.Key | None = None,
        *,
        answer_seconds: float = calls.ANSWER_SECONDS,
        patience_seconds: float = 60.0,
    ) -> None:
        self._address = Address(url, key, answer_seconds)
        self._patience_seconds = patience_seconds
        try:
            self._http = httpx.AsyncClient(**self._address.http_options)
        except ValueError as error:
            raise WrongUse(f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is none that can be used: {error}") from None

    @property
    def url(self) -> str:
        return self._address.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def submit(
        self,
        source: Source | None,
        processor: str,
        *,
        options: Mapping[str, Any] | None = None,
        batch_id: str | None = None,
        idempotency_key: str | None = None,
        filename: str | None = None,
    ) -> Task:
        """Sends a file, and answers when the platform has the whole of it. `source` is a path or an open binary file;
        None for a processor that needs none. Sent again by itself where the platform goes away meanwhile."""
        with outgoing(source, filename) if source is not None else nullcontext() as file:
            body = {"processor": processor, "options": dict(options or {}), "batch_id": batch_id}
            task = await self.create(body | (await asyncio.to_thread(file.announced) if file else {}), idempotency_key)
            return await self._send(task, file) if file else task

    async def create(self, announced: Mapping[str, Any], idempotency_key: str | None = None) -> Task:
        """`POST /tasks` in JSON: with a filename the task awaits its file, which `upload` sends; else it is queued."""
        return await self._ask(calls.create(announced, idempotency_key))

    async def upload(self, task: Task, source: Source) -> Task:
        """Sends the file of a task that was announced by `create`."""
        with outgoing(source) as file:
            return await self._send(task, file)

    async def _send(self, task: Task, file: Outgoing) -> Task:
        while task["status"] == "uploading":
            file.rewind()
            try:
                return await self._ask(calls.upload(task, _read(file), file.size_bytes))
            except httpx.LocalProtocolError:
                raise file.changed() from None
            except Declined as error:
                if error.status == 409:  # it has arrived, and only the answer was lost; or it is no longer wanted
                    task = await self.task(task["task_id"])
                    if task["status"] in {"uploading", "cancelled", "failed"}:
                        raise
                else:
                    await asyncio.sleep(file.again_seconds(error))
            except ClientError as error:
                await asyncio.sleep(file.again_seconds(error))
        return task

    async def task(self, task_id: str) -> Task:
        return await self._ask(calls.task(task_id))

    async def tasks(
        self,
        *,
        status: str | None = None,
        processor: str | None = None,
        batch_id: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Task]:
        """Newest first, asked for in pages while they are read."""
        filters = {"status": status, "processor": processor, "batch_id": batch_id}
        cursor: str | None = None
        while limit is None or limit > 0:
            page = await self._ask(calls.tasks(filters, PAGE if limit is None else min(limit, PAGE), cursor))
            for task in page["tasks"]:
                yield task
            limit = None if limit is None else limit - len(page["tasks"])
            if page["next_cursor"] is None:
                return
            if page["next_cursor"] == cursor:  # it would be asked for the same page for ever
                raise self._address.stranger()
            cursor = page["next_cursor"]

    async def cancel(self, task_id: str) -> Task:
        return await self._ask(calls.act(task_id, "cancel"))

    async def retry(self, task_id: str) -> Task:
        return await self._ask(calls.act(task_id, "retry"))

    async def delete(self, task_id: str) -> None:
        """An ended task, its files and its history."""
        await self._ask(calls.delete(task_id))

    async def note(self, task_id: str, author: str, text: str) -> dict[str, Any]:
        """A word to everybody who watches the task. Answers with it and when it was said."""
        return await self._ask(calls.note(task_id, author, text))

    async def batch(self, batch_id: str) -> Batch:
        return await self._ask(calls.batch(batch_id))

    async def cancel_batch(self, batch_id: str) -> BatchCancelled:
        """Every task of it that has not ended, however many they are: one request."""
        return await self._ask(calls.cancel_batch(batch_id))

    async def processors(self) -> list[dict[str, Any]]:
        return await self._ask(calls.processors())

    def watch(
        self, task_id: str, *, last_event_id: int | str = "", patient: bool = True
    ) -> AsyncGenerator[Event, None]:
        """Each event once, in order, until the terminal one, whatever breaks meanwhile. It begins with the present
        state; with `last_event_id`, after that event: 0 replays from the beginning, and after the end nothing comes.

        Raises Declined for an unknown task, Unreachable after `patience_seconds`; or at once, if the first connection
        fails and it is not `patient`. Close it (`contextlib.aclosing`) when leaving earlier.
        """
        link = f"{calls.path_of(task_id)}/events"
        return self._follow(link, lambda event: event.is_terminal, last_event_id, patient, [calls.task(task_id)])

    def watch_batch(
        self, batch_id: str, *, last_event_id: int | str = "", patient: bool = True
    ) -> AsyncGenerator[Event, None]:
        """The roll-up of a batch (`event.data` is a Batch), until every task of it has ended."""
        link = f"{calls.batch_path(batch_id)}/events"
        return self._follow(link, lambda event: event.ends_batch, last_event_id, patient, [calls.batch(batch_id)])

    def watch_tasks(
        self,
        task_ids: Collection[str] = (),
        *,
        batch_id: str | None = None,
        last_event_id: int | str = "",
        patient: bool = True,
    ) -> AsyncGenerator[Event, None]:
        """Many tasks on one connection: those named, until all have ended; or, for ever, those of a batch, or all.
        More than 200 named ones take a connection for each 200, and after a reconnect some events may come again."""
        streams = [
            self._follow(link, calls.end_of(ids), last_event_id, patient, calls.states(ids, batch_id), numbered=False)
            for link, ids in calls.events_links(task_ids, batch_id)
        ]
        return streams[0] if len(streams) == 1 else merged_async(streams, str(last_event_id))

    async def _follow(
        self,
        link: str,
        ends: Ends,
        last_event_id: int | str,
        patient: bool,
        truth: Sequence[Call[Any]],
        *,
        numbered: bool = True,
    ) -> AsyncGenerator[Event, None]:
        following = Following(
            ends,
            patience_seconds=self._patience_seconds,
            last_event_id=str(last_event_id),
            at_once=patient,
            numbered=numbered,
        )
        timeout = httpx.Timeout(SPEAK_SECONDS, connect=calls.CONNECT_SECONDS)
        while True:
            problem: ClientError | None = None
            silent = False
            try:
                async with self._http.stream(
                    "GET", self._address.at(link), headers=following.headers, timeout=timeout
                ) as response:
                    if response.status_code >= 400:
                        await response.aread()
                    self._address.check(response)
                    if not following.opened(response.status_code, response.headers.get("content-type", "")):
                        return
                    response.request.extensions["timeout"]["read"] = SILENCE_SECONDS
                    async for line in response.aiter_lines():
                        if (event := following.line(line)) is not None:
                            yield event
                            if following.over:
                                return
            except NoStream:
                raise self._address.stranger() from None
            except httpx.RequestError as error:
                problem = self._address.unreachable(error)
                silent = isinstance(error, httpx.ReadTimeout)
            except Declined as error:
                problem = error
            for call in truth if silent else ():
                try:
                    events = following.asked(await self._ask(call))
                    problem = None
                except Declined as error:
                    if len(truth) == 1:
                        problem = error
                    continue
                except ClientError:
                    break
                for event in events:
                    yield event
            if following.over:
                return
            await asyncio.sleep(following.pause_seconds(problem))

    async def fetch(self, task_id: str, folder: str | os.PathLike[str] = ".") -> list[Path]:
        """Brings a completed task's files into `folder`: each whole and checked, or not at all. One that is there with
        the same bytes is not fetched again; one with others is left alone (WrongUse)."""
        task = await self.task(task_id)
        if task["status"] != "completed":
            raise WrongUse(f"Task {task_id} is {task['status']}; only a completed task has files to fetch.")
        return [await self.fetch_file(file, folder) for file in (task.get("result") or {}).get("files", ())]

    async def fetch_file(
        self, file: ResultFile, folder: str | os.PathLike[str] = ".", came: Callable[[int], object] | None = None
    ) -> Path:
        """One file of a result. `came` is told of each piece's size in bytes."""
        with Incoming(Path(folder), file, came) as incoming:
            if await asyncio.to_thread(incoming.open):
                await self._download(file["url"], incoming)
        return incoming.path

    async def _download(self, link: str, incoming: Incoming) -> None:
        try:
            async with self._http.stream("GET", self._address.at(link)) as response:
                if response.status_code >= 400:
                    await response.aread()
                self._address.check(response)
                async for chunk in response.aiter_bytes(CHUNK_BYTES):
                    await asyncio.to_thread(incoming.write, chunk)
        except httpx.RequestError as error:
            raise self._address.unreachable(error) from None
        await asyncio.to_thread(incoming.finish)

    async def _ask(self, call: Call[T]) -> T:
        try:
            response = await self._http.request(call.method, self._address.at(call.link), **call.sent)
        except httpx.LocalProtocolError:
            raise
        except httpx.RequestError as error:
            raise self._address.unreachable(error) from None
        return self._address.read(call, response)


async def _read(file: Outgoing) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(file.read):
        yield chunk
