"""The numbers people read, from the counts of a child; time is passed in, so nothing here waits."""

from __future__ import annotations

from typing import Any

import pytest

from headway.shared.tasks.meter import MOST_PROGRESS, Meter


def a_count(progress: float, *, step: int = 1, done: int = 0, **changes: Any) -> dict[str, Any]:
    message = {"progress": progress, "step": step, "total_steps": 2, "message": "Counting", "done": done}
    return {"kind": "count", "total": 100, "unit": "rows", **message, **changes}


def test_what_the_child_said_is_passed_on_beside_the_numbers() -> None:
    fields = Meter(0, 0).read(a_count(50, done=50), 1)
    passed_on = {name: fields[name] for name in ("step", "total_steps", "message", "done", "total", "unit")}
    assert passed_on == {
        "step": 1,
        "total_steps": 2,
        "message": "Counting",
        "done": 50,
        "total": 100,
        "unit": "rows",
    }
    assert "kind" not in fields


@pytest.mark.parametrize(("said", "shown"), [(0, 20), (50, 60), (25, 40)])
def test_progress_covers_what_the_upload_left_of_the_bar(said: float, shown: float) -> None:
    assert Meter(20, 0).read(a_count(said), 1)["progress"] == shown


def test_progress_never_falls() -> None:
    meter = Meter(0, 0)
    assert [meter.read(a_count(said), 1)["progress"] for said in (10, 40, 30, 0, 41)] == [10, 40, 40, 40, 41]


def test_100_is_left_to_the_result_that_is_safe_on_disk() -> None:
    assert Meter(0, 0).read(a_count(100), 1)["progress"] == MOST_PROGRESS < 100


def test_a_steady_count_gives_its_rate() -> None:
    meter = Meter(0, 0)
    meter.read(a_count(0), 0)
    assert [meter.read(a_count(second, done=second * 10), second)["rate"] for second in (1, 2, 3)] == [10, 10, 10]


def test_the_rate_follows_a_change_without_jumping() -> None:
    meter = Meter(0, 0)
    meter.read(a_count(0), 0)
    meter.read(a_count(1, done=10), 1)
    assert 10 < meter.read(a_count(2, done=110), 2)["rate"] < 100


def test_a_count_that_falls_gives_no_negative_rate() -> None:
    meter = Meter(0, 0)
    meter.read(a_count(1, done=1000), 0)
    assert meter.read(a_count(1, done=0), 1)["rate"] is None


def test_the_rate_is_a_phases_own() -> None:
    meter = Meter(0, 0)
    meter.read(a_count(0, done=0), 0)
    meter.read(a_count(10, done=1_000_000), 1)
    assert meter.read(a_count(50, step=2, done=0), 2)["rate"] is None
    assert meter.read(a_count(51, step=2, done=3), 3)["rate"] == 3


def test_the_time_left_is_what_the_speed_of_the_whole_makes_of_the_rest() -> None:
    meter = Meter(20, 0)
    etas = [meter.read(a_count(second * 10), second)["eta_seconds"] for second in (1, 2, 4, 5)]
    assert etas == [9, 8, 6, 5]


@pytest.mark.parametrize(("said", "now"), [(50, 0.4), (0.4, 10), (0, 10)])
def test_the_time_left_is_unknown_while_a_guess_would_be_noise(said: float, now: float) -> None:
    assert Meter(0, 0).read(a_count(said), now)["eta_seconds"] is None


def test_two_messages_at_the_same_moment_divide_by_no_time() -> None:
    meter = Meter(0, 5)
    meter.read(a_count(10, done=10), 6)
    fields = meter.read(a_count(20, done=20), 6)
    assert (fields["progress"], fields["rate"]) == (20, None)


def test_a_bar_that_stands_still_for_long_has_no_absurd_time_left() -> None:
    """A phase without a total: `done` rises, progress does not. An infinite number is no JSON: it ends the task."""
    meter = Meter(0, 0)
    meter.read(a_count(20), 1)
    etas = [meter.read(a_count(20, done=second), second)["eta_seconds"] for second in range(2, 3600)]
    assert max(eta for eta in etas if eta is not None) < 10 * 365 * 86_400
