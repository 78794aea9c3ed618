"""Namespaces around a child: a root with what it may read and nothing else, its own processes, and no network.

Made in the order of a container's: the fork server has a user namespace where it has no rights of its own, and a PID
namespace for the next child; the child's keeper (worker/box/keeper.py), which is process 1 of it, makes the others and
the root; and the child itself has one more user namespace, so that it holds no right in those around it.
user_namespaces(7), mount_namespaces(7).
"""

# Paths here are names in other roots, in /proc and in /dev, as the calls of the system want them.
# ruff: noqa: PTH102, PTH103, PTH106, PTH110, PTH112, PTH113, PTH114, PTH120, PTH123, PTH202, PTH211

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from headway.worker.box import kernel
from headway.worker.box.readable import Readable
from headway.worker.box.walls import Wall

_READ_ONLY: Final = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
_FLAGS: Final = {
    Wall.MOUNT: kernel.CLONE_NEWNS,
    Wall.IPC: kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS,
    Wall.NETWORK: kernel.CLONE_NEWNET,
}
_DEVICES: Final = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
#: Where the old root hangs while the new one is made of it.
_OLD: Final = "/.old"
#: Any folder there is: the new root is mounted on it for a moment, in a namespace that nobody else sees.
_BASES: Final = ("/tmp", "/run", "/mnt", "/var", "/usr")  # noqa: S108
_TEMPORARY: Final = ("/tmp", "/var/tmp")  # noqa: S108
#: The list of a machine's libraries, /etc/ld.so.cache, is the largest there is.
_COPIED_BYTES: Final = 512 * 1024


def be_administrator_of_own() -> None:
    """A user namespace in which this process may make the others; outside it has the rights it had."""
    uid, gid = os.getuid(), os.getgid()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else what is to be written in /proc is root's
    try:
        kernel.unshare(kernel.CLONE_NEWUSER)
        map_user(uid, gid, None)
    finally:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def map_user(uid: int, gid: int, proc: int | None) -> None:
    """Keeps this process's user and group in its new namespace. `proc` is a descriptor of /proc, where it has another
    name."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        path = f"/proc/self/{name}" if proc is None else f"self/{name}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


class PidNamespaces:
    """Gives each next child of this process a PID namespace of its own, with that child as process 1, which saves the
    child a fork. Only root may: going back to one's own namespace takes a right in it. For others it does nothing."""

    def __init__(self) -> None:
        self._own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.next_child_here()
        except PermissionError:
            self.close()

    def next_child_in_its_own(self) -> None:
        if self._own >= 0:
            self.next_child_here()  # the kernel gives no second one to who stands outside already
            kernel.unshare(kernel.CLONE_NEWPID)

    def next_child_here(self) -> None:
        if self._own >= 0:
            kernel.setns(self._own, kernel.CLONE_NEWPID)

    def close(self) -> None:
        if self._own >= 0:
            os.close(self._own)
            self._own = -1


def leave(walls: Iterable[Wall]) -> None:
    """Takes this process out of what it shares with others, as far as `walls` say."""
    flags = 0
    for wall in walls:
        flags |= _FLAGS.get(wall, 0)
    if flags:
        kernel.unshare(flags)


