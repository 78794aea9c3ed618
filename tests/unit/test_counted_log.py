"""What anybody can cause is a line a minute at most, and the count of the others is not lost."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from headway.api.serving import counted_log
from headway.api.serving.counted_log import CountedErrors, counted_line
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def _a_short_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted_log, "LINE_SECONDS", 0.2)
    counted_log._kinds.clear()


async def test_the_first_is_a_line_and_the_others_are_one_more() -> None:
    lines: list[tuple[str, dict[str, Any]]] = []

    def line(event: str, **fields: Any) -> None:
        lines.append((event, fields))

    for number in range(1000):
        counted_line(line, "it happened", number=number)
    counted_line(line, "another thing")
    assert lines == [("it happened", {"number": 0}), ("another thing", {})]
    await wait_until("the count is told", lambda: len(lines) == 3)
    assert lines[2] == ("it happened", {"number": 999, "count": 999})
    await wait_until("nothing is kept", lambda: not counted_log._kinds)
    counted_line(line, "it happened", number=0)
    assert len(lines) == 4


def record(error: BaseException) -> logging.LogRecord:
    return logging.LogRecord(
        "x", logging.ERROR, "", 0, "Exception in ASGI application\n", (), (type(error), error, None)
    )


async def test_of_uvicorns_errors_those_of_clients_are_none_and_of_others_one_is_told() -> None:
    told = CountedErrors()
    assert not told.filter(record(ConnectionResetError()))
    assert not told.filter(record(RuntimeError("unable to perform operation on <TCPTransport>; the handler is closed")))
    assert [told.filter(record(ValueError(str(n)))) for n in range(5)] == [True, False, False, False, False]
    assert told.filter(record(KeyError("another")))
