"""The wheel as a stranger has it: built, installed into a virtualenv of its own, run where there is no checkout.

Slow, and it takes what it needs from a package index, so it runs where it is asked for: `WHEEL=1 make test
ARGS=tests/integration/test_wheel.py`. The public CI asks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.processes import free_port
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")

pytestmark = [
    pytest.mark.skipif("WHEEL" not in os.environ, reason="asked for with WHEEL=1"),
    pytest.mark.skipif(not UV.exists(), reason="there is no uv beside this Python"),
    pytest.mark.timeout(600),
]


def run(*command: str | Path, cwd: Path) -> str:
    """Its output. Nothing of this virtualenv or this checkout is in its environment."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(UV, "build", "--wheel", "--out-dir", out, ROOT, cwd=out)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands, the wheel's own dependencies beside it and nothing of ours for development."""
    home = tmp_path_factory.mktemp("home")
    run(UV, "venv", "--python", sys.executable, home / "venv", cwd=home)
    run(UV, "pip", "install", "--python", home / "venv" / "bin" / "python", wheel, cwd=home)
    return home / "venv" / "bin"


@pytest.fixture
def platform(installed: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of `headway up`, in an empty folder."""
    port = free_port()
    command = [str(installed / "headway"), "up", "--port", str(port), "--data-dir", str(tmp_path / "data")]
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)

    def ready() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        try:
            return bool(httpx.get(f"{url}/readyz").json()["status"] == "ready")
        except httpx.HTTPError:
            return False

    try:
        wait_for("the platform is ready", ready, seconds=60)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def test_everything_that_is_no_python_is_in_it_and_no_test_is(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("api", "cli", "headway", "shared", "worker"):
        there = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*") if path.is_file()}
        assert {name for name in there if "__pycache__" not in name} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"api", "cli", "headway", "shared", "worker"}


def test_installed_it_serves_its_page_and_does_its_work(installed: Path, platform: str, tmp_path: Path) -> None:
    assert run(installed / "headway", "version", cwd=tmp_path).strip()
    assert "<html" in httpx.get(platform).text
    assert httpx.get(f"{platform}/static/headway.js").status_code == 200
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    for processor in ("checksum", "csv-profile", "compress"):
        run(installed / "headway", "submit", "a.csv", "--processor", processor, "--url", platform, cwd=tmp_path)
    assert run(installed / "headway", "tasks", "--json", "--url", platform, cwd=tmp_path).count('"completed"') == 3


def test_the_client_can_be_imported_alone(installed: Path, tmp_path: Path) -> None:
    code = "import sys, headway; headway.Client; assert not {'api', 'worker', 'shared', 'fastapi'} & set(sys.modules)"
    run(installed / "python", "-I", "-c", code, cwd=tmp_path)
