"""What a child may say: its pipe is read as a stranger's connection is, a frame a line of JSON.

Each frame is bounded in size, rate and form here, where it is read, because the code that keeps to the bounds at the
other end is in the stranger's hands. Whatever is over them is `Disturbed`, which ends that attempt and no other.

    size    FRAME_BYTES; the last word, which carries the summary, LAST_WORD_BYTES, the summary in it SUMMARY_BYTES
    rate    what is sampled comes 25 times a second: more than SAMPLED_A_SECOND is no reporter of ours. A phase and a
            log line come when the processor says so: beyond FRAMES_A_SECOND and BYTES_A_SECOND the pipe is not read
            for a moment, and the processor waits
    form    the types below: nothing unknown, no number that is none or out of range, no long text, plain names
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, Literal, NotRequired

from pydantic import ConfigDict, Discriminator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from headway.shared.errors import BadInput
from headway.shared.files.storage import check_result_name
from headway.shared.json_text import text_of
from headway.shared.tasks.models import TEXT_CHARACTERS

FRAME_BYTES: Final = 96 * 1024
LAST_WORD_BYTES: Final = 8 * 1024 * 1024
#: A summary larger than this belongs in a result file.
SUMMARY_BYTES: Final = 1024 * 1024
#: It stands beside the state, which is read whole. What is larger than a place to go on from is a result.
CHECKPOINT_BYTES: Final = 64 * 1024
#: What is shown before the result is there.
PARTIAL_BYTES: Final = 16 * 1024
#: Result files of one attempt.
MOST_OUTPUTS: Final = 100_000
#: The word of a failure: more than a task shows, and less than a message that somebody made of a whole file.
FAILURE_CHARACTERS: Final = 2000
UNIT_CHARACTERS: Final = 100
#: Numbers beyond are none that a client can read.
MOST_UNITS: Final = 2**63 - 1

#: Honest ones come 20 and 4 a second. What a pipe and our buffers hold while nobody reads comes at once, and fits.
SAMPLED_A_SECOND: Final = 100
SAMPLED_AT_ONCE: Final = 2500
#: Of all frames: what reading them may take of the worker's loop.
FRAMES_A_SECOND: Final = 20_000
BYTES_A_SECOND: Final = 16 * 1024 * 1024

#: How a last word begins, as our own reporter writes it: no other frame may be longer than FRAME_BYTES.
_DONE: Final = b'{"kind":"done",'
_AT: Final = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"
_CONTENT_TYPE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,198}[\x21-\x7e])?")

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Units = Annotated[int, Field(ge=-MOST_UNITS, le=MOST_UNITS)]
Steps = Annotated[int, Field(ge=0, le=10**9)]
Text = Annotated[str, Field(max_length=TEXT_CHARACTERS)]
_STRICT: Final = ConfigDict(strict=True, extra="forbid")


class Counted(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    kind: Literal["phase", "count"]
    progress: Percent
    step: Steps
    total_steps: Steps
    message: Text
    done: Units
    total: Units | None
    unit: Annotated[str, Field(max_length=UNIT_CHARACTERS)] | None


class Logged(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    kind: Literal["log"]
    level: Literal["info", "warning", "error"]
    message: Text
    at: Annotated[str, Field(pattern=_AT)]


class Checkpointed(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    kind: Literal["checkpoint"]
    state: Any
    progress: Percent


class Shown(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    kind: Literal["partial"]
    value: Any


class Opened(TypedDict):
    """A result file that may be read while it grows."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    kind: Literal["live"]
    name: str


