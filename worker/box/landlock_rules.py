"""Landlock around a child: what it may read is listed, it writes beneath its output alone, and the rest of what this
kernel's Landlock knows is refused: TCP and UDP (from Linux 6.7 and later), signals and abstract sockets of others
(6.12), named sockets, ioctl of devices (6.10). `landlockpy` has the calls and raises where one fails.
"""

# Paths here are names in other roots, in /proc and in /dev, as the calls of the system want them.
# ruff: noqa: PTH112

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Final

from landlockpy import AccessFS, AccessNet, Ruleset, Scope, abi_version

_READ: Final = AccessFS.EXECUTE | AccessFS.READ_FILE | AccessFS.READ_DIR
_EVERYTHING: Final = AccessFS(~0) & ~(AccessFS.MAKE_CHAR | AccessFS.MAKE_BLOCK)
#: What a file, as opposed to a folder, can be given.
_OF_A_FILE: Final = AccessFS.EXECUTE | AccessFS.READ_FILE | AccessFS.WRITE_FILE | AccessFS.TRUNCATE | AccessFS.IOCTL_DEV
#: Of /dev/shm where it is everybody's: whoever knows a name may use it, nobody can list them.
_BY_NAME: Final = (
    AccessFS.READ_FILE | AccessFS.WRITE_FILE | AccessFS.TRUNCATE | AccessFS.MAKE_REG | AccessFS.REMOVE_FILE
)
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
#: Of the machine, where /proc has its other processes too.
_PROC: Final = ("cpuinfo", "meminfo", "stat", "version", "filesystems", "loadavg", "uptime", "vmstat", "sys")
#: From here on a socket with a path is a file that rules see.
_NAMED_SOCKETS_ABI: Final = 9


#: Asked once, ahead of all children: the library looks for libc by starting a program.
_ABI: Final = abi_version()


def sees_named_sockets() -> bool:
    return _ABI >= _NAMED_SOCKETS_ABI


def restrict(
    readable: Iterable[str],
    writable: Iterable[str],
    *,
    reading: bool,
    writing: bool,
    network: bool,
    own_root: bool,
    own_proc: bool,
    devices: Sequence[str] = (),
    listed: Iterable[str] = (),
) -> None:
    """Of this process and all it starts, for good. `listed`: of these the names alone. `reading` and `writing` are the
    walls wanted; `own_root`, `own_proc`: /dev/shm and /proc are the child's own. Raises OSError; then nothing may run
    here that was to be confined."""
    handled = AccessFS(~0)
    if not reading:
        handled &= ~_READ
    if not writing:
        handled &= _READ
    # A right that this kernel does not know is left out; what it knows is refused.
    rules = Ruleset(
        handled_fs=handled,
        handled_net=AccessNet.NONE if network or not writing else None,
        scoped=Scope.SIGNAL | Scope.ABSTRACT_UNIX_SOCKET if writing else Scope.NONE,
    )
    with rules:
        for path in readable:
            _allow(rules, path, _READ)
        for path in listed:
            _allow(rules, path, AccessFS.READ_DIR)
        for path in writable:
            _allow(rules, path, _EVERYTHING)
        for path in (*_DEVICES, *devices):
            _allow(rules, path, AccessFS(~0) if path in devices else _READ | AccessFS.WRITE_FILE | AccessFS.TRUNCATE)
        _allow(rules, "/dev/shm", _EVERYTHING if own_root else _BY_NAME)  # noqa: S108
        if own_proc:
            _allow(rules, "/proc", _READ)
        else:
            for name in ("self", *_PROC):
                _allow(rules, f"/proc/{name}", _READ)
        rules.restrict()


def _allow(rules: Ruleset, path: str, access: AccessFS) -> None:
    try:
        kept = access if os.path.isdir(path) else access & _OF_A_FILE
        rules.allow_path(path, kept)
    except FileNotFoundError:
        pass  # not on this machine, so there is nothing to allow
