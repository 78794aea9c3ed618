"""What a directory alone has to see to: a full disk, a request that was given up in the middle of a write, names."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headway.shared.errors import BadInput, SettingsError, StorageFull, UnknownFile
from headway.shared.files.directory import DirectoryStorage, DirectoryUpload
from headway.shared.files.storage import CHUNK_BYTES, check_result_name
from headway.shared.tasks.models import TaskId

TASK = TaskId("0" * 32)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def storage(data_dir: Path) -> DirectoryStorage:
    storage = DirectoryStorage(data_dir)
    storage.prepare()
    return storage


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file of this process may grow over 3 MiB: what a full disk says, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 1024**2, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


async def test_a_committed_upload_lies_where_its_name_says(storage: DirectoryStorage, data_dir: Path) -> None:
    upload = storage.upload(TASK)
    await upload.write(bytes(CHUNK_BYTES * 2))
    stored = await upload.commit()
    assert files(data_dir) == {f"tasks/{TASK}/{stored.name}"}


@pytest.mark.parametrize("resumed", [False, True])
async def test_a_disk_without_room_is_said_and_leaves_nothing(
    storage: DirectoryStorage, data_dir: Path, small_disk: None, resumed: bool
) -> None:
    upload = await storage.resume(TASK) if resumed else storage.upload(TASK)

    async def fill() -> None:
        for _ in range(8):
            await upload.write(bytes(CHUNK_BYTES))

    with pytest.raises(StorageFull, match="Free some space"):
        await fill()
    await upload.abort()
    assert files(data_dir) == set()


class SlowUpload(DirectoryUpload):
    """Its disk waits for the test before each write."""

    def __init__(self, partial: Path, final: Path) -> None:
        super().__init__(partial, final)
        self.writing = threading.Event()
        self.go_on = threading.Event()

    def _write_now(self, chunk: bytearray) -> None:
        self.writing.set()
        assert self.go_on.wait(10)
        super()._write_now(chunk)


async def test_an_abort_waits_for_the_write_that_a_cancelled_request_left_running(
    storage: DirectoryStorage, data_dir: Path
) -> None:
    upload = SlowUpload(data_dir / "partial" / "x", data_dir / "tasks" / "x")
    await upload.write(bytes(CHUNK_BYTES))
    await asyncio.to_thread(upload.writing.wait, 10)
    request = asyncio.create_task(upload.write(bytes(CHUNK_BYTES)))
    await asyncio.sleep(0)
    request.cancel()
    await asyncio.wait([request])
    aborting = asyncio.create_task(upload.abort())
    done, _ = await asyncio.wait([aborting], timeout=0.1)
    upload.go_on.set()
    await aborting
    # Threads end in their own time: what they leave is only there when they have ended.
    await asyncio.get_running_loop().shutdown_default_executor()
    assert files(data_dir) == set()
    assert not done


async def test_a_file_that_becomes_shorter_while_it_is_read_is_said(storage: DirectoryStorage, data_dir: Path) -> None:
    upload = storage.upload(TASK)
    await upload.write(bytes(CHUNK_BYTES * 3))
    file = await storage.input(TASK, (await upload.commit()).name)
    reading = file.read(0, file.size_bytes)
    await anext(reading)
    file.path.write_bytes(b"")
    with pytest.raises(UnknownFile, match="shorter"):
        await anext(reading)


def test_a_directory_that_cannot_be_used_is_told_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(SettingsError, match=r"^HEADWAY_DATA_DIR: .*Example: HEADWAY_DATA_DIR="):
        DirectoryStorage(tmp_path / "file").prepare()


BAD_NAMES = ["", ".", "..", ".env", "../x", "a/b", "/etc/passwd", "a\\b", "a\0b", "a\nb", "a\x7f", "x" * 201, "€" * 99]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_plain_name_is_refused(name: str) -> None:
    with pytest.raises(BadInput):
        check_result_name(name)


@pytest.mark.parametrize("name", ["a", "a.csv", "täst 日本.csv", "x" * 200, "-rf", "~", "a b"])
def test_a_plain_name_is_taken(name: str) -> None:
    assert check_result_name(name) == name