class Done(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    kind: Literal["done"]
    summary: dict[str, Any]
    outputs: Annotated[dict[str, str | None], Field(max_length=MOST_OUTPUTS)]


class Failed(TypedDict):
    """The other error types are for the worker to say."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    kind: Literal["failed"]
    type: Literal["bad_input", "memory", "processor_error", "storage_full"]
    message: Annotated[str, Field(max_length=FAILURE_CHARACTERS)]
    #: It is one of the exceptions after which its processor wants another attempt.
    again: NotRequired[bool]


_READ: Final[TypeAdapter[Any]] = TypeAdapter(
    Annotated[Counted | Logged | Checkpointed | Shown | Opened | Done | Failed, Discriminator("kind")]
)


class Disturbed(Exception):
    """What came through the pipe is nothing that the code on our side of the walls would send."""


class Allowance:
    """A token bucket. `now` in seconds of a monotonic clock."""

    def __init__(self, a_second: float, at_once: float, now: float) -> None:
        self._a_second = a_second
        self._at_once = self._left = at_once
        self._at = now

    def take(self, count: float, now: float) -> float:
        """Takes them, and answers how many seconds they came too early; 0 where they did not."""
        early = self.peek(now, count)
        self._left -= count
        return early

    def peek(self, now: float, count: float = 1) -> float:
        """What `take` would answer."""
        self._left = min(self._at_once, self._left + (now - self._at) * self._a_second)
        self._at = now
        return max(0.0, (count - self._left) / self._a_second)


class FrameReader:
    """Bytes in, frames out. `ended` once the last word was said; what comes after it is not read."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rest = bytearray()
        self._sampled = Allowance(SAMPLED_A_SECOND, SAMPLED_AT_ONCE, clock())
        self._frames = Allowance(FRAMES_A_SECOND, FRAMES_A_SECOND, clock())
        self._bytes = Allowance(BYTES_A_SECOND, BYTES_A_SECOND, clock())
        self.ended = False
        #: How long to leave the pipe alone before it is read again.
        self.wait_seconds = 0.0

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The frames that are whole now. Raises Disturbed."""
        *lines, rest = data.split(b"\n")
        now = self._clock()
        self.wait_seconds = max(self._frames.take(len(lines), now), self._bytes.take(len(data), now))
        for line in lines:
            self._rest += line
            whole = bytes(self._rest)
            self._rest.clear()
            self._check_size(whole)
            frame = read(whole)
            if frame["kind"] in ("count", "checkpoint", "partial") and self._sampled.take(1, now):
                raise Disturbed(f"it sent more than {SAMPLED_A_SECOND} counts a second")
            self.ended = frame["kind"] in ("done", "failed")
            yield frame
            if self.ended:
                return
        self._rest += rest
        self._check_size(self._rest)

    def close(self) -> None:
        """The pipe has ended. Raises Disturbed where it did in the middle of a frame."""
        if self._rest:
            raise Disturbed("it ended in the middle of a message")

    def _check_size(self, line: bytes | bytearray) -> None:
        if len(line) > FRAME_BYTES:
            most = LAST_WORD_BYTES if line.startswith(_DONE) else FRAME_BYTES
            if len(line) > most:
                raise Disturbed(f"a message was longer than {most} bytes")


def read(line: bytes) -> dict[str, Any]:
    """One frame, valid to the last field. Raises Disturbed."""
    try:
        frame: dict[str, Any] = _READ.validate_json(line)
        if frame["kind"] == "checkpoint":
            _fits(frame["state"], CHECKPOINT_BYTES, "checkpoint")
        elif frame["kind"] == "live":
            check_result_name(frame["name"])
        elif frame["kind"] == "partial":
            _fits(frame["value"], PARTIAL_BYTES, "partial result")
        elif frame["kind"] == "done":
            _fits(frame["summary"], SUMMARY_BYTES, "summary")
            for name, content_type in frame["outputs"].items():
                check_result_name(name)
                check_content_type(content_type)
    except ValidationError as error:
        raise Disturbed(_words(error)) from None
    except (BadInput, ValueError, TypeError, RecursionError) as error:
        raise Disturbed(str(error)[:TEXT_CHARACTERS] or type(error).__name__) from None
    return frame


def check_content_type(content_type: str | None) -> None:
    """Raises ValueError: it becomes a header."""
    if content_type is not None and not _CONTENT_TYPE.fullmatch(content_type):
        raise ValueError("a content type is at most 200 printable ASCII characters, for example text/csv")


def _fits(value: Any, most_bytes: int, what: str) -> None:
    if len(text_of(value)) > most_bytes:
        raise ValueError(f"a {what} was larger than {most_bytes} bytes")


def _words(error: ValidationError) -> str:
    """The first thing that is wrong, without the value: it is a stranger's."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return "a message was not JSON"
    if first["type"].startswith("union_tag"):
        return "a message was of no known kind"
    where = ".".join(str(part)[:40] for part in first["loc"][1:3])
    return f"{where or 'a message'}: {first['msg'][:200]}"
