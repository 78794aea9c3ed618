"""Results are taken from a stranger's folder: plain files alone, and what was hashed is what is served."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from headway.shared.errors import BadInput, StorageFull
from headway.shared.files.directory import DirectoryStorage
from headway.shared.files.outputs import Stopped, take_outputs
from headway.shared.files.storage import results_folder
from headway.shared.tasks.models import TaskId
from tests.waiting import wait_until

TASK = TaskId("0" * 32)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def a_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def a_second_name(path: Path) -> None:
    other = path.parent.parent / "another task's"
    other.write_bytes(b"secret")
    os.link(other, path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


@pytest.mark.parametrize("made", [a_link, a_second_name, a_socket, os.mkfifo, Path.mkdir, lambda _: None])
def test_what_is_no_plain_file_of_its_own_is_refused(scratch: Path, made: Callable[[Path], object]) -> None:
    made(scratch / "out")
    with pytest.raises(BadInput):
        take_outputs(scratch, {"out": None}, scratch.parent / "kept")


def test_a_file_that_somebody_still_writes_to_is_copied_so_that_what_was_hashed_is_served(scratch: Path) -> None:
    with (scratch / "out").open("wb+", buffering=0) as writing:
        writing.write(b"before" * 1000)
        writing.truncate(5 * 1024**2)
        [file] = take_outputs(scratch, {"out": None}, scratch.parent / "kept")
        writing.seek(0)
        writing.write(b"AFTER!" * 1000)
    served = (scratch.parent / "kept" / "out").read_bytes()
    assert served.startswith(b"before")
    assert (hashlib.sha256(served).hexdigest(), len(served)) == (file.sha256, file.size_bytes)
    assert (scratch.parent / "kept" / "out").stat().st_blocks * 512 < 2 * 1024**2, "its hole stayed one"


def test_a_file_that_nobody_writes_to_is_moved_and_closed_to_others(scratch: Path) -> None:
    (scratch / "out").write_bytes(b"x")
    (scratch / "out").chmod(0o4755)
    inode = (scratch / "out").stat().st_ino
    [file] = take_outputs(scratch, {"out": "text/x"}, scratch.parent / "kept")
    kept = (scratch.parent / "kept" / "out").stat()
    assert (kept.st_ino, kept.st_mode & 0o7777) == (inode, 0o600)
    assert (file.content_type, file.sha256) == ("text/x", hashlib.sha256(b"x").hexdigest())


def test_a_file_that_may_not_be_read_is_its_owner_s_all_the_same(scratch: Path) -> None:
    (scratch / "out").write_bytes(b"x")
    (scratch / "out").chmod(0)
    assert take_outputs(scratch, {"out": None}, scratch.parent / "kept")[0].size_bytes == 1


def test_their_size_is_asked_about_before_a_byte_is_read_holes_included(scratch: Path) -> None:
    for name in ("a", "b"):
        with (scratch / name).open("wb") as file:
            file.truncate(24 * 1024**3)
    asked: list[int] = []

    def check(size_bytes: int) -> None:
        asked.append(size_bytes)
        raise StorageFull

    with pytest.raises(StorageFull):
        take_outputs(scratch, {"a": None, "b": None}, scratch.parent / "kept", check=check)
    assert asked == [48 * 1024**3]
    assert not (scratch.parent / "kept").exists()


def test_hashing_ends_when_it_is_told_to(scratch: Path) -> None:
    with (scratch / "out").open("wb") as file:
        file.truncate(2**40)
    stop = threading.Event()
    taking: list[BaseException] = []

    def take() -> None:
        try:
            take_outputs(scratch, {"out": None}, scratch.parent / "kept", stop=stop)
        except Stopped as stopped:
            taking.append(stopped)

    thread = threading.Thread(target=take)
    thread.start()
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert taking


async def test_a_cancelled_keeping_of_results_ends_soon_and_leaves_nothing(tmp_path: Path) -> None:
    """Hashing a terabyte takes an hour: whoever waits for it to end would wait that long."""
    storage = DirectoryStorage(tmp_path / "data")
    storage.prepare()
    scratches = [await storage.scratch(TASK, attempt) for attempt in range(1, 20)]
    for scratch in scratches:
        with (scratch / "out").open("wb") as file:
            file.truncate(2**40)
    keeping = [
        asyncio.create_task(storage.keep_results(TASK, results_folder(attempt), scratch, {"out": None}))
        for attempt, scratch in enumerate(scratches, 1)
    ]
    partial = tmp_path / "data" / "partial"
    await wait_until("some are at it", lambda: len(list(partial.iterdir())) > len(scratches))
    await asyncio.wait_for(asyncio.to_thread(lambda: None), 30)  # the threads of everybody else are free
    for one in keeping:
        one.cancel()
    done, hanging = await asyncio.wait(keeping, timeout=60)
    assert not hanging
    assert all(one.cancelled() for one in done)
    assert {path.name.split("-")[1] for path in partial.iterdir()} == {path.name.split("-")[1] for path in scratches}
    assert len(list(partial.iterdir())) == len(scratches)
    for scratch in scratches:
        await storage.discard(scratch)
    assert list(partial.iterdir()) == []
