"""What a processor legitimately does goes on inside the walls, at each level of them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headway.worker.box.walls import NAMESPACES, Box
from headway.worker.sandbox import Sandbox
from tests import sandboxed
from tests.security.honest import KINDS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these walls are Linux's")

MODULE = "tests.security.honest"
EXPECTED: dict[str, Any] = {
    "with_pool": [0, 1, 4, 9, 16],
    "with_executor": [0, 1, 4, 9, 16],
    "with_spawn": 9,
    "with_manager": {"a": 1},
    "with_shared_memory": "ok",
    "with_threads": 20,
    "with_a_program": "4",
    "with_a_script": "4",
    "with_temporary_files": ["x", "y"],
    "with_an_archive": "x",
    "with_duckdb": True,
    "with_pillow": [16, 16],
    "with_tqdm": 100,
    "with_its_own_files": ["beside", "data beside it"],
    "with_named_paths": "a model",
    "with_its_input": "an input",
    "with_a_name": [True, True, 36, True],
    "with_home": "x",
}
#: multiprocessing.Manager listens on a named socket. Where the machine's names are the child's too, none may be had.
NEEDS_NAMED_SOCKETS = {"with_manager"}


@pytest.fixture(params=["everything", "no namespaces"])
async def sandbox(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Sandbox]:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "one").write_text("a model")
    without = NAMESPACES if request.param == "no namespaces" else frozenset()
    async with Sandbox([MODULE], box=Box(paths=(str(tmp_path / "models"),), without=without)) as sandbox:
        yield sandbox


def test_every_kind_is_expected() -> None:
    assert set(EXPECTED) == set(KINDS)


async def test_what_a_processor_legitimately_does_works(
    sandbox: Sandbox, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outputs = tmp_path_factory.mktemp("o")  # short: the kernel takes no longer name of a socket than 107 bytes
    path = tmp_path / "input"
    path.write_text("an input")
    wrong = {}
    for name, expected in EXPECTED.items():
        if name in NEEDS_NAMED_SOCKETS and sandbox.standing.walls.isdisjoint(NAMESPACES):
            continue
        options = {"name": name, "path": str(tmp_path / "models" / "one")}
        attempt = await sandboxed.run(
            sandbox, "honest", path, outputs / name, options=options, memory_bytes=1024**3, seconds=60
        )
        if attempt.type != "done" or attempt.summary["found"] != expected:
            wrong[name] = (attempt.type, attempt.text, attempt.summary)
    assert wrong == {}


async def test_a_place_that_is_declared_is_read(sandbox: Sandbox, tmp_path: Path) -> None:
    if not Path("/var/lib/dpkg/status").exists():
        pytest.skip("this machine has no /var/lib/dpkg")
    attempt = await sandboxed.run(sandbox, "reads-models", None, tmp_path / "out")
    assert attempt.summary.get("text") == "Package:", attempt.text
