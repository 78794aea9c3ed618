"""`headway submit`: announce, open the stream, then send the file, so that even its first byte shows as progress.

Sending and watching are two tasks of one group. The bar is drawn from the event stream alone: what it shows is what the
platform has, not what this end has put into a socket.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cli import bar
from cli.client import Client, TaskView
from cli.exits import CliError, Declined, Unreachable, WrongUse
from cli.watch import Watched, follow, shown

#: When sending fails because the task has ended, its terminal event is on the way and says more than the refusal does.
GRACE_SECONDS: Final = 2.0
#: An API that restarts is back within a few of these.
SEND_ATTEMPTS: Final = 5
SEND_WAIT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Submission:
    """What to submit; `path` None is a processor that works without a file."""

    processor: str
    options: dict[str, Any]
    path: Path | None = None

    def announced(self) -> tuple[dict[str, Any], int]:
        """The body of `POST /tasks`, and the file's size. Raises WrongUse for what is no readable regular file."""
        body: dict[str, Any] = {"processor": self.processor, "options": self.options}
        if self.path is None:
            return body, 0
        try:
            with self.path.open("rb"):
                status = self.path.stat()
        except OSError as error:
            raise WrongUse(f"{self.path} cannot be read: {error.strerror}.") from None
        if not stat.S_ISREG(status.st_mode):
            raise WrongUse(f"{self.path} is not a regular file.")
        content_type = mimetypes.guess_type(self.path.name)[0] or "application/octet-stream"
        size_bytes = status.st_size
        return body | {"filename": self.path.name, "size_bytes": size_bytes, "content_type": content_type}, size_bytes


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """`k=v`, v read as JSON where it is JSON, else as text. Raises WrongUse."""
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise WrongUse(f"--option {text}: write it as name=value.")
        if name in options:
            raise WrongUse(f"--option {name} is given twice.")
        options[name] = _value(value)
    return options


def _value(text: str) -> Any:
    def no_constant(name: str) -> None:
        raise ValueError(name)  # NaN and Infinity are not JSON, whatever Python's reader thinks

    try:
        return json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError):
        return text


async def submit(client: Client, what: Submission, show: bar.Show, watched: Watched) -> TaskView:
    """Answers with the task as it ended."""
    announced, size_bytes = what.announced()
    task = await client.create(announced)
    task_id = watched.task_id = task["task_id"]
    if what.path is None:
        return await follow(client, task_id, show, patient=True)
    watched.sending = True
    opened = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(_send(client, task, what.path, size_bytes, opened, watched))
            ended = await follow(client, task_id, show, opened=opened.set, patient=True)
            sending.cancel()
    except ExceptionGroup as failed:
        ours, _ = failed.split(CliError)
        raise (ours or failed).exceptions[0] from None
    return ended


async def _send(
    client: Client, task: TaskView, path: Path, size_bytes: int, opened: asyncio.Event, watched: Watched
) -> None:
    await opened.wait()
    for attempt in range(1, SEND_ATTEMPTS + 1):
        try:
            await client.upload(task["links"]["upload"], path, size_bytes)
        except CliError as error:
            passing = isinstance(error, Unreachable) or (isinstance(error, Declined) and error.status == 503)
            if passing and attempt < SEND_ATTEMPTS:
                await asyncio.sleep(SEND_WAIT_SECONDS * attempt)
                continue
            await asyncio.sleep(GRACE_SECONDS)
            raise
        watched.sending = False
        return


async def submit_at(url: str, key: str | None, what: Submission, watched: Watched, *, as_json: bool) -> TaskView:
    async with Client(url, key) as client:
        with shown(as_json=as_json) as show:
            return await submit(client, what, show, watched)
