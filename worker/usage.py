"""What a child holds, counted for it and all that it started together: memory, and room on the disk.

Memory is what the processes wrote and share with nobody, and of what several share each one's part (PSS), shared memory
included; files that are only mapped or cached cost nobody anything. Counting that takes the kernel a while, so a sum
that is never less, and cheap, is taken first. Linux; elsewhere the limits of the child itself must do.

Sources: proc_pid_smaps(5), proc_pid_statm(5), proc_tid_children(5).
"""

# ruff: noqa: PTH115, PTH116, PTH208

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from headway.shared.errors import ProcessorFailure
from headway.shared.files.trees import MOST_DEEP, Measured, measure, size_of
from headway.shared.tasks.models import ErrorType

#: Of one attempt. Half of numeric Python starts one a core; what goes beyond is a fork bomb.
MOST_PROCESSES: Final = 1024
#: Files and folders of one attempt. Each costs the disk an inode, however small it is.
MOST_FILES: Final = 500_000

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def group_of(pid: int) -> list[int]:
    """The process and all beneath it."""
    found, at = [pid], 0
    while at < len(found) <= MOST_PROCESSES:
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{found[at]}/task"):
                children = Path(f"/proc/{found[at]}/task/{thread}/children")
                with suppress(OSError):
                    found += map(int, children.read_text().split())
        at += 1
    return found


def over_memory(pid: int, limit_bytes: int) -> ProcessorFailure | None:
    """None while the group keeps to its limits."""
    if sys.platform != "linux":
        return None
    if len(group := group_of(pid)) > MOST_PROCESSES:
        return ProcessorFailure(ErrorType.PROCESSOR_ERROR, f"It started more than {MOST_PROCESSES} processes.")
    return memory_failure(limit_bytes) if memory_of(group, limit_bytes) > limit_bytes else None


def memory_failure(limit_bytes: int) -> ProcessorFailure:
    limit = f"{limit_bytes / 1024**2:.0f} MiB"
    whose = "HEADWAY_TASK_MEMORY_BYTES, or its processor's own limit"
    return ProcessorFailure(ErrorType.MEMORY, f"It needed more than {limit} of memory ({whose}).")


def memory_of(group: list[int], limit_bytes: int) -> int:
    """The bytes of a group; 0 where they are surely no more than the limit."""
    files = sum(_shared_files_of(group))
    if files + sum(map(_resident_bytes, group)) <= limit_bytes:
        return 0
    private, shared = 0, 0
    for one in group:
        anonymous, of_files = _proportional_bytes(one)
        private, shared = private + anonymous, shared + of_files
    return private + max(shared, files)  # what is both mapped and open is not counted twice


def _resident_bytes(pid: int) -> int:
    with suppress(OSError, ValueError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    return 0


def _proportional_bytes(pid: int) -> tuple[int, int]:
    """Of one process: its own memory, and its part of shared memory."""
    counted = {"Pss_Anon": 0, "Pss_Shmem": 0}
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in counted:
                counted[name] = int(rest.split()[0]) * 1024
    return counted["Pss_Anon"], counted["Pss_Shmem"]


def _shared_files_of(group: list[int]) -> Iterator[int]:
    """The bytes of each file that is in memory alone (memfd_create) and open: written to, it need not be mapped."""
    seen: set[int] = set()
    for found, link in _open_files(group):
        if link.startswith("/memfd:") and found.st_ino not in seen:
            seen.add(found.st_ino)
            yield found.st_blocks * 512


def _open_files(group: list[int]) -> Iterator[tuple[os.stat_result, str]]:
    """Files without a name that the group has open."""
    for pid in group:
        with suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                path = f"/proc/{pid}/fd/{descriptor}"
                with suppress(OSError):
                    if (link := os.readlink(path)).endswith(" (deleted)"):
                        yield os.stat(path), link


class DiskUse:
    """Of one attempt: what is in its folder, and what it holds open there that has no name any more."""

    def __init__(self, folder: Path, limit_bytes: int | None) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes

    def over(self, pid: int) -> ProcessorFailure | None:
        """Blocking. None while it keeps to its limits."""
        if self._limit_bytes is None:
            return None
        found = measure(self._folder, MOST_FILES)
        if sys.platform == "linux":
            with suppress(OSError):
                self._add_nameless(found, pid)
        return over_disk(found, self._limit_bytes)

    def _add_nameless(self, found: Measured, pid: int) -> None:
        ours = self._folder.stat().st_dev
        for one, _ in _open_files(group_of(pid)):
            name = (one.st_dev, one.st_ino)
            if one.st_dev == ours and stat.S_ISREG(one.st_mode) and not one.st_nlink and name not in found.counted:
                found.counted.add(name)
                found.size_bytes += size_of(one)


def over_disk(found: Measured, limit_bytes: int) -> ProcessorFailure | None:
    if found.size_bytes > limit_bytes:
        limit = f"{limit_bytes / 1024**3:.3g} GiB" if limit_bytes >= 1024**3 else f"{limit_bytes / 1024**2:.3g} MiB"
        words = f"It wrote more than {limit} to the disk, holes included (HEADWAY_TASK_DISK_BYTES)."
    elif found.entries > MOST_FILES:
        words = f"It made more than {MOST_FILES:,} files."
    elif found.too_deep:
        words = f"It made folders more than {MOST_DEEP} deep."
    else:
        return None
    return ProcessorFailure(ErrorType.STORAGE_FULL, words)
