"""What somebody who is let in may do: everything that is the owner's, or what a narrowing leaves of it.

The narrowing is the claim `headway` of a token, and `Owner.narrowing` of an app that says itself who asks. It only ever
takes away: what is not understood of it gives nothing at all. Every route that asks who somebody is has its row in
NEEDS; one without a row is for those alone who are not narrowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from headway.shared.tasks.models import OwnerId, TaskId, is_owner_name

#: Names of processors in one claim: more would not fit a cookie.
MOST_PROCESSORS: Final = 100
#: The end of the year 9999: later than any time that can be said.
LAST_SECOND: Final = 253_402_300_799


class Action(StrEnum):
    READ = "read"  #: look at tasks, lists, streams, files, notes
    CREATE = "create"  #: submit, announce, and send the file
    CANCEL = "cancel"
    RETRY = "retry"
    DELETE = "delete"
    NOTE = "note"  #: write one


class NotGranted(ValueError):
    """A narrowing is of no form that is known here."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a narrowing leaves. None: no limit of that kind."""

    actions: frozenset[Action] | None = None
    task_id: TaskId | None = None
    #: What may be run.
    processors: frozenset[str] | None = None
    max_upload_bytes: int | None = None


WHOLE: Final = Grant()


def grant_of(claim: object) -> Grant:
    """Of `{"tasks": [ACTION, …], "task_id": ID, "processors": [NAME, …], "max_upload_bytes": n}`, of which each part
    may be left out. Raises NotGranted for any other form, also for a part of another name: it would have taken away
    something."""
    if not isinstance(claim, Mapping):
        raise NotGranted("the narrowing is no object")
    if unknown := claim.keys() - {"tasks", "task_id", "processors", "max_upload_bytes"}:
        raise NotGranted(f"the narrowing has parts of no known name: {len(unknown)}")
    actions = processors = task_id = most = None
    if "tasks" in claim:
        try:
            actions = frozenset(Action(name) for name in _names(claim["tasks"]))
        except ValueError:
            raise NotGranted(f"`tasks` is no list of these: {', '.join(Action)}") from None
    if "task_id" in claim:
        task_id = claim["task_id"]
        if not isinstance(task_id, str) or not re.fullmatch(r"[0-9a-f]{32}", task_id):
            raise NotGranted("`task_id` is no id of a task")
    if "processors" in claim:
        processors = frozenset(_names(claim["processors"]))
        if len(processors) > MOST_PROCESSORS or not all(0 < len(name) <= 200 for name in processors):
            raise NotGranted(f"`processors` is no list of at most {MOST_PROCESSORS} names")
    if "max_upload_bytes" in claim:
        most = claim["max_upload_bytes"]
        if type(most) is not int or not 0 <= most <= 2**53:
            raise NotGranted("`max_upload_bytes` is no number of bytes")
    return Grant(actions, TaskId(task_id) if task_id is not None else None, processors, most)


def _names(value: object) -> list[str]:
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(name, str) for name in value):
        raise NotGranted("the narrowing has a list that is none of names")
    return list(value)


def claim_of(grant: Grant) -> dict[str, Any]:
    """What `grant_of` makes the same grant of."""
    parts = {
        "tasks": None if grant.actions is None else sorted(grant.actions),
        "task_id": grant.task_id,
        "processors": None if grant.processors is None else sorted(grant.processors),
        "max_upload_bytes": grant.max_upload_bytes,
    }
    return {name: part for name, part in parts.items() if part is not None}


@dataclass(frozen=True, slots=True)
class Owner:
    """Who asks, as an app says it by `create_app(settings, identify=f)`.

    `name`: whose tasks these are; 1 to 64 letters, digits or _ . @ + | -. Nobody has to be made known before: an owner
    is whoever is named. `narrowing`: as the claim `headway` of a token (docs/reference.md); None: everything that is
    the owner's. `expires_at`: in seconds of Unix time, when streams that were opened now end; None: they go on.
    Raises ValueError.
    """

    name: str
    narrowing: Mapping[str, object] | None = None
    expires_at: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not is_owner_name(self.name):
            raise ValueError("the name of an owner must be 1 to 64 letters, digits or _ . @ + | -")
        if self.narrowing is not None:
            grant_of(self.narrowing)
        if self.expires_at is not None and not is_time(self.expires_at):
            raise ValueError("expires_at must be seconds of Unix time")

    @property
    def owner_id(self) -> OwnerId:
        return OwnerId(self.name)

    @property
    def grant(self) -> Grant:
        return WHOLE if self.narrowing is None else grant_of(self.narrowing)


