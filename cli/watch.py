"""Following a task to its end in the terminal: the event stream in, a bar or JSON lines out, an exit code at the end.

Ctrl-C leaves the task running: watching is only looking.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, cast

import typer

from cli import bar, summary
from cli.client import Client, StreamEvent, TaskView
from cli.exits import CliError, ExitCode, complain, exits

if TYPE_CHECKING:
    from shared.models import TaskId

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(slots=True)
class Watched:
    """What is known of the task so far: for the words after a Ctrl-C."""

    url: str
    task_id: TaskId | None = None
    #: The file is not whole at the platform yet, so leaving now ends the task.
    sending: bool = False


async def follow(
    client: Client, task_id: TaskId, show: bar.Show, *, opened: Callable[[], None] | None = None, patient: bool = False
) -> TaskView:
    """Shows every event, and answers with the task as it ended. `opened` is called at each event."""
    async with aclosing(client.events(task_id, patient=patient)) as events:
        async for event in events:
            if opened is not None:
                opened()
            if event.is_terminal:
                return await _ended(client, task_id, event, show)
            show(event)
    return await client.task(task_id)  # 204: the end was seen before


async def _ended(client: Client, task_id: TaskId, event: StreamEvent, show: bar.Show) -> TaskView:
    """The terminal event says how it ended, the task what never changes, and a result too large for the wire."""
    try:
        task = await client.task(task_id)
    except CliError:
        task = TaskView()  # gone right after its end; the event has what matters
    data = dict(event.data)
    if (data.get("result") or {}).get("truncated") and (whole := task.get("result")):
        data["result"] = whole
        event = replace(event, data=data, raw=json.dumps(data, separators=(",", ":")))
    show(event)
    return cast("TaskView", {**task, **data})


@contextmanager
def shown(*, as_json: bool) -> Iterator[bar.Show]:
    """Where events go: a JSON object a line on stdout, or a bar on stderr."""
    if as_json:
        yield lambda event: typer.echo(event.raw)
    else:
        with bar.on_stderr() as show:
            yield show


def finish(task: TaskView, *, url: str, as_json: bool) -> NoReturn:
    """Prints the end for people, and exits 0 if the task completed, else 1."""
    if not as_json:
        summary.print_end(task, url)
    raise typer.Exit(ExitCode.DONE if task["status"] == "completed" else ExitCode.FAILED)


def run(work: Coroutine[Any, Any, TaskView], watched: Watched, *, as_json: bool) -> NoReturn:
    """Runs a command that follows a task, to its exit code."""
    with exits():
        try:
            task = asyncio.run(work)
        except KeyboardInterrupt:
            complain(_left(watched))
            raise
        finish(task, url=watched.url, as_json=as_json)
    raise AssertionError("finish() has exited")


def _left(watched: Watched) -> str:
    if watched.task_id is None:
        return "\nStopped before there was a task."
    if watched.sending:
        return f"\nStopped before the whole file was sent, so task {watched.task_id} cannot run. Submit it again."
    where = "" if watched.url == DEFAULT_URL else f" --url {watched.url}"
    return f"\nThe task goes on without us. To watch it again: headway watch {watched.task_id}{where}"


async def watch(url: str, key: str | None, task_id: TaskId, *, as_json: bool) -> TaskView:
    async with Client(url, key) as client:
        with shown(as_json=as_json) as show:
            return await follow(client, task_id, show)
