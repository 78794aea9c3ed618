"""The public CI: a workflow without a known weakness, with every action pinned, that runs what there is to run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]

from headway.cli.main import app as cli

ROOT: Final = Path(__file__).parents[2]
WORKFLOWS: Final = ROOT / ".github" / "workflows"
TEXT: Final = (WORKFLOWS / "ci.yml").read_text(encoding="utf-8")
#: `on` is a truth value to YAML 1.1, which PyYAML reads.
CI: Final[dict[Any, Any]] = yaml.safe_load(TEXT)
JOBS: Final[dict[str, dict[str, Any]]] = CI["jobs"]
STEPS: Final = [step for job in JOBS.values() for step in job["steps"]]


def test_zizmor_finds_nothing() -> None:
    """Offline, so it looks at what is written, not at what the actions have become."""
    zizmor = shutil.which("zizmor", path=str(Path(sys.executable).parent))
    if zizmor is None:
        pytest.skip("there is no zizmor for this machine")
    command = [zizmor, "--offline", "--no-progress", "--persona", "auditor", "--strict-collection", str(WORKFLOWS)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.skipif(
    shutil.which("actionlint") is None, reason="there is no actionlint here; no package brings it along"
)
def test_actionlint_finds_nothing() -> None:
    found = subprocess.run(["actionlint", *WORKFLOWS.glob("*.yml")], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_every_action_is_pinned_to_a_commit_and_says_its_version() -> None:
    pinned: dict[str, set[str]] = {}
    for action, commit, version in re.findall(r"uses: ([\w./-]+)@(\S+)(.*)", TEXT):
        assert re.fullmatch(r"[0-9a-f]{40}", commit), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", version), action
        pinned.setdefault(action, set()).add(commit + version)
    assert set(pinned) == {"actions/checkout", "actions/setup-python", "actions/cache"}
    assert all(len(commits) == 1 for commits in pinned.values()), pinned


def test_it_may_read_the_code_and_nothing_else_and_every_job_ends() -> None:
    assert CI["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in JOBS.values())
    assert all(job["timeout-minutes"] <= 40 for job in JOBS.values())
    assert CI["concurrency"]["group"]


def test_every_python_that_is_promised_is_tested() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    promised = {found[1] for line in classifiers if (found := re.search(r"Python :: (3\.\d+)$", line))}
    pairs = JOBS["test"]["strategy"]["matrix"]["include"]
    assert {pair["python"] for pair in pairs} == promised
    assert len({pair["server"] for pair in pairs}) == len(pairs) == len(promised)


def test_what_it_runs_is_there() -> None:
    """Targets of the Makefile, with the Python of the job; commands of ours; files of tests."""
    ran = "\n".join(step["run"] for step in STEPS if "run" in step)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = re.findall(r"make (\w+)( PYTHON=python)?", ran)
    assert {target for target, _ in made} == {"check", "setup", "test"} <= targets
    assert all(python for _, python in made), "else make takes the newest Python that it finds"
    commands = {command.name or command.callback.__name__ for command in cli.registered_commands if command.callback}
    assert set(re.findall(r"bin/headway (\w+)", ran)) <= commands
    for file in re.findall(r"tests/\S+\.py", ran):
        assert (ROOT / file).exists()
    assert {step["env"]["WHEEL"] for step in STEPS if "WHEEL" in step.get("env", {})} == {"1"}
