"""What every built-in processor does alike, each in the real sandbox with little memory.

A processor that is added to the project has to be given a file in `GOOD`; the rest of the suite is the same for all.
"""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from PIL import Image

from headway.shared.files.storage import check_result_name
from headway.shared.tasks.processors import Processor
from headway.shared.tasks.registry import load_registry
from headway.worker.sandbox import Sandbox
from tests.sandboxed import MEMORY_BYTES, Attempt, run

BUILT_IN: Final = {
    name: one
    for name, one in load_registry().processors.items()
    if one.origin.startswith("headway.worker.processors.") and one.alias_of is None
}
WITH_FILE: Final = [name for name, one in BUILT_IN.items() if one.needs_file]


def _table(rows: int) -> bytes:
    chance = random.Random(rows)
    return b"id,name,value\n" + b"".join(b"%d,name %d,%f\n" % (n, n % 99, chance.random()) for n in range(rows))


def _photo() -> bytes:
    out = io.BytesIO()
    Image.frombytes("RGB", (1500, 1000), random.Random(1).randbytes(4_500_000)).save(out, "PNG")
    return out.getvalue()


#: A file that the processor takes, large enough for its progress to be seen.
GOOD: Final[dict[str, tuple[str, Callable[[], bytes]]]] = {
    "checksum": ("data.bin", lambda: bytes(32 * 1024 * 1024)),
    "compress": ("table.csv", lambda: _table(300_000)),
    "table-profile": ("table.csv", lambda: _table(300_000)),
    "table-to-parquet": ("table.csv", lambda: _table(300_000)),
    "extract": ("table.csv.gz", lambda: gzip.compress(_table(300_000), 1, mtime=0)),
    "image-thumbnails": ("photo.png", _photo),
    "text-stats": ("table.csv", lambda: _table(300_000)),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox([]) as started:
        yield started


@dataclass(frozen=True, slots=True)
class Done:
    """A good file and what came of it."""

    path: Path
    content: bytes
    out: Path
    attempt: Attempt


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=WITH_FILE)
async def done(
    request: pytest.FixtureRequest, sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Done]:
    """Each processor with its good file, run once for all tests that only look."""
    folder = tmp_path_factory.mktemp(request.param)
    name, make = GOOD[request.param]
    path = folder / name
    path.write_bytes(content := make())
    path.chmod(0o400)
    return request.param, Done(path, content, folder / "out", await run(sandbox, request.param, path, folder / "out"))


def test_every_built_in_is_named_in_the_contract_and_has_a_file_here() -> None:
    named = {"checksum", "table-profile", "table-to-parquet", "compress", "extract", "image-thumbnails", "text-stats"}
    assert set(BUILT_IN) == named | {"rehearsal"}
    assert set(GOOD) == set(WITH_FILE) == named


@pytest.mark.parametrize("processor", BUILT_IN.values(), ids=BUILT_IN)
def test_what_is_declared_is_enough_to_offer_it(processor: Processor) -> None:
    schema = processor.options.model_json_schema()
    json.dumps(schema)
    assert processor.description
    assert "\n" not in processor.description
    assert all("/" in accepted for accepted in processor.accepts)
    assert processor.parse_options({}) is not None  # every option may be left out
    for name, option in schema.get("properties", {}).items():
        assert option.get("description"), f"the option {name} says nothing of itself"


def test_a_good_file_is_done_in_little_memory(done: tuple[str, Done]) -> None:
    attempt = done[1].attempt
    assert (attempt.type, attempt.text) == ("done", "")
    assert attempt.rss_bytes < MEMORY_BYTES
    assert attempt.summary
    assert json.loads(json.dumps(attempt.summary, allow_nan=False)) == attempt.summary


def test_progress_rises_from_nothing_to_its_end(done: tuple[str, Done]) -> None:
    progress = done[1].attempt.progress
    assert progress == sorted(progress)
    assert progress[0] == 0
    assert progress[-1] == pytest.approx(100)


def test_every_output_is_a_whole_file_under_a_plain_name(done: tuple[str, Done]) -> None:
    out, outputs = done[1].out, done[1].attempt.outputs
    assert {path.name for path in out.iterdir()} == set(outputs)
    for output in outputs:
        assert check_result_name(output) == output
        assert (out / output).stat().st_size > 0


def test_the_input_is_left_as_it_was_and_nothing_beside_it(done: tuple[str, Done]) -> None:
    one = done[1]
    assert one.path.read_bytes() == one.content
    assert {path.name for path in one.path.parent.iterdir()} == {one.path.name, "out"}


@pytest.mark.asyncio(loop_scope="module")
async def test_the_same_file_gives_the_same_results(done: tuple[str, Done], tmp_path: Path, sandbox: Sandbox) -> None:
    name, first = done
    again = await run(sandbox, name, first.path, tmp_path)
    assert again.summary == first.attempt.summary
    for output in first.attempt.outputs:
        assert (tmp_path / output).read_bytes() == (first.out / output).read_bytes()


@pytest.mark.asyncio(loop_scope="module")
async def test_what_an_earlier_attempt_kept_changes_nothing_of_the_result(
    done: tuple[str, Done], tmp_path: Path, sandbox: Sandbox
) -> None:
    name, first = done
    for state in (*first.attempt.checkpoints[-1:], {"types": ["X"], "members": 1}):
        again = await run(sandbox, name, first.path, tmp_path, restored=state)
        assert (again.type, again.summary) == ("done", first.attempt.summary)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", WITH_FILE)
async def test_an_empty_file_is_done_or_bad_input_in_a_sentence(name: str, tmp_path: Path, sandbox: Sandbox) -> None:
    path = tmp_path / "empty"
    path.touch()
    attempt = await run(sandbox, name, path, tmp_path / "out")
    assert attempt.type in ("done", "bad_input")
    if attempt.type == "bad_input":
        assert attempt.text.endswith(".")
        assert str(tmp_path) not in attempt.text
