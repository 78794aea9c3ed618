"""Every error of ours, one tree.

    HeadwayError
    ├── SettingsError            a setting is wrong; says which variable, why, and an example
    ├── InvalidRequest           what was sent is not what the route takes; carries `errors`
    │   ├── KeyReused            another request came with this Idempotency-Key
    │   ├── NotTheAnnouncedFile  the file's digest is not the one that was declared
    │   ├── TooLarge             over HEADWAY_MAX_UPLOAD_BYTES
    │   ├── UnsupportedType      neither multipart nor JSON
    │   ├── BadHeader            a header is missing or is not what the protocol asks for
    │   ├── TooSlow              the body came more slowly than HEADWAY_RECEIVE_TIMEOUT_SECONDS takes
    │   └── UploadCut            the body ended before the bytes that were promised
    ├── UnknownTask              no such task, or another owner's
    ├── UnknownProcessor         no such processor
    ├── NotYours                 it concerns every owner, and whoever asks has no key of the platform
    ├── UnknownFile              the task has no such file
    ├── PreconditionFailed       the file is not the one that the client means
    ├── RangeNotSatisfiable      no byte that was asked for exists
    ├── UploadGone               the resumable upload was cancelled, or given up
    ├── UploadBusy               another request writes to the resumable upload
    ├── WrongTusVersion          the client speaks another tus than 1.0.0
    ├── ChecksumMismatch         a piece is not what its Upload-Checksum says
    ├── Stopping                 the server is told to stop
    ├── AnotherFile              what is stored of the upload is not the beginning of the client's file
    ├── Conflict                 the task is not in a state that allows it
    ├── KeyInUse                 a request with the same Idempotency-Key is still under way
    ├── NotAllowed               the key is missing or wrong
    ├── Forbidden                the request comes from another site
    ├── ForeignHost              in open mode: the request names a host that this machine is not
    ├── NotWithToken             a token is used for more than it is for
    ├── NoPolicy                 the route does not say who may use it
    ├── TooMany                  a limit of an owner or an address is reached; carries `retry_after_seconds`
    ├── StorageFull              the disk has no room
    │   └── QuotaFull            the owner's files hold as much as they may
    │       └── WordsFull        what Redis holds of the owner's words is as much as may be
    ├── NearlyFull               Redis has room for what was taken, and for no more
    ├── StorageAway              the data directory or the bucket cannot be used: gone, broken, or it refuses
    ├── NoDescriptors            no file can be opened and nothing connected to: descriptors have run out
    │   └── NoDescriptorsForRedis  when Redis was to be connected to: a RedisAway, too
    ├── RedisAway                Redis cannot be reached, does not answer, is loading, or takes no writes
    ├── Refused                  the progress script said no: the attempt is stale, or the task has ended
    ├── ExportCut                the rest of a table on its way out cannot be had
    └── ProcessorFailure         an attempt ended badly; `type` is one of models.ErrorType
        └── BadInput             the file or its options are not what the processor takes

A docstring is the default message. `api/problems.py` alone knows which HTTP status each one has. Where an error of the
system or of a library became one of these, it is the cause: for the log, because it may name a path.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Literal

from headway.shared.tasks.models import ErrorType, FieldError


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


class KeyReused(InvalidRequest):
    """Another request was sent with this Idempotency-Key. Send a new key with a new request."""


class NotTheAnnouncedFile(InvalidRequest):
    """This is not the file that was announced: its SHA-256 is another. Submit the file again."""


class TooLarge(InvalidRequest):
    """The file is larger than this server takes."""


class UnsupportedType(InvalidRequest):
    """Send multipart/form-data with a file, or application/json to announce an upload."""


class BadHeader(InvalidRequest):
    """A header is missing or is not what the protocol asks for."""


class TooSlow(InvalidRequest):
    """The body came too slowly, or not at all. Send it again over a better line; /uploads takes it in pieces."""


class UploadCut(InvalidRequest):
    """The body ended before all of the file had arrived. Nothing was kept; send it again."""


class UnknownTask(HeadwayError):
    """There is no such task."""


class UnknownProcessor(HeadwayError):
    """There is no such processor; `GET /processors` lists those there are."""


class NotYours(HeadwayError):
    """This is for those who have a key of this platform (HEADWAY_API_KEYS)."""


class UnknownFile(HeadwayError):
    """The task has no such file."""


class UploadGone(HeadwayError):
    """The upload was cancelled or given up, and its bytes are gone. Begin a new one."""


class UploadBusy(HeadwayError):
    """Another request is writing to this upload. Ask for its offset again in a moment."""


class WrongTusVersion(HeadwayError):
    """Send `Tus-Resumable: 1.0.0`: it is the one version spoken here."""


class ChecksumMismatch(HeadwayError):
    """The piece is not what its Upload-Checksum says, so it was taken back. Send it again."""


class Stopping(HeadwayError):
    """This server is being stopped. What has arrived is kept; send the rest in a moment."""


class PreconditionFailed(HeadwayError):
    """The file is not the one that If-Match or If-Unmodified-Since asks for: it has changed since."""


class RangeNotSatisfiable(HeadwayError):
    """None of the bytes that were asked for exists."""


class AnotherFile(HeadwayError):
    """What is stored of this upload is not the beginning of the file that is being sent. Nothing was changed. Begin a
    new upload for this file."""


class Conflict(HeadwayError):
    """The task is not in a state that allows this."""


class KeyInUse(HeadwayError):
    """A request with this Idempotency-Key is still under way. Try again in a moment for its answer."""


class NotAllowed(HeadwayError):
    """Send a key, or a token of your login, as `Authorization: Bearer KEY`."""


class Forbidden(HeadwayError):
    """This request comes from another site and would change something, so it is refused."""


class ForeignHost(HeadwayError):
    """Without keys Headway answers to names of this machine alone, because any web page could have its own name lead
    here. Set HEADWAY_API_KEYS, or HEADWAY_INSECURE=1 if everybody who can reach this address may use it."""


class NotWithToken(HeadwayError):
    """A task token reads its task and nothing else. Send a key."""


class NoPolicy(HeadwayError):
    """This route does not say who may use it, so nobody may."""


class TooMany(HeadwayError):
    """There are too many of these at once. Try again later."""

    def __init__(self, message: str | None = None, *, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds

    @classmethod
    def tasks(cls, unfinished: int, most: int) -> TooMany:
        """Tasks take longer than what else there may be too many of."""
        message = f"{unfinished} tasks have not ended; at most {most} may wait or run at once."
        return cls(message, retry_after_seconds=30)


class StorageFull(HeadwayError):
    """The disk has no room for this. Free some space, then try again."""


class QuotaFull(StorageFull):
    """Your files hold as much as they may. Delete tasks that you no longer need, then try again."""

    @classmethod
    def of(cls, held_bytes: int, quota_bytes: int) -> QuotaFull:
        return cls(
            f"Your files hold {held_bytes} of {quota_bytes} bytes, and this one does not fit. "
            "Delete tasks that you no longer need, then try again."
        )


class WordsFull(QuotaFull):
    """Your tasks' words (options, notes, logs, summaries) fill their share of Redis. Delete tasks, then try again."""


