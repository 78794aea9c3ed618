"""`headway submit`: announce, open the stream, then send the files, so that even the first byte shows as progress.

Sending and watching are tasks of one group. The bars are drawn from the event stream alone: what they show is what the
platform has, not what this end has put into a socket. Several files are a batch.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer

from headway import AsyncClient, ClientError, Task, WrongUse
from headway.cli.bar import Display
from headway.cli.exits import complain, printable
from headway.cli.watch import follow
from headway.cli.watched import Watched
from headway.client.errors import Declined
from headway.client.files import outgoing

#: When sending fails because the task has ended, its terminal event is on the way and says more than the refusal does.
GRACE_SECONDS: Final = 2.0
#: Files on their way at a time: one alone waits for the platform's disk between two pieces.
AT_A_TIME: Final = 4


@dataclass(frozen=True, slots=True)
class Submission:
    """What to submit; `path` None is a processor that works without a file."""

    processor: str
    options: dict[str, Any]
    path: Path | None = None

    def announced(self) -> dict[str, Any]:
        """The body of `POST /tasks`. Raises WrongUse for what is no readable regular file."""
        body: dict[str, Any] = {"processor": self.processor, "options": self.options}
        if self.path is None:
            return body
        with outgoing(self.path) as file:
            return body | file.announced()


def files_of(paths: Sequence[Path], *, recursive: bool) -> list[Path]:
    """The files that were named and, where that is wanted, those below the folders that were named, in the order of
    their names; hidden ones are left out. Raises WrongUse."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        below = sorted(
            one
            for one in path.rglob("[!.]*")
            if one.is_file() and not any(part.startswith(".") for part in one.relative_to(path).parts)
        )
        if not recursive:
            raise WrongUse(f"{path} is a folder. To send the {_counted(len(below))} in it, add --recursive.")
        if not below:
            raise WrongUse(f"{path} is a folder without a file.")
        found += below
    return found


def _counted(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"


async def choose(url: str, key: str | None, paths: Sequence[Path]) -> str:
    """The only processor that takes all these files, by the types that their names tell. Raises WrongUse, which names
    those there are, where it is not one."""
    async with AsyncClient(url, key) as client:
        processors = await client.processors()
    if not paths:
        raise WrongUse("Say which files, or with --processor which processor that takes none.")
    types = {mimetypes.guess_type(path.name)[0] or "application/octet-stream" for path in paths}
    takers = [one for one in processors if one["needs_file"] and not one.get("alias_of")]
    fits = [one["name"] for one in takers if all(_takes(one["accepts"], content_type) for content_type in types)]
    if len(fits) == 1:
        complain(f"--processor {fits[0]}: the only one that takes {'it' if len(paths) == 1 else 'them'}.")
        return str(fits[0])
    names, these = ", ".join(fits or [one["name"] for one in takers]), " and ".join(sorted(types))
    if not fits:
        raise WrongUse(f"No processor takes {these}. There are: {names}. Name one with --processor.")
    raise WrongUse(f"Several processors take {these}: {names}. Name one with --processor.")


def _takes(accepts: Sequence[str], content_type: str) -> bool:
    kind = content_type.partition("/")[0]
    return any(accepted in ("*/*", content_type, f"{kind}/*") for accepted in accepts)


def batch_of(paths: Sequence[Path], given: str | None) -> str | None:
    """Several files are a batch, named or not: then they can be watched as one."""
    return given or (f"cli-{secrets.token_hex(6)}" if len(paths) > 1 else None)


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


async def submit(client: AsyncClient, display: Display, what: Sequence[Submission], watched: Watched) -> list[Task]:
    """Answers with the tasks as they ended."""
    announced = await _announce(client, what, watched)
    opened = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            free = asyncio.Semaphore(AT_A_TIME)
            sending = [
                group.create_task(_send(client, task, path, opened, free, watched)) for task, path in announced if path
            ]
            ended = await follow(client, watched, display, opened=opened.set, patient=True)
            for one in sending:
                one.cancel()
    except ExceptionGroup as failed:
        ours, _ = failed.split(ClientError)
        raise (ours or failed).exceptions[0] from None
    return ended


async def _announce(
    client: AsyncClient, what: Sequence[Submission], watched: Watched
) -> list[tuple[Task, Path | None]]:
    """All of them, or, where one is refused, none; but a file whose name alone is refused is told, and the others are
    sent."""
    batch = {"batch_id": watched.batch_id} if watched.batch_id else {}
    bodies = [await asyncio.to_thread(one.announced) | batch for one in what]
    announced: list[tuple[Task, Path | None]] = []
    try:
        for one, body in zip(what, bodies, strict=True):
            try:
                task = await client.create(body)
            except Declined as error:
                if len(what) == 1 or not _about_the_name(error):
                    raise
                complain(f"{printable(str(one.path))} is not sent: {error.errors[0].get('message')}")
                watched.refused += 1
                continue
            watched.tasks[task["task_id"]] = one.path.name if one.path else ""
            if one.path:
                watched.sending.add(task["task_id"])
            announced.append((task, one.path))
    except ClientError:
        for task, _ in announced:
            with suppress(ClientError):
                await client.cancel(task["task_id"])
        raise
    if not announced:
        raise WrongUse("No file was sent.")
    return announced


def _about_the_name(error: Declined) -> bool:
    return error.status == 422 and bool(error.errors) and all(one.get("field") == "file" for one in error.errors)


async def _send(
    client: AsyncClient, task: Task, path: Path, opened: asyncio.Event, free: asyncio.Semaphore, watched: Watched
) -> None:
    await opened.wait()
    task_id = task["task_id"]
    async with free:
        try:
            await client.upload(task, path)
        except ClientError as error:
            await asyncio.sleep(GRACE_SECONDS)
            if len(watched.tasks) == 1:
                raise
            # The others go on; this one ends as its stream will say.
            complain(f"{path}: {error}")
            with suppress(ClientError):
                await client.cancel(task_id)
        watched.sending.discard(task_id)


async def send_only(client: AsyncClient, what: Sequence[Submission], watched: Watched, *, as_json: bool) -> None:
    """Submits and says which tasks there are now, an id a line."""
    for task, path in await _announce(client, what, watched):
        sent = await client.upload(task, path) if path else task
        watched.sending.discard(task["task_id"])
        typer.echo(json.dumps(sent, separators=(",", ":")) if as_json else sent["task_id"])
