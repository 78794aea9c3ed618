"""A place of files, whichever it is: whole or absent, never half, and no name from outside is a path."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from headway.shared.errors import BadInput, UnknownFile
from headway.shared.files.directory import DirectoryStorage
from headway.shared.files.place import open_storage
from headway.shared.files.storage import CHUNK_BYTES, Storage, StoredObject, results_folder
from headway.shared.settings import Settings
from headway.shared.tasks.models import TaskId
from tests.s3_server import S3Server

TASK = TaskId("0" * 32)
OTHER = TaskId("1" * 32)


@dataclass
class Place:
    storage: Storage
    folder: Path

    async def holds(self) -> set[str]:
        """What of tasks and partial files is there."""
        found = {f"task {folder.task_id}" async for folder in self.storage.task_folders()}
        return found | {f"partial {partial.task_id}" async for partial in self.storage.partials()}


@asynccontextmanager
async def directory(folder: Path) -> AsyncIterator[Storage]:
    yield DirectoryStorage(folder)


@asynccontextmanager
async def bucket(folder: Path, server: S3Server) -> AsyncIterator[Storage]:
    """A folder of its own in the bucket of one server."""
    url = f"s3://{server.bucket}/{secrets.token_hex(4)}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield open_storage(Settings(storage_url=url, data_dir=folder))


PLACES = ["directory", "bucket"]


@pytest.fixture(params=PLACES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    folder = tmp_path / "data"
    is_directory = request.param == "directory"
    async with directory(folder) if is_directory else bucket(folder, request.getfixturevalue("s3_server")) as storage:
        storage.prepare()
        yield Place(storage, folder)


@pytest.mark.parametrize("sizes", [[5], [1, 2, 3_000_000], [CHUNK_BYTES, CHUNK_BYTES + 7, 1]], ids=str)
async def test_what_is_stored_of_an_upload_can_be_read_before_it_is_whole(place: Place, sizes: list[int]) -> None:
    whole = b""
    for size_bytes in sizes:
        piece = secrets.token_bytes(size_bytes)
        upload = await place.storage.resume(TASK)
        await upload.write(piece)
        await upload.pause()
        whole += piece
    upload = await place.storage.resume(TASK)
    for start, end in [(0, len(whole)), (0, 1), (len(whole) - 1, len(whole)), (len(whole) // 3, len(whole) // 2)]:
        assert b"".join([data async for data in upload.read(start, end)]) == whole[start:end]
    with pytest.raises(UnknownFile):
        [data async for data in upload.read(0, len(whole) + 1)]
    await upload.pause()
    assert await place.storage.received(TASK) == len(whole)


@pytest.fixture
def storage(place: Place) -> Storage:
    return place.storage


async def content(file: StoredObject, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([data async for data in file.read(start, file.size_bytes if end is None else end)])


async def upload_of(storage: Storage, data: bytes, task_id: TaskId = TASK) -> str:
    upload = storage.upload(task_id)
    await upload.write(data)
    return (await upload.commit()).name


@pytest.mark.parametrize("sizes", [[], [0], [1], [CHUNK_BYTES], [CHUNK_BYTES + 1, 5], [700_000] * 5, [4_000_000] * 4])
async def test_an_upload_is_the_bytes_that_came_in_their_order(storage: Storage, sizes: list[int]) -> None:
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    upload = storage.upload(TASK)
    for piece in pieces:
        await upload.write(piece)
    stored = await upload.commit()
    whole = b"".join(pieces)
    found = await storage.input(TASK, stored.name)
    assert await content(found) == whole
    assert (stored.size_bytes, stored.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert found.size_bytes == len(whole)
    async with storage.local_input(TASK, stored.name) as path:
        assert path.read_bytes() == whole


async def test_any_part_of_a_file_can_be_read(storage: Storage) -> None:
    data = bytes(range(256)) * 9000
    file = await storage.input(TASK, await upload_of(storage, data))
    for start, end in ((0, 0), (0, 1), (5, 300), (CHUNK_BYTES - 1, CHUNK_BYTES + 1), (len(data) - 1, len(data))):
        assert await content(file, start, end) == data[start:end]


async def test_nothing_is_in_its_place_before_the_commit(place: Place) -> None:
    upload = place.storage.upload(TASK)
    await upload.write(bytes(CHUNK_BYTES))
    await upload.write(bytes(CHUNK_BYTES))
    assert f"task {TASK}" not in await place.holds()
    await upload.commit()
    assert await place.holds() == {f"task {TASK}"}


@pytest.mark.parametrize("written", [0, 10, CHUNK_BYTES * 2])
async def test_an_aborted_upload_leaves_nothing(place: Place, written: int) -> None:
    upload = place.storage.upload(TASK)
    await upload.write(bytes(written))
    await upload.abort()
    assert await place.holds() == set()


async def test_a_committed_upload_that_is_aborted_after_all_leaves_nothing(place: Place) -> None:
    upload = place.storage.upload(TASK)
    await upload.write(b"x")
    await upload.commit()
    await upload.abort()
    assert await place.holds() == set()


async def test_two_uploads_of_one_task_do_not_write_over_each_other(storage: Storage) -> None:
    one, two = storage.upload(TASK), storage.upload(TASK)
    await one.write(b"one")
    await two.write(b"two")
    stored = [await two.commit(), await one.commit()]
    assert [await content(await storage.input(TASK, file.name)) for file in stored] == [b"two", b"one"]
    await one.abort()
    assert await content(await storage.input(TASK, stored[0].name)) == b"two"


@pytest.mark.parametrize("sizes", [[0, 3], [1, 1, 1], [CHUNK_BYTES + 1, 5, CHUNK_BYTES], [700_000] * 4])
async def test_an_upload_in_pieces_is_the_bytes_that_came_in_their_order(place: Place, sizes: list[int]) -> None:
    storage = place.storage
    pieces = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    before = 0
    for piece in pieces[:-1]:
        upload = await storage.resume(TASK)
        assert upload.size_bytes == before
        await upload.write(piece)
        await upload.pause()
        before += len(piece)
        assert await storage.received(TASK) == before
    upload = await storage.resume(TASK)
    await upload.write(pieces[-1])
    stored = await upload.commit()
    whole = b"".join(pieces)
    assert await content(await storage.input(TASK, stored.name)) == whole
    assert (stored.size_bytes, stored.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert await place.holds() == {f"task {TASK}"}
    assert await storage.received(TASK) == 0


@pytest.mark.parametrize("kept", [0, 2, CHUNK_BYTES])
async def test_a_piece_that_was_not_what_it_should_be_is_taken_back(storage: Storage, kept: int) -> None:
    upload = await storage.resume(TASK)
    await upload.write(b"a" * kept)
    await upload.pause()
    upload = await storage.resume(TASK)
    await upload.write(b"wrong" * 500_000)
    await upload.rewind(kept)
    assert upload.size_bytes == kept
    await upload.pause()
    assert await storage.received(TASK) == kept
    upload = await storage.resume(TASK)
    await upload.write(b"b")
    stored = await upload.commit()
    assert await content(await storage.input(TASK, stored.name)) == b"a" * kept + b"b"
    assert stored.sha256 == hashlib.sha256(b"a" * kept + b"b").hexdigest()


@pytest.mark.parametrize("back_to", [0, 3, 5, 8])
async def test_an_upload_in_pieces_can_be_taken_back_to_any_byte(place: Place, back_to: int) -> None:
    storage = place.storage
    for piece in (b"01234", b"56789"):
        upload = await storage.resume(TASK)
        await upload.write(piece)
        await upload.pause()
    upload = await storage.resume(TASK)
    await upload.write(b"abc")
    await upload.rewind(back_to)
    await upload.pause()
    assert await storage.received(TASK) == back_to
    upload = await storage.resume(TASK)
    await upload.write(b"the rest")
    stored = await upload.commit()
    assert await content(await storage.input(TASK, stored.name)) == b"0123456789"[:back_to] + b"the rest"
    assert await place.holds() == {f"task {TASK}"}


async def test_an_upload_in_pieces_that_is_given_up_leaves_nothing(place: Place) -> None:
    for abort in (True, False):
        upload = await place.storage.resume(TASK)
        await upload.write(bytes(CHUNK_BYTES + 1))
        await upload.pause()
        assert await place.holds() == {f"partial {TASK}"}
        if abort:
            await (await place.storage.resume(TASK)).abort()
        else:
            await place.storage.discard_upload(TASK)
        assert await place.holds() == set()
    await place.storage.discard_upload(TASK)


async def test_partial_files_say_whose_they_are_and_can_be_removed(place: Place) -> None:
    upload = await place.storage.resume(TASK)
    await upload.write(b"12345")
    await upload.pause()
    scratch = await place.storage.scratch(OTHER, 3)
    found = {partial.task_id: partial async for partial in place.storage.partials()}
    assert (found[TASK].attempt, found[TASK].size_bytes) == (None, 5)
    assert found[OTHER].attempt == 3
    assert all(-5 < partial.idle_seconds < 600 for partial in found.values())
    for partial in found.values():
        await place.storage.remove(partial)
    assert await place.holds() == set()
    assert not scratch.exists()


async def test_an_input_that_never_came_is_unknown(storage: Storage) -> None:
    for name in (None, "input-1"):
        with pytest.raises(UnknownFile):
            await storage.input(TASK, name)
        with pytest.raises(UnknownFile):
            async with storage.local_input(TASK, name):
                pass


async def test_results_are_moved_into_their_place_with_their_digests(place: Place) -> None:
    storage = place.storage
    scratch = await storage.scratch(TASK, 2)
    (scratch / "table.csv").write_bytes(b"a,b\n")
    (scratch / "täst 日本").write_bytes(b"\0")
    (scratch / "left-over").write_bytes(b"not named")
    (scratch / "folder").mkdir()
    (scratch / "folder" / "deep").write_bytes(b"not named")
    kept = await storage.keep_results(TASK, "result-2", scratch, {"table.csv": None, "täst 日本": "x/y"})
    assert [(file.name, file.size_bytes, file.content_type, file.sha256) for file in kept] == [
        ("table.csv", 4, "text/csv", hashlib.sha256(b"a,b\n").hexdigest()),
        ("täst 日本", 1, "x/y", hashlib.sha256(b"\0").hexdigest()),
    ]
    await storage.discard(scratch)
    assert await content(await storage.result(TASK, "result-2", "table.csv")) == b"a,b\n"
    assert await content(await storage.result(TASK, "result-2", "täst 日本")) == b"\0"
    for name in ("left-over", "folder", "deep", "folder/deep"):
        with pytest.raises(UnknownFile):
            await storage.result(TASK, "result-2", name)
    assert await place.holds() == {f"task {TASK}"}


@pytest.mark.parametrize("name", ["-rf", "~", "a b+c", "%41?x=1#y", "日" * 80, "x" * 200, "a..b", "a'b\"c<&>", "*"])
async def test_a_result_may_have_any_plain_name(place: Place, name: str) -> None:
    scratch = await place.storage.scratch(TASK, 1)
    (scratch / name).write_bytes(name.encode())
    await place.storage.keep_results(TASK, "result-1", scratch, {name: None})
    assert await content(await place.storage.result(TASK, "result-1", name)) == name.encode()
    await place.storage.delete(TASK)
    assert await place.holds() == set()


async def test_an_attempt_without_outputs_leaves_nothing(place: Place) -> None:
    scratch = await place.storage.scratch(TASK, 1)
    assert await place.storage.keep_results(TASK, "result-1", scratch, {}) == []
    await place.storage.discard(scratch)
    assert await place.holds() == set()


@pytest.mark.parametrize("kind", ["missing", "symlink", "folder"])
async def test_an_output_that_is_no_plain_file_is_refused(place: Place, kind: str) -> None:
    scratch = await place.storage.scratch(TASK, 1)
    secret = place.folder / "secret"
    secret.write_text("secret")
    match kind:
        case "symlink":
            (scratch / "out").symlink_to(secret)
        case "folder":
            (scratch / "out").mkdir()
    with pytest.raises(BadInput, match="'out'"):
        await place.storage.keep_results(TASK, "result-1", scratch, {"out": None})
    assert f"task {TASK}" not in await place.holds()


async def test_a_link_that_is_left_over_is_removed_and_not_what_it_leads_to(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    scratch = await storage.scratch(TASK, 1)
    (scratch / "link").symlink_to(tmp_path / "precious")
    (scratch / "out").write_bytes(b"")
    await storage.keep_results(TASK, "result-1", scratch, {"out": None})
    await storage.discard(scratch)
    assert (tmp_path / "precious" / "file").read_text() == "kept"


async def test_the_results_of_an_attempt_that_does_not_count_can_be_removed_alone(storage: Storage) -> None:
    for attempt in (1, 2, 12):
        scratch = await storage.scratch(TASK, attempt)
        (scratch / "out").write_text(str(attempt))
        await storage.keep_results(TASK, results_folder(attempt), scratch, {"out": None})
    await storage.discard_results(TASK, "result-1")
    with pytest.raises(UnknownFile):
        await storage.result(TASK, "result-1", "out")
    assert await content(await storage.result(TASK, "result-2", "out")) == b"2"
    assert await content(await storage.result(TASK, "result-12", "out")) == b"12"


async def test_the_results_of_all_attempts_before_one_can_be_removed(storage: Storage) -> None:
    await storage.discard_earlier_results(TASK, 2)  # there is no folder yet
    name = await upload_of(storage, b"x")
    folders = [results_folder(attempt, claim) for attempt in (1, 2, 12) for claim in ("", "ab" * 8, "cd" * 8)]
    for folder in folders:
        scratch = await storage.scratch(TASK, 1)
        (scratch / "out").write_text(folder)
        await storage.keep_results(TASK, folder, scratch, {"out": None})
    await storage.discard_earlier_results(TASK, 2)
    assert [found.entries async for found in storage.task_folders()] == [{name, *folders[3:]}]
    for folder in folders[3:]:
        assert await content(await storage.result(TASK, folder, "out")) == folder.encode()


async def test_a_deleted_task_has_no_file_left_and_others_keep_theirs(place: Place) -> None:
    storage = place.storage
    await upload_of(storage, b"x")
    kept = await upload_of(storage, b"kept", OTHER)
    paused = await storage.resume(TASK)
    await paused.write(b"x")
    await paused.pause()
    scratch = await storage.scratch(TASK, 1)
    (scratch / "out").write_bytes(b"x")
    await storage.keep_results(TASK, "result-1", scratch, {"out": None})
    await storage.delete(TASK)
    await storage.delete(TASK)
    assert await place.holds() == {f"task {OTHER}"}
    assert await content(await storage.input(OTHER, kept)) == b"kept"


async def test_a_folder_says_how_long_nothing_came_into_it(storage: Storage) -> None:
    await upload_of(storage, b"x")
    folders = [folder async for folder in storage.task_folders()]
    assert [folder.task_id for folder in folders] == [TASK]
    assert -5 < folders[0].idle_seconds < 600


async def test_a_folder_says_what_is_in_it_and_each_of_it_can_be_removed(storage: Storage) -> None:
    name = await upload_of(storage, b"x")
    for attempt in (1, 12):
        scratch = await storage.scratch(TASK, attempt)
        (scratch / "out").write_text(str(attempt))
        await storage.keep_results(TASK, results_folder(attempt), scratch, {"out": None})
        await storage.discard(scratch)
    left = {name, "result-1", "result-12"}
    assert [folder.entries async for folder in storage.task_folders()] == [left]
    for entry in ("result-1", name):
        await storage.remove_entry(TASK, entry)
        left -= {entry}
        assert [folder.entries async for folder in storage.task_folders()] == [left]
    assert await content(await storage.result(TASK, "result-12", "out")) == b"12"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "a\0b", "a\nb"])
async def test_a_name_that_is_no_plain_name_leads_nowhere(storage: Storage, name: str) -> None:
    with pytest.raises(UnknownFile):
        await storage.result(TASK, "result-1", name)


@pytest.mark.parametrize("kind", ["input", "result"])
async def test_a_file_becomes_the_input_of_another_task_and_outlives_its_own(place: Place, kind: str) -> None:
    storage, data = place.storage, secrets.token_bytes(3000)
    content: StoredObject
    if kind == "input":
        upload = storage.upload(TASK)
        await upload.write(data)
        content = await storage.input(TASK, (await upload.commit()).name)
    else:
        scratch = await storage.scratch(TASK, 1)
        (scratch / "a.bin").write_bytes(data)
        await storage.keep_results(TASK, results_folder(1), scratch, {"a.bin": None})
        content = await storage.result(TASK, results_folder(1), "a.bin")
    sha256 = hashlib.sha256(data).hexdigest()
    stored = await storage.take_over(content, OTHER, sha256)
    assert (stored.size_bytes, stored.sha256) == (len(data), sha256)
    await storage.delete(TASK)
    taken = await storage.input(OTHER, stored.name)
    assert b"".join([piece async for piece in taken.read(0, taken.size_bytes)]) == data
    assert await place.holds() == {f"task {OTHER}"}
    with pytest.raises(UnknownFile):
        await storage.take_over(content, OTHER, sha256)


async def test_where_a_file_can_have_no_second_name_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = DirectoryStorage(tmp_path)
    storage.prepare()
    upload = storage.upload(TASK)
    await upload.write(b"hello")
    first = await upload.commit()

    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    stored = await storage.take_over(await storage.input(TASK, first.name), OTHER, first.sha256)
    await storage.delete(TASK)
    assert (await storage.input(OTHER, stored.name)).size_bytes == 5
