"""What a processor that was taken over is left with, at each level of walls, as root and as another user.

`everything` is what this machine has; `no namespaces` is a container with Docker's or Kubernetes' default seccomp
profile.
"""

# Paths here are names in other roots, in /proc and in /dev, as the calls of the system want them.
# ruff: noqa: PTH115, PTH208

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from headway.worker.box.walls import NAMESPACES, Box, Wall
from headway.worker.sandbox import Sandbox
from tests import sandboxed
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these walls are Linux's")

MODULE = "tests.security.attackers"
LEVELS = {"everything": Box(), "no namespaces": Box(without=NAMESPACES)}
MEMORY_BYTES = 256 * 1024 * 1024


@pytest.fixture(params=LEVELS, scope="module")
def box(request: pytest.FixtureRequest) -> Box:
    return LEVELS[request.param]


@pytest.fixture
async def sandbox(box: Box) -> AsyncIterator[Sandbox]:
    async with Sandbox([MODULE], box=box) as sandbox:
        missing = set(Wall) - box.without - sandbox.standing.walls
        if missing:
            pytest.skip(f"this machine lacks {sorted(missing)}: {dict(sandbox.standing.missing)}")
        yield sandbox


@pytest.fixture
def victims(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What an attacker goes for: another's file, sockets of every kind, shared memory, this process."""
    folder = tmp_path / "others"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    short = Path(f"/tmp/victim-{os.getpid()}")
    libc = ctypes.CDLL(None)
    segment = libc.shmget(0, 4096, 0o600)
    with ExitStack() as stack:
        stack.callback(libc.shmctl, segment, 0, None)
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for kind, name in ((socket.SOCK_STREAM, ""), (socket.SOCK_DGRAM, ".datagram")):
            named = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            named.bind(f"{short}{name}")
            stack.callback(os.unlink, f"{short}{name}")
            if kind == socket.SOCK_STREAM:
                named.listen()
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{short}")
        abstract.listen()
        yield {
            "path": str(folder / "precious"),
            "folder": str(folder),
            "port": server.getsockname()[1],
            "pid": os.getpid(),
            "segment": segment,
            "name": str(short),
        }


async def attack(sandbox: Sandbox, name: str, folder: Path, options: dict[str, Any], **more: Any) -> dict[str, Any]:
    attempt = await sandboxed.run(sandbox, name, None, folder, options=options, memory_bytes=MEMORY_BYTES, **more)
    assert attempt.type == "done", attempt.text
    return attempt.summary


def done(found: dict[str, Any]) -> set[str]:
    return {name for name, answer in found.items() if answer == "done"}


async def test_nothing_that_others_own_can_be_read(sandbox: Sandbox, victims: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "scratch" / "another").mkdir(parents=True)
    found = await attack(sandbox, "reads", tmp_path / "scratch" / "mine", victims)
    assert done(found) == set()


async def test_nothing_that_others_own_can_be_changed(
    sandbox: Sandbox, victims: dict[str, Any], tmp_path: Path
) -> None:
    path = Path(victims["path"])
    os.utime(path, (1000, 1000))
    before = (path.stat(), path.parent.stat())
    own_input = tmp_path / "input"
    own_input.write_text("input")
    options = victims | {"folder": str(own_input)}
    attempt = await sandboxed.run(sandbox, "writes", own_input, tmp_path / "scratch", options=options)
    assert attempt.type == "done", attempt.text
    assert (path.stat(), path.parent.stat()) == before
    assert path.read_text() == "precious"
    assert own_input.read_text() == "input"
    assert [path.name for path in path.parent.iterdir()] == ["precious"]
    with pytest.raises(OSError, match="No data"):
        os.getxattr(path, "user.x")
    inside = {"the interpreter", "its library", "a setting of the kernel", "its own input", "setxattr"}
    assert done(attempt.summary) & inside <= ({"setxattr"} if sandbox.standing.walls.isdisjoint(NAMESPACES) else set())
    assert not (Path(os.__file__).parent / "taken.py").exists()


async def test_no_socket_leads_anywhere(sandbox: Sandbox, victims: dict[str, Any], tmp_path: Path) -> None:
    options = victims | {"path": victims["name"]}
    assert done(await attack(sandbox, "connects", tmp_path / "scratch", options)) == set()


async def test_no_other_process_is_seen_or_meddled_with(
    sandbox: Sandbox, victims: dict[str, Any], tmp_path: Path
) -> None:
    niceness, affinity = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)
    assert done(await attack(sandbox, "meddles", tmp_path / "scratch", victims)) == set()
    assert (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)) == (niceness, affinity)


