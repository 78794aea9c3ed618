"""One line a record, ours and the libraries', and no secret in any of them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog

from shared.logging import configure, get_logger

SECRET = "a-secret-that-nobody-may-read"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, config = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.configure(**config)


def logged(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def break_with_a_secret_at_hand() -> None:
    key = SECRET
    raise RuntimeError("it broke" if key else "")


@pytest.mark.parametrize("log_format", ["json", None])
def test_what_is_no_terminal_gets_a_json_object_a_line(log_format: Literal["json"] | None) -> None:
    stream = io.StringIO()
    configure(log_format, stream=stream)
    get_logger("api.relay").info("task claimed", task_id="6f1c", attempt=2)
    [line] = logged(stream)
    assert {name: line[name] for name in ("event", "level", "task_id", "attempt")} == {
        "event": "task claimed",
        "level": "info",
        "task_id": "6f1c",
        "attempt": 2,
    }
    assert line["timestamp"].endswith("Z")


def test_a_terminal_gets_lines_for_people() -> None:
    stream = Terminal()
    configure(None, stream=stream)
    get_logger("api.relay").info("task claimed", task_id="6f1c")
    assert stream.getvalue().count("\n") == 1
    assert "task claimed" in stream.getvalue()
    with pytest.raises(ValueError):
        json.loads(stream.getvalue())


@pytest.mark.parametrize("name", ["uvicorn.error", "uvicorn", "arq.worker", "a.library.of.somebody"])
def test_the_records_of_libraries_come_the_same_way(name: str) -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    logging.getLogger(name).warning("connection to %s lost", "redis")
    [line] = logged(stream)
    assert (line["event"], line["level"]) == ("connection to redis lost", "warning")


def test_arqs_own_lines_which_hold_the_arguments_of_jobs_are_left_out() -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    logging.getLogger("arq.worker").info("process_file('%s')", SECRET)
    assert stream.getvalue() == ""


def test_what_was_logged_before_a_second_configure_is_not_logged_twice() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure("json", stream=first)
    configure("json", stream=second)
    get_logger("x").info("once")
    logging.getLogger("uvicorn.error").info("twice")
    assert first.getvalue() == ""
    assert [line["event"] for line in logged(second)] == ["once", "twice"]


def test_a_line_break_in_a_value_breaks_no_line() -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    get_logger("x").info("named", filename='a\n{"event": "forged"}\r\u2028b')
    logging.getLogger("lib").error("got %s", "a\nb")
    assert len(stream.getvalue().splitlines()) == 2 or stream.getvalue().count("\n") == 2
    assert [line["event"] for line in map(json.loads, stream.getvalue().rstrip("\n").split("\n"))] == [
        "named",
        "got a\nb",
    ]


def test_what_json_does_not_know_is_written_as_it_prints() -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    get_logger("x").info("odd", value={1}, data=b"\xff")
    [line] = logged(stream)
    assert (line["value"], line["data"]) == ("{1}", "b'\\xff'")


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("ours", [True, False])
def test_a_traceback_is_there_and_shows_no_local(log_format: Literal["json", "console"], ours: bool) -> None:
    stream = io.StringIO()
    configure(log_format, stream=stream)
    try:
        break_with_a_secret_at_hand()
    except RuntimeError:
        if ours:
            get_logger("api").exception("request failed", path="/tasks")
        else:
            logging.getLogger("uvicorn.error").exception("request failed")
    told = stream.getvalue()
    assert "request failed" in told
    assert "it broke" in told
    assert "break_with_a_secret_at_hand" in told
    assert SECRET not in told
    if log_format == "json":
        assert len(logged(stream)) == 1


def test_details_are_logged_only_when_they_are_asked_for() -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    get_logger("x").debug("detail")
    logging.getLogger("lib").debug("detail")
    assert stream.getvalue() == ""
    configure("json", stream=stream, level=logging.DEBUG)
    get_logger("x").debug("detail")
    assert [line["event"] for line in logged(stream)] == ["detail"]


def test_what_a_stranger_wrote_does_nothing_to_a_terminal() -> None:
    stream = Terminal()
    configure("console", stream=stream)
    get_logger("api.sse").info("slow client dropped", path="/\x1b[2J\r\x9b\u202e\u2028é\ninjected")
    [line] = stream.getvalue().splitlines()
    assert "\\x1b[2J\\r\\x9b\\u202e\\u2028é\\ninjected" in line
