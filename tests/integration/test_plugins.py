"""Processors from outside the repository: found by entry point or by HEADWAY_PROCESSORS, and the broken ones named."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from headway import Client
from tests.processes import Platform, RedisServer
from tests.resilience.up_process import SCRIPT, Up

EXAMPLE = Path(__file__).parents[2] / "examples" / "line_count"

PACKAGE = '''
"""A package of somebody else's."""
from headway.processors import Options, processor

class ShoutOptions(Options):
    marks: int = 1

@processor("shout", description="In capitals", accepts=("text/*",), options=ShoutOptions, phases={"Shouting": 1})
def shout(job):
    with job.phase("Shouting"), job.open_input() as file, job.create_output("shout.txt", "text/plain") as output:
        output.write(file.read().upper() + b"!" * job.options.marks)
    return {"by": "entry point"}
'''

MODULE = """
from headway.processors import processor

@processor("rehearsal", description="Not the one you know", needs_file=False)
def rehearsal(job):
    return {"by": "the setting"}
"""

ASYNCHRONOUS = """
import asyncio
from headway.processors import Job, processor

@processor("waits", description="Waits for three at once", needs_file=False)
async def waits(job: Job):
    done = await asyncio.gather(*(asyncio.sleep(0, one) for one in range(3)))
    return {"waited": len(done)}
"""

#: What is wrong with a module, and what is said of it, with HERE for the folder.
NOT_IMPORTED = "HEADWAY_PROCESSORS names 'mine', which cannot be imported: "
LINE_3 = f"{NOT_IMPORTED}HERE/mine.py, line 3: "
DECORATED = "from headway.processors import Options, processor\n\n"
BROKEN = {
    "typo": (
        "",
        (
            "HEADWAY_PROCESSORS names 'lins', and there is no module 'lins' in HERE or in what is installed. "
            "Did you mean 'lines'?"
        ),
    ),
    "import": (
        "import os\nimport a_module_that_nobody_has",
        f"{NOT_IMPORTED}HERE/mine.py, line 2: ModuleNotFoundError: No module named 'a_module_that_nobody_has'",
    ),
    "exit": ("raise SystemExit(3)", f"{NOT_IMPORTED}HERE/mine.py, line 1: SystemExit: 3"),
    "nothing declared": (
        "'nothing here'",
        f"{NOT_IMPORTED}ValueError: no function in it is decorated with @processor",
    ),
    "no parameter": (
        f"{DECORATED}@processor('mine')\ndef mine(): return {{}}",
        (
            f"{LINE_3}TypeError: mine() is no processor: it is called with one argument, "
            "the job. Example: def mine(job: Job)"
        ),
    ),
    "name": (
        f"{DECORATED}@processor('bad sig!')\ndef mine(job): return {{}}",
        (
            f"{LINE_3}ValueError: 'bad sig!' is no name for a processor: letters, digits, '.', "
            "'_' and '-', at most 64. Example: @processor('line-count')"
        ),
    ),
    "one name twice": (
        f"{DECORATED}@processor('mine')\ndef one(job): ...\n@processor('mine')\ndef two(job): ...",
        f"{NOT_IMPORTED}ValueError: two functions in it are declared as the processor 'mine'",
    ),
    "options": (
        f"{DECORATED}@processor('mine', options=dict)\ndef mine(job): return {{}}",
        (
            f"{LINE_3}TypeError: options=<class 'dict'> of the processor 'mine' is no class of "
            "options. Example: class Sizes(Options): width: int = 100"
        ),
    ),
    "generator": (
        f"{DECORATED}@processor('mine')\ndef mine(job): yield 1",
        (
            f"{LINE_3}TypeError: mine is a generator, which is no processor: call job.track or "
            "job.advance for progress, and return the summary"
        ),
    ),
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
    modules = {"shouting/__init__.py": "", "shouting/processors.py": PACKAGE, "our_rehearsal.py": MODULE}
    entries = {"headway.processors": {"shout": "shouting.processors", "gone": "a_package_that_was_removed"}}
    site = install_by_hand(folder, modules, entries, name="headway-shouting")
    example = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module = {"line_count.py": (EXAMPLE / "line_count.py").read_text(encoding="utf-8")}
    install_by_hand(folder, module, example["entry-points"], name=example["name"])
    env = {"PYTHONPATH": str(site), "HEADWAY_PROCESSORS": "our_rehearsal"}
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


@pytest.mark.parametrize("role", ["worker", "api"])
def test_a_broken_entry_point_is_named_at_the_start_and_stops_nothing(extended: Platform, role: str) -> None:
    [process] = extended.workers if role == "worker" else extended.apis
    lines = [json.loads(line) for line in process.log.splitlines()]
    broken = {line["module"]: line["reason"] for line in lines if line["event"] == "processor module not loaded"}
    assert broken.keys() == {"a_package_that_was_removed"}
    assert "No module named 'a_package_that_was_removed'" in broken["a_package_that_was_removed"]
    [replaced] = [line for line in lines if line["event"] == "processor replaced"]
    assert (replaced["processor"], replaced["by"]) == ("rehearsal", "our_rehearsal")
    assert process.code is None


@pytest.mark.parametrize(
    "command", [("up", "--port", "0"), ("api", "--port", "0"), ("worker",)], ids=lambda one: one[0]
)
@pytest.mark.parametrize(("module", "said"), BROKEN.values(), ids=BROKEN)
def test_a_module_that_was_asked_for_ends_the_start_with_the_reason(
    tmp_path: Path, command: tuple[str, ...], module: str, said: str
) -> None:
    (tmp_path / "mine.py").write_text(module)
    (tmp_path / "lines.py").write_text(MODULE)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("HEADWAY_", "PYTHONPATH"))}
    environ["HEADWAY_PROCESSORS"] = "mine" if module else "lins"
    done = subprocess.run(
        [*SCRIPT, *command], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.replace(str(tmp_path), "HERE").strip() == said
    assert not (tmp_path / "data" / "redis").exists()


def test_a_processor_of_the_current_folder_runs_and_so_does_one_of_another(tmp_path: Path) -> None:
    """As README has it: no PYTHONPATH, and nothing installed."""
    theirs, here = tmp_path / "theirs", tmp_path / "here"
    theirs.mkdir()
    here.mkdir()
    (theirs / "asynchronous.py").write_text(ASYNCHRONOUS)
    (theirs / "redis.py").write_text("raise SystemExit('a file of theirs took the place of a library of ours')")
    for folder, arguments in ((theirs, ()), (here, ("--app-dir", str(theirs)))):
        with Up(folder, *arguments, command=SCRIPT, HEADWAY_PROCESSORS="asynchronous") as up, Client(up.url) as client:
            task = client.submit(None, "waits")
            *_, last = client.watch(task["task_id"])
            assert (last.status, last.data["result"]["summary"]) == ("completed", {"waited": 3})


def test_the_built_in_ones_are_there_beside_them(extended: Platform) -> None:
    offered = {processor["name"] for processor in httpx.get(f"{extended.url}/processors").json()["processors"]}
    assert {"checksum", "csv-profile", "shout", "rehearsal"} <= offered
    assert extended.wait(extended.submit("checksum", b"x")["task_id"])["status"] == "completed"
