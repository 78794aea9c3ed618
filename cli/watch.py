"""Following tasks to their end in the terminal: the event stream in, bars or JSON lines out, an exit code at the end.

Watching is only looking: Ctrl-C leaves the tasks running. On a terminal it asks first (cli/interrupt.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any, NoReturn, TypeVar, cast

import typer

from headway import AsyncClient, Batch, ClientError, Event, Task
from headway.cli import bar, summary
from headway.cli.exits import ExitCode, complain, exits
from headway.cli.interrupt import Left, asking, can_ask
from headway.cli.watched import Watched
from headway.client.calls import DEFAULT_URL

T = TypeVar("T")
#: A command's work: with the platform, on a display.
Work = Callable[[AsyncClient, bar.Display], Coroutine[Any, Any, T]]


async def follow(
    client: AsyncClient,
    watched: Watched,
    display: bar.Display,
    *,
    opened: Callable[[], None] | None = None,
    patient: bool = False,
) -> list[Task]:
    """Shows every event, and answers with the tasks as they ended. `opened` is called at each event."""
    ended: dict[str, Task] = {}
    async with aclosing(_events(client, watched, patient)) as events:
        async for event in events:
            if opened is not None:
                opened()
            if event.task_id not in watched.tasks:
                continue  # of the same batch, and somebody else's
            if not event.is_terminal:
                display.show(event)
                if not event.name:
                    ended.pop(event.task_id, None)  # retried, while others are still at it
                continue
            ended[event.task_id] = await _ended(client, event, display)
            if len(ended) == len(watched.tasks):
                break
    # A stream that is over without an end: it was seen before.
    return [ended.get(task_id) or await client.task(task_id) for task_id in watched.tasks]


def _events(client: AsyncClient, watched: Watched, patient: bool) -> AsyncGenerator[Event, None]:
    if len(watched.tasks) == 1:
        return client.watch(next(iter(watched.tasks)), patient=patient)
    if watched.batch_id is not None:
        return client.watch_tasks(batch_id=watched.batch_id, patient=patient)
    return client.watch_tasks(list(watched.tasks), patient=patient)


async def _ended(client: AsyncClient, event: Event, display: bar.Display) -> Task:
    """The terminal event says how it ended, the task what never changes, and a result too large for the wire."""
    try:
        task = await client.task(event.task_id)
    except ClientError:
        task = Task()  # gone right after its end; the event has what matters
    data = dict(event.data)
    if (data.get("result") or {}).get("truncated") and (whole := task.get("result")):
        data["result"] = whole
        event = replace(event, data=data, raw=json.dumps(data, separators=(",", ":")))
    display.show(event)
    return cast("Task", {**task, **data})


class _Json:
    """Every event a line on stdout, a named one with its name, as NDJSON from the platform has it."""

    def show(self, event: Event) -> None:
        named = {"event": event.name, **event.data}
        typer.echo(json.dumps(named, separators=(",", ":")) if event.name else event.raw)

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass


@contextmanager
def _shown(watched: Watched, *, as_json: bool, several: bool) -> Iterator[bar.Display]:
    if as_json:
        yield _Json()
    else:
        with bar.on_stderr(watched.name if several else None) as display:
            yield display


def run(key: str | None, work: Work[T], watched: Watched, *, as_json: bool, several: bool = False) -> T:
    """Runs a command that follows something to its end."""

    async def attended() -> T:
        async with AsyncClient(watched.url, key) as client:
            with _shown(watched, as_json=as_json, several=several) as display:
                working = work(client, display)
                if not can_ask():
                    return await working
                return await asking(working, client, display, watched)

    with exits():
        try:
            return asyncio.run(attended())
        except (KeyboardInterrupt, Left):
            complain(_left(watched))
            raise KeyboardInterrupt from None
    raise AssertionError("it has ended or exited")


def finish(tasks: list[Task], *, url: str, as_json: bool, refused: int = 0) -> NoReturn:
    """Prints the end for people, and exits 0 if every task completed and no file was refused, else 1."""
    if not as_json:
        for task in tasks:
            summary.print_end(task, url, brief=len(tasks) > 1)
    well = not refused and all(task["status"] == "completed" for task in tasks)
    raise typer.Exit(ExitCode.DONE if well else ExitCode.FAILED)


def finish_batch(batch: Batch, *, as_json: bool) -> NoReturn:
    if not as_json:
        summary.print_batch_end(batch)
    well = batch.get("counts", {}).get("completed", 0) == batch.get("total")
    raise typer.Exit(ExitCode.DONE if well else ExitCode.FAILED)


def _left(watched: Watched) -> str:
    if not watched.tasks and watched.batch_id is None:
        return "\nStopped before there was a task."
    where = "" if watched.url == DEFAULT_URL else f" --url {watched.url}"
    what = f"--batch {watched.batch_id}" if watched.batch_id else " ".join(watched.tasks)
    if not watched.sending:
        goes_on = "The tasks go on" if watched.batch_id or len(watched.tasks) > 1 else "The task goes on"
        return f"\n{goes_on} without us. To watch again: headway watch {what}{where}"
    if len(watched.tasks) == 1:
        return f"\nStopped before the whole file was sent, so task {what} cannot run. Submit it again."
    names = ", ".join(sorted(watched.name(task_id) for task_id in watched.sending))
    return f"\nStopped before these were sent whole, so they cannot run; submit them again: {names}"


async def watch(client: AsyncClient, display: bar.Display, watched: Watched) -> list[Task]:
    if len(watched.tasks) > 1:
        for task_id in watched.tasks:
            watched.tasks[task_id] = (await client.task(task_id)).get("filename") or ""
    return await follow(client, watched, display)


async def watch_batch(client: AsyncClient, display: bar.Display, batch_id: str) -> Batch:
    """The batch's roll-up, on one bar."""
    async with aclosing(client.watch_batch(batch_id, patient=False)) as events:
        async for event in events:
            display.show(event)
    return await client.batch(batch_id)
