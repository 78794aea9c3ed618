"""What is known of an upload's bytes: a digest of those that are stored, and the digest of the whole that was declared.

An upload goes on only with the rest of the same bytes. A name, a size and a date do not say which bytes those are. So
the server answers a digest of what it has stored, and takes one from a client as the condition of a piece. Browsers
have no running SHA-256, so it is one of digests: base64 of the SHA-256 over the SHA-256 of each 8 MiB, the last of them
as short as it is.

The digests of whole pieces are kept, so that a piece that is sent costs reading one piece and not the whole file. Each
is kept with where its bytes came from (headway.shared.files.storage.ResumableUpload.origin), and is used for the same
bytes alone.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable, Mapping
from typing import Final, Protocol

from headway.shared.errors import BadHeader
from headway.shared.files.storage import StoredObject
from headway.shared.tasks.models import TaskId

PIECE_BYTES: Final = 8 * 1024 * 1024
#: Uploads whose pieces' digests are kept: 20 KiB each for a file of 5 GiB.
KEPT: Final = 1000
#: Prefixes that are read at once. Others of the pool's threads stay free for those who need the disk for a moment.
READERS: Final = 2


class Source(Protocol):
    """Bytes that do not change while they are read."""

    def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """Raises UnknownFile."""

    def origin(self, start: int, end: int) -> Hashable:
        """Two of one task that say the same hold the same bytes there."""


class WholeFile:
    """The Source of an upload that is whole."""

    def __init__(self, name: str, file: StoredObject) -> None:
        self._name = name
        self._file = file

    def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        return self._file.read(start, end)

    def origin(self, start: int, end: int) -> Hashable:
        return self._name


class UploadDigests:
    def __init__(self) -> None:
        #: By task: where the bytes of each whole piece came from, and their digest.
        self._known: OrderedDict[TaskId, list[tuple[Hashable, bytes]]] = OrderedDict()
        self._reading = asyncio.Semaphore(READERS)

    async def prefix(self, task_id: TaskId, source: Source, size_bytes: int) -> str:
        """Of the first `size_bytes`. Raises UnknownFile, StorageAway."""
        async with self._reading:
            whole = range(0, size_bytes - PIECE_BYTES + 1, PIECE_BYTES)
            known = self._known.pop(task_id, [])
            found = []
            for number, start in enumerate(whole):
                origin = source.origin(start, start + PIECE_BYTES)
                if number < len(known) and known[number][0] == origin:
                    found.append(known[number])
                else:
                    found.append((origin, await _digest(source, start, start + PIECE_BYTES)))
            self._known[task_id] = found
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            rest = size_bytes % PIECE_BYTES
            last = [await _digest(source, size_bytes - rest, size_bytes)] if rest else []
        digests = [digest for _, digest in found]
        return base64.b64encode(hashlib.sha256(b"".join([*digests, *last])).digest()).decode()


async def _digest(source: Source, start: int, end: int) -> bytes:
    digest = hashlib.sha256()
    async for data in source.read(start, end):
        await asyncio.to_thread(digest.update, data)
    return digest.digest()


def wanted_prefix(headers: Mapping[str, str]) -> str | None:
    """`Headway-Upload-Digest`, of what the client has before Upload-Offset. None without one. Raises BadHeader."""
    if (value := headers.get("headway-upload-digest")) is not None and len(_decoded(value)) != 32:
        raise BadHeader("Headway-Upload-Digest is not a SHA-256 in base64.")
    return value


def declared_sha256(headers: Mapping[str, str]) -> str | None:
    """Of a whole body, in hex: `Repr-Digest` or `Content-Digest` (RFC 9530). None where it does not say; an algorithm
    other than sha-256 is not looked at, as the RFC has it. Raises BadHeader."""
    for name in ("repr-digest", "content-digest"):
        for member in headers.get(name, "").split(","):
            algorithm, _, value = member.strip().partition("=")
            if algorithm.strip().lower() != "sha-256":
                continue
            if not re.fullmatch(r":[^:]*:", value) or len(digest := _decoded(value[1:-1])) != 32:
                raise BadHeader(f"{name.title()}: write it as sha-256=:BASE64:")
            return digest.hex()
    return None


def clean_sha256(value: str | None) -> str | None:
    """A declared digest in lower case; None where there is none. Raises ValueError with what it should be."""
    if not value:
        return None
    if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError("write the file's SHA-256 as 64 hexadecimal digits")
    return value.lower()


def _decoded(value: str) -> bytes:
    try:
        return base64.b64decode(value.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""
