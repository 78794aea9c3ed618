"""A bucket as obstore sees it, with what we ask of it: deadlines, errors of ours, and objects that are whole or absent.

Endpoint and credentials come from the AWS_* variables, as obstore reads them; nothing of them is in an error that a
client sees. Only shared/files/bucket.py uses this, and only where HEADWAY_STORAGE_URL names a bucket is any of it
imported. obstore has threads of its own, from the first call on: no process that imports this forks without an exec.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from headway.shared.cancellation import cancel
from headway.shared.errors import SettingsError, StorageAway, StorageFull, UnknownFile
from headway.shared.logging import get_logger
from headway.shared.redis.urls import url_parts

if TYPE_CHECKING:
    from obstore import Bytes, ObjectMeta
    from typing_extensions import Buffer

log = get_logger(__name__)

#: S3's parts have at least 5 MiB, and an upload in flight holds three of them.
PART_BYTES: Final = 8 * 1024 * 1024
#: S3 takes 10,000 parts of one object.
MOST_PARTS: Final = 9_000
PARTS_AT_ONCE: Final = 2
#: One read of a download, of which there may be many. The next one is under way while this one is used.
READ_BYTES: Final = 2 * 1024 * 1024
#: Of an attempt's input, a part each: one connection to a distant bucket is slow.
READS_AT_ONCE: Final = 4
#: Keys that one call lists or deletes: S3's own page.
PAGE: Final = 1000

CONNECT_SECONDS: Final = 3
#: One call with up to a part in it: a line slower than 1 MBit/s is none.
CALL_SECONDS: Final = 60
#: A call that brings no file.
SMALL_CALL_SECONDS: Final = 15
#: What an upload that is given up may take to remove its parts.
ABORT_SECONDS: Final = 2

_FULL: Final = re.compile(r"QuotaExceeded|StorageFull|InsufficientStorage|status code: 507")
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class Bucket:
    """`patience_seconds`: how long a call that fails is tried again. Errors: StorageAway, StorageFull, UnknownFile."""

    def __init__(self, url: str, *, patience_seconds: float, call_seconds: float = CALL_SECONDS) -> None:
        place = url_parts(url)
        self._name = place.hosts
        self._store = S3Store(
            place.hosts,
            prefix=place.path.strip("/") or None,
            client_options={
                "allow_http": _endpoint().startswith("http://"),  # whoever writes it means it
                "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                "timeout": timedelta(seconds=call_seconds),
            },
            retry_config={
                "max_retries": 1000,
                "retry_timeout": timedelta(seconds=patience_seconds),
                "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2},
            },
        )

    def check(self, key: str) -> None:
        """Writes an object and removes it. Raises SettingsError, which says what to do. Blocking."""
        try:
            obstore.put(self._store, key, b"")
            obstore.delete(self._store, key)
        except (BaseError, OSError) as error:
            example = "Example: HEADWAY_STORAGE_URL=s3://my-bucket/headway"
            raise SettingsError(f"HEADWAY_STORAGE_URL: {self._why_not(error)} {example}") from None

    def _why_not(self, error: Exception) -> str:
        text = str(error)
        if "NoSuchBucket" in text:
            return f"there is no bucket {self._name!r} where AWS_ENDPOINT_URL and AWS_REGION lead; create it."
        if "/latest/api/token" in text or "/latest/meta-data" in text:
            return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or "status code: 403" in text:
            return (
                f"the bucket {self._name!r} cannot be written; look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
                "what that key may do: s3:PutObject, GetObject, DeleteObject, ListBucket, AbortMultipartUpload."
            )
        why = f"cannot be used ({_first_line(error)}); look at AWS_ENDPOINT_URL and AWS_REGION."
        return f"the bucket {self._name!r} {why}"

    async def put(self, key: str, data: Buffer, content_type: str | None = None) -> None:
        """In one call: what has the size of a part or less."""
        with _said():
            attributes = {"Content-Type": content_type} if content_type else None
            await obstore.put_async(self._store, key, data, attributes=attributes, use_multipart=False)

    def begin(self, key: str, part_bytes: int, content_type: str | None = None) -> Parts:
        """An object that comes in parts."""
        return Parts(self._store, key, part_bytes, content_type)

    async def copy(self, key: str, other: str) -> None:
        """An object of at most 5 GiB, by the bucket itself. Raises UnknownFile."""
        with _said():
            await obstore.copy_async(self._store, key, other)

    async def head(self, key: str) -> ObjectMeta:
        with _said():
            async with asyncio.timeout(SMALL_CALL_SECONDS):
                return await obstore.head_async(self._store, key)

    async def piece(self, key: str, start: int, end: int) -> Bytes:
        with _said():
            data = await obstore.get_range_async(self._store, key, start=start, end=end)
        if len(data) != end - start:
            raise UnknownFile("The file became shorter while it was read.")
        return data

    async def read(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """In pieces, the next one on its way while this one is used."""
        ranges = ((at, min(at + READ_BYTES, end)) for at in range(start, end, READ_BYTES))
        ahead: asyncio.Task[Bytes] | None = None
        try:
            for first, last in ranges:
                reading = ahead or asyncio.create_task(self.piece(key, first, last))
                ahead = None
                if last < end:
                    ahead = asyncio.create_task(self.piece(key, last, min(last + READ_BYTES, end)))
                try:
                    yield bytes(await reading)
                finally:
                    await _end(reading)
        finally:
            if ahead is not None:
                await _end(ahead)

    async def download(self, key: str, size_bytes: int, path: Path) -> None:
        """Into a file that is there, several pieces at once."""
        starts = iter(range(0, size_bytes, PART_BYTES))

        async def take() -> None:
            for start in starts:
                data = await self.piece(key, start, min(start + PART_BYTES, size_bytes))
                await asyncio.to_thread(_write_at, path, start, data)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(READS_AT_ONCE):
                    group.create_task(take())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def pages(self, folder: str) -> AsyncIterator[Sequence[ObjectMeta]]:
        """What is below a folder, a page at a time, in the order of its keys."""
        with _said():
            pages = aiter(obstore.list(self._store, folder, chunk_size=PAGE))
        while True:
            with _said():
                async with asyncio.timeout(SMALL_CALL_SECONDS):
                    page = await anext(pages, None)
            if page is None:
                return
            yield page

    async def delete(self, keys: Iterable[str]) -> None:
        """What is not there is no error."""
        if found := list(keys):
            with _said():
                async with asyncio.timeout(CALL_SECONDS):
                    await obstore.delete_async(self._store, found)

    async def delete_folder(self, folder: str) -> None:
        async for page in self.pages(folder):
            await self.delete(meta["path"] for meta in page)


class Parts:
    """One object on its way in. Left by `finish`, which makes it appear, or by `abort`, which removes its parts.

    obstore takes the parts back where its source raises, and not where its own call is cancelled: so it is never
    cancelled before the source has had its say.
    """

    def __init__(self, store: S3Store, key: str, part_bytes: int, content_type: str | None) -> None:
        self._chunks: asyncio.Queue[bytes | bytearray | None] = asyncio.Queue()
        self._taken = asyncio.Event()
        self._given_up = False
        attributes = {"Content-Type": content_type} if content_type else None
        self._putting = asyncio.create_task(self._put(store, key, part_bytes, attributes))

    async def _put(self, store: S3Store, key: str, part_bytes: int, attributes: dict[str, str] | None) -> None:
        try:
            with _said():
                await obstore.put_async(
                    store,
                    key,
                    self._source(),
                    attributes=attributes,
                    use_multipart=True,
                    chunk_size=part_bytes,
                    max_concurrency=PARTS_AT_ONCE,
                )
        finally:
            # Whoever waits for the other side need not any more.
            self._taken.set()
            self._chunks.put_nowait(None)

    async def _source(self) -> AsyncIterator[bytes | bytearray]:
        while True:
            self._taken.set()
            chunk = await self._chunks.get()
            if self._given_up:
                raise _GivenUp
            if chunk is None:
                return
            yield chunk

    async def write(self, chunk: bytes | bytearray) -> None:
        """Returns when the chunk before this one is on its way."""
        await self._taken.wait()
        self._taken.clear()
        if self._putting.done():
            self._taken.set()
            self._putting.result()
        self._chunks.put_nowait(chunk)

    async def finish(self) -> None:
        self._chunks.put_nowait(None)
        await asyncio.shield(self._putting)

    async def abort(self) -> None:
        """Gives up waiting after ABORT_SECONDS: what is left then is for the bucket's lifecycle rule."""
        self._given_up = True
        self._chunks.put_nowait(None)
        await asyncio.wait([self._putting], timeout=ABORT_SECONDS)
        await _end(self._putting)


