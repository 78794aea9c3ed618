"""`headway tasks`, `cancel`, `retry` and `fetch`: one question to the platform, one answer on stdout."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cli.bar import size
from cli.client import Client, TaskView
from cli.exits import TaskLost, WrongUse, complain, printable
from cli.summary import table

if TYPE_CHECKING:
    from shared.models import TaskId


async def list_tasks(client: Client, filters: Mapping[str, str], limit: int, *, as_json: bool) -> None:
    """Newest first: a table, or with `as_json` a task a line as its page arrives."""
    rows = []
    async for task in client.tasks(filters, limit):
        if as_json:
            typer.echo(json.dumps(task, separators=(",", ":")))
        else:
            rows.append(_row(task))
    if rows:
        for line in table(("TASK", "STATUS", "%", "PROCESSOR", "SIZE", "CREATED", "FILE"), rows):
            typer.echo(printable(line))
    elif not as_json:
        complain("No tasks.")


def _row(task: TaskView) -> tuple[str, ...]:
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


async def act(client: Client, task_id: TaskId, action: str, *, as_json: bool) -> None:
    """`cancel` or `retry`: says what the task is now."""
    task = await client.act(task_id, action)
    if as_json:
        typer.echo(json.dumps(task, separators=(",", ":")))
    elif action == "retry":
        typer.echo(f"{task['status']}, attempt {task['attempt']}. To watch it: headway watch {task_id}")
    else:
        typer.echo(f"{task['status']}  task {task_id}")


async def fetch(client: Client, task_id: TaskId, folder: Path, *, as_json: bool) -> None:
    """Brings the task's result files into `folder`: whole and checked, or not at all.

    A file of that name with other bytes is left alone (WrongUse); one with the same bytes is not fetched again.
    """
    task = await client.task(task_id)
    result = task.get("result")
    if task["status"] != "completed" or result is None:
        raise WrongUse(f"Task {task_id} is {task['status']}; only a completed task has files to fetch.")
    if not result["files"]:
        complain(f"Task {task_id} made no files; its result is in: headway watch {task_id}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in result["files"]:
            path = await _fetch_one(client, folder, file)
            typer.echo(json.dumps({**file, "path": str(path)}) if as_json else f"{path}  {size(file['size_bytes'])}")
    except OSError as error:
        raise WrongUse(f"{folder} cannot be written: {error.strerror}.") from None


async def _fetch_one(client: Client, folder: Path, file: Mapping[str, Any]) -> Path:
    # The name comes from outside: one plain name, or it is not used.
    if not re.fullmatch(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*", file["name"]):
        raise TaskLost(f"The platform offers a file named {file['name']!r}, which is not a plain name.")
    path = folder / str(file["name"])
    if path.exists():
        if await asyncio.to_thread(_sha256, path) == file["sha256"]:
            return path
        raise WrongUse(f"{path} exists and differs. Move it away, or fetch into another folder with -o.")
    partial = folder / f".{file['name']}.{secrets.token_hex(4)}.partial"
    digest = hashlib.sha256()
    try:
        with partial.open("xb") as out:
            async with client.download(file["url"]) as chunks:
                async for chunk in chunks:
                    digest.update(chunk)
                    await asyncio.to_thread(out.write, chunk)
        if digest.hexdigest() != file["sha256"]:
            raise TaskLost(f"{file['name']} did not arrive as it was made (its sha256 differs). Nothing was kept.")
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
