"""What a child cannot do even if a file takes its processor over, on a real fork server and this machine's kernel."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headway.worker.sandbox import Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these walls are Linux's")
needs_landlock = pytest.mark.skipif(
    sys.platform != "linux" or ctypes.CDLL(None).syscall(444, None, 0, 1) < 1, reason="this kernel has no Landlock"
)

PROCESSORS = """
import os, pathlib, signal, socket, subprocess, tempfile
from headway.shared.tasks.processors import Options, processor

class Target(Options):
    port: int = 0
    path: str = ""
    pid: int = 0

def tried(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"

def attempts(job):
    target = job.options
    path = pathlib.Path(target.path)
    with job.create_output("mine.txt") as file:
        file.write(b"x")
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    with open("/dev/null", "w") as nowhere:
        nowhere.write("x")
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return {
        "connect": tried(lambda: socket.create_connection(("127.0.0.1", target.port), 5).close()),
        "overwrite": tried(lambda: path.write_text("taken")),
        "create": tried(lambda: (path.parent / "new").write_text("x")),
        "remove": tried(path.unlink),
        "truncate": tried(lambda: os.truncate(path, 0)),
        "through a link": tried(lambda: (pathlib.Path("link").symlink_to(path), pathlib.Path("link").write_text("x"))),
        "signal": tried(lambda: os.kill(target.pid, 0)),
        "read": path.exists() and path.read_text(),
        "no_new_privs": status["NoNewPrivs"].strip(),
        "capabilities": int(status["CapEff"], 16),
        "outer environment": tried(lambda: pathlib.Path(f"/proc/{target.pid}/environ").read_bytes()),
        "run": subprocess.run(["true"]).returncode,
    }

processor("confined", needs_file=False, options=Target)(confined := lambda job: attempts(job))
processor("free", needs_file=False, options=Target, confined=False)(free := lambda job: attempts(job))
"""
ONLY_CONFINED = PROCESSORS.rpartition("processor(")[0]


@pytest.fixture(params=["all are confined", "one is free"])
async def sandbox(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Sandbox]:
    (tmp_path / "plugins").mkdir()
    module = f"headway_confined_{len(request.param)}"
    text = ONLY_CONFINED if request.param == "all are confined" else PROCESSORS
    (tmp_path / "plugins" / f"{module}.py").write_text(text)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "precious").write_text("precious")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "plugins"))
    async with Sandbox([module]) as sandbox:
        yield sandbox


async def run(sandbox: Sandbox, folder: Path, processor: str, port: int) -> dict[str, Any]:
    options = {"port": port, "path": str(folder / "precious"), "pid": os.getpid()}
    spec = {
        "processor": processor, "options": options, "input_path": None, "output_folder": str(folder / "scratch"),
        "filename": None, "content_type": None, "size_bytes": 0, "memory_bytes": 1024**3, "attempt": 1,
        "restored": None,
    }  # fmt: skip
    async with sandbox.attempt(spec) as child:
        messages = [message async for message in child.messages()]
    summary: dict[str, Any] = messages[-1]["summary"]
    return summary


@needs_landlock
async def test_a_child_reaches_no_network_and_writes_nowhere_but_to_its_folder(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = await run(sandbox, tmp_path, "confined", server.getsockname()[1])
    assert found.pop("connect") in ("OSError", "PermissionError", "ConnectionRefusedError")
    for denied in ("overwrite", "create", "remove", "truncate", "through a link", "signal", "outer environment"):
        assert found.pop(denied) == "PermissionError", denied
    assert found == {"read": "precious", "no_new_privs": "1", "capabilities": 0, "run": 0}
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("sandbox", ["one is free"], indirect=True)
async def test_a_processor_that_says_so_keeps_the_network(sandbox: Sandbox, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = await run(sandbox, tmp_path, "free", server.getsockname()[1])
    assert (found["connect"], found["overwrite"], found["no_new_privs"]) == ("done", "done", "1")
