"""What runs inside the child process of one attempt: limits first, then the processor, then one last word.

The last word is a message `done` or `failed`; a child that ends without one has crashed. It has no Redis connection and
no secret in its environment: it knows its input, its output folder and the pipe.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import resource
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import filetype

from headway.shared.errors import BadInput, StorageFull
from headway.shared.files.disk import full_disk_is_said
from headway.shared.files.trees import remove_tree
from headway.shared.json_text import text_of
from headway.shared.tasks.models import ErrorType
from headway.shared.tasks.processors import Processor
from headway.worker.box.walls import temporary_folder
from headway.worker.frames import FAILURE_CHARACTERS, SUMMARY_BYTES
from headway.worker.plain import Plain, words_of
from headway.worker.reporter import Reporter

#: Of a traceback: the frames nearest to where it was raised, and of the errors that it came from.
TRACEBACK_FRAMES = 30
TRACEBACK_CAUSES = 5

_FILE_TOO_LARGE = "A file of it grew over what one attempt may have on the disk (HEADWAY_TASK_DISK_BYTES)."

#: Made ahead: where memory has run out, none is needed to say so.
_OUT_OF_MEMORY = b'{"kind":"failed","type":"memory","message":""}\n'


def run_attempt(spec: dict[str, Any], processor: Processor, pipe: int) -> None:
    """Runs one attempt to its end. `spec`: see worker/sandbox.py. Returns when the last word has been sent."""
    write_lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        line = text_of(message).encode() + b"\n"
        with write_lock:
            view = memoryview(line)
            while view:
                view = view[os.write(pipe, view) :]

    limit_resources(spec["memory_bytes"])
    pid = os.getpid()
    try:
        try:
            try:
                last = _run(spec, processor, send)
            finally:
                if os.getpid() != pid:
                    _end_a_fork()
                # Before the last word, after which there is little time; the keeper sees to what is left
                remove_tree(temporary_folder(Path(spec["output_folder"])))
            send(last)
        except MemoryError:
            os.write(pipe, _OUT_OF_MEMORY)
        except BaseException as error:
            send(_failure(error) | _again(error, processor))
    except BrokenPipeError:
        pass  # the worker has gone, and with it whoever would have listened


def _run(spec: dict[str, Any], processor: Processor, send: Any) -> dict[str, Any]:
    input_path = Path(spec["input_path"]) if spec["input_path"] else None
    if input_path is not None:
        check_content(input_path, processor)
    reporter = Reporter(
        processor,
        options=processor.options.model_validate(spec["options"]),
        input_path=input_path,
        output_folder=Path(spec["output_folder"]),
        filename=spec["filename"],
        content_type=spec["content_type"],
        size_bytes=spec["size_bytes"],
        memory_bytes=spec["memory_bytes"],
        attempt=spec["attempt"],
        restored=spec["restored"],
        send=send,
    )
    with reporter.sampling(), full_disk_is_said():
        given = processor.run(reporter)
    plain = Plain()
    summary = plain.of({} if given is None else given, "summary")
    if not isinstance(summary, dict):
        raise TypeError(f"a processor returns a dict or nothing, not {type(given).__name__}")
    text = text_of(summary)
    if len(text) > SUMMARY_BYTES:
        raise ValueError(f"the summary is {len(text)} bytes; put what is over {SUMMARY_BYTES} into a result file")
    if plain.nulls:
        some = ", ".join(plain.nulls[:3]) + (", …" if len(plain.nulls) > 3 else "")
        reporter.log(f"Not a number, so null in the summary ({len(plain.nulls)}): {some}", "warning")
    return {"kind": "done", "summary": json.loads(text), "outputs": reporter.outputs}


def check_content(path: Path, processor: Processor) -> None:
    """Raises BadInput where the content is of a known kind that the processor does not take.

    Text has no signature, so what is not recognised is left to the processor; nor is what reads as text asked about,
    because a CSV whose first column is `BMI` begins as a bitmap does.
    """
    if _reads_as_text(path):
        return
    kind = filetype.guess(str(path))  # type: ignore[no-untyped-call]
    if kind is None:
        return
    for accepted in processor.accepts:
        if accepted in ("*/*", kind.mime) or (accepted.endswith("/*") and kind.mime.startswith(accepted[:-1])):
            return
    takes = ", ".join(processor.accepts)
    raise BadInput(f"The file is {kind.mime} by its content, whatever its name; {processor.name} takes {takes}.")


def _reads_as_text(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(head)  # incremental: a character may be cut at the end
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _failure(error: BaseException) -> dict[str, Any]:
    # The text of an exception may hold paths; the worker cuts those out before anybody sees it. Some libraries put a
    # stack trace below the first line.
    words = words_of(error)[:FAILURE_CHARACTERS]
    if isinstance(error, StorageFull) and getattr(error.__cause__, "errno", None) == errno.EFBIG:
        return {"kind": "failed", "type": ErrorType.STORAGE_FULL, "message": _FILE_TOO_LARGE}
    for kind, error_type in ((BadInput, ErrorType.BAD_INPUT), (StorageFull, ErrorType.STORAGE_FULL)):
        if isinstance(error, kind):
            _, _, said = words.partition(": ")
            return {"kind": "failed", "type": error_type, "message": said or words}
    if "OutOfMemory" in type(error).__name__:  # duckdb's, which is no MemoryError
        return {"kind": "failed", "type": ErrorType.MEMORY, "message": ""}
    _print_traceback(error)
    return {"kind": "failed", "type": ErrorType.PROCESSOR_ERROR, "message": words}


def _again(error: BaseException, processor: Processor) -> dict[str, Any]:
    """Whether it is one of those after which the processor wants another attempt."""
    named = () if processor.retries is None else processor.retries.exceptions
    return {"again": True} if isinstance(error, named) else {}


def _end_a_fork() -> None:
    """Of a process that the processor forked and that came back here: the attempt's last word is not its to say, nor
    are the temporary files its to remove."""
    error = sys.exception()
    if error is not None and not isinstance(error, SystemExit):
        _print_traceback(error)
        sys.stderr.flush()
    os._exit(0 if error is None else 1)


def _print_traceback(error: BaseException) -> None:
    """For the worker's log. The texts are strangers', so each is cut."""
    lines: list[str] = []
    causes: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in causes and len(causes) < TRACEBACK_CAUSES:
        causes.append(at)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    with suppress(Exception):  # what a traceback shows is asked of a stranger's objects
        for one in reversed(causes):
            lines += [
                "Traceback (most recent call last):\n",
                *traceback.format_tb(one.__traceback__, -TRACEBACK_FRAMES),
            ]
            lines.append(words_of(one)[:FAILURE_CHARACTERS] + "\n")
        sys.stderr.write("".join(lines))


def limit_resources(memory_bytes: int) -> None:
    """RLIMIT_DATA counts what is allocated and writable (Linux 4.7), so a library may reserve address space freely.
    macOS does not enforce it; there the limit is only advice."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
