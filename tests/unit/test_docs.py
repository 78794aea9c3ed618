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
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
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
    rooms = "api|benchmarks|cli|deploy|docs|examples|headway|scripts|shared|tests|worker"
    for name in re.findall(rf"`((?:{rooms})/[\w./-]+\.\w+)", page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: of headings, in lower case, without punctuation."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_heading_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    assert {
        (target, anchor)
        for target, anchor in links
        if anchor not in anchors((page.parent / target) if target else page)
    } == set()


def test_the_tree_that_is_drawn_has_every_folder_of_the_code_and_no_other() -> None:
    drawn, path = set(), [""]
    for line in ARCHITECTURE.split("## The tree")[1].split("```")[1].splitlines():
        for indent, name in re.findall(r"^( *)(\w+)/", line):
            path[len(indent) // 2 :] = [name]
            drawn.add("/".join(path))
    code = [ROOT / name for name in ("api", "cli", "headway", "shared", "worker")]
    folders = {
        folder for top in code for folder in [top, *top.rglob("*")] if folder.is_dir() and not folder.is_symlink()
    }
    there = {str(folder.relative_to(ROOT)) for folder in folders if any(file.is_file() for file in folder.glob("*.*"))}
    there = {name for name in there if "__pycache__" not in name}
    assert {name for name in drawn if (ROOT / name).is_dir()} == drawn
    assert {name for name in drawn if name.split("/")[0] in {top.name for top in code}} == there


def test_the_glossary_explains_twenty_words_in_a_sentence_each() -> None:
    rows = re.findall(
        r"^\| ([a-z ]+) \| (.+) \|$", ARCHITECTURE.split("## Glossary")[1].split("\n## ")[0], re.MULTILINE
    )
    words = [(word, meaning) for word, meaning in rows if word != "word"]
    assert len(dict(words)) == 20
    assert {word for word, meaning in words if ". " in meaning or not meaning.endswith(".")} == set()


def test_the_comparison_gives_a_source_for_every_statement() -> None:
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    statements = re.findall(r"^(?:- |\| \[).+(?:\n  .+)*", page, re.MULTILINE)
    assert len(statements) > 40
    assert [statement for statement in statements if "](" not in statement and "above" not in statement] == []


def test_every_test_that_a_page_names_is_there() -> None:
    files = list((ROOT / "tests").rglob("*.py"))
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    there = {file.stem for file in files} | set(re.findall(r"(?:def|class) ((?:test_|Test)\w+)", source))
    named = {
        name
        for page in PAGES
        for quoted in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
        for name in re.findall(r"\b(?:test_|Test)\w+", quoted)
    }
    assert len(named) > 50
    assert named - there == set()
