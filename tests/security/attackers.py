"""Processors that a stranger's file has taken over. Each tries one kind of harm and says, attempt by attempt, what came
of it.

An answer is `done` or the name of the error. Nothing here is asserted: the tests look from outside at what was harmed
too.
"""

# Paths here are names in other roots, in /proc and in /dev, as the calls of the system want them.
# ruff: noqa: PTH104, PTH111, PTH123, PTH208

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from headway.shared.tasks.processors import Job, Options, processor

libc = ctypes.CDLL(None, use_errno=True)
#: x86_64's and aarch64's numbers of calls that Python has no function for.
NUMBERS = {
    "bpf": (321, 280), "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "perf_event_open": (298, 241), "kcmp": (312, 272), "pidfd_getfd": (438, 438), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "process_vm_readv": (310, 270), "add_key": (248, 217), "kexec_load": (246, 104),
    "open_tree": (428, 428), "fsopen": (430, 430), "clone3": (435, 435), "memfd_create": (319, 279),
}  # fmt: skip


class Target(Options):
    path: str = ""
    folder: str = ""
    port: int = 0
    pid: int = 0
    segment: int = -1
    name: str = ""


def tried(act: Callable[[], Any]) -> str:
    try:
        act()
    except OSError as error:
        return f"{type(error).__name__} {error.errno}"
    except MemoryError:
        return "MemoryError"
    return "done"


def call(name: str, *arguments: Any) -> Callable[[], None]:
    def act() -> None:
        number = NUMBERS[name][os.uname().machine != "x86_64"]
        answered(libc.syscall(ctypes.c_long(number), *(arguments or (0, 0, 0, 0, 0))))

    return act


def answered(answer: int) -> None:
    if answer < 0:
        raise OSError(ctypes.get_errno(), "")


@processor("reads", needs_file=False, options=Target)
def reads(job: Job) -> dict[str, Any]:
    """Issue 27, line 7: what others own, keys, and what the machine keeps for itself."""
    path, folder = job.options.path, job.options.folder
    before = str(Path(job.output_path("x")).parent.parent)
    (Path.cwd() / "link").symlink_to(path)
    return {
        "a file of another": tried(lambda: Path(path).read_bytes()),
        "its folder": tried(lambda: os.listdir(folder)),
        "through a link": tried(lambda: Path("link").read_bytes()),
        "through a hard link": tried(lambda: os.link(path, "hard")),
        "renamed to mine": tried(lambda: os.rename(path, "mine")),
        "through /proc": tried(lambda: Path(f"/proc/{job.options.pid}/root{path}").read_bytes()),
        "its environment": tried(lambda: Path(f"/proc/{job.options.pid}/environ").read_bytes()),
        "shadow": tried(lambda: Path("/etc/shadow").read_bytes()),
        "ssh": tried(lambda: os.listdir(os.path.expanduser("~root/.ssh"))),
        "others' scratch": tried(lambda: seen_beside(before)),
        "kernel memory": tried(lambda: Path("/proc/kcore").open("rb").read(64)),
        "a disk": tried(lambda: os.open("/dev/vda", os.O_RDONLY)),
    }


def seen_beside(folder: str) -> None:
    if others := set(os.listdir(folder)) - {Path.cwd().name}:
        raise AssertionError(f"sees {others}")
    raise PermissionError(13, "nothing is to be seen")


@processor("writes", needs_file=False, options=Target)
def writes(job: Job) -> dict[str, Any]:
    """Lines 4 and 5: files that are not its own, their modes, owners, times and attributes."""
    path = Path(job.options.path)
    return {
        "overwrite": tried(lambda: path.write_bytes(b"taken")),
        "append": tried(lambda: path.open("ab").write(b"taken")),
        "create": tried(lambda: (path.parent / "new").write_bytes(b"x")),
        "remove": tried(path.unlink),
        "truncate": tried(lambda: os.truncate(path, 0)),
        "folder": tried(lambda: (path.parent / "folder").mkdir()),
        "chmod": tried(lambda: path.chmod(0o4777)),
        "chmod of the folder": tried(lambda: path.parent.chmod(0)),
        "chown": tried(lambda: os.chown(path, 1, 1)),
        "utime": tried(lambda: os.utime(path, (0, 0))),
        "setxattr": tried(lambda: os.setxattr(path, "user.x", b"x")),
        "the interpreter": tried(lambda: Path(sys.executable).write_bytes(b"")),
        "its library": tried(lambda: (Path(os.__file__).parent / "taken.py").write_text("x")),
        "a setting of the kernel": tried(lambda: Path("/proc/sys/kernel/core_pattern").write_text("|/tmp/x")),
        "its own input": tried(lambda: Path(job.options.folder).write_bytes(b"")),
    }


