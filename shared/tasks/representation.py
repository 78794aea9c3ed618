"""A task as it is told to whoever asks, and to a webhook: its fields, and the links that lead somewhere now."""

from __future__ import annotations

from typing import Any

from headway.shared.tasks.models import Status, Task


def represent(task: Task, root: str = "") -> dict[str, Any]:
    """A task as JSON, with the links that lead somewhere in its present state, under `root`."""
    here = f"/tasks/{task.task_id}"
    links = {"self": here, "events": f"{here}/events"}
    if not task.status.is_terminal:
        links["cancel"] = f"{here}/cancel"
    if task.producer is not None:
        if task.status is Status.PROCESSING:
            links |= {name: f"{here}/{name}" for name in ("progress", "complete", "fail")}
        if task.status in (Status.PROCESSING, Status.FAILED):
            links["attempts"] = f"{here}/attempts"
    elif task.status in (Status.FAILED, Status.CANCELLED) and (
        task.filename is None or task.input_name is not None or task.follows is not None
    ):
        links["retry"] = f"{here}/retry"
    if task.input_name is not None:
        links["input"] = f"{here}/input"
    if task.status is Status.UPLOADING:
        links["upload"] = f"{here}/upload" if task.upload_expires_at is None else f"/uploads/{task.task_id}"
    return rooted(task.model_dump(mode="json") | {"links": links}, root)


def rooted(task: dict[str, Any], root: str) -> dict[str, Any]:
    """A task, or a live state of one, with its links and the addresses of its results under `root`."""
    if not root:
        return task
    found = dict(task)
    if links := found.get("links"):
        found["links"] = {name: root + link for name, link in links.items()}
    if result := found.get("result"):
        files = [{**file, "url": root + file["url"]} for file in result["files"]]
        found["result"] = {**result, "files": files}
    return found
