"""The wheel as a stranger has it: built, installed into a virtualenv of its own, run where there is no checkout.

Slow, and it takes what it needs from a package index, so it runs where it is asked for: `WHEEL=1 make test
ARGS=tests/integration/test_wheel.py`. The public CI asks.
"""

from __future__ import annotations

import json
import os
import signal
import stat
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
LINKED = ("api", "cli", "shared", "worker")
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
    everything = f"{wheel}[server,processors]"
    run(UV, "pip", "install", "--python", home / "venv" / "bin" / "python", everything, cwd=home)
    return home / "venv" / "bin"


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without an extra."""
    home = tmp_path_factory.mktemp("light")
    run(UV, "venv", "--python", sys.executable, home / "venv", cwd=home)
    run(UV, "pip", "install", "--python", home / "venv" / "bin" / "python", wheel, cwd=home)
    return home / "venv" / "bin"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of somebody's, with packages of its own that have the names of our folders. A processor imports
    them."""
    for name in ("api", "cli", "shared", "tests", "worker"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"NAME = {name!r}\n")
    (tmp_path / "shared" / "errors.py").write_text("THEIRS = True\n")
    (tmp_path / "api" / "main.py").write_text("THEIRS = True\n")
    (tmp_path / "theirs.py").write_text(
        "import api.main, cli, shared.errors, tests, worker\n"
        "from headway.processors import Job, processor\n"
        "@processor('names', description='Says which packages it found')\n"
        "def names(job: Job) -> dict[str, object]:\n"
        "    names = [one.NAME for one in (api, cli, shared, tests, worker)]\n"
        "    return {'names': names, 'theirs': shared.errors.THEIRS}\n"
    )
    return tmp_path


@pytest.fixture
def platform(installed: Path, project: Path) -> Iterator[str]:
    """The URL of `headway up`, run in the project's folder."""
    tmp_path = project
    port = free_port()
    command = [str(installed / "headway"), "up", "--port", str(port), "--data-dir", str(tmp_path / "data")]
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("wb") as log:
        env = os.environ | {"HEADWAY_PROCESSORS": "theirs", "PYTHONPATH": str(project)}
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)

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


def test_it_takes_one_name_and_everything_is_in_it_but_the_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    there = {
        f"headway/{path.relative_to(ROOT)}" for name in LINKED for path in (ROOT / name).rglob("*") if path.is_file()
    }
    assert {name for name in there if "__pycache__" not in name} <= names
    assert {"headway/client/aio.py", "headway/processors.py", "headway/app.py", "headway/py.typed"} <= names
    assert {name.split("/")[0] for name in names} == {"headway", "headway-0.1.0.dist-info"}
    assert not [info for info in zipfile.ZipFile(wheel).infolist() if stat.S_ISLNK(info.external_attr >> 16)]


def test_installed_it_serves_its_page_and_does_its_work(installed: Path, platform: str, tmp_path: Path) -> None:
    assert run(installed / "headway", "version", cwd=tmp_path).strip()
    assert "<html" in httpx.get(platform).text
    assert httpx.get(f"{platform}/static/headway.js").status_code == 200
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    for processor in ("checksum", "csv-profile", "compress"):
        run(installed / "headway", "submit", "a.csv", "--processor", processor, "--url", platform, cwd=tmp_path)
    assert run(installed / "headway", "tasks", "--json", "--url", platform, cwd=tmp_path).count('"completed"') == 3


def test_in_a_project_with_packages_of_our_folders_names_a_processor_finds_its_own(
    installed: Path, platform: str, project: Path
) -> None:
    (project / "a.txt").write_text("a")
    said = run(
        installed / "headway", "submit", "a.txt", "--processor", "names", "--json", "--url", platform, cwd=project
    )
    summary = json.loads(said.splitlines()[-1])["result"]["summary"]
    assert summary["names"] == ["api", "cli", "shared", "tests", "worker"]
    assert summary["theirs"] is True
    code = "from headway.app import create_app, Settings; create_app(Settings()); import api; assert api.NAME"
    run(installed / "python", "-c", code, cwd=project)


def test_without_an_extra_it_is_the_client_and_the_command_line(
    light: Path, installed: Path, platform: str, tmp_path: Path
) -> None:
    code = "import sys, headway; headway.Client; assert not {'fastapi', 'redis', 'arq', 'pydantic'} & set(sys.modules)"
    run(light / "python", "-I", "-c", code, cwd=tmp_path)
    packages = json.loads(run(UV, "pip", "list", "--format", "json", "--python", light / "python", cwd=tmp_path))
    assert not {one["name"] for one in packages} & {
        "fastapi",
        "redis",
        "arq",
        "duckdb",
        "pillow",
        "pydantic",
        "fakeredis",
    }
    (tmp_path / "b.txt").write_text("b")
    run(light / "headway", "submit", "b.txt", "--processor", "checksum", "--url", platform, cwd=tmp_path)


@pytest.mark.parametrize("command", ["up", "api", "worker"])
def test_what_needs_an_extra_says_how_to_install_it(light: Path, tmp_path: Path, command: str) -> None:
    done = subprocess.run(
        [light / "headway", command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "This command needs more than the client: pip install 'headway[server]'"
    asked = subprocess.run([light / "python", "-c", "import headway.app"], capture_output=True, text=True, cwd=tmp_path)
    assert "pip install 'headway[server]'" in asked.stderr.splitlines()[-1]