class Root:
    """A root for one child: what may be read, read-only; its input; its output; and small places of its own.

    It is made in two steps, each once, in a new mount namespace: `prepare`, before anybody knows for what, and
    `finish`, when the attempt is there."""

    def __init__(self, readable: Readable) -> None:
        links = (path for path in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32") if os.path.islink(path))
        self._links = {path: os.path.realpath(path) for path in links} | readable.links
        # Small files of /etc are copied, which costs less than a mount for each.
        self._copies = {place: content for place in readable.places if (content := _copied(place)) is not None}
        places = [place for place in readable.places if place not in self._copies]
        self._places = [place for place in places if not _is_temporary(place)]
        #: These hang in the attempt's own.
        self._temporary_places = [place for place in places if _is_temporary(place)]

    def prepare(self, *, own_proc: bool) -> int:
        """What is the same for every attempt. `own_proc`: this is process 1 of a new PID namespace. Returns a
        descriptor of a /proc that can be written, for who makes one more user namespace."""
        base = next(path for path in _BASES if os.path.isdir(path))
        # What is mounted on the machine until the attempt comes is there for it; `finish` ends that.
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_SLAVE)
        kernel.mount("tmpfs", base, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=8m")
        os.mkdir(f"{base}{_OLD}")
        kernel.pivot_root(base, f"{base}{_OLD}")
        os.chdir("/")
        for place in self._places:
            _bind(place, place)
        for place, content in self._copies.items():
            _write(place, content)
        for device in filter(_is_there, _DEVICES):
            _bind(device, device)
        for name, target in _LINKS.items():
            os.symlink(target, f"/dev/{name}")
        os.makedirs("/dev/shm")  # noqa: S108
        return _mount_proc(own=own_proc)

    def finish(
        self,
        input_path: str | None,
        output: str,
        temporary: str,
        *,
        reads: Iterable[str] = (),
        devices: Iterable[str] = (),
        shm_bytes: int,
    ) -> None:
        """`temporary` is what the child calls /tmp; `reads` and `devices` are more of the machine's."""
        with in_the_old_root():
            output_of, temporary_of = os.path.realpath(output), os.path.realpath(temporary)
            more = {path: os.path.realpath(path) for path in reads if os.path.exists(path)}
            input_of = None if input_path is None else os.path.realpath(input_path)
        links = self._links | more
        for name in _TEMPORARY:  # first: what is beneath them hangs in them
            _bind(temporary_of, name)
        for place in (*self._temporary_places, *more.values()):
            _bind(place, place)
        for link in sorted(links, key=len):
            if not os.path.lexists(link):
                os.makedirs(os.path.dirname(link), exist_ok=True)
                os.symlink(links[link], link)
        if input_path is not None and input_of is not None:
            _bind(input_of, input_path)
        _bind(output_of, output)
        own_devices = [device for device in devices if _is_there(device)]
        for device in own_devices:
            _bind(device, device)
        kernel.mount("tmpfs", "/dev/shm", "tmpfs", 0, f"mode=1777,size={shm_bytes}")  # noqa: S108
        kernel.unmount(_OLD)
        os.rmdir(_OLD)
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.change_mounts("/", set_=_READ_ONLY, recursive=True)
        for place in (*_TEMPORARY, output, "/dev/shm"):  # noqa: S108
            kernel.change_mounts(place, clear=kernel.MOUNT_ATTR_RDONLY)
        for device in (*filter(os.path.exists, _DEVICES), *own_devices):
            kernel.change_mounts(device, clear=kernel.MOUNT_ATTR_NODEV)


@contextmanager
def in_the_old_root() -> Iterator[None]:
    """Between `prepare` and `finish`: paths are the machine's."""
    new = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chroot(_OLD)
        os.chdir("/")
        yield
    finally:
        os.fchdir(new)
        os.chroot(".")
        os.close(new)


def _is_temporary(path: str) -> bool:
    return any(path == name or path.startswith(f"{name}/") for name in _TEMPORARY)


def _is_there(device: str) -> bool:
    return os.path.exists(f"{_OLD}{device}")


def _copied(place: str) -> bytes | None:
    if place.startswith("/etc/") and os.path.isfile(place) and os.path.getsize(place) <= _COPIED_BYTES:
        with suppress(OSError), open(place, "rb") as file:
            return file.read()
    return None


def _write(path: str, content: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    os.write(file, content)
    os.close(file)


def _bind(source: str, target: str) -> None:
    old = f"{_OLD}{source}"
    if os.path.isdir(old):
        os.makedirs(target, exist_ok=True)
    elif not os.path.lexists(target):
        _write(target, b"")
    kernel.mount(old, target, None, kernel.MS_BIND | kernel.MS_REC)


def _mount_proc(*, own: bool) -> int:
    """Returns one that stays as it is when all mounts are made read-only: it is in no tree any more."""
    os.makedirs("/proc", exist_ok=True)
    if own:
        kernel.mount("proc", "/proc", "proc", kernel.MS_NOEXEC)
        writable = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        kernel.unmount("/proc")
        kernel.mount("proc", "/proc", "proc", kernel.MS_NOEXEC)
    else:
        writable = os.open(f"{_OLD}/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        kernel.mount(f"{_OLD}/proc", "/proc", None, kernel.MS_BIND | kernel.MS_REC)
    return writable
