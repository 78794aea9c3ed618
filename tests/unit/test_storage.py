"""Files on disk: whole or absent, never half, and no name from outside is a path."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import BadInput, SettingsError, StorageFull, UnknownFile
from shared.models import TaskId
from shared.storage import CHUNK_BYTES, Storage, Upload, check_result_name

TASK = TaskId("0" * 32)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def storage(data_dir: Path) -> Storage:
    storage = Storage(data_dir)
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


@pytest.mark.parametrize("sizes", [[], [0], [1], [CHUNK_BYTES], [CHUNK_BYTES + 1, 5], [700_000] * 5])
async def test_an_upload_is_the_bytes_that_came_in_their_order(storage: Storage, sizes: list[int]) -> None:
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    upload = storage.upload(TASK)
    for piece in pieces:
        await upload.write(piece)
    stored = await upload.commit()
    whole = b"".join(pieces)
    assert storage.input_path(TASK, stored.name).read_bytes() == whole
    assert (stored.size_bytes, stored.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())


async def test_nothing_is_in_its_place_before_the_commit(storage: Storage, data_dir: Path) -> None:
    upload = storage.upload(TASK)
    await upload.write(bytes(CHUNK_BYTES))
    await upload.write(bytes(CHUNK_BYTES))
    assert not (data_dir / "tasks" / TASK).exists()
    stored = await upload.commit()
    assert files(data_dir) == {f"tasks/{TASK}/{stored.name}"}


@pytest.mark.parametrize("written", [0, 10, CHUNK_BYTES * 2])
async def test_an_aborted_upload_leaves_nothing(storage: Storage, data_dir: Path, written: int) -> None:
    upload = storage.upload(TASK)
    await upload.write(bytes(written))
    await upload.abort()
    assert files(data_dir) == set()


async def test_a_committed_upload_that_is_aborted_after_all_leaves_nothing(storage: Storage, data_dir: Path) -> None:
    upload = storage.upload(TASK)
    await upload.commit()
    await upload.abort()
    assert files(data_dir) == set()
    assert not (data_dir / "tasks" / TASK).exists()


async def test_two_uploads_of_one_task_do_not_write_over_each_other(storage: Storage) -> None:
    one, two = storage.upload(TASK), storage.upload(TASK)
    await one.write(b"one")
    await two.write(b"two")
    stored = [await two.commit(), await one.commit()]
    assert [storage.input_path(TASK, file.name).read_bytes() for file in stored] == [b"two", b"one"]
    await one.abort()
    assert storage.input_path(TASK, stored[0].name).read_bytes() == b"two"


async def test_a_disk_without_room_is_said_and_leaves_nothing(
    storage: Storage, data_dir: Path, small_disk: None
) -> None:
    upload = storage.upload(TASK)

    async def fill() -> None:
        for _ in range(8):
            await upload.write(bytes(CHUNK_BYTES))

    with pytest.raises(StorageFull, match="Free some space"):
        await fill()
    await upload.abort()
    assert files(data_dir) == set()


class SlowUpload(Upload):
    """Its disk waits for the test before each write."""

    def __init__(self, partial: Path, final: Path) -> None:
        super().__init__(partial, final)
        self.writing = threading.Event()
        self.go_on = threading.Event()

    def _write_now(self, chunk: bytearray) -> None:
        self.writing.set()
        assert self.go_on.wait(10)
        super()._write_now(chunk)


async def test_an_abort_waits_for_the_write_that_a_cancelled_request_left_running(data_dir: Path) -> None:
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
    if upload._file is not None:
        upload._file.close()
    assert files(data_dir) == set()
    assert not done


def test_a_directory_that_cannot_be_used_is_told_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(SettingsError, match=r"^HEADWAY_DATA_DIR: .*Example: HEADWAY_DATA_DIR="):
        Storage(tmp_path / "file").prepare()


def test_an_input_that_never_came_is_unknown(storage: Storage) -> None:
    for name in (None, "input-1"):
        with pytest.raises(UnknownFile):
            storage.input_path(TASK, name)


def test_results_are_moved_into_their_place_with_their_digests(storage: Storage, data_dir: Path) -> None:
    scratch = storage.scratch(TASK, 2)
    (scratch / "table.csv").write_bytes(b"a,b\n")
    (scratch / "odd").write_bytes(b"\0")
    (scratch / "left-over").write_bytes(b"not named")
    (scratch / "folder").mkdir()
    (scratch / "folder" / "deep").write_bytes(b"not named")
    kept = storage.keep_results(TASK, 2, scratch, {"table.csv": None, "odd": "x/y"})
    assert [(file.name, file.size_bytes, file.content_type, file.sha256) for file in kept] == [
        ("table.csv", 4, "text/csv", hashlib.sha256(b"a,b\n").hexdigest()),
        ("odd", 1, "x/y", hashlib.sha256(b"\0").hexdigest()),
    ]
    assert files(data_dir) == {f"tasks/{TASK}/result-2/table.csv", f"tasks/{TASK}/result-2/odd"}
    assert storage.result_path(TASK, 2, "table.csv").read_bytes() == b"a,b\n"


def test_an_attempt_without_outputs_has_no_result_folder(storage: Storage, data_dir: Path) -> None:
    scratch = storage.scratch(TASK, 1)
    assert storage.keep_results(TASK, 1, scratch, {}) == []
    storage.discard(scratch)
    assert list((data_dir / "partial").iterdir()) == list((data_dir / "tasks").iterdir()) == []


@pytest.mark.parametrize("kind", ["missing", "symlink", "folder"])
def test_an_output_that_is_no_plain_file_is_refused(storage: Storage, data_dir: Path, kind: str) -> None:
    scratch = storage.scratch(TASK, 1)
    secret = data_dir / "secret"
    secret.write_text("secret")
    match kind:
        case "symlink":
            (scratch / "out").symlink_to(secret)
        case "folder":
            (scratch / "out").mkdir()
    with pytest.raises(BadInput, match="'out'"):
        storage.keep_results(TASK, 1, scratch, {"out": None})
    assert not (data_dir / "tasks" / TASK).exists()


def test_a_link_that_is_left_over_is_removed_and_not_what_it_leads_to(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    scratch = storage.scratch(TASK, 1)
    (scratch / "link").symlink_to(tmp_path / "precious")
    (scratch / "out").write_bytes(b"")
    storage.keep_results(TASK, 1, scratch, {"out": None})
    assert (tmp_path / "precious" / "file").read_text() == "kept"


def test_the_results_of_an_attempt_that_does_not_count_can_be_removed_alone(storage: Storage) -> None:
    for attempt in (1, 2):
        scratch = storage.scratch(TASK, attempt)
        (scratch / "out").write_text(str(attempt))
        storage.keep_results(TASK, attempt, scratch, {"out": None})
    storage.discard_results(TASK, 1)
    with pytest.raises(UnknownFile):
        storage.result_path(TASK, 1, "out")
    assert storage.result_path(TASK, 2, "out").read_text() == "2"


async def test_a_deleted_task_has_no_file_left(storage: Storage, data_dir: Path) -> None:
    await storage.upload(TASK).commit()
    scratch = storage.scratch(TASK, 1)
    (scratch / "out").write_bytes(b"x")
    storage.keep_results(TASK, 1, scratch, {"out": None})
    storage.delete(TASK)
    assert files(data_dir) == set()


BAD_NAMES = ["", ".", "..", ".env", "../x", "a/b", "/etc/passwd", "a\\b", "a\0b", "a\nb", "a\x7f", "x" * 201, "€" * 99]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_plain_name_is_refused_and_leads_nowhere(storage: Storage, name: str) -> None:
    with pytest.raises(BadInput):
        check_result_name(name)
    with pytest.raises(UnknownFile):
        storage.result_path(TASK, 1, name)


@pytest.mark.parametrize("name", ["a", "a.csv", "täst 日本.csv", "x" * 200, "-rf", "~", "a b"])
def test_a_plain_name_is_taken(name: str) -> None:
    assert check_result_name(name) == name
