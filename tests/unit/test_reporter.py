"""The `job` a processor is handed: which messages its calls become. No process, no Redis; the clock is not asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headway.shared.errors import BadInput
from headway.shared.tasks.processors import Options, Processor
from headway.worker.reporter import Reporter


class Heard:
    """A reporter and the messages it sent."""

    def __init__(self, folder: Path, *, phases: dict[str, float] | None = None, data: bytes | None = None) -> None:
        self.messages: list[dict[str, Any]] = []
        self.outputs = folder / "outputs"
        self.outputs.mkdir()
        self.input = folder / "input"
        if data is not None:
            self.input.write_bytes(data)
        self.job = Reporter(
            Processor("test", run=lambda _: None, description="", phases=phases or {}),
            options=Options(),
            input_path=None if data is None else self.input,
            output_folder=self.outputs,
            filename=None if data is None else "input.csv",
            content_type=None,
            size_bytes=len(data or b""),
            memory_bytes=1024**3,
            attempt=1,
            restored=None,
            send=self.messages.append,
        )

    def count(self) -> dict[str, Any]:
        """The state as it is sampled now, or the last one where nothing has changed."""
        with self.job.sampling():
            pass
        return next(message for message in reversed(self.messages) if message["kind"] in ("count", "phase"))

    @property
    def progress(self) -> float:
        return float(round(self.count()["progress"], 6))

    @property
    def phases(self) -> list[tuple[str, float]]:
        return [(m["message"], round(m["progress"], 6)) for m in self.messages if m["kind"] == "phase"]


@pytest.fixture
def heard(tmp_path: Path) -> Heard:
    return Heard(tmp_path)


def test_declared_phases_start_where_their_weights_say(tmp_path: Path) -> None:
    heard = Heard(tmp_path, phases={"read": 1, "work": 8, "write": 1})
    for name in ("read", "work", "write"):
        heard.job.phase(name)
    assert heard.phases == [("read", 0), ("work", 10), ("write", 90)]
    assert [(m["step"], m["total_steps"]) for m in heard.messages] == [(1, 3), (2, 3), (3, 3)]


def test_planned_phases_take_the_place_of_declared_ones(tmp_path: Path) -> None:
    heard = Heard(tmp_path, phases={"read": 1, "write": 1})
    heard.job.plan({"read": 1, "look": 1, "write": 2})
    for name in ("read", "look", "write"):
        heard.job.phase(name)
    assert heard.phases == [("read", 0), ("look", 25), ("write", 50)]


def test_an_undeclared_phase_takes_its_share_of_what_is_left(heard: Heard) -> None:
    heard.job.phase("one")
    heard.job.phase("two", weight=3)
    heard.job.phase("three")
    assert heard.phases == [("one", 0), ("two", 50), ("three", 87.5)]
    assert heard.messages[-1]["total_steps"] == 3


def test_a_weight_that_is_given_wins_over_the_declared_one(tmp_path: Path) -> None:
    heard = Heard(tmp_path, phases={"read": 1, "work": 9})
    heard.job.phase("read", weight=1)
    heard.job.phase("work")
    assert heard.phases == [("read", 0), ("work", 50)]


@pytest.mark.parametrize("weight", [0, -1])
def test_a_phase_without_weight_is_a_mistake_that_is_told(heard: Heard, weight: float) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        heard.job.plan({"one": weight})
    with pytest.raises(ValueError, match="greater than 0"):
        heard.job.phase("one", weight=weight)


def test_a_plan_comes_before_the_first_phase(heard: Heard) -> None:
    heard.job.phase("one")
    with pytest.raises(RuntimeError, match="before the first"):
        heard.job.plan({"one": 1, "two": 1})


def test_a_phase_is_told_at_once_and_can_be_used_in_a_with(heard: Heard) -> None:
    with heard.job.phase("one", total=10, unit="rows"):
        assert heard.messages == [
            {
                "kind": "phase",
                "progress": 0.0,
                "step": 1,
                "total_steps": 1,
                "message": "one",
                "done": 0,
                "total": 10,
                "unit": "rows",
            }
        ]


def test_counting_moves_the_bar_by_the_phases_share(tmp_path: Path) -> None:
    heard = Heard(tmp_path, phases={"read": 1, "work": 1})
    heard.job.phase("read", total=4)
    heard.job.advance()
    assert heard.progress == 12.5
    heard.job.advance(3)
    assert heard.progress == 50
    heard.job.phase("work", total=10)
    heard.job.progress_to(5)
    assert heard.progress == 75


def test_work_without_any_phase_is_one_phase(heard: Heard) -> None:
    heard.job.progress_to(1, total=4)
    state = heard.count()
    assert (state["progress"], state["message"], state["step"]) == (25, "Processing", 0)


def test_progress_never_falls_whatever_is_counted(heard: Heard) -> None:
    heard.job.progress_to(50, total=100)
    assert heard.progress == 50
    for done in (10, -5, 0):
        heard.job.progress_to(done)
        assert heard.progress == 50
    heard.job.progress_to(50, total=10_000)
    assert heard.progress == 50


def test_progress_never_passes_100_whatever_is_counted(tmp_path: Path) -> None:
    heard = Heard(tmp_path, phases={"a": 1, "b": 1, "c": 1})
    for name in ("a", "b", "c", "a", "d", "e"):
        heard.job.phase(name, total=3)
        heard.job.advance(1000)
        assert heard.progress <= 100
    assert heard.progress == 100


def test_a_phase_that_counts_past_its_total_takes_no_more_than_its_share(tmp_path: Path) -> None:
    heard = Heard(tmp_path, phases={"read": 1, "work": 1})
    heard.job.phase("read", total=10)
    heard.job.advance(15)
    assert heard.progress == 50


def test_track_knows_the_total_of_what_has_a_length(heard: Heard) -> None:
    seen = []
    for item in heard.job.track(["a", "b", "c", "d"], unit="rows"):
        seen.append(item)
        if item == "b":
            middle = heard.count()
    assert seen == ["a", "b", "c", "d"]
    assert (middle["done"], middle["total"], middle["unit"], middle["progress"]) == (1, 4, "rows", 25)
    assert heard.progress == 100


def test_track_counts_what_has_no_length(heard: Heard) -> None:
    for _ in heard.job.track(iter(range(5)), unit="rows"):
        pass
    state = heard.count()
    assert (state["done"], state["total"], state["progress"]) == (5, None, 0)


def test_track_takes_a_total_for_what_has_no_length(heard: Heard) -> None:
    for _ in heard.job.track(iter(range(5)), total=10):
        pass
    assert heard.progress == 50


def test_an_item_counts_only_once_its_work_is_done(heard: Heard) -> None:
    tracked = heard.job.track([1, 2])
    next(tracked)
    assert heard.progress == 0
    next(tracked)
    assert heard.progress == 50


def test_what_is_read_of_the_input_counts_by_itself(tmp_path: Path) -> None:
    heard = Heard(tmp_path, data=b"x" * 4_000_000)
    with heard.job.open_input() as file:
        file.read(2_000_000)
        state = heard.count()
        assert (state["total"], state["unit"]) == (4_000_000, "bytes")
        assert state["done"] >= 2_000_000
        assert 50 <= state["progress"] < 100
        file.read()
        assert heard.progress == 100


def test_what_was_read_of_an_input_that_is_closed_still_counts(tmp_path: Path) -> None:
    heard = Heard(tmp_path, data=b"x" * 1000)
    with heard.job.open_input() as file:
        file.read()
    assert heard.count()["done"] == 1000


def test_what_has_no_length_is_measured_by_the_total_of_its_phase(heard: Heard) -> None:
    heard.job.phase("rows", total=10, unit="rows")
    for _ in heard.job.track(iter(range(5))):
        pass
    state = heard.count()
    assert (state["done"], state["total"], state["unit"]) == (5, 10, "rows")


def test_lines_that_are_tracked_are_measured_by_the_bytes_of_the_input(tmp_path: Path) -> None:
    heard = Heard(tmp_path, data=b"line\n" * 400_000)
    with heard.job.open_input() as file:
        lines = heard.job.track(file, unit="lines")
        for _ in range(200_000):
            next(lines)
        state = heard.count()
        assert (state["total"], state["unit"]) == (2_000_000, "bytes")
        assert 50 <= state["progress"] < 100
        assert sum(1 for _ in lines) == 200_000
        assert heard.progress == 100


def test_a_total_of_the_phases_own_is_not_replaced_by_the_bytes_read(tmp_path: Path) -> None:
    heard = Heard(tmp_path, data=b"x" * 100)
    heard.job.phase("rows", total=10, unit="rows")
    with heard.job.open_input() as file:
        file.read()
    heard.job.advance(5)
    state = heard.count()
    assert (state["done"], state["total"], state["unit"], state["progress"]) == (5, 10, "rows", 25)


def test_the_bytes_of_a_phase_are_not_the_next_phases(tmp_path: Path) -> None:
    heard = Heard(tmp_path, data=b"x" * 100, phases={"read": 1, "work": 1})
    heard.job.phase("read")
    with heard.job.open_input() as file:
        file.read()
        heard.job.phase("work")
        state = heard.count()
    assert (state["done"], state["total"], state["unit"], state["progress"]) == (0, None, None, 50)


def test_an_input_that_is_empty_divides_nothing_by_zero(tmp_path: Path) -> None:
    heard = Heard(tmp_path, data=b"")
    with heard.job.open_input() as file:
        assert file.read() == b""
        assert heard.progress == 0


def test_a_task_without_a_file_has_no_input(heard: Heard) -> None:
    with pytest.raises(FileNotFoundError, match="no file"):
        heard.job.open_input()


def test_a_million_advances_are_a_handful_of_messages(heard: Heard) -> None:
    heard.job.phase("counting", total=1_000_000)
    with heard.job.sampling():
        for _ in heard.job.track(range(1_000_000)):
            pass
    # 20 a second; a machine on which this takes a minute would still send under 1,500
    assert 1 < len(heard.messages) < 1_500
    assert heard.messages[-1]["done"] == 1_000_000


def test_what_was_counted_last_is_told_before_the_end(heard: Heard) -> None:
    with heard.job.sampling():
        heard.job.progress_to(3, total=4)
    assert [(m["done"], m["total"]) for m in heard.messages][-1] == (3, 4)


def test_nothing_new_is_nothing_sent(heard: Heard) -> None:
    heard.job.phase("one")
    for _ in range(3):
        heard.count()
    assert len(heard.messages) == 1


@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_a_log_line_is_sent_at_once(heard: Heard, level: str) -> None:
    heard.job.log("look at this", level)
    [message] = heard.messages
    assert (message["kind"], message["level"], message["message"]) == ("log", level, "look at this")
    assert message["at"].endswith("Z")


def test_a_log_line_of_another_level_is_a_mistake_that_is_told(heard: Heard) -> None:
    with pytest.raises(ValueError, match="info, warning or error"):
        heard.job.log("loud", "fatal")
    assert heard.messages == []


def test_long_texts_are_cut_so_that_they_fit_an_event(heard: Heard) -> None:
    heard.job.log("x" * 10_000)
    heard.job.phase("y" * 10_000)
    assert [len(message["message"]) for message in heard.messages] == [500, 500]


def test_a_checkpoint_is_sent_as_it_is(heard: Heard) -> None:
    heard.job.checkpoint({"row": 7})
    assert heard.messages == [{"kind": "checkpoint", "state": {"row": 7}, "progress": 0.0}]


def test_outputs_are_made_in_the_tasks_own_folder_and_remembered(heard: Heard) -> None:
    with heard.job.create_output("täble.csv", "text/csv") as file:
        file.write(b"a,b\n")
    Path(heard.job.output_path("plot.png")).write_bytes(b"png")
    assert {path.name: path.read_bytes() for path in heard.outputs.iterdir()} == {
        "täble.csv": b"a,b\n",
        "plot.png": b"png",
    }
    assert heard.job.outputs == {"täble.csv": "text/csv", "plot.png": None}


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "../up", "/etc/passwd", "a/b", "a\\b", "nul\0", "line\n", "x" * 201, "€" * 100]
)
def test_an_output_with_a_name_that_is_no_plain_name_is_refused(heard: Heard, name: str) -> None:
    for make in (heard.job.create_output, heard.job.output_path):
        with pytest.raises(BadInput, match="not a name for a result file"):
            make(name)
    assert heard.job.outputs == {}
    assert list(heard.outputs.iterdir()) == []


def test_a_partial_result_is_sent_at_once_and_then_the_newest(heard: Heard) -> None:
    value = {"rows": 1}
    heard.job.partial(value)
    value["rows"] = 2  # what was given is what is shown
    for rows in range(10, 20):
        heard.job.partial({"rows": rows})
    with heard.job.sampling():
        pass
    shown = [message["value"]["rows"] for message in heard.messages if message["kind"] == "partial"]
    assert (shown[0], shown[-1]) == (1, 19)
    assert len(shown) < 11
    with pytest.raises(ValueError, match="16384 bytes"):
        heard.job.partial("x" * 16_384)
