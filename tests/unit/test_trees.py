"""Folders that strangers made: measured and removed, however deep, locked or strange they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headway.shared.files.trees import measure, remove_tree


def deep(folder: Path, levels: int) -> Path:
    """A folder with so many in each other, each with a file, too deep for a path."""
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        inside = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inside
    os.close(here)
    return folder


def test_a_folder_three_thousand_deep_is_removed(tmp_path: Path) -> None:
    errors: list[OSError] = []
    remove_tree(deep(tmp_path / "deep", 3000), errors.append)
    assert errors == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o500, 0o111])
def test_locked_folders_are_opened_measured_and_removed(tmp_path: Path, mode: int) -> None:
    top = tmp_path / "top"
    inner = top / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "file").write_bytes(b"12345")
    for folder in (inner, top / "a", top):
        folder.chmod(mode)
    assert measure(top, 100).entries == 3
    for folder in (top, top / "a", inner):
        folder.chmod(0o700)
    for folder in (inner, top / "a", top):
        folder.chmod(mode)
    errors: list[OSError] = []
    remove_tree(top, errors.append)
    assert errors == []
    assert not top.exists()


def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"x" * 1000)
    outside.chmod(0o750)
    top = tmp_path / "top"
    (top / "a").mkdir(parents=True)
    (top / "link").symlink_to(outside)
    (top / "a" / "link").symlink_to(outside / "kept")
    (tmp_path / "itself").symlink_to(outside)
    assert measure(top, 100).size_bytes == 0
    for path in (top, tmp_path / "itself"):
        remove_tree(path)
        assert not path.is_symlink()
        assert not path.exists()
    assert (outside / "kept").read_bytes() == b"x" * 1000
    assert outside.stat().st_mode & 0o777 == 0o750


def test_strange_entries_go_too_and_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    os.mkfifo(top / "pipe")
    (top / "moved-1").mkdir()
    (top / "moved-1" / "x").mkdir()
    (top / os.fsdecode(b"\xff\xfe")).mkdir()
    (top / "a name\nwith a line").write_bytes(b"")
    remove_tree(top)
    file = tmp_path / "file"
    file.write_bytes(b"")
    remove_tree(file)
    remove_tree(tmp_path / "never there")
    assert list(tmp_path.iterdir()) == []


def test_a_file_counts_as_what_it_is_long_and_once_for_all_its_names(tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(24 * 1024**3)
    os.link(tmp_path / "holes", tmp_path / "again")
    (tmp_path / "small").write_bytes(b"x")
    found = measure(tmp_path, 100)
    assert 24 * 1024**3 < found.size_bytes < 24 * 1024**3 + 100_000
    assert found.entries == 3


def test_measuring_ends_at_its_bounds(tmp_path: Path) -> None:
    assert measure(deep(tmp_path / "deep", 300), 10_000).too_deep
    for number in range(200):
        (tmp_path / str(number)).touch()
    assert measure(tmp_path, 50).entries == 51
    remove_tree(tmp_path / "deep")
