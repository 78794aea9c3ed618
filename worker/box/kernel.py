"""System calls that Python has no function for. Linux alone; each raises an OSError whose text names the call.

Sources: prctl(2), unshare(2), setns(2), mount(2), mount_setattr(2), pivot_root(2), capset(2), seccomp(2).
"""

# Paths here are names in other roots, in /proc and in /dev, as the calls of the system want them.
# ruff: noqa: PTH123

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

from seccompy import syscall_nr

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_SECCOMP: Final = 22
_PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38

CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWCGROUP: Final = 0x0200_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000

MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
_MNT_DETACH: Final = 2

MOUNT_ATTR_RDONLY: Final = 1
MOUNT_ATTR_NOSUID: Final = 2
MOUNT_ATTR_NODEV: Final = 4
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000

_SECCOMP_MODE_FILTER: Final = 2
_CAPABILITY_VERSION_3: Final = 0x2008_0522
_CAP_SYS_ADMIN: Final = 21


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _done(call: str, answer: int, about: str | None = None) -> None:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", about)


def prctl(option: int, value: int) -> None:
    _done("prctl", _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def name_process(name: str) -> None:
    """What it is called in /proc/PID/comm: at most 15 bytes."""
    _done("prctl", _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0))


def unshare(flags: int) -> None:
    _done("unshare", _libc.unshare(flags))


def setns(descriptor: int, kind: int) -> None:
    _done("setns", _libc.setns(descriptor, kind))


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _done("mount", _libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]), target)


def unmount(target: str) -> None:
    """At once for this namespace, however busy it is."""
    _done("umount2", _libc.umount2(os.fsencode(target), _MNT_DETACH), target)


def pivot_root(new: str, old: str) -> None:
    _call("pivot_root", os.fsencode(new), os.fsencode(old))


def change_mounts(path: str, *, set_: int = 0, clear: int = 0, recursive: bool = False) -> None:
    """Changes attributes of the mount at `path`, or of all in its tree. Linux 5.12."""
    asked = _MountAttributes(set_, clear, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    size = ctypes.c_size_t(ctypes.sizeof(asked))
    _call("mount_setattr", _AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags), ctypes.byref(asked), size)


def has_administration() -> bool:
    """Whether this process may make namespaces without one for its user: CAP_SYS_ADMIN."""
    with open("/proc/self/status", encoding="ascii") as status:  # before anything is imported for it
        effective = next(line for line in status if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_ADMIN & 1)


def drop_capabilities() -> None:
    none = (ctypes.c_uint32 * 6)()
    _done("capset", _libc.capset(ctypes.byref(_CapabilityHeader(_CAPABILITY_VERSION_3, 0)), none))


def load_filter(program: bytes) -> None:
    """A seccomp program for this thread and all it starts, for good. It must have no_new_privs."""
    loaded = _FilterProgram(len(program) // 8, program)
    answer = _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(loaded), 0, 0)
    _done("seccomp", answer)


def _call(name: str, *arguments: Any) -> None:
    _done(name, _libc.syscall(ctypes.c_long(syscall_nr(name)), *arguments))
