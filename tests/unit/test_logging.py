"""One line a record, ours and the libraries', and no secret in any of them."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog

from headway.shared.logging import configure, current_format, get_logger
from headway.shared.tracing import tracing_of

SECRET = "a-secret-that-nobody-may-read"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, access, config = logging.getLogger(), logging.getLogger("uvicorn.access"), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    root.handlers, root.level = handlers, level
    access.handlers, access.propagate = [], True
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    logging.captureWarnings(False)
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
    get_logger("headway.api.streams.relay").info("task claimed", task_id="6f1c", attempt=2)
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
    get_logger("headway.api.streams.relay").info("task claimed", task_id="6f1c")
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
    get_logger("headway.api.streams.sse").info("slow client dropped", path="/\x1b[2J\r\x9b\u202e\u2028é\ninjected")
    [line] = stream.getvalue().splitlines()
    assert "\\x1b[2J\\r\\x9b\\u202e\\u2028é\\ninjected" in line


def access_line(path: str) -> None:
    """As uvicorn writes one."""
    arguments = ("127.0.0.1:50000", "GET", path, "1.1", 200)
    logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', *arguments)


def test_a_line_of_uvicorns_access_log_has_fields_and_no_query() -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    access_line(f"/tasks?key={SECRET}")
    [line] = logged(stream)
    assert {name: line[name] for name in ("event", "method", "path", "status", "client")} == {
        "event": "request",
        "method": "GET",
        "path": "/tasks",
        "status": 200,
        "client": "127.0.0.1:50000",
    }
    assert SECRET not in stream.getvalue()


@pytest.mark.parametrize("wanted", [True, False])
def test_uvicorns_access_log_stays_on_or_off(wanted: bool) -> None:
    stream = io.StringIO()
    access = logging.getLogger("uvicorn.access")
    access.handlers, access.propagate = ([logging.NullHandler()] if wanted else []), False  # as uvicorn leaves it
    configure("json", stream=stream)
    assert access.hasHandlers() is wanted  # by which uvicorn knows
    access_line("/")
    assert len(logged(stream)) == wanted


def test_what_is_bound_to_the_context_is_in_every_line_libraries_ones_too() -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    with structlog.contextvars.bound_contextvars(task_id="6f1c", attempt=2):
        get_logger("x").info("ours")
        logging.getLogger("arq.worker").warning("theirs")
    get_logger("x").info("about nothing")
    assert [(line.get("task_id"), line.get("attempt")) for line in logged(stream)] == [("6f1c", 2)] * 2 + [(None, None)]


def test_a_line_within_a_span_has_its_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    tracing = tracing_of("headway-worker")
    with tracing.span("process"):
        here = tracing.here()
        get_logger("x").info("within")
    get_logger("x").info("outside")
    within, outside = logged(stream)
    assert here is not None
    assert here.split("-")[1:3] == [within["trace_id"], within["span_id"]]
    assert "trace_id" not in outside


@pytest.mark.filterwarnings("default")
def test_what_python_prints_by_itself_is_a_line_each() -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    try:
        break_with_a_secret_at_hand()
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    thread = threading.Thread(target=break_with_a_secret_at_hand, name="one")
    thread.start()
    thread.join()
    warnings.warn("take care", RuntimeWarning, stacklevel=1)
    process, thread_line, warning = logged(stream)
    assert (process["event"], process["exception"][0]["exc_value"]) == ("process broke", "it broke")
    assert (thread_line["event"], thread_line["thread"]) == ("thread broke", "one")
    assert "take care" in warning["event"]
    assert SECRET not in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_process_that_is_started_is_told_the_format(log_format: Literal["json", "console"]) -> None:
    configure(log_format, stream=io.StringIO())
    assert current_format() == log_format