@processor("connects", needs_file=False, options=Target)
def connects(job: Job) -> dict[str, Any]:
    """Lines 1 and 3: every way to a Redis, on TCP or on a unix socket."""
    address = ("127.0.0.1", job.options.port)

    def datagram_from_a_pair() -> None:
        mine, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        mine.sendto(b"x", f"{job.options.path}.datagram")

    def fast_open() -> None:
        with socket.socket(socket.AF_INET) as one:
            one.sendto(b"PING\r\n", 0x20000000, address)  # MSG_FASTOPEN

    return {
        "tcp": tried(lambda: socket.create_connection(address, 5)),
        "mptcp": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).connect(address)),
        "fast open": tried(fast_open),
        "udp": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", address)),
        "udp on v6": tried(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"x", ("::1", address[1]))),
        "raw": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
        "packet": tried(lambda: socket.socket(17, socket.SOCK_RAW, 0)),
        "netlink": tried(lambda: socket.socket(16, socket.SOCK_RAW, 0)),
        "vsock": tried(lambda: socket.socket(40, socket.SOCK_STREAM)),
        "bluetooth": tried(lambda: socket.socket(31, socket.SOCK_RAW, 1)),
        "crypto": tried(lambda: socket.socket(38, socket.SOCK_SEQPACKET)),
        "listen": tried(lambda: socket.create_server(("127.0.0.1", 0))),
        "unix socket": tried(lambda: socket.socket(socket.AF_UNIX).connect(job.options.path)),
        "abstract socket": tried(lambda: socket.socket(socket.AF_UNIX).connect("\0" + job.options.name)),
        "datagram from a pair": tried(datagram_from_a_pair),
    }


@processor("meddles", needs_file=False, options=Target)
def meddles(job: Job) -> dict[str, Any]:
    """Line 6, and the calls of the kernel that no processor needs."""
    pid = job.options.pid
    null = None
    return {
        "signal": tried(lambda: os.kill(pid, 0)),
        "limit": tried(lambda: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1))),
        "nice": tried(lambda: os.setpriority(os.PRIO_PROCESS, pid, 19)),
        "affinity": tried(lambda: os.sched_setaffinity(pid, {0})),
        "scheduler": tried(lambda: os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))),
        "owned signal": tried(lambda: own_signal(pid)),
        "trace": tried(lambda: answered(libc.ptrace(16, pid, None, None))),
        "memory": tried(lambda: Path(f"/proc/{pid}/mem").open("rb")),
        "its command line": tried(lambda: Path(f"/proc/{pid}/cmdline").read_bytes()),
        "shared segment": tried(lambda: answered(libc.shmctl(job.options.segment, 2, ctypes.create_string_buffer(99)))),
        "new segment": tried(lambda: answered(libc.shmget(0, 4096, 0o600))),
        "new queue": tried(lambda: answered(libc.msgget(0, 0o600))),
        "unshare": tried(lambda: answered(libc.unshare(0x10000000))),
        "clone": tried(lambda: answered(libc.syscall(ctypes.c_long(56 if os.uname().machine == "x86_64" else 220),
                                                     0x10000000 | signal.SIGCHLD, 0, 0, 0, 0))),
        "mount": tried(lambda: answered(libc.mount(b"none", b"/tmp", b"tmpfs", 0, null))),
        "chroot": tried(lambda: os.chroot(".")),
        "x32": tried(lambda: answered(libc.syscall(ctypes.c_long(0x40000000 + 101), 0, 0, 0, 0))),
        "typing into a terminal": tried(lambda: answered(libc.ioctl(0, 0x5412, b"x"))),
    } | {name: tried(call(name)) for name in NUMBERS}  # fmt: skip


def own_signal(pid: int) -> None:
    import fcntl

    mine, _ = socket.socketpair()
    fcntl.fcntl(mine, fcntl.F_SETOWN, pid)
    raise PermissionError(1, "") if fcntl.fcntl(mine, fcntl.F_GETOWN) != pid else AssertionError("it is set")


@processor("outlives", needs_file=False, options=Target)
def outlives(job: Job) -> dict[str, Any]:
    """Line 4: a session of its own and a double fork; it writes to a result after the end."""
    output = job.output_path("result")
    Path(output).write_text("honest")
    for _ in range(20):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
                for sign in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(sign, signal.SIG_IGN)
                while True:
                    time.sleep(0.01)
                    with suppress(OSError):  # where the box is being taken down, its folder has no name
                        Path(output).write_text("forged")
            os._exit(0)
    return {}


