"""The whole corpus of tests/poison.py against the processors, in the real sandbox: none of it harms more than itself.

By default each file meets the processors that it was made for, one of them, which is what CI has time for.
Every file meets every processor with

    HEADWAY_POISON=all .venv/bin/pytest tests/contract/test_processors_poison.py

which takes several minutes. `HEADWAY_POISON_REPORT=FILE` writes a CSV line for each attempt: file, processor, how it
ended, seconds, megabytes, and its word.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from headway.shared.files.storage import check_result_name
from headway.shared.tasks.models import ErrorType
from headway.worker.sandbox import Sandbox
from tests.poison import ALL, Poison, corpus
from tests.sandboxed import DEADLINE_SECONDS, MEMORY_BYTES, Attempt, run

#: Read here, because conftest.py takes every HEADWAY_ variable away from the tests.
EVERYTHING: Final = os.environ.get("HEADWAY_POISON") == "all"
REPORT: Final = os.environ.get("HEADWAY_POISON_REPORT")

#: More attempts at a time than a small machine has cores, as on a worker that is busy.
AT_A_TIME: Final = 3

#: What a file may be answered with. A processor that raises anything else has not looked at what it was given.
WORDS: Final = {"done", ErrorType.BAD_INPUT, ErrorType.MEMORY}

CORPUS: Final = corpus()
MOST_SUITED: Final = 1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox([]) as started:
        yield started


def kind_of(one: Poison) -> str:
    return re.split(r"[-.]", one.name)[0]


def meetings_of(kind: str) -> list[tuple[Poison, str]]:
    """The same each time: a file with more processors to meet than there is time for meets those its name chooses."""
    found = []
    for one in CORPUS:
        if kind_of(one) == kind:
            chosen = random.Random(one.name).sample(one.suited, min(MOST_SUITED, len(one.suited)))
            found += [(one, name) for name in (ALL if EVERYTHING else chosen)]
    return found


def test_the_corpus_is_large_and_the_same_each_time() -> None:
    assert len(CORPUS) >= 300
    again = corpus()
    assert [one.name for one in again] == [one.name for one in CORPUS]
    assert again[-1].make() == CORPUS[-1].make()


def test_the_corpus_means_every_processor() -> None:
    assert {name for one in CORPUS for name in one.suited} == set(ALL)


@pytest.mark.timeout(3600 if EVERYTHING else 300)
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("kind", sorted({kind_of(one) for one in CORPUS}))
async def test_poison_ends_with_a_word_in_time_and_in_memory(kind: str, tmp_path: Path, sandbox: Sandbox) -> None:
    meetings = meetings_of(kind)
    free = asyncio.Semaphore(AT_A_TIME)
    ended = await asyncio.gather(*(_meet(sandbox, one, name, tmp_path, free) for one, name in meetings))
    # Whatever they did, the same sandbox takes the next task.
    alive = await run(sandbox, "rehearsal", None, tmp_path / "alive", options={"steps": 1, "step_seconds": 0})
    _report(meetings, ended)
    wrong = [
        f"{one.name} × {name}: {problem}"
        for (one, name), attempt in zip(meetings, ended, strict=True)
        if (problem := _problem(attempt, tmp_path))
    ]
    assert wrong == []
    assert alive.type == "done"


async def _meet(sandbox: Sandbox, one: Poison, name: str, folder: Path, free: asyncio.Semaphore) -> Attempt:
    async with free:
        place = folder / f"{one.name}-{name}"
        place.mkdir()
        path = await asyncio.to_thread(one.write, place)
        attempt = await run(sandbox, name, path, place / "out")
        assert {found.name for found in place.iterdir()} == {one.name, "out"}
        if attempt.type == "done":
            assert {check_result_name(found.name) for found in (place / "out").iterdir()} == set(attempt.outputs)
            assert all(found.is_file() and not found.is_symlink() for found in (place / "out").iterdir())
        await asyncio.to_thread(shutil.rmtree, place)
        return attempt


def _problem(attempt: Attempt, folder: Path) -> str | None:
    if attempt.type not in WORDS:
        return f"{attempt.type}: {attempt.text[:300]}"
    if attempt.seconds > DEADLINE_SECONDS:
        return f"it took {attempt.seconds:.1f} s"
    if attempt.rss_bytes > MEMORY_BYTES:
        return f"it had {attempt.rss_bytes:,} bytes in memory"
    if attempt.progress != sorted(attempt.progress):
        return "its progress fell"
    if attempt.type != "done" and not re.fullmatch(r"[A-Z].{10,1000}[.)]", attempt.text, re.DOTALL):
        return f"this is no sentence: {attempt.text[:300]!r}"
    if str(folder) in attempt.text:
        return f"a path is told: {attempt.text[:300]!r}"
    return None


def _report(meetings: Sequence[tuple[Poison, str]], ended: Sequence[Attempt]) -> None:
    if REPORT is None:
        return
    with Path(REPORT).open("a") as file:
        for (one, name), attempt in zip(meetings, ended, strict=True):
            text = attempt.text.replace('"', "'").replace("\n", " ")[:200]
            megabytes = attempt.rss_bytes / 1e6
            file.write(f'{one.name},{name},{attempt.type},{attempt.seconds:.2f},{megabytes:.0f},"{text}"\n')