class _GivenUp(Exception):
    """Nobody wants this object any more."""


def _write_at(path: Path, start: int, data: Buffer) -> None:
    # Opened for each piece: a thread outlives a download that is given up, and must not write by a number that is
    # another file's by then.
    with path.open("r+b", buffering=0) as file:
        file.seek(start)
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]


async def _end(task: asyncio.Task[Any]) -> None:
    await cancel(task)
    if not task.cancelled():
        task.exception()  # nobody else asks for it, and that is no error


@contextmanager
def _said() -> Iterator[None]:
    """Turns obstore's errors into ours. What went wrong is for the log: it names the endpoint."""
    try:
        yield
    except (BaseError, FileNotFoundError, TimeoutError) as error:
        text = str(error)
        if "NoSuchBucket" not in text and (isinstance(error, FileNotFoundError) or "InvalidRange" in text):
            raise UnknownFile("The file has not been uploaded, or is gone.") from None
        log.warning("object storage failed", reason=_first_line(error))
        if _FULL.search(text):
            raise StorageFull("The object storage has no room for this. Free some space, then try again.") from None
        raise StorageAway from error


def check_endpoint() -> None:
    """Raises SettingsError. Looked at here, because obstore's client does not survive what is no URL."""
    endpoint = _endpoint()
    if endpoint and not re.fullmatch(r"https?://[^/\s@?#]+(/[^\s?#]*)?", endpoint):
        raise SettingsError(
            "AWS_ENDPOINT_URL: is not a URL of a server. Example: AWS_ENDPOINT_URL=http://127.0.0.1:9000"
        )


def _endpoint() -> str:
    return next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
