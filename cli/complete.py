"""What a shell's Tab offers besides commands and options: processors and task ids, asked of the platform.

Tab never complains and never takes long: a platform that does not answer at once offers nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from headway import Client

PATIENCE_SECONDS: Final = 1.0
RECENT: Final = 30


def _ask(question: Any) -> list[tuple[str, str]]:
    from headway import Client, ClientError
    from headway.client.calls import DEFAULT_URL

    try:
        url = os.environ.get("HEADWAY_URL") or DEFAULT_URL
        with Client(url, os.environ.get("HEADWAY_API_KEY") or None, answer_seconds=PATIENCE_SECONDS) as client:
            found: list[tuple[str, str]] = question(client)
            return found
    except ClientError:
        return []


def processors(incomplete: str) -> list[tuple[str, str]]:
    """Name and description of those that begin so."""

    def question(client: Client) -> list[tuple[str, str]]:
        return [(one["name"], one["description"]) for one in client.processors() if one["name"].startswith(incomplete)]

    return _ask(question)


def tasks(incomplete: str) -> list[tuple[str, str]]:
    """Id, and what it is, of recent tasks that begin so."""

    def question(client: Client) -> list[tuple[str, str]]:
        return [
            (task["task_id"], f"{task['status']} {task.get('filename') or task['processor']}")
            for task in client.tasks(limit=RECENT)
            if task["task_id"].startswith(incomplete)
        ]

    return _ask(question)
