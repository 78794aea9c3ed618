"""tqdm's own bars, counted for a job: on the real tqdm, where it is installed."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headway.tqdm_hook import hooked
from tests.unit.test_reporter import Heard

tqdm_module: Any = pytest.importorskip("tqdm", reason="tqdm is not installed")
tqdm: Any = tqdm_module.tqdm


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    heard = Heard(tmp_path, phases={"Training": 3, "Testing": 1})
    with heard.job.tqdm_hook():
        yield heard


def test_a_bar_is_a_phase_and_draws_nothing(heard: Heard, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tqdm(range(10), desc="Training: ", unit="batch")) == list(range(10))
    state = heard.count()
    assert (state["message"], state["done"], state["total"], state["unit"]) == ("Training", 10, 10, "batch")
    assert heard.progress == 75
    assert capsys.readouterr() == ("", "")


def test_each_outermost_bar_is_the_next_phase_and_inner_ones_count_nothing(heard: Heard) -> None:
    for _ in tqdm_module.trange(3, desc="Training"):
        for _ in tqdm(range(100), desc="batches", leave=False):
            pass
    with tqdm(total=8, desc="Testing") as bar:
        bar.update(2)
        bar.set_postfix(loss=1)
        assert (heard.count()["done"], heard.progress) == (2, 81.25)
        bar.update(6)
    assert heard.phases == [("Training", 0), ("Testing", 75)]
    assert heard.progress == 100


def test_what_was_done_before_is_told_by_initial_and_a_generator_has_no_total(heard: Heard) -> None:
    list(tqdm(iter(range(5)), initial=20, desc="Training"))
    state = heard.count()
    assert (state["done"], state["total"]) == (25, None)


def test_a_loop_that_breaks_off_frees_the_next_one(heard: Heard) -> None:
    for number in tqdm(range(10), desc="Training"):
        if number == 5:
            break
    gc.collect()  # a loop that was left is closed when nobody holds it
    list(tqdm(range(2), desc="Testing"))
    assert [name for name, _ in heard.phases] == ["Training", "Testing"]


def test_a_bar_that_its_author_silenced_stays_silent(heard: Heard) -> None:
    assert list(tqdm(range(3), disable=True)) == [0, 1, 2]
    assert heard.messages == []


def test_a_bar_can_be_reset_and_go_on(heard: Heard) -> None:
    bar = tqdm(total=4, desc="Training")
    bar.update(4)
    bar.reset(total=10)
    bar.update(5)
    assert (heard.count()["done"], heard.count()["total"]) == (5, 10)
    bar.close()


def test_after_the_block_tqdm_is_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: vars(tqdm)[name] for name in ("__init__", "__iter__", "update", "reset", "close")}
    heard = Heard(tmp_path)
    with pytest.raises(RuntimeError), hooked(heard.job):
        raise RuntimeError
    assert {name: vars(tqdm)[name] for name in before} == before
    assert list(tqdm(range(3))) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err
    assert heard.messages == []


def test_without_tqdm_the_hook_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.std", None)
    heard = Heard(tmp_path)
    with heard.job.tqdm_hook():
        pass
    assert heard.messages == []
