"""Client: the platform, for programs without an event loop. Made from aio.py, which is where to change it:
this is the same, word for word but for `await` (scripts/sync_client.py). Threads may share one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
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
from headway.client.merging import merged
from headway.client.wire import Batch, BatchCancelled, Event, ResultFile, Task

T = TypeVar("T")
PAGE: Final = 100


class Client:
    """One platform, at `url`, as the owner of `key` (None: open mode). Enter it, or close it with `close`. A key may
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
            self._http = httpx.Client(**self._address.http_options)
        except ValueError as error:
            raise WrongUse(f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is none that can be used: {error}") from None

    @property
    def url(self) -> str:
        return self._address.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(
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
            task = self.create(body | (file.announced() if file else {}), idempotency_key)
            return self._send(task, file) if file else task

    def create(self, announced: Mapping[str, Any], idempotency_key: str | None = None) -> Task:
        """`POST /tasks` in JSON: with a filename the task awaits its file, which `upload` sends; else it is queued."""
        return self._ask(calls.create(announced, idempotency_key))

    def upload(self, task: Task, source: Source) -> Task:
        """Sends the file of a task that was announced by `create`."""
        with outgoing(source) as file:
            return self._send(task, file)

    def _send(self, task: Task, file: Outgoing) -> Task:
        while task["status"] == "uploading":
            file.rewind()
            try:
                return self._ask(calls.upload(task, _read(file), file.size_bytes))
            except httpx.LocalProtocolError:
                raise file.changed() from None
            except Declined as error:
                if error.status == 409:  # it has arrived, and only the answer was lost; or it is no longer wanted
                    task = self.task(task["task_id"])
                    if task["status"] in {"uploading", "cancelled", "failed"}:
                        raise
                else:
                    time.sleep(file.again_seconds(error))
            except ClientError as error:
                time.sleep(file.again_seconds(error))
        return task

    def task(self, task_id: str) -> Task:
        return self._ask(calls.task(task_id))

    def tasks(
        self,
        *,
        status: str | None = None,
        processor: str | None = None,
        batch_id: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Task]:
        """Newest first, asked for in pages while they are read."""
        filters = {"status": status, "processor": processor, "batch_id": batch_id}
        cursor: str | None = None
        while limit is None or limit > 0:
            page = self._ask(calls.tasks(filters, PAGE if limit is None else min(limit, PAGE), cursor))
            yield from page["tasks"]
            limit = None if limit is None else limit - len(page["tasks"])
            if page["next_cursor"] is None:
                return
            if page["next_cursor"] == cursor:  # it would be asked for the same page for ever
                raise self._address.stranger()
            cursor = page["next_cursor"]

    def cancel(self, task_id: str) -> Task:
        return self._ask(calls.act(task_id, "cancel"))

    def retry(self, task_id: str) -> Task:
        return self._ask(calls.act(task_id, "retry"))

    def delete(self, task_id: str) -> None:
        """An ended task, its files and its history."""
        self._ask(calls.delete(task_id))

    def note(self, task_id: str, author: str, text: str) -> dict[str, Any]:
        """A word to everybody who watches the task. Answers with it and when it was said."""
        return self._ask(calls.note(task_id, author, text))

    def batch(self, batch_id: str) -> Batch:
        return self._ask(calls.batch(batch_id))

    def cancel_batch(self, batch_id: str) -> BatchCancelled:
        """Every task of it that has not ended, however many they are: one request."""
        return self._ask(calls.cancel_batch(batch_id))

    def processors(self) -> list[dict[str, Any]]:
        return self._ask(calls.processors())

    def watch(
        self, task_id: str, *, last_event_id: int | str = "", patient: bool = True
    ) -> Generator[Event, None, None]:
        """Each event once, in order, until the terminal one, whatever breaks meanwhile. It begins with the present
        state; with `last_event_id`, after that event: 0 replays from the beginning, and after the end nothing comes.

        Raises Declined for an unknown task, Unreachable after `patience_seconds`; or at once, if the first connection
        fails and it is not `patient`. Close it (`contextlib.closing`) when leaving earlier.
        """
        link = f"{calls.path_of(task_id)}/events"
        return self._follow(link, lambda event: event.is_terminal, last_event_id, patient, [calls.task(task_id)])

    def watch_batch(
        self, batch_id: str, *, last_event_id: int | str = "", patient: bool = True
    ) -> Generator[Event, None, None]:
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
    ) -> Generator[Event, None, None]:
        """Many tasks on one connection: those named, until all have ended; or, for ever, those of a batch, or all.
        More than 200 named ones take a connection for each 200, and after a reconnect some events may come again."""
        streams = [
            self._follow(link, calls.end_of(ids), last_event_id, patient, calls.states(ids, batch_id), numbered=False)
            for link, ids in calls.events_links(task_ids, batch_id)
        ]
        return streams[0] if len(streams) == 1 else merged(streams, str(last_event_id))

    def _follow(
        self,
        link: str,
        ends: Ends,
        last_event_id: int | str,
        patient: bool,
        truth: Sequence[Call[Any]],
        *,
        numbered: bool = True,
    ) -> Generator[Event, None, None]:
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
                with self._http.stream(
                    "GET", self._address.at(link), headers=following.headers, timeout=timeout
                ) as response:
                    if response.status_code >= 400:
                        response.read()
                    self._address.check(response)
                    if not following.opened(response.status_code, response.headers.get("content-type", "")):
                        return
                    response.request.extensions["timeout"]["read"] = SILENCE_SECONDS
                    for line in response.iter_lines():
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
                    events = following.asked(self._ask(call))
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
            time.sleep(following.pause_seconds(problem))

    def fetch(self, task_id: str, folder: str | os.PathLike[str] = ".") -> list[Path]:
        """Brings a completed task's files into `folder`: each whole and checked, or not at all. One that is there with
        the same bytes is not fetched again; one with others is left alone (WrongUse)."""
        task = self.task(task_id)
        if task["status"] != "completed":
            raise WrongUse(f"Task {task_id} is {task['status']}; only a completed task has files to fetch.")
        return [self.fetch_file(file, folder) for file in (task.get("result") or {}).get("files", ())]

    def fetch_file(
        self, file: ResultFile, folder: str | os.PathLike[str] = ".", came: Callable[[int], object] | None = None
    ) -> Path:
        """One file of a result. `came` is told of each piece's size in bytes."""
        with Incoming(Path(folder), file, came) as incoming:
            if incoming.open():
                self._download(file["url"], incoming)
        return incoming.path

    def _download(self, link: str, incoming: Incoming) -> None:
        try:
            with self._http.stream("GET", self._address.at(link)) as response:
                if response.status_code >= 400:
                    response.read()
                self._address.check(response)
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    incoming.write(chunk)
        except httpx.RequestError as error:
            raise self._address.unreachable(error) from None
        incoming.finish()

    def _ask(self, call: Call[T]) -> T:
        try:
            response = self._http.request(call.method, self._address.at(call.link), **call.sent)
        except httpx.LocalProtocolError:
            raise
        except httpx.RequestError as error:
            raise self._address.unreachable(error) from None
        return self._address.read(call, response)


def _read(file: Outgoing) -> Iterator[bytes]:
    while chunk := file.read():
        yield chunk
