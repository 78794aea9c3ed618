"""What a submission says of who goes first: `priority` and `not_before`, in a form, in JSON, in the metadata of tus."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from headway.api.uploads.multipart_upload import invalid
from headway.shared.tasks.line import DEFAULT, HIGHEST, LOWEST

#: RFC 3339, section 5.6.
RFC3339: Final = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


@dataclass(frozen=True, slots=True)
class Order:
    """Where a new task is to stand in the line."""

    priority: int = DEFAULT
    not_before: datetime | None = None

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Self:
        """Raises InvalidRequest."""
        priority = fields.get("priority") or str(DEFAULT)
        if not re.fullmatch(f"[{LOWEST}-{HIGHEST}]", priority):
            raise invalid("priority", f"a whole number from {LOWEST} to {HIGHEST}; the highest goes first")
        return cls(int(priority), clean_time(fields.get("not_before") or None))


FIRST_COME: Final = Order()


def clean_time(text: str | None) -> datetime | None:
    """Raises InvalidRequest."""
    if text is None:
        return None
    wrong = invalid("not_before", "a time as RFC 3339 has it, such as 2026-12-24T18:00:00Z")
    if not re.fullmatch(RFC3339, text, re.ASCII):
        raise wrong
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise wrong from None