def is_time(value: object) -> bool:
    """Seconds of Unix time that can be said as a date. A number, and no text of one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and 0 <= value <= LAST_SECOND


#: What whoever is let in may use, however narrowed: it shows nothing of anybody's tasks.
ANYBODY: Final = "anybody"

#: By method and path of the route. `/metrics` is missing on purpose: it tells of everybody.
NEEDS: Final[dict[tuple[str, str], Action | str]] = {
    ("GET", "/tasks"): Action.READ,
    ("GET", "/tasks.csv"): Action.READ,
    ("HEAD", "/tasks.csv"): Action.READ,
    ("GET", "/tasks/{task_id}"): Action.READ,
    ("GET", "/tasks/{task_id}/events"): Action.READ,
    ("GET", "/task-progress/{task_id}"): Action.READ,
    ("GET", "/tasks/{task_id}/notes"): Action.READ,
    ("GET", "/tasks/{task_id}/files/{name}"): Action.READ,
    ("HEAD", "/tasks/{task_id}/files/{name}"): Action.READ,
    ("GET", "/tasks/{task_id}/input"): Action.READ,
    ("HEAD", "/tasks/{task_id}/input"): Action.READ,
    ("GET", "/events"): Action.READ,
    ("GET", "/batches/{batch_id}"): Action.READ,
    ("GET", "/batches/{batch_id}/events"): Action.READ,
    ("GET", "/download/{filename}"): Action.READ,
    ("HEAD", "/download/{filename}"): Action.READ,
    ("GET", "/tasks/{task_id}/webhooks"): Action.READ,
    ("POST", "/tasks/{task_id}/webhooks/{webhook_id}/resend"): Action.RETRY,
    ("POST", "/tasks"): Action.CREATE,
    ("POST", "/pipelines"): Action.CREATE,
    ("POST", "/process-file"): Action.CREATE,
    ("PUT", "/tasks/{task_id}/upload"): Action.CREATE,
    ("PATCH", "/tasks/{task_id}/progress"): Action.CREATE,
    ("PATCH", "/tasks/progress"): Action.CREATE,
    ("POST", "/tasks/{task_id}/attempts"): Action.CREATE,
    ("PUT", "/tasks/{task_id}/results/{name}"): Action.CREATE,
    ("POST", "/tasks/{task_id}/complete"): Action.CREATE,
    ("POST", "/tasks/{task_id}/fail"): Action.CREATE,
    ("POST", "/uploads"): Action.CREATE,
    ("POST", "/uploads/"): Action.CREATE,
    ("HEAD", "/uploads/{task_id}"): Action.CREATE,
    ("PATCH", "/uploads/{task_id}"): Action.CREATE,
    # It gives up what was sent. Of a task that has ended it deletes all, for which the route asks for `delete`.
    ("DELETE", "/uploads/{task_id}"): Action.CANCEL,
    ("POST", "/tasks/{task_id}/cancel"): Action.CANCEL,
    ("POST", "/batches/{batch_id}/cancel"): Action.CANCEL,
    ("POST", "/tasks/{task_id}/retry"): Action.RETRY,
    ("DELETE", "/tasks/{task_id}"): Action.DELETE,
    ("POST", "/tasks/{task_id}/notes"): Action.NOTE,
    ("GET", "/session"): ANYBODY,
    ("DELETE", "/session"): ANYBODY,
    ("GET", "/processors"): ANYBODY,
    ("OPTIONS", "/uploads"): ANYBODY,
    ("OPTIONS", "/uploads/"): ANYBODY,
    ("OPTIONS", "/uploads/{task_id}"): ANYBODY,
    ("GET", "/openapi.json"): ANYBODY,
    ("GET", "/docs"): ANYBODY,
    ("GET", "/stream-numbers"): ANYBODY,
    ("GET", "/sse-updates"): ANYBODY,
    ("GET", "/download-large-csv"): ANYBODY,
    ("HEAD", "/download-large-csv"): ANYBODY,
}
