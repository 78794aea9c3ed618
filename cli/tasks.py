"""`headway tasks`, `processors`, `cancel`, `retry`, `delete`, `note` and `fetch`: one question to the platform about
each task that is named, one answer on stdout. The first that is declined ends it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from headway import AsyncClient, Task, WrongUse
from headway.cli.bar import download_bar, size
from headway.cli.exits import complain, printable
from headway.cli.summary import table


def _say_json(value: Any) -> None:
    typer.echo(json.dumps(value, separators=(",", ":")))


async def list_tasks(
    client: AsyncClient,
    *,
    status: str | None,
    processor: str | None,
    batch_id: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Newest first: a table, or with `as_json` a task a line as its page arrives."""
    rows = []
    async for task in client.tasks(status=status, processor=processor, batch_id=batch_id, limit=limit):
        if as_json:
            _say_json(task)
        else:
            rows.append(_row(task))
    if rows:
        for line in table(("TASK", "STATUS", "%", "PROCESSOR", "SIZE", "CREATED", "FILE"), rows):
            typer.echo(printable(line))
    elif not as_json:
        complain("No tasks.")


def _row(task: Task) -> tuple[str, ...]:
    size_bytes = task.get("size_bytes")
    return (
        task["task_id"],
        task["status"],
        f"{task['progress']:.1f}",
        task["processor"],
        "-" if size_bytes is None else size(size_bytes),
        task["created_at"][:19] + "Z",
        (task.get("filename") or "-").replace("\n", " ")[:60],
    )


async def list_processors(client: AsyncClient, *, as_json: bool) -> None:
    found = await client.processors()
    if as_json:
        for processor in found:
            _say_json(processor)
        return
    rows = [
        (processor["name"], " ".join(processor["options"].get("properties", {})) or "-", processor["description"])
        for processor in found
    ]
    for line in table(("PROCESSOR", "OPTIONS", "WHAT IT DOES"), rows):
        typer.echo(printable(line))


async def cancel(client: AsyncClient, task_ids: Sequence[str], *, as_json: bool) -> None:
    for task_id in task_ids:
        task = await client.cancel(task_id)
        _say_json(task) if as_json else typer.echo(f"{task['status']}  task {task_id}")


async def cancel_batch(client: AsyncClient, batch_id: str, *, as_json: bool) -> None:
    """All of it at once, by the platform: only it knows them all."""
    done = await client.cancel_batch(batch_id)
    before = f", {done['ended']} had ended" if done["ended"] else ""
    said = f"cancelled  batch {batch_id}  {done['cancelled']} of {done['tasks']}{before}"
    _say_json(done) if as_json else typer.echo(said)


async def retry(client: AsyncClient, task_ids: Sequence[str], *, as_json: bool) -> None:
    for task_id in task_ids:
        task = await client.retry(task_id)
        said = f"{task['status']}, attempt {task['attempt']}. To watch it: headway watch {task_id}"
        _say_json(task) if as_json else typer.echo(said)


async def delete(client: AsyncClient, task_ids: Sequence[str], *, as_json: bool) -> None:
    for task_id in task_ids:
        await client.delete(task_id)
        _say_json({"task_id": task_id, "deleted": True}) if as_json else typer.echo(f"deleted  task {task_id}")


async def note(client: AsyncClient, task_id: str, author: str, text: str, *, as_json: bool) -> None:
    said = await client.note(task_id, author, text)
    _say_json(said) if as_json else typer.echo(f"said  task {task_id}")


async def fetch(client: AsyncClient, task_ids: Sequence[str], folder: Path, *, as_json: bool) -> None:
    """Brings the tasks' result files into `folder`: whole and checked, or not at all.

    A file of that name with other bytes is left alone (WrongUse); one with the same bytes is not fetched again.
    """
    for task_id in task_ids:
        task = await client.task(task_id)
        result = task.get("result")
        if task["status"] != "completed" or result is None:
            raise WrongUse(f"Task {task_id} is {task['status']}; only a completed task has files to fetch.")
        if not result["files"]:
            complain(f"Task {task_id} made no files; its result is in: headway watch {task_id}")
        for file in result["files"]:
            with download_bar(file["name"], file["size_bytes"]) as came:
                path = await client.fetch_file(file, folder, came)
            line = f"{path}  {size(file['size_bytes'])}"
            _say_json({**file, "path": str(path)}) if as_json else typer.echo(printable(line))
