"""How processors are found: what was asked for is there, or the start ends with the reason."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import Field

from headway.shared.errors import InvalidRequest, SettingsError
from headway.shared.tasks.processors import Job, Options, Processor, processor
from headway.shared.tasks.registry import load_registry

ModuleMaker = Callable[[str], str]
NAMES = itertools.count()
BUILT_IN = {"checksum", "csv-profile", "rehearsal"}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleMaker:
    """Writes a module that can be imported, and returns its name, which no other test has."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(body: str) -> str:
        name = f"headway_test_module_{next(NAMES)}"
        (tmp_path / f"{name}.py").write_text(f"from headway.processors import processor\n{body}\n")
        return name

    return write


def declaring(name: str, more: str = "") -> str:
    return f"@processor({name!r}, description='mine'{more})\ndef run(job): return {{}}\n"


def test_the_built_in_processors_are_found_by_their_entry_points() -> None:
    registry = load_registry()
    assert registry.processors.keys() >= BUILT_IN
    assert registry.broken == {}
    assert all(found.description and found.name == name for name, found in registry.processors.items())


def test_a_module_of_ones_own_is_found_by_its_name(module: ModuleMaker) -> None:
    name = module(declaring("mine", ", accepts=('text/*',), phases={'a': 2}, needs_file=False"))
    found = load_registry([name]).get("mine")
    assert (found.description, found.accepts, dict(found.phases)) == ("mine", ("text/*",), {"a": 2})
    assert not found.needs_file
    assert found.origin == name


def test_processors_are_listed_by_name(module: ModuleMaker) -> None:
    names = list(load_registry([module(declaring("zebra")), module(declaring("ant"))]).processors)
    assert names == sorted(names)
    assert {"zebra", "ant"} <= set(names)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise RuntimeError('it broke')", "line 2: RuntimeError: it broke"),
        ("import nothing_of_this_name", "line 2: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def broken(:", "line 2: SyntaxError: "),
        ("import sys; sys.exit('no licence')", "line 2: SystemExit: no licence"),
        ("def run(job): return {}", "no function in it is decorated with @processor"),
    ],
)
def test_a_broken_module_that_was_asked_for_ends_the_start(module: ModuleMaker, body: str, reason: str) -> None:
    name = module(body)
    with pytest.raises(SettingsError) as wrong:
        load_registry([module(declaring("good")), name])
    assert f"HEADWAY_PROCESSORS names {name!r}" in str(wrong.value)
    assert reason in str(wrong.value)


def test_a_module_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "pictures.py").touch()
    with pytest.raises(SettingsError, match=r"no module 'ours\.picture'.*Did you mean 'ours\.pictures'\?"):
        load_registry(["ours.picture"], tmp_path)


def test_a_built_in_can_be_replaced(module: ModuleMaker) -> None:
    name = module(declaring("checksum"))
    assert load_registry().get("checksum").origin == "headway.worker.processors.checksum"
    assert load_registry([name]).get("checksum").origin == name


def test_two_modules_with_one_name_end_the_start(module: ModuleMaker) -> None:
    first, second = module(declaring("mine")), module(declaring("mine"))
    with pytest.raises(SettingsError, match=f"{first} and {second} both declare a processor 'mine'"):
        load_registry([first, second])


def test_what_replaces_a_built_in_is_told(module: ModuleMaker) -> None:
    assert load_registry([module(declaring("checksum"))]).replaced == {"checksum": "headway.worker.processors.checksum"}


def test_one_module_may_declare_several(module: ModuleMaker) -> None:
    name = module(declaring("one") + declaring("two").replace("def run", "def run_two"))
    assert load_registry([name]).processors.keys() >= {"one", "two"}


def test_a_processor_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(InvalidRequest) as refused:
        load_registry().get("nope")
    assert "'nope'" in str(refused.value)
    [error] = refused.value.errors
    assert error.field == "processor"
    assert all(name in error.message for name in BUILT_IN)


class Sizes(Options):
    width: int = Field(ge=1)
    names: tuple[int, ...] = ()


@processor("declared", options=Sizes)
def declared(job: Job) -> None:
    """Takes the first line of this as its description.

    And nothing of the rest.
    """


def test_the_function_stays_a_plain_function_and_describes_itself() -> None:
    found: Processor = declared.__headway_processor__  # type: ignore[attr-defined]
    assert found.run is declared
    assert found.description == "Takes the first line of this as its description."


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, ["options.width"]),
        ({"width": 0}, ["options.width"]),
        ({"width": "wide"}, ["options.width"]),
        ({"width": 1, "names": [1, "x"]}, ["options.names.1"]),
        ({"width": 1, "colour": "red"}, ["options.colour"]),
        ({"width": 0, "colour": "red"}, ["options.width", "options.colour"]),
    ],
)
def test_each_option_that_is_wrong_has_a_line(options: dict[str, object], fields: list[str]) -> None:
    found: Processor = declared.__headway_processor__  # type: ignore[attr-defined]
    with pytest.raises(InvalidRequest) as refused:
        found.parse_options(options)
    assert [error.field for error in refused.value.errors] == fields
    assert all(error.message for error in refused.value.errors)


def test_options_that_are_right_are_an_instance_of_the_declared_class() -> None:
    found: Processor = declared.__headway_processor__  # type: ignore[attr-defined]
    assert found.parse_options({"width": 3}) == Sizes(width=3, names=())
