"""The files of this end: one on its way out, read in pieces, and from the start where it must be sent again; and one on
its way in, whole and checked under its own name, or not there at all.

Blocking, for a client to call in a thread where that matters. Each is closed by the context manager that opened it.
"""

from __future__ import annotations

import hashlib
import mimetypes
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from headway.client.errors import ClientError, Damaged, Declined, Unreachable, WrongUse
from headway.client.following import PASSING
from headway.client.wire import ResultFile

CHUNK_BYTES: Final = 256 * 1024
#: An API that restarts is back within a few of these.
SEND_ATTEMPTS: Final = 5
SEND_WAIT_SECONDS: Final = 1.0

Source = str | os.PathLike[str] | IO[bytes]


class Outgoing:
    """A file to send. `size_bytes` is None for what has no end to be seen: a pipe."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self.name = name
        self.size_bytes: int | None = None
        self._start = 0
        self._failures = 0
        if file.seekable():
            self._start = file.tell()
            self.size_bytes = file.seek(0, os.SEEK_END) - self._start
            file.seek(self._start)

    def announced(self) -> dict[str, Any]:
        """Its part of the body of `POST /tasks`. It is read for its SHA-256, so that another file's bytes, sent in its
        place, end the task as `failed`; what has no end to be seen has none. Raises WrongUse."""
        content_type = mimetypes.guess_type(self.name)[0] or "application/octet-stream"
        # A name may be any bytes, and JSON is text.
        name = os.fsencode(self.name).decode("utf-8", "replace")
        announced = {"filename": name, "size_bytes": self.size_bytes, "content_type": content_type}
        if self.size_bytes is not None:
            digest = hashlib.sha256()
            while chunk := self.read():
                digest.update(chunk)
            self.rewind()
            announced["sha256"] = digest.hexdigest()
        return announced

    def rewind(self) -> None:
        if self.size_bytes is not None:
            self._file.seek(self._start)

    def read(self) -> bytes:
        try:
            return self._file.read(CHUNK_BYTES)
        except OSError as error:
            raise WrongUse(f"{self.name} cannot be read: {error.strerror}.") from None

    def again_seconds(self, error: ClientError) -> float:
        """How long to wait before it is sent again. Raises `error` if that will not help, or it cannot be."""
        passing = isinstance(error, Unreachable) or (isinstance(error, Declined) and error.status in PASSING)
        self._failures += 1
        if not passing or self.size_bytes is None or self._failures >= SEND_ATTEMPTS:
            raise error
        return SEND_WAIT_SECONDS * self._failures

    def changed(self) -> WrongUse:
        return WrongUse(f"{self.name} changed while it was being sent; it was {self.size_bytes} bytes before.")


@contextmanager
def outgoing(source: Source, name: str | None = None) -> Iterator[Outgoing]:
    """A path is opened and closed again; an open file is read from where it stands and left open.

    Raises WrongUse for a path that is no readable regular file.
    """
    if not isinstance(source, (str, os.PathLike)):
        given = getattr(source, "name", None)
        yield Outgoing(source, name or (Path(given).name if isinstance(given, str) else "") or "file")
        return
    path = Path(source)
    try:
        # First what it is: opening a pipe would wait for its other end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise WrongUse(f"{path} is not a regular file.")
        file = path.open("rb")
    except OSError as error:
        raise WrongUse(f"{path} cannot be read: {error.strerror}.") from None
    with file:
        yield Outgoing(file, name or path.name)


class Incoming:
    """One file of a result on its way into a folder.

    Raises WrongUse where another file has its name, Damaged where its name is none or its bytes are not those made.
    """

    def __init__(self, folder: Path, file: ResultFile, came: Callable[[int], object] | None = None) -> None:
        # The name comes from outside: one plain name, or it is not used.
        if not re.fullmatch(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*", file["name"]):
            raise Damaged(f"The platform offers a file named {file['name']!r}, which is not a plain name.")
        self.path = folder / file["name"]
        self._partial = folder / f".{file['name'][:200]}.{secrets.token_hex(4)}.partial"
        self._expected = file["sha256"]
        self._came = came
        self._digest = hashlib.sha256()
        self._out: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def open(self) -> bool:
        """False where the same bytes are there already; else it is to be written and finished."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                with self.path.open("rb") as there:
                    if hashlib.file_digest(there, "sha256").hexdigest() == self._expected:
                        return False
                raise WrongUse(f"{self.path} exists and differs. Move it away, or fetch into another folder.")
            self._out = self._partial.open("xb")
        except OSError as error:
            raise _unwritable(self.path, error) from None
        return True

    def write(self, chunk: bytes) -> None:
        assert self._out is not None
        self._digest.update(chunk)
        try:
            self._out.write(chunk)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        if self._came is not None:
            self._came(len(chunk))

    def finish(self) -> None:
        assert self._out is not None
        if self._digest.hexdigest() != self._expected:
            raise Damaged(
                f"{self.path.name} did not arrive as it was made (its sha256 differs). Nothing of it was kept."
            )
        try:
            self._out.close()
            self._partial.rename(self.path)
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._out is not None:
            self._out.close()
            self._partial.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> WrongUse:
    return WrongUse(f"{path.parent} cannot be written: {error.strerror}.")
