"""The seccomp program of a child: everything is allowed but what is named here. Put up last, for good.

A list of refusals, not of permissions, because the libraries of processors are anybody's. It is there for what no other
wall sees: families of sockets, tracing, calls of the kernel with a history of holes, and calls on a path that Landlock
does not know (chmod and its like). x86_64, without x32 and i386, and aarch64; built by `seccompy`, once, in the fork
server.
"""

from __future__ import annotations

import struct
from errno import EACCES, ENOSYS, EPERM
from typing import Final

from seccompy import Action, CmpOp, Filter, syscall_nr
from seccompy.bpf import BPF_JGEQ, BPF_LD_ABS_W, BPF_RET_K

_AF_UNIX: Final = 1
_AF_INET: Final = 2
_AF_INET6: Final = 10
_AF_NETLINK: Final = 16  #: the resolver of libc asks it which addresses there are
_SOCK_DGRAM: Final = 2
_SOCK_RAW: Final = 3  #: of the unix family it is a datagram socket
_TYPE: Final = 0xF
_IPPROTO_MPTCP: Final = 262
_INT: Final = 0xFFFF_FFFF

#: Others' memory and descriptors; the kernel's own workings; the machine's. What a child asks of these, it is not told
#: why.
_REFUSED: Final = (
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp", "pidfd_getfd"),
    *("bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key", "lookup_dcookie"),
    *("mount", "umount2", "pivot_root", "mount_setattr", "move_mount", "open_tree", "open_tree_attr", "fsopen"),
    *("fsconfig", "fsmount", "fspick", "statmount", "listmount", "chroot", "unshare", "setns"),
    *("name_to_handle_at", "open_by_handle_at", "fanotify_init", "fanotify_mark", "quotactl", "quotactl_fd", "acct"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "swapon", "swapoff"),
    *("syslog", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname"),
    *("iopl", "ioperm", "vhangup", "migrate_pages", "move_pages"),
    # Memory that no limit counts and that outlives who made it.
    *("shmget", "shmat", "shmctl", "shmdt", "msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop", "semtimedop"),
    *("semctl", "mq_open", "mq_unlink"),
)
#: Who asks for these has another way for kernels without them. The filter cannot see into the arguments of clone3 and
#: openat2; io_uring goes past it; what is written to a memfd is in nobody's resident memory.
_NOT_THERE: Final = (
    *("clone3", "openat2", "io_uring_setup", "io_uring_enter", "io_uring_register", "memfd_create", "memfd_secret"),
)
#: CLONE_NEW…: namespaces, and with them every right inside them.
_NAMESPACES: Final = (0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000)
_TERMINAL_INPUT: Final = (0x5412, 0x541C)  #: TIOCSTI, TIOCLINUX: types into a terminal

#: By a path or descriptor of a file that may only be read. Answered as done: copying a file with its times, or
#: unpacking an archive, is not to fail for it.
_ANSWERED_AS_DONE: Final = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes"),
    *("futimesat", "utimensat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat", "removexattr", "lremovexattr"),
    *("fremovexattr", "removexattrat", "file_setattr"),
)
_SET_ATTRIBUTES: Final = (0x4008_6602, 0x401C_5820)  #: FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR
#: The argument that is a mode, and the one that says whether it counts.
_MODES: Final = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "creat": 1, "mknod": 1, "mknodat": 2}
_MODES_OF_NEW: Final = {"open": (1, 2), "openat": (2, 3)}
_MAKES_A_FILE: Final = (0o100, 0o2000_0000)  #: O_CREAT, O_TMPFILE
_SET_ID_BITS: Final = (0o4000, 0o2000)

#: Of another process, by its number; the argument that is the number.
_OF_A_PROCESS: Final = (
    *(
        ("prlimit64", 0),
        ("sched_setaffinity", 0),
        ("sched_setscheduler", 0),
        ("sched_setparam", 0),
        ("sched_setattr", 0),
    ),
    *(("setpriority", 1), ("ioprio_set", 1)),
)
_SET_OWNER: Final = (8, 15)  #: F_SETOWN, F_SETOWN_EX: sends a signal to anybody


def child_program(*, network: bool, own_files: bool, own_processes: bool, unix_sockets: bool) -> bytes:
    """`own_files`: no file outside has a name (the mount namespace stands); `own_processes`: nor has a process;
    `unix_sockets`: those outside cannot be reached by theirs. Raises OSError on another architecture."""
    rules = Filter(Action.ALLOW)

    def refuse(name: str, error: int, *conditions: tuple[int, int, int] | tuple[int, int, int, int]) -> None:
        try:
            syscall_nr(name)
        except ValueError:
            return  # of the other architecture
        rules.errno(name, error, args=list(conditions) or None)

    for name in _REFUSED:
        refuse(name, EPERM)
    for name in _NOT_THERE:
        refuse(name, ENOSYS)
    for flag in _NAMESPACES:
        refuse("clone", EPERM, (0, CmpOp.MASKED_EQ, flag, flag))
    for command in _TERMINAL_INPUT:
        refuse("ioctl", EPERM, (1, CmpOp.MASKED_EQ, command, _INT))

    refuse("socket", EACCES, (2, CmpOp.MASKED_EQ, _IPPROTO_MPTCP, _INT))
    families = (_AF_UNIX,) * unix_sockets + (_AF_INET, _AF_INET6, _AF_NETLINK) * network
    for family in families:
        rules.allow("socket", args={0: family})
    refuse("socket", EACCES)
    refuse("socketpair", EACCES, (0, CmpOp.NE, _AF_UNIX))
    if not unix_sockets:  # a datagram socket can be sent elsewhere, by a name
        for kind in (_SOCK_DGRAM, _SOCK_RAW):
            refuse("socketpair", EACCES, (1, CmpOp.MASKED_EQ, kind, _TYPE))

    if own_files:
        for bit in _SET_ID_BITS:
            for name, mode in _MODES.items():
                refuse(name, EPERM, (mode, CmpOp.MASKED_EQ, bit, bit))
            for name, (flags, mode) in _MODES_OF_NEW.items():
                for makes in _MAKES_A_FILE:
                    refuse(name, EPERM, (flags, CmpOp.MASKED_EQ, makes, makes), (mode, CmpOp.MASKED_EQ, bit, bit))
    else:
        for name in _ANSWERED_AS_DONE:
            refuse(name, 0)
        for command in _SET_ATTRIBUTES:
            refuse("ioctl", 0, (1, CmpOp.MASKED_EQ, command, _INT))
        refuse("inotify_add_watch", EACCES)  # tells the names in a folder that cannot be read
    if not own_processes:
        for name, argument in _OF_A_PROCESS:
            refuse(name, EPERM, (argument, CmpOp.NE, 0))
        for name in ("setpriority", "ioprio_set"):
            refuse(name, EPERM, (0, CmpOp.GT, 1))  # of a user or a group; 0, or of ioprio 1, is one process
        for command in _SET_OWNER:
            refuse("fcntl", EPERM, (1, CmpOp.MASKED_EQ, command, _INT))
    return _without_x32(rules.program)


def _without_x32(program: bytes) -> bytes:
    """x32 calls have the numbers of x86_64 with a bit more, so no rule meets them. None is there."""
    no_such_call = int(Action.ERRNO) | ENOSYS
    load_number, is_x32 = (BPF_LD_ABS_W, 0, 0, 0), (BPF_JGEQ, 0, 1, 0x4000_0000)
    return (
        b"".join(struct.pack("<HBBI", *one) for one in (load_number, is_x32, (BPF_RET_K, 0, 0, no_such_call))) + program
    )
