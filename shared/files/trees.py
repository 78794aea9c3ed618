"""Folders that strangers made: measured and removed, whatever is in them.

No path is followed but by descriptors, one name at a time and never through a link, so a folder can be too deep for a
path, or be swapped for a link while it is looked at, without harm to anything outside. A folder that its maker locked
(mode 000) is opened all the same. Nothing here recurses. All of it is blocking.
"""

# ruff: noqa: PTH101

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

#: A folder deeper than this is measured no further; it is nobody's honest work.
MOST_DEEP: Final = 200
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK_BYTES: Final = 512
#: A tree that others remove as well is looked at again this often.
_TIMES: Final = 100


@dataclass(slots=True)
class Measured:
    """`size_bytes` counts a file as what it is long or what it takes of the disk, whichever is more."""

    size_bytes: int = 0
    entries: int = 0
    too_deep: bool = False
    counted: set[tuple[int, int]] = field(default_factory=set)

    def add(self, found: os.stat_result) -> None:
        """A file with many names counts once."""
        if stat.S_ISREG(found.st_mode) and (name := (found.st_dev, found.st_ino)) not in self.counted:
            if found.st_nlink != 1:
                self.counted.add(name)
            self.size_bytes += size_of(found)


def size_of(found: os.stat_result) -> int:
    return max(found.st_size, found.st_blocks * _BLOCK_BYTES)


def measure(folder: Path, most_entries: int) -> Measured:
    """Of all that is beneath. Ends early where there are more entries, or they are too deep."""
    found = Measured()
    levels: list[tuple[int, list[str]]] = []  # open folders, and those in them that are still to be looked at
    try:
        levels.append(_look(_open(folder), found, most_entries))
        while levels:
            here, waiting = levels[-1]
            if not waiting or found.entries > most_entries:
                os.close(levels.pop()[0])
                continue
            with suppress(OSError):  # gone, or no folder any more
                inside = _open(waiting.pop(), here)
                if len(levels) == MOST_DEEP:
                    os.close(inside)
                    found.too_deep = True
                    return found
                levels.append(_look(inside, found, most_entries))
    except FileNotFoundError:
        pass  # the folder itself
    finally:
        for descriptor, _ in levels:
            os.close(descriptor)
    return found


def _look(folder: int, found: Measured, most_entries: int) -> tuple[int, list[str]]:
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found.entries += 1
                if found.entries > most_entries:
                    break
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    else:
                        found.add(entry.stat(follow_symlinks=False))
    except OSError:
        pass
    return folder, folders


def remove_tree(folder: Path, failed: Callable[[OSError], None] = lambda _: None, *, at: int | None = None) -> None:
    """Removes it as far as that can be; `failed` is told of each entry that stays. Where it is a file, it goes too.
    `at`: the open folder that its name is in.

    Each folder in it is moved up to the first level before it is emptied, so that none is ever deep."""
    try:
        top = _open(folder, at)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            failed(error)
            return
        with _told(failed):  # no folder, or a link to one: it goes by itself
            os.unlink(folder, dir_fd=at)
        return
    try:
        _empty(top, failed)
    finally:
        os.close(top)
    with _told(failed):
        os.rmdir(folder, dir_fd=at)


def remove_whole(folder: Path) -> None:
    """All of it, also where somebody else does so at the same time. Raises the first OSError of what cannot be removed,
    when everything else is."""
    for _ in range(_TIMES):
        errors: list[OSError] = []
        remove_tree(folder, errors.append)
        if not any(error.errno in (errno.ENOTEMPTY, errno.EEXIST) for error in errors):
            break
    if errors:
        raise errors[0]


def _empty(top: int, failed: Callable[[OSError], None]) -> None:
    waiting = _unlink_files(top, failed)
    names = _free_names(top)
    while waiting:
        name = waiting.pop()
        with _told(failed):
            inside = _open(name, top)
            try:
                for deeper in _unlink_files(inside, failed):
                    with _told(failed):
                        with suppress(OSError):
                            os.close(_open(deeper, inside))  # unlocks it: moving a folder writes to it
                        free = next(names)
                        os.rename(deeper, free, src_dir_fd=inside, dst_dir_fd=top)
                        waiting.append(free)
            finally:
                os.close(inside)
            os.rmdir(name, dir_fd=top)


def _free_names(folder: int) -> Iterator[str]:
    taken = set(os.listdir(folder))
    number = 0
    while True:
        number += 1
        if (name := f"moved-{number}") not in taken:
            yield name


def _unlink_files(folder: int, failed: Callable[[OSError], None]) -> list[str]:
    """Removes what is no folder. Returns the folders."""
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                with _told(failed):
                    os.unlink(entry.name, dir_fd=folder)
    return folders


def _open(name: str | Path, parent: int | None = None) -> int:
    """A folder, never a link to one; unlocked where it is ours and locked. What is in a folder that may not be written
    to cannot be removed either."""
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        _unlock(name, parent)
        return os.open(name, _FOLDER, dir_fd=parent)
    if os.fstat(descriptor).st_mode & stat.S_IRWXU != stat.S_IRWXU:
        with suppress(OSError):
            os.fchmod(descriptor, stat.S_IRWXU)
    return descriptor


def _unlock(name: str | Path, parent: int | None) -> None:
    if sys.platform == "linux":
        handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{handle}", stat.S_IRWXU)
        finally:
            os.close(handle)
    else:
        os.chmod(name, stat.S_IRWXU, dir_fd=parent, follow_symlinks=False)


@contextmanager
def _told(failed: Callable[[OSError], None]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass  # somebody else removed it
    except OSError as error:
        failed(error)
