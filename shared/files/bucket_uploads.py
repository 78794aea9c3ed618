"""Files on their way into a bucket (shared/files/bucket.py): in one piece, or in several that come by any API process.

In one piece, a file goes to its place in parts and appears there at the commit. In several, each piece is an object of
its own, because nobody can go on with another process's parts; at the commit they are put together, in flat memory, and
removed.

    {from}-{to}-{turn}-{writer}    the bytes from here to there, written by whoever resumed the upload in that turn

A piece's name is its writer's own, so it is never written over, and who resumes an upload reads the pieces that were
there then: what one that was stopped, or a line that hangs, brings later is seen by those who come later, and by them
only where nobody has gone on from before it.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from headway.shared.errors import StorageAway, StorageFull, UnknownFile
from headway.shared.files.s3 import ABORT_SECONDS, MOST_PARTS, PART_BYTES, Bucket, Parts
from headway.shared.files.storage import CHUNK_BYTES, StoredFile

if TYPE_CHECKING:
    from obstore import Bytes


def part_bytes_for(size_bytes: int) -> int:
    """The size of a part, for a file of this size at most."""
    return max(PART_BYTES, -(-size_bytes // MOST_PARTS))


class BucketUpload:
    """A headway.shared.files.storage.Upload that cannot be resumed: to pause it is to give it up."""

    def __init__(self, bucket: Bucket, key: str, part_bytes: int) -> None:
        self._bucket = bucket
        self._key = key
        self._part_bytes = part_bytes
        self._pending = bytearray()
        self._hash = hashlib.sha256()
        self._parts: Parts | None = None
        #: It is there, or may be.
        self._placed = False
        self.size_bytes = 0

    async def write(self, data: bytes) -> None:
        self._pending += data
        self.size_bytes += len(data)
        # Held back until it is more than one call can bring, and then handed on as it comes.
        if len(self._pending) >= (PART_BYTES if self._parts is None else CHUNK_BYTES):
            if self._parts is None:
                self._parts = self._bucket.begin(self._key, self._part_bytes)
            await self._parts.write(await self._hashed())

    async def _hashed(self) -> bytearray:
        chunk, self._pending = self._pending, bytearray()
        await asyncio.to_thread(self._hash.update, chunk)
        return chunk

    async def rewind(self, size_bytes: int) -> None:
        held = self.size_bytes - len(self._pending)
        if size_bytes < held:
            raise ValueError("only an upload that comes in pieces can take back what has left")
        del self._pending[size_bytes - held :]
        self.size_bytes = size_bytes

    async def pause(self) -> None:
        await self.abort()

    async def commit(self) -> StoredFile:
        rest = await self._hashed()
        self._placed = True
        if self._parts is None:
            await self._bucket.put(self._key, rest)
        else:
            await self._parts.write(rest)
            await self._parts.finish()
        return StoredFile(self._key.rpartition("/")[2], self.size_bytes, self._hash.hexdigest())

    async def abort(self) -> None:
        """A bucket that is away keeps what it has, and nobody waits for it; the sweeper finds it."""
        if self._parts is not None:
            await self._parts.abort()
        if self._placed:
            with suppress(StorageAway, TimeoutError):
                async with asyncio.timeout(ABORT_SECONDS):
                    await self._bucket.delete([self._key])


class Listed(NamedTuple):
    """A piece, by its name."""

    turn: int
    writer: str
    start: int
    end: int
    key: str


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes of one object that count."""

    key: str
    #: Where the object begins in the file.
    origin: int
    #: What is taken of it: from `start` to before `end`, in the file.
    start: int
    end: int


async def listed(bucket: Bucket, folder: str) -> list[Listed]:
    """All the pieces of an upload."""
    names = [meta["path"] async for page in bucket.pages(folder) for meta in page]
    return [piece for piece in map(_listed, names) if piece is not None]


def _listed(key: str) -> Listed | None:
    """None for a name that is none of ours. A version before this one named no writer."""
    found = re.fullmatch(r".*/([0-9]+)-([0-9]+)(?:-([0-9]+)-([0-9a-f]+))?", key)
    return Listed(int(found[3] or 0), found[4] or "", int(found[1]), int(found[2]), key) if found else None


def story(pieces: Iterable[Listed]) -> list[Piece]:
    """The pieces that follow each other from the first byte on. A writer's follow what was there before its turn; what
    others bring behind its first byte does not count. Of two that had one turn, who came further does."""
    writers: dict[tuple[int, str], list[Listed]] = {}
    for piece in pieces:
        writers.setdefault(piece[:2], []).append(piece)
    told: list[Piece] = []
    for own in sorted(writers.values(), key=lambda own: (own[0].turn, max(piece.end for piece in own), own[0].writer)):
        own.sort()
        position = told[-1].end if told else 0
        if own[0].start > position:
            continue  # what it follows is gone
        position = own[0].start
        told = cut(told, position)
        for piece in own:
            if piece.start <= position < piece.end:
                told.append(Piece(piece.key, piece.start, position, piece.end))
                position = piece.end
    return told


