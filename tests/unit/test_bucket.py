"""What a bucket alone has to see to: parts that nobody wants any more, a server that is away, pieces that overlap."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headway.shared.errors import SettingsError, StorageAway, StorageFull, UnknownFile
from headway.shared.files.bucket import BucketStorage
from headway.shared.files.bucket_uploads import part_bytes_for
from headway.shared.files.s3 import PART_BYTES
from headway.shared.files.storage import CHUNK_BYTES
from headway.shared.settings import Settings
from headway.shared.tasks.models import TaskId
from headway.shared.units import GIB
from headway.worker.sandbox import ENVIRONMENT
from tests.processes import free_port
from tests.s3_server import Road, S3Server
from tests.waiting import wait_until

TASK = TaskId("0" * 32)
DATA = bytes(range(256)) * (3 * PART_BYTES // 256) + b"the rest"


@pytest.fixture
def server(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A server that may not be harmed, and the environment that leads to it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
async def road(server: S3Server) -> AsyncIterator[Road]:
    async with Road(server) as found:
        yield found


def storage_on(server: S3Server, tmp_path: Path, folder: str = "") -> BucketStorage:
    url = f"s3://{server.bucket}/{folder or secrets.token_hex(4)}"
    storage = BucketStorage(Settings(storage_url=url, data_dir=tmp_path / secrets.token_hex(4)))
    storage.prepare()
    return storage


@pytest.fixture
def folder() -> str:
    return secrets.token_hex(4)


@pytest.fixture
def storage(server: S3Server, tmp_path: Path, folder: str) -> BucketStorage:
    return storage_on(server, tmp_path, folder)


def disk_files(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.rglob("*") if path.is_file()}


async def test_an_upload_that_is_given_up_takes_its_parts_back(
    server: S3Server, storage: BucketStorage, folder: str
) -> None:
    upload = storage.upload(TASK)
    for start in range(0, len(DATA), CHUNK_BYTES):
        await upload.write(DATA[start : start + CHUNK_BYTES])
    await wait_until("its parts are on their way", lambda: server.unfinished(folder))
    await upload.abort()
    assert (server.keys(folder), server.unfinished(folder)) == (set(), set())


async def test_an_upload_whose_request_was_cancelled_in_the_commit_leaves_nothing(
    server: S3Server, storage: BucketStorage, folder: str
) -> None:
    upload = storage.upload(TASK)
    await upload.write(DATA)
    committing = asyncio.create_task(upload.commit())
    await wait_until("its parts are on their way", lambda: server.unfinished(folder))
    committing.cancel()
    await asyncio.wait([committing])
    await upload.abort()
    assert (server.keys(folder), server.unfinished(folder)) == (set(), set())


async def test_results_that_are_given_up_in_the_middle_leave_nothing(
    server: S3Server, storage: BucketStorage, folder: str
) -> None:
    scratch = await storage.scratch(TASK, 1)
    (scratch / "small").write_bytes(b"x")
    (scratch / "large").write_bytes(DATA * 8)
    keeping = asyncio.create_task(storage.keep_results(TASK, "result-1", scratch, {"small": None, "large": None}))
    await wait_until("its parts are on their way", lambda: server.unfinished(folder))
    keeping.cancel()
    await asyncio.wait([keeping])
    assert (server.keys(folder), server.unfinished(folder)) == (set(), set())


async def test_results_large_and_small_are_kept_with_their_type(
    storage: BucketStorage, server: S3Server, folder: str
) -> None:
    scratch = await storage.scratch(TASK, 1)
    names = {"large": "x/large", **{f"{number}.csv": None for number in range(30)}}
    for name in names:
        (scratch / name).write_bytes(DATA if name == "large" else name.encode())
    kept = {file.name: file for file in await storage.keep_results(TASK, "result-1", scratch, names)}
    assert kept["large"].sha256 == hashlib.sha256(DATA).hexdigest()
    assert server.keys(folder) == {f"{folder}/tasks/{TASK}/result-1/{name}" for name in names}
    found = await storage.result(TASK, "result-1", "large")
    assert b"".join([data async for data in found.read(0, found.size_bytes)]) == DATA


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_pieces_of_writers_that_knew_nothing_of_each_other_are_one_file(
    storage: BucketStorage, order: tuple[int, ...]
) -> None:
    """Three API processes had the upload in their hands at the same place; each wrote more or less of the same file."""
    first = await storage.resume(TASK)
    await first.write(b"0123")
    await first.pause()
    writers = [await storage.resume(TASK) for _ in range(3)]
    for number in order:
        await writers[number].write(b"456789abcdef"[: 4 * (number + 1)])
        await writers[number].pause()
    assert await storage.received(TASK) == 16
    late = await storage.resume(TASK)
    await late.rewind(10)
    assert await storage.received(TASK) == 10
    await late.write(b"abcdef")
    stored = await late.commit()
    assert stored.sha256 == hashlib.sha256(b"0123456789abcdef").hexdigest()
    assert [partial async for partial in storage.partials()] == []


async def test_a_commit_whose_pieces_were_removed_meanwhile_is_refused(
    storage: BucketStorage, server: S3Server
) -> None:
    first = await storage.resume(TASK)
    await first.write(b"0123")
    await first.pause()
    upload = await storage.resume(TASK)
    await storage.discard_upload(TASK)
    await upload.write(b"4567")
    with pytest.raises(UnknownFile, match="Send the file again"):
        await upload.commit()
    await upload.abort()


async def test_the_input_of_an_attempt_lies_on_its_disk_as_long_as_it_is_used(
    storage: BucketStorage, tmp_path: Path
) -> None:
    upload = storage.upload(TASK)
    await upload.write(DATA)
    name = (await upload.commit()).name
    await storage.scratch(TASK, 7)
    async with storage.local_input(TASK, name) as path:
        assert path.read_bytes() == DATA
        # The sweeper removes neither while this attempt is the task's.
        assert [partial.attempt async for partial in storage.partials()] == [7, 7]
    assert disk_files(tmp_path) == set()


async def test_what_a_killed_worker_left_on_its_disk_goes_with_the_next_start_there(
    storage: BucketStorage, server: S3Server, tmp_path: Path, folder: str
) -> None:
    settings = Settings(storage_url=f"s3://{server.bucket}/{folder}", data_dir=tmp_path / "disk")
    lives = BucketStorage(settings)
    lives.prepare()
    scratch = await lives.scratch(TASK, 1)
    (scratch / "out").write_bytes(b"x")
    BucketStorage(settings).prepare()
    assert (scratch / "out").exists()
    del lives  # as when its process ends
    (tmp_path / "disk" / "partial" / "not ours").mkdir()
    BucketStorage(settings).prepare()
    assert [path.name for path in (tmp_path / "disk" / "partial").iterdir()] == ["not ours"]


async def test_a_disk_without_room_for_the_input_is_said_before_it_comes(
    storage: BucketStorage, server: S3Server, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = storage.upload(TASK)
    await upload.write(b"x")
    name = (await upload.commit()).name
    settings = Settings(storage_url=f"s3://{server.bucket}/{folder}", data_dir=tmp_path, disk_reserve_bytes=2**53)
    full = BucketStorage(settings)
    full.prepare()
    with pytest.raises(StorageFull):
        async with full.local_input(TASK, name):
            pass
    assert disk_files(tmp_path) == set()


async def test_an_object_that_vanishes_while_it_is_read_is_unknown(storage: BucketStorage) -> None:
    upload = storage.upload(TASK)
    await upload.write(DATA)
    file = await storage.input(TASK, (await upload.commit()).name)
    reading = file.read(0, file.size_bytes)
    await anext(reading)
    await storage.delete(TASK)
    with pytest.raises(UnknownFile):
        _ = [data async for data in reading]


async def test_a_reader_that_leaves_in_the_middle_leaves_nothing_running(storage: BucketStorage) -> None:
    upload = storage.upload(TASK)
    await upload.write(DATA)
    file = await storage.input(TASK, (await upload.commit()).name)
    before = asyncio.all_tasks()
    reading = file.read(0, file.size_bytes)
    await anext(reading)
    await reading.aclose()  # type: ignore[attr-defined]
    assert asyncio.all_tasks() == before


async def test_a_server_that_is_gone_is_said_without_a_word_of_where_it_was(
    storage: BucketStorage, road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", road.endpoint)
    monkeypatch.setattr("headway.shared.files.bucket.REQUEST_PATIENCE_SECONDS", 0.1)
    upload = storage.upload(TASK)
    await upload.write(b"x")
    for call in (upload.commit(), storage.input(TASK, "input-1"), storage.resume(TASK), storage.delete(TASK)):
        with pytest.raises(StorageAway) as caught:
            await call
        assert str(road.port) not in str(caught.value)
    await upload.abort()


async def test_an_attempt_waits_for_a_server_that_restarts(
    storage: BucketStorage, road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", road.endpoint)
    scratch = await storage.scratch(TASK, 1)
    (scratch / "out").write_bytes(b"x")
    keeping = asyncio.create_task(storage.keep_results(TASK, "result-1", scratch, {"out": None}))
    done, _ = await asyncio.wait([keeping], timeout=0.3)
    assert not done
    await road.open()
    assert [file.name for file in await keeping] == ["out"]


async def test_a_worker_that_stops_does_not_wait_for_a_server_that_never_answers(
    storage: BucketStorage, road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", road.endpoint)
    await road.open(silent=True)
    scratch = await storage.scratch(TASK, 1)
    (scratch / "out").write_bytes(DATA)
    keeping = asyncio.create_task(storage.keep_results(TASK, "result-1", scratch, {"out": None}))
    await asyncio.wait([keeping], timeout=0.3)
    keeping.cancel()
    done, _ = await asyncio.wait([keeping], timeout=30)
    assert done
    assert keeping.cancelled()


def test_a_bucket_that_is_not_there_is_told_with_its_setting(server: S3Server, tmp_path: Path) -> None:
    settings = Settings(storage_url="s3://no-such-bucket/x", data_dir=tmp_path)
    with pytest.raises(SettingsError, match=r"^HEADWAY_STORAGE_URL: there is no bucket 'no-such-bucket'.*Example: "):
        BucketStorage(settings).prepare()


@pytest.mark.parametrize("endpoint", ["nonsense", "127.0.0.1:9000", "http://", "http://user:secret@127.0.0.1:9000"])
def test_an_endpoint_that_is_no_url_is_told_with_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    settings = Settings(storage_url="s3://bucket", data_dir=tmp_path)
    with pytest.raises(SettingsError, match=r"^AWS_ENDPOINT_URL: .*Example: AWS_ENDPOINT_URL=") as caught:
        BucketStorage(settings).prepare()
    assert "secret" not in str(caught.value)


def test_an_endpoint_where_nobody_is_is_told_with_what_to_look_at(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    settings = Settings(storage_url="s3://bucket", data_dir=tmp_path)
    with pytest.raises(SettingsError, match=r"^HEADWAY_STORAGE_URL: .*AWS_ENDPOINT_URL and AWS_REGION"):
        BucketStorage(settings).prepare()


def test_parts_grow_where_the_largest_file_would_need_too_many() -> None:
    assert part_bytes_for(5 * GIB) == PART_BYTES
    assert part_bytes_for(1024 * GIB) * 10_000 > 1024 * GIB


def test_a_processor_sees_no_credentials() -> None:
    assert not [name for name in ENVIRONMENT if name.startswith("AWS_")]


def test_a_directory_pays_nothing_for_the_bucket_and_no_child_inherits_it() -> None:
    imported = "headway.worker.forkserver, headway.worker.child, headway.api.app, headway.shared.files.directory"
    asked = f"import sys, {imported}; sys.exit('obstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0
