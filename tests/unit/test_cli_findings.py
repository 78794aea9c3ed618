"""What the doctor makes of its measurements: at which figure a finding becomes a warning or a problem."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from headway.cli import findings
from headway.cli.probes import STREAMS, Answer, Came, Idle, Paced

STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store, no-transform"}


def paced(*came: float, **headers: str) -> Paced:
    """Events made a quarter of a second apart, behind a snapshot made long before."""
    events = [Came(-60.0, 0.0), *(Came(0.25 * step, at) for step, at in enumerate(came))]
    return Paced(httpx.Headers(STREAM_HEADERS | headers), events)


def test_events_that_come_when_they_are_made_are_well_whatever_the_clocks_say() -> None:
    for ahead in (-3600.0, 0.0, 3600.0):
        on_time = paced(*(ahead + 0.25 * step + 0.1 for step in range(20)))
        assert findings.buffering(on_time).level == "ok"


@pytest.mark.parametrize(
    ("came", "said"),
    [([5.0] * 20, "in 1 bunch, "), ([2.5] * 10 + [5.0] * 10, "in 2 bunches, ")],
    ids=["all at the end", "two bunches"],
)
def test_events_that_come_in_bunches_are_a_problem(came: list[float], said: str) -> None:
    found = findings.buffering(paced(*came))
    assert (found.level, said in found.what) == ("problem", True)
    assert "proxy_buffering off" in found.change


def test_a_stream_that_was_cut_before_it_could_be_measured_says_so() -> None:
    cut = Paced(httpx.Headers(STREAM_HEADERS), [], cut=True)
    assert "cut" in findings.buffering(cut).what


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"content-type": "text/html"}, "text/html"),
        ({"cache-control": "max-age=60"}, "no-store"),
        ({"cache-control": "no-store"}, "no-transform"),
        ({"content-length": "9"}, "Content-Length"),
    ],
)
def test_headers_that_were_changed_are_named(headers: dict[str, str], said: str) -> None:
    assert findings.headers(paced()).level == "ok"
    found = findings.headers(paced(**headers))
    assert (found.level, said in found.what) == ("problem", True)


def test_identity_is_no_compression() -> None:
    assert findings.compression(paced(**{"content-encoding": "identity"})).level == "ok"
    assert findings.compression(paced(**{"content-encoding": "br"})).level == "problem"


def test_a_line_that_is_cut_is_told_with_its_seconds_and_a_heartbeat_that_would_keep_it() -> None:
    found = findings.idle(Idle(20.0, cut_after_seconds=10.2), 15.0)
    assert (found.level, "10.2 s" in found.what, "HEADWAY_HEARTBEAT_SECONDS=6" in found.change) == (
        "problem",
        True,
        True,
    )


@pytest.mark.parametrize(("watched", "comments", "level"), [(20.0, 1, "ok"), (20.0, 0, "problem"), (5.0, 0, "ok")])
def test_a_heartbeat_that_was_due_and_did_not_come_is_a_problem(watched: float, comments: int, level: str) -> None:
    assert findings.idle(Idle(watched, comments=comments), 15.0).level == level


@pytest.mark.parametrize(
    ("spoke", "protocol", "loopback", "level"),
    [
        (STREAMS, None, True, "ok"),
        (STREAMS, "h2", False, "ok"),
        (STREAMS, None, False, "warning"),
        (STREAMS, "http/1.1", False, "warning"),
        (STREAMS - 1, "h2", False, "problem"),
        (0, None, True, "warning"),
    ],
)
def test_six_connections_are_a_warning_where_browsers_come_from_elsewhere(
    spoke: int, protocol: str | None, loopback: bool, level: str
) -> None:
    assert findings.connections(spoke, protocol, loopback=loopback).level == level


@pytest.mark.parametrize(
    ("kept", "level"),
    [
        ("append-only, fsync everysec", "ok"),
        ("append-only, fsync always", "ok"),
        ("append-only, fsync no", "warning"),
        ("snapshots", "warning"),
        ("nothing", "problem"),
        (None, "warning"),
    ],
)
def test_what_of_redis_survives_a_restart(kept: str | None, level: str) -> None:
    ready = {"checks": {"redis": {"ok": True, "degraded": False, "durability": kept}}}
    assert [found.level for found in findings.redis(ready)] == ["ok", level]


@pytest.mark.parametrize("ready", [{}, {"checks": {}}, {"checks": {"redis": {"ok": False, "reason": "it is full"}}}])
def test_a_platform_that_says_little_is_not_well_and_no_error(ready: dict[str, Any]) -> None:
    found = [*findings.redis(ready), findings.relay(ready), findings.workers(ready)]
    assert {one.level for one in found} == {"problem"}
    assert all(one.change for one in found)


def test_versions_that_differ_and_clocks_that_differ_are_warnings() -> None:
    assert findings.version("1.0", {"version": "1.0"}).level == "ok"
    assert findings.version("1.0", {"version": "1.1"}).level == findings.version("1.0", {}).level == "warning"
    assert [findings.clock(seconds).level for seconds in (-1.0, 1.0, 30.0)] == ["ok", "ok", "warning"]
    assert "30 s behind" in findings.clock(-30.0).what


def test_an_upload_that_is_refused_is_told_by_whom() -> None:
    def answer(status: int, body: bytes = b"<html>") -> Answer:
        return Answer(status, httpx.Headers(), body, 0.1)

    assert findings.uploads(answer(200)).level == "ok"
    assert "client_max_body_size" in findings.uploads(answer(413)).change
    assert "disk is full" in findings.uploads(answer(507, b'{"detail": "The disk is full."}')).what
    assert findings.uploads(answer(0)).level == "problem"