@processor("hangs", needs_file=False, options=Target)
def hangs(job: Job) -> dict[str, Any]:
    """As `outlives`, and never ends."""
    outlives(job)
    job.log("started")
    while True:
        time.sleep(1)


@processor("kills-its-keeper", needs_file=False, options=Target)
def kills_its_keeper(job: Job) -> dict[str, Any]:
    outlives(job)
    os.kill(os.getppid(), signal.SIGKILL)
    with_group = tried(lambda: os.kill(-1, signal.SIGKILL)) if os.getppid() == 1 else ""
    time.sleep(0.5)
    return {"parent": os.getppid(), "all": with_group}


@processor("is-traced", needs_file=False, options=Target)
def is_traced(job: Job) -> dict[str, Any]:
    """Asks to be traced by its parent, so that a stop looks like an end."""
    answer = tried(lambda: answered(libc.ptrace(0, 0, None, None)))
    os.kill(os.getpid(), signal.SIGCHLD)
    return {"trace": answer}


@processor("forks", needs_file=False, options=Target)
def forks(job: Job) -> dict[str, Any]:
    """As many processes as it can get, up to 3000."""
    made = 0
    why = "it got all"
    for _ in range(3000):
        try:
            pid = os.fork()
        except OSError as error:
            why = type(error).__name__
            break
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
    return {"made": made, "why": why}


@processor("hoards", needs_file=False, options=Target)
def hoards(job: Job) -> dict[str, Any]:
    """Line 8: memory that is no process's own. How many bytes it got of each kind."""
    wanted = job.memory_bytes * 2

    def shared_files() -> int:
        got = 0
        piece = bytes(1 << 20)
        try:
            with open("/dev/shm/hoard", "wb", buffering=0) as file:
                while got < wanted:
                    got += file.write(piece)
        except OSError:
            pass
        return got

    return {"files": shared_files(), "memfd": tried(call("memfd_create", b"x", 0))}


@processor("writes-much", needs_file=False, options=Target)
def writes_much(job: Job) -> dict[str, Any]:
    def sparse() -> None:
        with open(job.output_path("big"), "wb") as file:
            file.truncate(1 << 40)

    return {"sparse": tried(sparse), "core": resource.getrlimit(resource.RLIMIT_CORE)[0]}


@processor("leaves-bits", needs_file=False, options=Target)
def leaves_bits(job: Job) -> dict[str, Any]:
    path = Path(job.output_path("tool"))
    path.write_bytes(b"x")
    made = tried(lambda: os.close(os.open("tool2", os.O_CREAT | os.O_WRONLY, 0o6755)))
    changed = tried(lambda: path.chmod(0o6755))
    return {"made": made, "changed": changed, "mode": oct(path.stat().st_mode)}


@processor("remembers", needs_file=False, options=Target)
def remembers(job: Job) -> dict[str, Any]:
    """Line 7: what its own memory, a copy of the fork server's, holds of tasks before."""
    # The name comes reversed, and the pattern is made of its letters one by one: it is nowhere in here but where it was
    # left.
    pattern = re.compile(b"".join(b"[" + letter.encode() + b"]" for letter in reversed(job.options.name)))
    found = 0
    spans = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    for span, rights, *rest in spans:
        if "r" not in rights or (rest and rest[-1].startswith("[v")):
            continue
        start, end = (int(part, 16) for part in span.split("-"))
        try:
            found += pattern.search(os.pread(memory, end - start, start)) is not None
        except OSError:  # a page that nobody may read
            continue
    os.close(memory)
    return {"found": found, "tools": shutil.which("true") is not None}


@processor("free", needs_file=False, options=Target, confined=False)
def free(job: Job) -> dict[str, Any]:
    return {"connect": tried(lambda: socket.create_connection(("127.0.0.1", job.options.port), 5)),
            "write": tried(lambda: Path(job.options.path).write_text("as it may")),
            "run": subprocess.run(["true"], check=False).returncode}  # fmt: skip


@processor("networked", needs_file=False, options=Target, network=True, env=("ATTACKER_MAY_KNOW",))
def networked(job: Job) -> dict[str, Any]:
    return {"connect": tried(lambda: socket.create_connection(("127.0.0.1", job.options.port), 5)),
            "read": tried(lambda: Path(job.options.path).read_bytes()),
            "unix socket": tried(lambda: socket.socket(socket.AF_UNIX).connect(job.options.name)),
            "mptcp": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)),
            "env": os.environ.get("ATTACKER_MAY_KNOW", "")}  # fmt: skip
