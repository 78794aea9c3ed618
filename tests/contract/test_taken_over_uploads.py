"""A writer that was stopped, or whose disk hangs, wakes when its upload is another's: nothing that it does then
reaches what the other wrote, checked and finished. On each place of files, at each of its calls to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from headway.shared.errors import StorageFull, UnknownFile, UploadBusy
from headway.shared.files.bucket import BucketStorage
from headway.shared.files.directory import DirectoryStorage
from headway.shared.files.s3 import Bucket
from headway.shared.files.storage import CHUNK_BYTES, ResumableUpload, Storage, StoredFile
from headway.shared.files.upload_folder import Copy, UploadFolder
from headway.shared.settings import Settings
from headway.shared.tasks.models import TaskId
from tests.s3_server import S3Server
from tests.waiting import PATIENCE_SECONDS, wait_until

START = secrets.token_bytes(1000)
#: Of one face: the same size, the same beginning.
FILES = [START + secrets.token_bytes(2 * CHUNK_BYTES) for _ in range(2)]


class Shutdown:
    """Holds whoever runs in `held` at one of its calls, until the test lets go."""

    held: ContextVar[bool] = ContextVar("held", default=False)

    def __init__(self, at: int, loop: asyncio.AbstractEventLoop) -> None:
        self._at = at
        self.loop = loop
        self.passed: list[str] = []
        self.reached = False
        self._go_on = asyncio.Event()

    async def at(self, name: str) -> None:
        self.passed.append(name)
        if len(self.passed) - 1 == self._at:
            self.reached = True
            await self._go_on.wait()

    def in_thread(self, name: str) -> None:
        asyncio.run_coroutine_threadsafe(self.at(name), self.loop).result(PATIENCE_SECONDS)

    def let_go(self) -> None:
        self._go_on.set()


#: What changes something on a disk, and in a bucket.
_ON_DISK: list[tuple[Any, str]] = [
    *((UploadFolder, name) for name in ("take", "replace", "rest", "commit", "bring_back", "remove", "discard")),
    *((Copy, name) for name in ("begin", "go_on", "close")),
    *((os, name) for name in ("pwrite", "fsync", "ftruncate")),
]
_IN_BUCKET = [(Bucket, name) for name in ("put", "delete", "delete_folder")]


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Shutdown]:
    current: list[Shutdown] = []

    def blocking(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def watched(*args: Any, **kwargs: Any) -> Any:
            held = current[-1] if Shutdown.held.get() else None
            if held:
                held.in_thread(f"before {name}")
            answer = real(*args, **kwargs)
            if held:
                held.in_thread(f"after {name}")
            return answer

        return watched

    def awaited(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        async def watched(*args: Any, **kwargs: Any) -> Any:
            held = current[-1] if Shutdown.held.get() else None
            if held:
                await held.at(f"before {name}")
            answer = await real(*args, **kwargs)
            if held:
                await held.at(f"after {name}")
            return answer

        return watched

    for where, name in _ON_DISK:
        monkeypatch.setattr(where, name, blocking(name, getattr(where, name)))
    for where, name in _IN_BUCKET:
        monkeypatch.setattr(where, name, awaited(name, getattr(where, name)))

    def begin(at: int) -> Shutdown:
        current.append(Shutdown(at, asyncio.get_running_loop()))
        return current[-1]

    return begin


@pytest.fixture(params=["directory", "bucket"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    if request.param == "directory":
        directory = DirectoryStorage(tmp_path / "data")
        directory.prepare()
        yield directory
        return
    server: S3Server = request.getfixturevalue("s3_server")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        url = f"s3://{server.bucket}/{secrets.token_hex(4)}"
        bucket = BucketStorage(Settings(storage_url=url, data_dir=tmp_path / "data"))
        bucket.prepare()
        yield bucket


async def begun(storage: Storage) -> TaskId:
    task_id = TaskId(secrets.token_hex(16))
    upload = await storage.resume(task_id)
    await upload.write(START)
    await upload.pause()
    return task_id


async def content(upload: ResumableUpload) -> bytes:
    return b"".join([data async for data in upload.read(0, upload.size_bytes)])


async def whole(storage: Storage, task_id: TaskId, stored: StoredFile) -> bytes:
    file = await storage.input(task_id, stored.name)
    return b"".join([data async for data in file.read(0, file.size_bytes)])


async def goes_on(storage: Storage, task_id: TaskId, file: bytes, *, to: int) -> StoredFile | None:
    """What a request does: it goes on where what is there begins its file. None where it did not finish."""
    upload = await storage.resume(task_id)
    try:
        if await content(upload) != file[: upload.size_bytes]:
            return None
        for start in range(upload.size_bytes, to, CHUNK_BYTES // 2):
            await upload.write(file[start : min(to, start + CHUNK_BYTES // 2)])
        return await upload.commit() if to == len(file) else None
    finally:
        with suppress(UploadBusy):
            await upload.pause()


async def stopped_one(storage: Storage, task_id: TaskId, file: bytes, *, to: int) -> StoredFile | None:
    Shutdown.held.set(True)
    with suppress(UploadBusy, UnknownFile):
        return await goes_on(storage, task_id, file, to=to)
    return None


@pytest.mark.parametrize("other", [FILES[1], FILES[0]], ids=["another file", "the same file"])
@pytest.mark.parametrize("pauses", [False, True], ids=["who follows finishes", "who follows is followed"])
@pytest.mark.parametrize("to", [len(FILES[0]), len(FILES[0]) - 5], ids=["whole", "not whole"])
@pytest.mark.timeout(300)
async def test_what_a_writer_does_that_wakes_too_late_changes_no_byte_of_who_went_on(
    storage: Storage, stop_at: Callable[[int], Shutdown], other: bytes, pauses: bool, to: int
) -> None:
    finished = 0
    for at in range(1000):
        stop, task_id = stop_at(at), await begun(storage)
        first = asyncio.create_task(stopped_one(storage, task_id, FILES[0], to=to))
        await wait_until("it is stopped, or has ended", lambda: stop.reached or first.done())  # noqa: B023
        if pauses:
            await goes_on(storage, task_id, other, to=len(other) // 2)
        second = None if pauses else await goes_on(storage, task_id, other, to=len(other))
        before = await whole(storage, task_id, second) if second is not None else b""
        stop.let_go()
        done = {await first, second}
        if pauses:
            done.add(await goes_on(storage, task_id, other, to=len(other)))
        for stored in done - {None}:
            assert stored is not None
            finished += 1
            found = await whole(storage, task_id, stored)
            assert found in FILES, f"mixed, after {stop.passed[at]}"
            assert stored.sha256 == hashlib.sha256(found).hexdigest(), stop.passed[at]
        if second is not None:
            assert await whole(storage, task_id, second) == before == other
        if not stop.reached:
            break
    assert at > (1 if isinstance(storage, BucketStorage) else 5)
    # Where the first one's longer half is kept, who comes last finds another file's and goes elsewhere.
    assert finished > 0 or (pauses and to < len(other))


async def test_a_writer_that_is_taken_over_hears_it_and_leaves_nothing(storage: Storage) -> None:
    if isinstance(storage, BucketStorage):
        pytest.skip("a bucket's pieces are each their writer's own")
    task_id = await begun(storage)
    for end in ("pause", "commit"):
        late = await storage.resume(task_id)
        await late.write(b"late")
        upload = await storage.resume(task_id)
        with pytest.raises(UploadBusy):
            await getattr(late, end)()
        await upload.pause()
        with suppress(UploadBusy):
            await late.pause()
        assert await storage.received(task_id) == len(START)
    await storage.discard_upload(task_id)
    assert [partial async for partial in storage.partials()] == []


async def test_an_upload_of_the_version_before_goes_on(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path)
    storage.prepare()
    task_id = TaskId("0" * 32)
    (tmp_path / "partial" / f"{task_id}-input-0").write_bytes(START)
    assert await storage.received(task_id) == len(START)
    stored = await goes_on(storage, task_id, FILES[0], to=len(FILES[0]))
    assert stored is not None
    assert await whole(storage, task_id, stored) == FILES[0]
    assert list((tmp_path / "partial").iterdir()) == []


async def test_what_did_not_fit_leaves_no_hole_that_later_bytes_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for one write and then has room again."""
    storage = DirectoryStorage(tmp_path)
    storage.prepare()
    task_id = await begun(storage)
    upload = await storage.resume(task_id)
    real, full = os.pwrite, [True]

    def pwrite(file: int, data: Any, at: int) -> int:
        if full.pop() if full else False:
            real(file, memoryview(data)[:10], at)
            raise OSError(28, "no space left")
        return real(file, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(StorageFull):  # noqa: PT012 - which of the two hears it depends on the thread
        for start in range(len(START), len(FILES[0]), CHUNK_BYTES):
            await upload.write(FILES[0][start : start + CHUNK_BYTES])
        await upload.pause()
    with suppress(StorageFull):
        await upload.pause()
    again = await storage.resume(task_id)
    assert await content(again) == FILES[0][: again.size_bytes]
    await again.pause()


@pytest.mark.parametrize("end", ["pause", "abort"])
async def test_a_commit_that_is_broken_off_is_undone(storage: Storage, end: str) -> None:
    """Wherever: the thread that commits goes on."""
    for turns in range(12):
        task_id = await begun(storage)
        upload = await storage.resume(task_id)
        await upload.write(FILES[0][len(START) :])
        committing = asyncio.create_task(upload.commit())
        for _ in range(turns):
            await asyncio.sleep(0)
        committing.cancel()
        await asyncio.wait([committing])
        if not committing.cancelled():
            continue
        await getattr(upload, end)()
        left = {folder.task_id async for folder in storage.task_folders()}
        assert task_id not in left
        again = await storage.resume(task_id)
        assert await content(again) == (b"" if end == "abort" else FILES[0][: again.size_bytes])
        assert again.size_bytes >= (0 if end == "abort" else len(START))
        await again.pause()
