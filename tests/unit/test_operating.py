"""docs/operating.md and what it speaks of: each alert has its heading, and what is named there exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]

from headway.cli.main import app as cli
from headway.shared.settings import Settings

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
RULES: Final[dict[str, Any]] = yaml.safe_load((ROOT / "deploy" / "observability" / "rules.yml").read_text())
ALERTS: Final = [rule["alert"] for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
SECTION: Final = PAGE.split("\n## Alerts\n")[1].split("\n## ")[0]


def test_every_alert_has_a_heading_of_its_name_and_no_other_has() -> None:
    assert re.findall(r"^### (\w+)$", SECTION, re.MULTILINE) == ALERTS


@pytest.mark.parametrize("alert", ALERTS)
def test_it_says_what_an_alert_means_and_what_to_look_at(alert: str) -> None:
    said = re.split(r"^### ", SECTION.split(f"### {alert}\n")[1], flags=re.MULTILINE)[0]
    assert len(said.split()) > 25


def test_what_it_names_is_there() -> None:
    settings = {f"HEADWAY_{name.upper()}" for name in Settings.model_fields}
    of_compose = {"HEADWAY_SECRETS_DIR", "HEADWAY_SITE"}
    of_trials = {"HEADWAY_CONFINEMENT_WITHOUT"}
    assert set(re.findall(r"HEADWAY_[A-Z_]+[A-Z]", PAGE)) - settings == of_compose | of_trials
    box = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "worker" / "box").glob("*.py"))
    assert {name for name in of_trials if name not in box} == set()
    commands = {command.name or command.callback.__name__ for command in cli.registered_commands if command.callback}
    assert set(re.findall(r"`headway ([a-z]+)", PAGE)) <= commands
    metrics = set(re.findall(r"headway_\w+", PAGE))
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert {name for name in metrics if f"`{name}`" not in reference} == set()
    for name in re.findall(r"deploy/[\w./-]+\w", PAGE):
        assert (ROOT / name).exists(), name


def test_every_link_within_the_page_leads_to_a_heading() -> None:
    titles = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= headings


@pytest.mark.parametrize(
    "message", ["redis away", "worker not started", "attempt failed", "request failed", "sweep failed"]
)
def test_a_line_of_the_log_that_it_sends_people_to_is_written_by_the_code(message: str) -> None:
    assert f"`{message}`" in PAGE
    sources = [path for package in ("api", "shared", "worker") for path in (ROOT / package).rglob("*.py")]
    assert any(f'"{message}"' in path.read_text(encoding="utf-8") for path in sources)
