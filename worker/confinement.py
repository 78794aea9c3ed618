"""What a child may not do, by the kernel: reach a network, write outside its output folder, gain rights, signal others.

A processor's library meets files of strangers; if one of them takes it over, this is what it is left with. Each wall is
put up where the kernel has it, without any right of ours (Linux: no_new_privs, a network namespace of its own, Landlock
from 5.13); where it has not, the others stand. `headway worker` logs which do. A processor declared with
`confined=False` gets none of them but no_new_privs.

Sources: prctl(2), capset(2), network_namespaces(7), user_namespaces(7), landlock(7).
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_CAPABILITY_VERSION_3: Final = 0x20080522

_LANDLOCK_CREATE: Final = 444
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_VERSION: Final = 1
_LANDLOCK_PATH_BENEATH: Final = 1

_WRITE_FILE: Final = 1 << 1
#: WRITE_FILE, REMOVE_DIR, REMOVE_FILE and every MAKE_…
_WRITING: Final = _WRITE_FILE | 0b1_1111_1111_0000
_REFER: Final = 1 << 13  #: from version 2
_TRUNCATE: Final = 1 << 14  #: from version 3
_TCP_BIND_AND_CONNECT: Final = 0b11  #: from version 4
_SIGNAL_AND_ABSTRACT_SOCKETS: Final = 0b11  #: from version 6


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def hide_from_children() -> None:
    """What this process knows, its environment above all, is not for another of the same user to read in /proc."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def leave_the_network() -> bool:
    """A network namespace with nothing in it, not even a loopback that is up, for this process and its children."""
    if sys.platform != "linux":
        return False
    libc = _libc()
    if libc.unshare(_CLONE_NEWNET) == 0:
        return True
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError:
        pass  # without a name for us in there; files know us all the same
    return True


def gain_no_rights() -> None:
    """Nothing this process starts, a program with a set-user-id bit included, may do more than it may itself."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def has_landlock() -> bool:
    return sys.platform == "linux" and _landlock_version(_libc()) >= 1


def _landlock_version(libc: ctypes.CDLL) -> int:
    version: int = libc.syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION)
    return version


def confine(output_folder: Path) -> None:
    """Puts the walls around this process, a child that was just forked."""
    if sys.platform != "linux":
        return
    _use_for_temporary_files(output_folder)
    libc = _libc()
    none = (ctypes.c_uint32 * 6)()
    libc.capset(ctypes.byref(_CapabilityHeader(_CAPABILITY_VERSION_3, 0)), none)
    _write_only_beneath(libc, output_folder)


def temporary_folder(output_folder: Path) -> Path:
    """For what a processor's libraries write for a moment. No output can have this name."""
    return output_folder / ".temporary"


def _use_for_temporary_files(output_folder: Path) -> None:
    folder = temporary_folder(output_folder)
    folder.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # asked again


def _write_only_beneath(libc: ctypes.CDLL, folder: Path) -> None:
    if (version := _landlock_version(libc)) < 1:
        return
    fs = _WRITING | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    rules = _Ruleset(
        fs, _TCP_BIND_AND_CONNECT if version >= 4 else 0, _SIGNAL_AND_ABSTRACT_SOCKETS if version >= 6 else 0
    )
    known_bytes = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(_LANDLOCK_CREATE, ctypes.byref(rules), known_bytes, 0)
    if ruleset < 0:
        return
    try:
        for path, allowed in ((folder, fs), (Path("/dev/null"), fs & (_WRITE_FILE | _TRUNCATE))):
            parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = _PathBeneath(allowed, parent)
                libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_PATH_BENEATH, ctypes.byref(rule), 0)
            finally:
                os.close(parent)
        libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
