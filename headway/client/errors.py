"""Every error of the client, one tree.

    ClientError
    ├── WrongUse         what was asked for cannot be done as asked: no URL, no such file, a file that changed meanwhile
    ├── Declined         the platform answered with a problem; `status`, `detail` and `errors` are its own
    ├── Unreachable      nobody answers, or who answers is not Headway
    └── Damaged          a file did not arrive as it was made; nothing of it was kept

The messages are for people and say what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Something went wrong between us and the platform."""


class WrongUse(ClientError):
    """What was asked for cannot be done as asked."""


class Unreachable(ClientError):
    """Nobody answers, or who answers is not Headway."""


class Damaged(ClientError):
    """A file did not arrive as it was made."""


class Declined(ClientError):
    """The platform's answer, `application/problem+json`, as a person reads it."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.detail = str(problem.get("detail") or problem.get("title") or "it does not say why")
        #: Of a bad request: `field` and `message` of each thing that is wrong.
        self.errors: list[dict[str, str]] = list(problem.get("errors") or ())
        lines = [self.detail if status < 500 else f"The platform answers {status}: {self.detail}"]
        lines += [f"  {item.get('field')}: {item.get('message')}" for item in self.errors]
        super().__init__("\n".join(lines))
