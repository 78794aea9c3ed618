"""Every block of docs/processors.md, and the README's processor, as a reader would run it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from headway.worker.sandbox import Sandbox
from tests.integration.test_plugins import install_by_hand
from tests.processes import Platform
from tests.resilience.up_process import Up

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "processors.md").read_text(encoding="utf-8")
CLIENTS = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


#: Module name to source; a block begins with a comment that says what its file is called.
MODULES = {block.split()[1].removesuffix(".py"): block for block in blocks(PAGE, "python")}

needs_tqdm = pytest.mark.skipif(find_spec("tqdm") is None, reason="tqdm is not installed")

#: Processor, module, input, options, and what comes of it.
RUNS: list[Any] = [
    ("line-count", "lines", b"one\ntwo\n", {}, {"lines": 2}),
    ("words", "words", b"to be or not to be\n", {"shortest": 3}, {"words": 1, "different": 1}),
    ("sum-rows", "rows", b"1\n20\n300\n", {}, {"total": 321}),
    pytest.param("train", "training", b"ab\ncd\n", {}, {"bytes": 6}, marks=needs_tqdm),
    ("publish", "publishing", b"a note\n", {}, {"bytes": 7}),
    ("caption", "captions", b"a cat\n", {}, {"bytes": 6}),
]


class Reader:
    """Somebody who has put the blocks into files and runs them."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self._sandbox = sandbox
        self._folder = folder

    async def run(
        self, processor: str, data: bytes, options: dict[str, Any] | None = None, restored: Any = None
    ) -> list[dict[str, Any]]:
        path, outputs = self._folder / "input.txt", self._folder / "outputs"
        path.write_bytes(data)
        outputs.mkdir()
        spec = {
            "processor": processor,
            "options": options or {},
            "input_path": str(path),
            "filename": "input.txt",
            "output_folder": str(outputs),
            "content_type": "text/plain",
            "size_bytes": len(data),
            "memory_bytes": 1024**3,
            "attempt": 1,
            "restored": restored,
        }
        async with self._sandbox.attempt(spec) as child:
            return [message async for message in child.messages()]


@pytest.fixture
async def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reader]:
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *([before] if before else [])]))
    monkeypatch.chdir(tmp_path)
    async with Sandbox(list(MODULES)) as sandbox:
        yield Reader(sandbox, tmp_path)


def test_every_python_block_is_run_here() -> None:
    run = {parameters[1] for parameters in (getattr(run, "values", run) for run in RUNS)}
    assert run == set(MODULES)


@pytest.mark.parametrize(("processor", "module", "data", "options", "summary"), RUNS)
async def test_what_the_page_shows_does_what_it_says(
    reader: Reader, processor: str, module: str, data: bytes, options: dict[str, Any], summary: dict[str, Any]
) -> None:
    messages = await reader.run(processor, data, options)
    assert messages[-1]["summary"] == summary
    states = [message for message in messages if message["kind"] in ("phase", "count")]
    assert states[-1]["progress"] == 100


@needs_tqdm
async def test_the_tqdm_loop_is_a_phase_with_its_count(reader: Reader) -> None:
    messages = await reader.run("train", b"ab\ncd\nef\n")
    [phase] = [message for message in messages if message["kind"] == "phase"]
    assert (phase["message"], phase["total"], phase["unit"], phase["done"]) == ("Training", 3, "sample", 0)
    last = [message for message in messages if message["kind"] == "count"][-1]
    assert (last["done"], last["progress"]) == (3, 100)


async def test_the_attempt_after_a_lost_one_goes_on_from_the_checkpoint(reader: Reader) -> None:
    messages = await reader.run("sum-rows", b"1\n20\n300\n", restored=[5, 21])
    assert messages[-1]["summary"] == {"total": 321}
    assert messages[0] | {"at": ""} == {"kind": "log", "level": "info", "message": "resuming at byte 5", "at": ""}
    [phase] = [message for message in messages if message["kind"] == "phase"]
    assert (phase["done"], round(phase["progress"], 1)) == (5, 55.6)
    assert [message["state"] for message in messages if message["kind"] == "checkpoint"] == [[9, 321]]


def test_the_readmes_processor_is_the_pages_and_its_client_that_of_the_clients() -> None:
    client, *_ = blocks(CLIENTS, "python")
    assert blocks(README, "python") == [client, MODULES["lines"]]


def test_the_client_of_the_documents_runs_as_it_is_written(platform: Platform, tmp_path: Path) -> None:
    client, *_ = blocks(CLIENTS, "python")
    (tmp_path / "trips.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    code = client.replace("http://127.0.0.1:8000", platform.url)
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    assert said.stdout.splitlines()[-1] == "100 Done"


def test_the_reported_block_of_the_documents_runs_as_it_is_written(platform: Platform) -> None:
    (block,) = (code for code in blocks(CLIENTS, "python") if "import report" in code)
    code = f"rows = [1, 2, 3]\nhandle = print\n{block}\nprint(job.task_id)"
    env = os.environ | {"HEADWAY_URL": platform.url}
    said = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True
    ).stdout.split()
    assert said[:3] == ["1", "2", "3"]
    task = httpx.get(f"{platform.url}/tasks/{said[3]}").json()
    assert (task["status"], task["done"], task["result"]["summary"]) == ("completed", 3, {"rows": 3})


def test_the_commands_run_as_they_are_written(tmp_path: Path) -> None:
    [console] = blocks(PAGE, "console")
    up, submit = (line.removeprefix("$ ") for line in console.splitlines())
    *settings, program, command = shlex.split(up)
    assert (program, command) == ("headway", "up")
    (tmp_path / "lines.py").write_text(MODULES["lines"], encoding="utf-8")
    (tmp_path / "trips.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with Up(tmp_path, **dict(setting.split("=", 1) for setting in settings)) as platform:
        said = subprocess.run(
            [sys.executable, "-m", "headway.cli.main", *shlex.split(submit)[1:], "--json", "--url", platform.url],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    assert json.loads(said.stdout.splitlines()[-1])["result"]["summary"] == {"lines": 2}


def test_the_packages_entry_point_is_found_once_it_is_installed(tmp_path: Path) -> None:
    [toml] = blocks(PAGE, "toml")
    project = tomllib.loads(toml)["project"]
    site = install_by_hand(tmp_path, {"lines.py": MODULES["lines"]}, project["entry-points"], name=project["name"])
    listing = "from headway.shared.tasks.registry import load_registry; print(sorted(load_registry().processors))"
    env = os.environ | {"PYTHONPATH": str(site)}
    said = subprocess.run(
        [sys.executable, "-c", listing], env=env, capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "'line-count'" in said.stdout