async def test_nothing_outlives_its_attempt(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    attempt = await sandboxed.run(sandbox, "outlives", None, folder)
    assert attempt.type == "done"
    (folder / "result").write_text("mine now")
    assert not ours(folder), "a descendant lives"
    assert (folder / "result").read_text() == "mine now"


async def test_nothing_outlives_a_cancelled_attempt(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    attempt = await sandboxed.run(sandbox, "hangs", None, folder, seconds=5)
    assert attempt.type == "timeout"
    assert not ours(folder), "a descendant lives"


async def test_who_kills_its_keeper_ends_itself_and_nothing_else(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    attempt = await sandboxed.run(sandbox, "kills-its-keeper", None, folder)
    assert attempt.type in ("done", "processor_error")
    assert not ours(folder), "a descendant lives"
    again = await sandboxed.run(sandbox, "outlives", None, tmp_path / "next")
    assert again.type == "done", "the fork server serves on"


async def test_a_stop_is_not_taken_for_an_end(sandbox: Sandbox, tmp_path: Path) -> None:
    assert (await attack(sandbox, "is-traced", tmp_path / "scratch", {}))["trace"] != "done"


async def test_processes_are_counted(sandbox: Sandbox, tmp_path: Path) -> None:
    """By the kernel in a user namespace (not for root) or a PID namespace's own limit (6.14), and by the worker."""
    attempt = await sandboxed.run(sandbox, "forks", None, tmp_path / "scratch", memory_bytes=4 * 1024**3)
    assert attempt.type == "processor_error" or attempt.summary["made"] <= 1024
    assert not ours(tmp_path / "scratch")


async def test_memory_that_is_nobodys_is_bounded_too(sandbox: Sandbox, tmp_path: Path, box: Box) -> None:
    if box.without:
        pytest.skip("there /dev/shm is the container's, which bounds it (64 MiB)")
    found = await attack(sandbox, "hoards", tmp_path / "scratch", {})
    assert found["files"] <= MEMORY_BYTES
    assert found["memfd"] != "done"
    assert not Path("/dev/shm/hoard").exists()


async def test_a_file_is_no_larger_than_the_disk_limit(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    spec: dict[str, Any] = {
        "processor": "writes-much", "options": {}, "input_path": None, "output_folder": str(folder), "filename": None,
        "content_type": None, "size_bytes": 0, "memory_bytes": MEMORY_BYTES, "attempt": 1, "restored": None,
        "disk_bytes": 1024 * 1024,
    }  # fmt: skip
    async with sandbox.attempt(spec) as child:
        messages = [message async for message in child.messages()]
    assert messages[-1]["summary"] == {"sparse": "OSError 27", "core": 0}
    assert (folder / "big").stat().st_size <= 1024 * 1024


async def test_no_result_has_rights_of_its_maker(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    await attack(sandbox, "leaves-bits", folder, {})
    for name in ("tool", "tool2"):
        if (folder / name).exists() and not sandbox.standing.walls.isdisjoint(NAMESPACES):
            assert not (folder / name).stat().st_mode & (stat.S_ISUID | stat.S_ISGID), name


async def test_no_child_knows_what_another_ones_task_was(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = "options-of-another-owner-93417"
    await attack(sandbox, "reads", tmp_path / "first", {"path": "/nothing", "folder": "/nothing", "name": secret})
    found = await attack(sandbox, "remembers", tmp_path / "second", {"name": "what its own memory"[::-1]})
    assert found["found"], "it finds what is there: a line of its own module"
    found = await attack(sandbox, "remembers", tmp_path / "third", {"name": secret[::-1]})
    assert found["found"] == 0


async def test_what_is_declared_is_had_and_no_more(
    sandbox: Sandbox, victims: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await attack(sandbox, "networked", tmp_path / "networked", victims)
    assert found["connect"] == "done"
    assert found["read"] != "done"
    assert found["unix socket"] != "done"
    assert found["mptcp"] != "done"
    found = await attack(sandbox, "free", tmp_path / "free", victims)
    assert found == {"connect": "done", "write": "done", "run": 0}


def ours(folder: Path) -> list[int]:
    """Processes that work in the folder; those of another user namespace are asked by what they have as command."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.readlink(f"/proc/{name}/cwd").startswith(str(folder)):
                    found.append(int(name))
            except OSError:
                continue
    return found


#: A process that adopts what its descendants leave behind, as a worker does (worker/main.py).
KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from headway.shared.errors import ProcessorFailure
from headway.worker.box.descendants import adopt, children_of
from headway.worker.sandbox import Sandbox
from headway.worker.box.walls import Box, walls_of

async def main(killed, folder, without):
    spec = {"processor": "hangs", "options": {}, "input_path": None, "output_folder": folder, "filename": None,
            "content_type": None, "size_bytes": 0, "memory_bytes": 256 * 1024**2, "attempt": 1, "restored": None}
    async with Sandbox(["tests.security.attackers"], box=Box(without=walls_of(without))) as sandbox:
        try:
            async with sandbox.attempt(spec) as child:
                server = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[1])
                async for message in child.messages():
                    if message["kind"] == "log":
                        os.kill(server if killed == "fork server" else os.getpid(), signal.SIGKILL)
        except ProcessorFailure as failure:
            print(failure)
        while children_of(os.getpid()):
            await asyncio.sleep(0.05)

adopt()
asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
"""


def killed(what: str, box: Box, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED, what, str(folder), *sorted(box.without)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_a_fork_server_that_is_killed_takes_its_children_along(box: Box, tmp_path: Path) -> None:
    ended = killed("fork server", box, tmp_path)
    assert "fork server" in ended.stdout, ended.stderr
    assert not ours(tmp_path)


def test_a_worker_that_is_killed_takes_all_that_was_started_beneath_it_along(box: Box, tmp_path: Path) -> None:
    for number in range(4):  # who ends first is the scheduler's
        folder = tmp_path / str(number)
        folder.mkdir()
        assert killed("worker", box, folder).returncode == -signal.SIGKILL
        wait_for("nothing of it is left", lambda: not ours(tmp_path))