class NearlyFull(HeadwayError):
    """Redis is nearly full, so no new work is taken: what was taken runs to its end. Try again later."""


class StorageAway(HeadwayError):
    """The storage of the files cannot be used right now. Try again in a moment."""


class NoDescriptors(HeadwayError):
    """The server has no file descriptor left (ulimit -n). Try again in a moment."""


class RedisAway(HeadwayError):
    """Redis cannot be reached: start it, or correct HEADWAY_REDIS_URL"""


class NoDescriptorsForRedis(NoDescriptors, RedisAway):
    """The server has no file descriptor left for a connection to Redis (ulimit -n)"""


class Refused(HeadwayError):
    """The progress script refused a write.

    `reason`: `unknown` (Redis has no such task), `stale` (the attempt number is an older one: another worker has the
    task), `status` (the task is in a state that does not allow the write, for example it has ended), `exists`, `moved`
    (somebody has written since the writer has read), `alive` (the producer has been heard within its lease).
    """

    def __init__(
        self, reason: Literal["unknown", "stale", "status", "exists", "moved", "alive"], status: str | None = None
    ) -> None:
        super().__init__(f"refused: {reason}" + (f" ({status})" if status else ""))
        self.reason = reason
        self.status = status


class ExportCut(HeadwayError):
    """The rest of the table cannot be had."""


class ProcessorFailure(HeadwayError):
    """An attempt ended badly."""

    def __init__(self, type: ErrorType, message: str, *, retryable: bool = False) -> None:  # noqa: A002
        super().__init__(message)
        self.type = type
        self.retryable = retryable
        #: It is one of the exceptions after which its processor wants another attempt.
        self.again = False


class BadInput(ProcessorFailure):
    """The file is not what the processor takes. Raise it in a processor with a message that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorType.BAD_INPUT, message)
