"""What is shipped beside the code says the same as the code: the Makefile, the image, the example settings."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from headway.shared.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
VARIABLES = {f"HEADWAY_{name.upper()}" for name in Settings.model_fields}
TARGETS = {"bench", "help", "setup", "run", "test", "check", "corpus"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_example_settings_name_every_setting_and_no_other() -> None:
    named = re.findall(r"^#(HEADWAY_\w+)=", read(".env.example"), re.MULTILINE)
    assert set(named) == VARIABLES
    assert len(named) == len(VARIABLES)


def test_the_example_settings_are_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    defaults = load_settings()
    (tmp_path / ".env").write_text(re.sub(r"^#(HEADWAY_)", r"\1", read(".env.example"), flags=re.MULTILINE))
    assert load_settings() == defaults


def test_the_image_holds_every_package_of_the_wheel_runs_as_nobody_and_checks_no_health() -> None:
    dockerfile, context = read("Dockerfile"), read(".dockerignore").split()
    for package in ("headway", "api", "cli", "shared", "worker"):
        assert f"COPY {package} {package}\n" in dockerfile
        assert f"!{package}" in context
    assert re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) == ["python:3.13-slim", "python:3.13-slim"]
    assert re.search(r"^USER 10001", dockerfile, re.MULTILINE)
    assert not re.search(r"^(HEALTHCHECK|# *syntax)", dockerfile, re.MULTILINE)
    assert json.loads(dockerfile.rpartition("CMD ")[2])[:2] == ["headway", "api"]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_alone_says_what_each_target_does() -> None:
    said = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    explained = dict(re.findall(r"^make (\w+)\s+(\S.+)$", said, re.MULTILINE))
    assert explained.keys() == TARGETS
    assert set(re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE)) == TARGETS


def test_uv_is_pinned_in_one_place() -> None:
    pinned = {package["name"]: package["version"] for package in tomllib.loads(read("uv.lock"))["package"]}["uv"]
    for name in ("Makefile", "Dockerfile", ".ci/run"):
        assert pinned not in read(name)
