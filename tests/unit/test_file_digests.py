"""A digest is computed once for as long as a file stays as it is, and never told of a file that was changing."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headway.api.downloads import file_digests
from headway.api.downloads.file_digests import FileDigests
from headway.shared.errors import UnknownFile


@pytest.fixture
async def opened() -> AsyncIterator[FileDigests]:
    async with FileDigests() as opened:
        yield opened


@pytest.fixture
def read_paths(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that was read, in order."""
    read: list[Path] = []
    digest = FileDigests._digest

    def counted(self: FileDigests, path: Path, identity: file_digests.Identity) -> str | None:
        read.append(path)
        return digest(self, path, identity)

    monkeypatch.setattr(FileDigests, "_digest", counted)
    return read


async def test_a_file_is_read_once_however_many_ask(
    opened: FileDigests, tmp_path: Path, read_paths: list[Path]
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a" * 3_000_000)
    answers = await asyncio.gather(*(opened.of(path) for _ in range(20)), opened.of(path))
    assert {digest for _, digest in answers} == {hashlib.sha256(b"a" * 3_000_000).hexdigest()}
    assert {file.size_bytes for file, _ in answers} == {3_000_000}
    await opened.of(path)
    assert read_paths == [path]


async def test_whoever_gives_up_leaves_the_digest_to_the_others(
    opened: FileDigests, tmp_path: Path, read_paths: list[Path]
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a" * 3_000_000)
    first = asyncio.create_task(opened.of(path))
    second = asyncio.create_task(opened.of(path))
    while not read_paths:
        await asyncio.sleep(0)
    first.cancel()
    _, digest = await second
    assert digest is not None
    assert len(read_paths) == 1


@pytest.mark.parametrize("how", ["written", "replaced"])
async def test_a_changed_file_has_its_own_digest(opened: FileDigests, tmp_path: Path, how: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")
    os.utime(path, (1, 1))
    await opened.of(path)
    if how == "written":
        path.write_bytes(b"after!")
    else:
        (tmp_path / "b").write_bytes(b"after!")
        os.utime(tmp_path / "b", (1, 1))  # same size, same time: another inode
        (tmp_path / "b").replace(path)
    assert (await opened.of(path))[1] == hashlib.sha256(b"after!").hexdigest()


async def test_a_file_that_changes_while_it_is_read_has_no_digest(
    opened: FileDigests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a" * 10)
    readv = os.readv

    def writing(file: int, buffers: Any) -> int:
        with path.open("ab") as other:
            other.write(b"b" if path.stat().st_size < 20 else b"")
        return readv(file, buffers)

    with monkeypatch.context() as patched:
        patched.setattr(os, "readv", writing)
        assert (await opened.of(path))[1] is None
    assert (await opened.of(path))[1] == hashlib.sha256(path.read_bytes()).hexdigest()


async def test_only_so_many_are_kept(
    opened: FileDigests, tmp_path: Path, read_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "KEPT", 2)
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"x")
    a, b, c = paths
    for path in (a, b, a, c, a, b):
        await opened.of(path)
    assert read_paths == [a, b, c, b], "the one that was not asked for the longest goes first"


async def test_what_is_no_plain_file_is_unknown(opened: FileDigests, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "nothing", ".", "x" * 300, "a\0b"):
        with pytest.raises(UnknownFile):
            await opened.of(tmp_path / name)


async def test_closing_gives_up_what_is_being_read(tmp_path: Path, read_paths: list[Path]) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(200_000_000_000)
    async with FileDigests() as opened:
        asking = asyncio.create_task(opened.of(path))
        while not read_paths:
            await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.get_running_loop().shutdown_default_executor()  # returns: the thread has heard of it
