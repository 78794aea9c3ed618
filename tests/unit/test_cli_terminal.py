"""What people see: the words beside the bar, the summary, and nothing that steers their terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headway import Declined, Event, ResultFile, Task
from headway.cli.bar import duration, on_stderr, pace, phase, size
from headway.cli.exits import ExitCode, code_of, printable
from headway.cli.summary import end_lines, summary_lines


def state(data: dict[str, Any]) -> Event:
    return Event("1", "", json.dumps(data), data)


@pytest.mark.parametrize(
    ("bytes_", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (104_857_600, "104.9 MB"), (2e13, "20.0 TB")]
)
def test_sizes_are_in_decimal_units(bytes_: float, text: str) -> None:
    assert size(bytes_) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.84, "0.8 s"), (12.4, "12 s"), (59.4, "59 s"), (185, "3:05"), (3723, "1:02:03")]
)
def test_durations_grow_from_tenths_to_hours(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_words_beside_the_bar_are_the_servers_figures() -> None:
    state: Task = {
        "message": "Profiling columns", "step": 2, "total_steps": 3, "attempt": 1,
        "rate": 73_400_320.0, "unit": "bytes", "eta_seconds": 0.8,
    }  # fmt: skip
    assert phase(state) == "2/3 Profiling columns"
    assert pace(state) == "73.4 MB/s, 0.8 s left"
    assert phase({**state, "attempt": 2}).endswith("(attempt 2)")
    assert pace({**state, "unit": "rows", "rate": 12345.6, "eta_seconds": None}) == "12,346 rows/s"
    assert pace({"rate": None, "eta_seconds": None}) == ""


def test_what_comes_from_outside_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\u202ec\td\n") == "a?[2Jb?c?d\n"
    assert "\x1b" not in phase({"message": "\x1b]0;owned\x07", "status": "processing"})


def test_without_a_terminal_there_is_no_bar_but_logs_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    with on_stderr() as display:
        display.show(state({"progress": 50.0, "message": "Counting", "status": "processing"}))
        display.show(Event("2", "log", "{}", {"level": "warning", "message": "[red]odd row\x1b"}))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "warning: [red]odd row?\n")


def test_the_demonstration_without_a_terminal_says_a_line_every_ten_per_cent(capfd: pytest.CaptureFixture[str]) -> None:
    with on_stderr(lines_without_terminal=True) as display:
        for tenths in range(1001):
            display.show(state({"progress": tenths / 10, "message": "Counting", "status": "processing"}))
    assert [line.split()[0] for line in capfd.readouterr().err.splitlines()] == [f"{n}.0" for n in range(0, 101, 10)]


def test_a_summary_shows_values_and_lists_of_objects_as_tables() -> None:
    columns = [
        {"name": "fare", "type": "double", "nulls": 0, "mean": 12.3456789, "top": [["a", 1]]},
        {"name": "tip", "type": "varchar", "nulls": 3, "mean": None, "top": []},
    ]
    assert list(summary_lines({"rows": 10, "sha256": "ab" * 32, "columns": columns})) == [
        "  rows    10",
        "  sha256  " + "ab" * 32,
        "  columns:",
        "    name  type     nulls  mean",
        "    fare  double   0      12.3457",
        "    tip   varchar  3      -",
    ]


def test_the_end_names_the_file_the_time_it_took_and_what_it_made() -> None:
    file: ResultFile = {
        "name": "a.zst", "size_bytes": 10, "content_type": "", "sha256": "", "url": "/tasks/6f1c/files/a.zst",
    }  # fmt: skip
    task: Task = {
        "task_id": "6f1c", "status": "completed", "filename": "a.csv",
        "started_at": "2026-01-01T00:00:00.000Z", "finished_at": "2026-01-01T00:00:02.500Z",
        "result": {"summary": {}, "files": [file]},
    }  # fmt: skip
    assert list(end_lines(task, "http://h")) == [
        "completed  a.csv  in 2.5 s  task 6f1c", "  a.zst  10 B  http://h/tasks/6f1c/files/a.zst",
    ]  # fmt: skip
    # A platform that knows its prefix says it in its links, and one that does not leaves it out.
    prefixed: Task = task | {"result": {"summary": {}, "files": [file | {"url": "/headway/tasks/6f1c/files/a.zst"}]}}
    for one in (task, prefixed):
        assert list(end_lines(one, "http://h/headway/"))[-1] == "  a.zst  10 B  http://h/headway/tasks/6f1c/files/a.zst"


def test_a_problem_is_its_detail_and_its_fields() -> None:
    error = Declined(422, {"detail": "Wrong options.", "errors": [{"field": "steps", "message": "is not a number"}]})
    assert str(error) == "Wrong options.\n  steps: is not a number"
    assert code_of(error) == ExitCode.WRONG_USE


@pytest.mark.parametrize(("status", "code"), [(404, 2), (409, 2), (413, 2), (503, 3), (500, 3), (507, 1)])
def test_an_answer_chooses_the_exit_code(status: int, code: int) -> None:
    assert code_of(Declined(status, {})) == code
