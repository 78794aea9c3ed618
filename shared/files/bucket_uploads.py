"""Files on their way into a bucket (shared/files/bucket.py): in one piece, or in several that come by any API process.

In one piece, a file goes to its place in parts and appears there at the commit. In several, each piece is an object of
its own, named for the bytes it holds, because nobody can go on with another process's parts; at the commit they are put
together, in flat memory, and removed. The same bytes under the same name: two that write one upload do no harm.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes of one object that count."""

    key: str
    #: Where the object begins in the file.
    origin: int
    #: What is taken of it: from `start` to before `end`, in the file.
    start: int
    end: int


async def chain(bucket: Bucket, folder: str) -> list[Piece]:
    """The pieces that follow each other from the first byte on. Where two hold the same bytes, either will do."""
    found = sorted([(*_span(meta["path"]), meta["path"]) async for page in bucket.pages(folder) for meta in page])
    pieces: list[Piece] = []
    position = 0
    for start, end, key in found:
        if start > position:
            break
        if end > position:
            pieces.append(Piece(key, start, position, end))
            position = end
    return pieces


class PiecesUpload:
    """A headway.shared.files.storage.Upload that can be resumed. `whole` is what it becomes at the commit."""

    def __init__(self, bucket: Bucket, folder: str, whole: BucketUpload, received: int) -> None:
        self._bucket = bucket
        self._folder = folder
        self._whole = whole
        self._pending = bytearray()
        self._written = received
        self._writing: asyncio.Task[None] | None = None
        self.size_bytes = received

    async def write(self, data: bytes) -> None:
        self._pending += data
        self.size_bytes += len(data)
        if len(self._pending) >= PART_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        await self._settle()
        if self._pending:
            chunk, self._pending = self._pending, bytearray()
            self._writing = asyncio.create_task(self._put(self._written, chunk))
            self._written += len(chunk)

    async def _put(self, start: int, chunk: bytearray | Bytes) -> None:
        await self._bucket.put(f"{self._folder}/{start:020d}-{start + len(chunk):020d}", chunk)

    async def _settle(self) -> None:
        if self._writing is not None:
            # Shielded, and forgotten only when done: whoever gives up here leaves it to `abort`, which waits for it.
            await asyncio.shield(self._writing)
            self._writing = None

    async def rewind(self, size_bytes: int) -> None:
        await self._settle()
        if size_bytes >= self._written:
            del self._pending[size_bytes - self._written :]
        else:
            self._pending.clear()
            await self._cut(size_bytes)
            self._written = size_bytes
        self.size_bytes = size_bytes

    async def _cut(self, size_bytes: int) -> None:
        async for page in self._bucket.pages(self._folder):
            for meta in page:
                start, end = _span(meta["path"])
                if start < size_bytes < end:
                    await self._put(start, await self._bucket.piece(meta["path"], 0, size_bytes - start))
                if end > size_bytes:
                    await self._bucket.delete([meta["path"]])

    async def pause(self) -> None:
        await self._flush()
        await self._settle()

    async def commit(self) -> StoredFile:
        await self._settle()
        try:
            stored = await self._put_together()
        except BaseException:  # the pieces are still there: it can be paused, and resumed
            await asyncio.shield(self._whole.abort())
            raise
        with suppress(StorageAway):  # the file is whole; what is left of the pieces is the sweeper's
            await self._bucket.delete_folder(self._folder)
        return stored

    async def _put_together(self) -> StoredFile:
        if self._written:
            for piece in await chain(self._bucket, self._folder):
                last = min(piece.end, self._written)
                async for data in self._bucket.read(piece.key, piece.start - piece.origin, last - piece.origin):
                    await self._whole.write(data)
            if self._whole.size_bytes != self._written:
                raise UnknownFile("What came before is gone. Send the file again.")
        await self._whole.write(bytes(self._pending))
        return await self._whole.commit()

    async def abort(self) -> None:
        if self._writing is not None:
            with suppress(StorageAway, StorageFull):
                await asyncio.shield(self._writing)
        await self._whole.abort()
        with suppress(StorageAway):
            await self._bucket.delete_folder(self._folder)


def _span(key: str) -> tuple[int, int]:
    """Where a piece begins and ends, by its name; nowhere, if it is none of ours."""
    found = re.fullmatch(r".*/([0-9]+)-([0-9]+)", key)
    return (int(found[1]), int(found[2])) if found else (0, 0)
