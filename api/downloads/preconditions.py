"""What a request says about the copy it already has (RFC 9110, section 13), in the order in which it counts.

Dates that cannot be read and tags that are not in quotes say nothing, as the RFC wants: then the file is sent.
"""

from __future__ import annotations

import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Final

from starlette.datastructures import Headers

_TAG: Final = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')


class Verdict(Enum):
    SEND = auto()
    #: 304: the client has it.
    NOT_MODIFIED = auto()
    #: 412: the file is not the one that the client means.
    FAILED = auto()


def judge(headers: Headers, *, etag: str | None, modified_at: int) -> Verdict:
    """For GET and HEAD of a file that is there. `etag` with its quotes, strong; None: the file has none."""
    if (asked := _list(headers, "if-match")) is not None:
        if not _holds(asked, etag, weak=False):
            return Verdict.FAILED
    elif (date := _date(headers.get("if-unmodified-since"))) is not None and modified_at > date:
        return Verdict.FAILED
    if (asked := _list(headers, "if-none-match")) is not None:
        if _holds(asked, etag, weak=True):
            return Verdict.NOT_MODIFIED
    elif (date := _date(headers.get("if-modified-since"))) is not None and modified_at <= date:
        return Verdict.NOT_MODIFIED
    return Verdict.SEND


def range_counts(headers: Headers, *, etag: str | None, modified_at: int) -> bool:
    """Whether what the client has is a part of this very file (`If-Range`), so that the missing part is enough.

    Strong comparison: a weak tag never matches, and a date only where the file is older than this second, since in it
    the file could have been written twice.
    """
    asked = headers.get("if-range")
    if asked is None:
        return True
    asked = asked.strip()
    if asked.startswith(('"', "W/")):
        return asked == etag
    return _date(asked) == modified_at < int(time.time())


def _list(headers: Headers, name: str) -> str | None:
    lines = headers.getlist(name)
    return ",".join(lines) if lines else None


def _holds(asked: str, etag: str | None, *, weak: bool) -> bool:
    if asked.strip() == "*":
        return True
    return any(tag == etag and (weak or not mark) for mark, tag in _TAG.findall(asked))


def _date(value: str | None) -> int | None:
    """An HTTP date in seconds since the epoch; None for what is not one."""
    if value is None:
        return None
    try:
        date = parsedate_to_datetime(value.strip())
        return int((date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