def cut(pieces: Sequence[Piece], size_bytes: int) -> list[Piece]:
    """As far as so many bytes."""
    kept = (piece for piece in pieces if piece.start < size_bytes)
    return [replace(piece, end=min(piece.end, size_bytes)) for piece in kept]


class PiecesUpload:
    """A headway.shared.files.storage.ResumableUpload. `whole` is what it becomes at the commit."""

    def __init__(self, bucket: Bucket, folder: str, whole: BucketUpload, found: Sequence[Listed]) -> None:
        self._bucket = bucket
        self._folder = folder
        self._whole = whole
        self._found = [piece.key for piece in found]
        self._pieces = story(found)
        self._name = f"{max((piece.turn for piece in found), default=0) + 1}-{secrets.token_hex(8)}"
        self._pending = bytearray()
        self._writing: asyncio.Task[None] | None = None
        #: A piece was refused, so that what came after it has no place.
        self._broken = False
        self._over = False
        self.size_bytes = self._written

    @property
    def _written(self) -> int:
        return self._pieces[-1].end if self._pieces else 0

    async def write(self, data: bytes) -> None:
        self._pending += data
        self.size_bytes += len(data)
        if len(self._pending) >= PART_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        await self._settle()
        chunk, self._pending = self._pending, bytearray()
        if chunk and not self._broken:
            self._writing = asyncio.create_task(self._put(self._written, chunk))

    async def _put(self, start: int, chunk: bytearray | Bytes) -> None:
        end = start + len(chunk)
        key = f"{self._folder}/{start:020d}-{end:020d}-{self._name}"
        try:
            await self._bucket.put(key, chunk)
        except BaseException:
            self._broken = True
            raise
        self._pieces.append(Piece(key, start, start, end))

    async def _settle(self) -> None:
        if self._writing is not None:
            # Shielded, and forgotten only when done: whoever gives up here leaves it to `abort`, which waits for it.
            writing = self._writing
            try:
                await asyncio.shield(writing)
            finally:
                if writing.done():
                    self._writing = None

    async def rewind(self, size_bytes: int) -> None:
        with suppress(StorageAway, StorageFull):  # what was refused is forgotten with the rest
            await self._settle()
        if size_bytes < self._written:
            self._pending.clear()
            await self._cut(size_bytes)
        else:
            del self._pending[size_bytes - self._written :]
        self.size_bytes = self._written + len(self._pending)

    async def _cut(self, size_bytes: int) -> None:
        """A piece that is cut in the middle is written again, as one of this turn."""
        own = [piece.key for piece in self._pieces if piece.key not in self._found]
        ends = {key: _end_of(key) for key in (*self._found, *own)}
        last = next((piece for piece in self._pieces if piece.start < size_bytes < piece.end), None)
        self._pieces = [piece for piece in self._pieces if piece.end <= size_bytes]
        if last is not None:
            start = last.start
            await self._put(start, await self._bucket.piece(last.key, start - last.origin, size_bytes - last.origin))
        await self._bucket.delete(key for key, end in ends.items() if end > size_bytes)

    def origin(self, start: int, end: int) -> tuple[str, ...]:
        return tuple(piece.key for piece in self._pieces if piece.start < end and piece.end > start)

    async def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        position = start
        for piece in list(self._pieces):
            first, last = max(piece.start, position), min(piece.end, end)
            if first < last:
                async for data in self._bucket.read(piece.key, first - piece.origin, last - piece.origin):
                    yield data
                position = last
        if position < end:
            raise UnknownFile("What came before is gone. Send the file again.")

    async def pause(self) -> None:
        if self._over:
            return
        try:
            await self._flush()
            await self._settle()
            self._over = True
        finally:
            self.size_bytes = self._written

    async def commit(self) -> StoredFile:
        await self._settle()
        try:
            stored = await self._put_together()
        except BaseException:  # the pieces are still there: it can be paused, and resumed
            await asyncio.shield(self._whole.abort())
            raise
        self._over = True
        with suppress(StorageAway):  # the file is whole; what is left of the pieces is the sweeper's
            await self._bucket.delete_folder(self._folder)
        return stored

    async def _put_together(self) -> StoredFile:
        try:
            async for data in self.read(0, self._written):
                await self._whole.write(data)
        except UnknownFile:
            raise UnknownFile("What came before is gone. Send the file again.") from None
        await self._whole.write(bytes(self._pending))
        return await self._whole.commit()

    async def abort(self) -> None:
        self._over = True
        if self._writing is not None:
            with suppress(StorageAway, StorageFull):
                await asyncio.shield(self._writing)
        await self._whole.abort()
        with suppress(StorageAway):
            await self._bucket.delete_folder(self._folder)


def _end_of(key: str) -> int:
    piece = _listed(key)
    return piece.end if piece is not None else 0
