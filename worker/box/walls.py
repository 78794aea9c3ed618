"""The walls around a child, by name; what the worker asks for (`Box`); and why one is missing, in a sentence.

The kernel has them; which ones stand is found by trying (worker/box/confinement.py), never by believing.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal, Self

Confinement = Literal["required", "best", "off"]

#: The variable that carries a Box to the fork server.
BOX_VARIABLE: Final = "HEADWAY_BOX"
#: Walls that are left out, by name: for trying what stands on another machine. Not a setting.
WITHOUT_VARIABLE: Final = "HEADWAY_CONFINEMENT_WITHOUT"


class Wall(StrEnum):
    """In the order in which they are put up."""

    MOUNT = "mount"  #: a root of its own: what may be read, read-only; its output; nothing else has a name
    PID = "pid"  #: sees and signals its own processes alone, and all of them end with their first
    IPC = "ipc"  #: no System V objects or message queues of others
    NETWORK = "network"  #: a network without an interface, and without others' abstract sockets
    LANDLOCK_READ = "landlock-read"  #: reads what is listed alone
    LANDLOCK_WRITE = "landlock-write"  #: writes to its output alone
    SECCOMP = "seccomp"  #: calls that no processor needs are refused


NAMESPACES: Final = frozenset({Wall.MOUNT, Wall.PID, Wall.IPC, Wall.NETWORK})
LANDLOCK: Final = frozenset({Wall.LANDLOCK_READ, Wall.LANDLOCK_WRITE})

#: One of each is enough to keep files, or the network, from a child.
READING_CLOSED: Final = frozenset({Wall.MOUNT, Wall.LANDLOCK_READ})
NETWORK_CLOSED: Final = frozenset({Wall.NETWORK, Wall.SECCOMP})


@dataclass(frozen=True, slots=True)
class Box:
    """What a worker asks of its fork server. `paths` may be read by every child; `hidden` by none, whatever is around
    them; `without` are walls that are left out."""

    mode: Confinement = "best"
    paths: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    without: frozenset[Wall] = frozenset()

    @classmethod
    def of(cls, settings: Any) -> Self:
        """Of the settings (shared/settings.py), and of WITHOUT_VARIABLE."""
        hidden = (settings.data_dir, settings.files_dir, Path("/run/secrets"), Path(".env"))
        return cls(
            settings.confinement,
            tuple(str(path.absolute()) for path in settings.processor_paths),
            tuple(str(path.absolute()) for path in hidden),
            walls_of(os.environ.get(WITHOUT_VARIABLE, "").replace(",", " ").split()),
        )

    def environment(self) -> dict[str, str]:
        parts = {"mode": self.mode, "paths": self.paths, "hidden": self.hidden, "without": sorted(self.without)}
        return {BOX_VARIABLE: json.dumps(parts)}

    @classmethod
    def from_environment(cls) -> Self:
        """Takes it out of the environment, where no child needs it."""
        if (text := os.environ.pop(BOX_VARIABLE, None)) is None:
            return cls()
        parts = json.loads(text)
        return cls(parts["mode"], tuple(parts["paths"]), tuple(parts["hidden"]), walls_of(parts["without"]))


@dataclass(frozen=True, slots=True)
class Standing:
    """Which walls stand, and of each that does not why."""

    walls: frozenset[Wall] = frozenset()
    missing: Mapping[str, str] = field(default_factory=dict)


def temporary_folder(output_folder: Path) -> Path:
    """For what a processor's libraries write for a moment. No output can have this name."""
    return output_folder / ".temporary"


def walls_of(names: Iterable[str]) -> frozenset[Wall]:
    return frozenset(Wall(name) for name in names)


def in_order(walls: Iterable[Wall]) -> list[str]:
    there = set(walls)
    return [str(wall) for wall in Wall if wall in there]


def why(wall: Wall, error: OSError) -> str:
    """What was refused, and what to do about it."""
    said = f"{error.strerror or error}"
    if wall in LANDLOCK:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return f"the kernel has no Landlock ({said}): Linux 5.13 or newer, with landlock among its modules (lsm=)"
        return f"Landlock was refused ({said}): a container's seccomp profile may do that; use deploy/seccomp.json"
    if wall is Wall.SECCOMP:
        return f"no system call filter could be loaded ({said}): CONFIG_SECCOMP_FILTER, on x86_64 or aarch64"
    if error.errno == errno.ENOSPC:
        return f"no more namespaces are allowed ({said}): raise the sysctls user.max_user_namespaces and its like"
    if said.startswith("mount_setattr") and error.errno == errno.ENOSYS:
        return f"the kernel is too old ({said}): Linux 5.12 or newer"
    if said.startswith(("unshare", "setns")):
        return f"namespaces are refused ({said}): {_how_to_get_namespaces()}"
    if said.startswith(("mount", "pivot_root", "umount2")):
        return (
            f"mounts are refused ({said} {error.filename or ''}): a container's AppArmor profile or SELinux may do so "
            "(apparmor=unconfined, or a profile that allows mount); and for a /proc of its own the container's must be "
            "whole (Docker: systempaths=unconfined; Kubernetes: procMount: Unmasked)"
        )
    return said


def _how_to_get_namespaces() -> str:
    if _is_set("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"):
        return (
            "AppArmor keeps them from programs without a profile; give the worker one that allows `userns`, or "
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if _is_set("/proc/sys/kernel/unprivileged_userns_clone", "0"):
        return "sysctl kernel.unprivileged_userns_clone=1"
    return "a container needs the seccomp profile deploy/seccomp.json; elsewhere allow user namespaces"


def _is_set(sysctl: str, value: str) -> bool:
    try:
        return Path(sysctl).read_text(encoding="ascii").strip() == value
    except OSError:
        return False
