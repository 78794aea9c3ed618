"""Processors from outside the repository: found by entry point or by HEADWAY_PROCESSORS, and the broken ones named."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import HeadwayProcess, Platform, RedisServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "line_count"

PACKAGE = '''
"""A package of somebody else's."""
from headway.shared.tasks.processors import Options, processor

class ShoutOptions(Options):
    marks: int = 1

@processor("shout", description="In capitals", accepts=("text/*",), options=ShoutOptions, phases={"Shouting": 1})
def shout(job):
    with job.phase("Shouting"), job.open_input() as file, job.create_output("shout.txt", "text/plain") as output:
        output.write(file.read().upper() + b"!" * job.options.marks)
    return {"by": "entry point"}
'''

MODULE = """
from headway.shared.tasks.processors import processor

@processor("rehearsal", description="Not the one you know", needs_file=False)
def rehearsal(job):
    return {"by": "the setting"}
"""

BROKEN = {
    "broken_import.py": "import a_module_that_nobody_has",
    "broken_syntax.py": "def (",
    "broken_exit.py": "raise SystemExit(3)",
    "no_processor.py": "'nothing here is decorated'",
    "half_good.py": MODULE.replace("rehearsal", "good-half", 1) + "\nraise RuntimeError('after the good half')\n",
}


def install_by_hand(
    folder: Path, modules: Mapping[str, str], entry_points: Mapping[str, Mapping[str, str]], *, name: str
) -> Path:
    """What an installer leaves of a package: its modules, and a dist-info with the entry points. Returns the folder for
    PYTHONPATH."""
    site = folder / "site"
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    for path, source in modules.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(source, encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    groups = (
        f"[{group}]\n" + "".join(f"{entry} = {module}\n" for entry, module in entries.items())
        for group, entries in entry_points.items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    return site


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """An API and a worker with a package, a module and everything that can be wrong with either."""
    folder = tmp_path_factory.mktemp("extended")
    modules = {"shouting/__init__.py": "", "shouting/processors.py": PACKAGE, "our_rehearsal.py": MODULE, **BROKEN}
    entries = {"headway.processors": {"shout": "shouting.processors", "gone": "a_package_that_was_removed"}}
    site = install_by_hand(folder, modules, entries, name="headway-shouting")
    example = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module = {"line_count.py": (EXAMPLE / "line_count.py").read_text(encoding="utf-8")}
    install_by_hand(folder, module, example["entry-points"], name=example["name"])
    named = ",".join(["our_rehearsal", *(path.removesuffix(".py") for path in BROKEN)])
    env = {"PYTHONPATH": str(site), "HEADWAY_PROCESSORS": named}
    with RedisServer(folder / "redis") as redis, Platform(folder / "platform", redis.url, **env) as platform:
        platform.start_api()
        platform.start_worker()
        yield platform


def test_a_package_adds_a_processor_by_its_entry_point(extended: Platform) -> None:
    task = extended.submit("shout", b"hello", filename="hello.txt", options='{"marks": 3}')
    done = extended.wait(task["task_id"])
    assert (done["status"], done["result"]["summary"]) == ("completed", {"by": "entry point"})
    [file] = done["result"]["files"]
    assert httpx.get(f"{extended.url}{file['url']}").content == b"HELLO!!!"


def test_the_package_of_the_examples_works_as_it_is(extended: Platform) -> None:
    done = extended.wait(extended.submit("line-count", b"one\ntwo\n", filename="two.txt")["task_id"])
    assert (done["status"], done["result"]["summary"]) == ("completed", {"lines": 2})


def test_a_packages_options_are_checked_before_it_is_queued(extended: Platform) -> None:
    form = {"processor": "shout", "options": '{"marks": "many"}'}
    refused = httpx.post(f"{extended.url}/tasks", data=form, files={"file": ("hello.txt", b"x")})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "options.marks")


def test_a_module_of_the_setting_wins_over_a_built_in_of_the_same_name(extended: Platform) -> None:
    done = extended.wait(extended.submit("rehearsal")["task_id"])
    assert done["result"]["summary"] == {"by": "the setting"}


def named_as_broken(process: HeadwayProcess) -> dict[str, Any]:
    lines = map(json.loads, process.log.splitlines())
    return {line["module"]: line["reason"] for line in lines if line["event"] == "processor module not loaded"}


@pytest.mark.parametrize("role", ["worker", "api"])
def test_what_is_broken_is_named_at_the_start_with_the_reason_and_stops_nothing(extended: Platform, role: str) -> None:
    [process] = extended.workers if role == "worker" else extended.apis
    broken = named_as_broken(process)
    assert broken.keys() == {"a_package_that_was_removed", *(path.removesuffix(".py") for path in BROKEN)}
    for module, reason in {
        "broken_import": "No module named 'a_module_that_nobody_has'",
        "broken_syntax": "SyntaxError",
        "broken_exit": "SystemExit: 3",
        "no_processor": "no function in it is decorated with @processor",
        "half_good": "after the good half",
        "a_package_that_was_removed": "No module named 'a_package_that_was_removed'",
    }.items():
        assert reason in broken[module]
    assert process.code is None


def test_the_built_in_ones_are_there_beside_them(extended: Platform) -> None:
    offered = {processor["name"] for processor in httpx.get(f"{extended.url}/processors").json()["processors"]}
    assert {"checksum", "csv-profile", "shout", "rehearsal"} <= offered
    assert "good-half" not in offered
    assert extended.wait(extended.submit("checksum", b"x")["task_id"])["status"] == "completed"
