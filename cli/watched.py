"""What a command watches, and what is known of it so far."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Watched:
    """What is watched, and for the words after a Ctrl-C what is known of it so far."""

    url: str
    #: Task id to what it is called.
    tasks: dict[str, str] = field(default_factory=dict)
    batch_id: str | None = None
    #: Files that are not whole at the platform yet: leaving now ends their tasks.
    sending: set[str] = field(default_factory=set)
    #: Files that were not sent, because the platform does not take their names.
    refused: int = 0

    def name(self, task_id: str) -> str:
        return self.tasks.get(task_id) or task_id[:8]
