"""Every error of ours, one tree.

    HeadwayError
    ├── SettingsError            a setting is wrong; says which variable, why, and an example
    ├── InvalidRequest           what was sent is not what the route takes; carries `errors`
    │   ├── TooLarge             over HEADWAY_MAX_UPLOAD_BYTES
    │   ├── UnsupportedType      neither multipart nor JSON
    │   └── UploadCut            the body ended before the bytes that were promised
    ├── UnknownTask              no such task, or another owner's
    ├── UnknownFile              the task has no such file
    ├── Conflict                 the task is not in a state that allows it
    ├── NotAllowed               the key is missing or wrong
    ├── Forbidden                the request comes from another site
    ├── StorageFull              the disk has no room
    ├── Refused                  the progress script said no: the attempt is stale, or the task has ended
    └── ProcessorFailure         an attempt ended badly; `type` is one of models.ErrorType
        └── BadInput             the file or its options are not what the processor takes

A docstring is the default message. `api/problems.py` alone knows which HTTP status each one has. A Redis that is away
stays redis-py's own error: `shared/redis.py` names the set of them as AWAY.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Literal

from shared.models import ErrorType, FieldError


class HeadwayError(Exception):
    """Something went wrong in Headway."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or ""))


class SettingsError(HeadwayError):
    """A setting is wrong."""


class InvalidRequest(HeadwayError):
    """The request is not what this route takes."""

    def __init__(self, message: str | None = None, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(message)
        self.errors = tuple(errors)


class TooLarge(InvalidRequest):
    """The file is larger than this server takes."""


class UnsupportedType(InvalidRequest):
    """Send multipart/form-data with a file, or application/json to announce an upload."""


class UploadCut(InvalidRequest):
    """The body ended before all of the file had arrived. Nothing was kept; send it again."""


class UnknownTask(HeadwayError):
    """There is no such task."""


class UnknownFile(HeadwayError):
    """The task has no such file."""


class Conflict(HeadwayError):
    """The task is not in a state that allows this."""


class NotAllowed(HeadwayError):
    """Send a key as `Authorization: Bearer KEY`."""


class Forbidden(HeadwayError):
    """This request comes from another site and would change something, so it is refused."""


class StorageFull(HeadwayError):
    """The disk has no room for this. Free some space, then try again."""


class Refused(HeadwayError):
    """The progress script refused a write.

    `reason`: `unknown` (Redis has no such task), `stale` (the attempt number is an older one: another worker has the
    task), `status` (the task is in a state that does not allow the write, for example it has ended), `exists`.
    """

    def __init__(self, reason: Literal["unknown", "stale", "status", "exists"], status: str | None = None) -> None:
        super().__init__(f"refused: {reason}" + (f" ({status})" if status else ""))
        self.reason = reason
        self.status = status


class ProcessorFailure(HeadwayError):
    """An attempt ended badly."""

    def __init__(self, type: ErrorType, message: str, *, retryable: bool = False) -> None:  # noqa: A002
        super().__init__(message)
        self.type = type
        self.retryable = retryable


class BadInput(ProcessorFailure):
    """The file is not what the processor takes. Raise it in a processor with a message that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorType.BAD_INPUT, message)
