"""Every module of ours has one name, whoever imports it: two copies would have two locks, caches and classes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
LINKED: Final = ("api", "cli", "shared", "worker")

#: Says which files of ours are loaded under two names.
TWICE: Final = """
import sys, os
seen = {}
for module in list(sys.modules.values()):
    file = os.path.realpath(getattr(module, "__file__", None) or "")
    if file.startswith(ROOT + os.sep) and ".venv" not in file:
        seen.setdefault(file, set()).add(id(module))
print({file: len(copies) for file, copies in seen.items() if len(copies) > 1})
"""


def run(code: str, folder: Path = ROOT) -> str:
    program = f"ROOT = {str(ROOT)!r}\n{code}"
    env = os.environ | {"HEADWAY_DATA_DIR": str(folder / "data")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", LINKED)
def test_a_checkout_links_to_its_folders(name: str) -> None:
    assert (ROOT / "headway" / name).is_symlink()
    assert (ROOT / "headway" / name).readlink() == Path("..") / name


@pytest.mark.parametrize(
    "module", ["headway.app", "headway.worker.main", "headway.cli.main", "headway.worker.forkserver"]
)
def test_no_module_is_loaded_twice(module: str) -> None:
    assert run(f"import {module}\n{TWICE}") == "{}"


def test_uvicorn_finds_api_main_and_it_is_the_one_application() -> None:
    code = """
from uvicorn.importer import import_from_string
app = import_from_string("api.main:app")
import headway.api.main
assert app is headway.api.main.app
try:
    import api.app
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("a second copy")
"""
    only_the_door = {str(ROOT / "api" / "__init__.py"): 2}
    assert run(code + TWICE) == str(only_the_door)


@pytest.mark.parametrize("name", ["cli", "shared", "worker"])
def test_a_folder_under_another_name_says_its_right_one(name: str) -> None:
    code = f"try:\n    import {name}\nexcept ImportError as error:\n    print(error)\n"
    assert f"Import headway.{name}" in run(code)


def test_a_child_brings_neither_redis_nor_arq_along() -> None:
    """What is imported there costs each worker memory, and is at hand for a processor that was taken over."""
    code = "import sys, headway.worker.forkserver, headway.worker.child\n"
    code += "print({one.split('.')[0] for one in sys.modules} & {'arq', 'hiredis', 'httpx', 'jwt', 'redis', 'uvicorn'})"
    assert run(code) == "set()"
