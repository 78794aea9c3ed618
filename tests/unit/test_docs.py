"""The reference says what there is: every setting, route and error type, and no other; links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headway.api.app import create_app
from headway.shared.settings import Settings
from headway.shared.tasks.models import ErrorType
from headway.shared.tasks.reader import LIVE_FIELDS

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def test_every_setting_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"^\| `(HEADWAY_\w+)` ", REFERENCE, re.MULTILINE))
    assert documented == {f"HEADWAY_{name.upper()}" for name in Settings.model_fields}


def test_every_route_is_documented() -> None:
    paths = set(create_app(Settings()).openapi()["paths"])
    assert len(paths) > 15
    assert {path for path in paths if path not in REFERENCE} == set()


def test_every_error_type_and_field_is_documented() -> None:
    section = REFERENCE.split("### Error types")[1].split("## ")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE)) == set(ErrorType)
    assert {field for field in LIVE_FIELDS if f"`{field}`" not in REFERENCE} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_ours_that_is_named_is_there(page: Path) -> None:
    rooms = "api|benchmarks|cli|deploy|docs|examples|headway|shared|tests|worker"
    for name in re.findall(rf"`((?:{rooms})/[\w./-]+\.\w+)", page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
