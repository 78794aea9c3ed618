"""What a child may say: 100,000 frames, most of them forged, and not one that is not what it says comes through."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any, Final

import pytest

from headway.shared.json_text import text_of
from headway.worker.frames import (
    CHECKPOINT_BYTES,
    FAILURE_CHARACTERS,
    FRAME_BYTES,
    FRAMES_A_SECOND,
    LAST_WORD_BYTES,
    MOST_UNITS,
    PARTIAL_BYTES,
    SAMPLED_AT_ONCE,
    SUMMARY_BYTES,
    Disturbed,
    FrameReader,
    read,
)

COUNT: Final[dict[str, Any]] = {
    "kind": "count",
    "progress": 12.5,
    "step": 1,
    "total_steps": 3,
    "message": "Reading",
    "done": 5,
    "total": None,
    "unit": "bytes",
}
LOG: Final[dict[str, Any]] = {"kind": "log", "level": "info", "message": "a", "at": "2026-12-01T01:02:03.456Z"}
CHECKPOINT: Final[dict[str, Any]] = {"kind": "checkpoint", "state": {"at": [1, 2.5]}, "progress": 3}
PARTIAL: Final[dict[str, Any]] = {"kind": "partial", "value": {"rows": [1, 2.5, None]}}
LIVE: Final[dict[str, Any]] = {"kind": "live", "name": "a.txt"}
DONE: Final[dict[str, Any]] = {
    "kind": "done",
    "summary": {"a": 1},
    "outputs": {"a.txt": "text/plain", "täst 日本": None},
}
FAILED: Final[dict[str, Any]] = {"kind": "failed", "type": "bad_input", "message": "It is not."}
GOOD: Final = (COUNT, COUNT | {"kind": "phase"}, LOG, CHECKPOINT, PARTIAL, LIVE, DONE, FAILED)


def line_of(frame: Any) -> bytes:
    return text_of(frame).encode() + b"\n"


@pytest.mark.parametrize("frame", GOOD, ids=lambda frame: frame["kind"])
def test_what_our_reporter_sends_comes_through_as_it_is(frame: dict[str, Any]) -> None:
    assert read(line_of(frame)) == frame


WRONG_KINDS: Final[list[Any]] = ["counts", "", None, 5, [], "ready"]
FORGED: Final[list[Any]] = [
    *(COUNT | {"kind": kind} for kind in WRONG_KINDS),
    *(COUNT | {"progress": value} for value in (-1, 101, "5", None, True, [1])),
    *(COUNT | {"done": value} for value in (1.5, "5", None, True, MOST_UNITS + 1, -MOST_UNITS - 1, 10**400)),
    *(COUNT | {"step": value} for value in (-1, 10**10, 1.5)),
    *(COUNT | {"message": value} for value in (None, 5, "x" * 501)),
    COUNT | {"unit": "x" * 101},
    COUNT | {"status": "completed"},
    {name: value for name, value in COUNT.items() if name != "done"},
    LOG | {"level": "fatal"},
    LOG | {"at": "now"},
    LOG | {"at": "2026-12-01T01:02:03.456Z\n"},
    CHECKPOINT | {"state": "x" * CHECKPOINT_BYTES},
    PARTIAL | {"value": "x" * PARTIAL_BYTES},
    PARTIAL | {"more": 1},
    LIVE | {"name": "../x"},
    LIVE | {"name": None},
    DONE | {"summary": None},
    DONE | {"summary": [1]},
    DONE | {"summary": {"a": "x" * SUMMARY_BYTES}},
    *(
        DONE | {"outputs": {name: None}}
        for name in ("../../x", "/etc/passwd", ".hidden", "", "a/b", "a\0b", "a\nb", "a" * 256)
    ),
    *(DONE | {"outputs": {"a": kind}} for kind in ("a\r\nb", "text/plain\nX: y", "", " x", "ü", 5, "x" * 201)),
    FAILED | {"type": "lost"},
    FAILED | {"type": "timeout"},
    FAILED | {"message": "x" * (FAILURE_CHARACTERS + 1)},
    5,
    [],
    None,
    "x",
]


@pytest.mark.parametrize("frame", FORGED, ids=lambda frame: json.dumps(frame)[:60])
def test_a_forged_frame_is_refused_with_a_word(frame: Any) -> None:
    with pytest.raises(Disturbed) as refused:
        read(json.dumps(frame).encode())
    assert 0 < len(str(refused.value)) <= 500


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 5000])
@pytest.mark.parametrize("frame", [COUNT | {"progress": 7}, CHECKPOINT | {"state": 7}, DONE | {"summary": {"a": 7}}])
def test_a_number_that_is_none_is_refused_wherever_it_is(frame: dict[str, Any], number: str) -> None:
    if number.startswith("9") and frame["kind"] != "count":
        number += "9"
    with pytest.raises(Disturbed):
        read(json.dumps(frame).replace("7", number).encode())


def reader(now: Callable[[], float] = lambda: 0.0) -> FrameReader:
    return FrameReader(now)


def test_frames_come_whole_however_they_are_cut() -> None:
    stream = b"".join(line_of(frame) for frame in (*GOOD[:4], DONE))
    for size in (1, 2, 7, 100, len(stream)):
        one = reader()
        heard = [frame for at in range(0, len(stream), size) for frame in one.feed(stream[at : at + size])]
        assert heard == [*GOOD[:4], DONE]
        assert one.ended


def test_after_the_last_word_nothing_is_read() -> None:
    one = reader()
    assert list(one.feed(line_of(DONE) + b"garbage\n" + line_of(COUNT))) == [DONE]


def test_a_pipe_that_ends_in_the_middle_of_a_frame_is_disturbed() -> None:
    one = reader()
    assert list(one.feed(line_of(COUNT) + b'{"kind"')) == [COUNT]
    with pytest.raises(Disturbed, match="middle"):
        one.close()


@pytest.mark.parametrize(
    ("begin", "most"), [(b"x", FRAME_BYTES), (b'{"kind":"count",', FRAME_BYTES), (b'{"kind":"done",', LAST_WORD_BYTES)]
)
def test_a_line_that_does_not_end_is_given_up_at_its_bound(begin: bytes, most: int) -> None:
    one, sent, chunk = reader(), 0, begin

    def send(chunk: bytes) -> bool:
        try:
            return bool(list(one.feed(chunk)))
        except Disturbed as why:
            return "longer than" in str(why)

    while not send(chunk):
        sent += len(chunk)
        chunk = b"x" * 65536
        assert sent < 2 * LAST_WORD_BYTES
    assert most - 65536 <= sent <= most + 65536


def test_more_counts_than_a_reporter_sends_end_it_and_a_backlog_of_honest_ones_does_not() -> None:
    one = reader()
    for _ in range(SAMPLED_AT_ONCE):
        list(one.feed(line_of(COUNT)))
    with pytest.raises(Disturbed, match="counts a second"):
        list(one.feed(line_of(COUNT)))


def test_what_comes_too_fast_is_left_in_the_pipe_for_a_moment() -> None:
    clock = [0.0]
    one = reader(lambda: clock[0])
    list(one.feed(line_of(LOG) * FRAMES_A_SECOND))
    assert one.wait_seconds == 0
    list(one.feed(line_of(LOG) * (FRAMES_A_SECOND // 10)))
    assert one.wait_seconds == pytest.approx(0.1)
    clock[0] += 1.1
    list(one.feed(line_of(LOG)))
    assert one.wait_seconds == 0


class Fuzzer:
    """Frames that are nearly right: a good one, changed at a place or two, or cut, or of bytes that are no text."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def line(self) -> bytes:
        rng = self._rng
        match rng.randrange(8):
            case 0:
                return rng.randbytes(rng.randrange(60)).replace(b"\n", b" ")
            case 1:
                line = line_of(rng.choice(GOOD))[:-1]
                at = rng.randrange(len(line))
                return (line[:at] + rng.randbytes(rng.randrange(4)) + line[at + rng.randrange(4) :]).replace(
                    b"\n", b" "
                )
            case 2:
                return line_of(rng.choice(GOOD))[: rng.randrange(1, 40)].rstrip(b"\n")
            case 3:
                return json.dumps(self._value(0)).encode()
            case _:
                frame = dict(rng.choice(GOOD))
                for _ in range(rng.randrange(1, 3)):
                    frame[rng.choice([*frame, "extra", "kind"])] = self._value(0)
                return json.dumps(frame).encode()

    def _value(self, depth: int) -> Any:
        rng = self._rng
        kinds: list[Callable[[], Any]] = [
            lambda: rng.choice([None, True, False, "", "count", "done", "../x", "a\r\nb", "\ud800", "é" * 300]),
            lambda: rng.choice([0, -1, 10**400, 2**63, 2**53, 0.1, 1e308, math.nan, math.inf, -math.inf]),
            lambda: "x" * rng.randrange(600),
        ]
        if depth < 4:
            kinds += [
                lambda: [self._value(depth + 1) for _ in range(rng.randrange(4))],
                lambda: {str(self._value(4))[:30]: self._value(depth + 1) for _ in range(rng.randrange(4))},
            ]
        return rng.choice(kinds)()


@pytest.mark.parametrize("seed", range(4))
def test_of_a_hundred_thousand_forged_frames_none_gets_through_that_is_not_well_formed(seed: int) -> None:
    fuzzer = Fuzzer(seed)
    taken = refused = 0
    for _ in range(25_000):
        line = fuzzer.line()
        try:
            frame = read(line)
        except Disturbed:
            refused += 1
            continue
        taken += 1
        assert len(text_of(frame)) <= LAST_WORD_BYTES  # it can be said again, so no number in it is none
        assert frame["kind"] in ("phase", "count", "log", "checkpoint", "partial", "live", "done", "failed")
        if frame["kind"] in ("phase", "count"):
            assert 0 <= frame["progress"] <= 100
            assert type(frame["done"]) is int
            assert abs(frame["done"]) <= MOST_UNITS
            assert len(frame["message"]) <= 500
        if frame["kind"] == "done":
            assert not any("/" in name or name.startswith(".") for name in frame["outputs"])
            assert not any("\n" in (kind or "") or "\r" in (kind or "") for kind in frame["outputs"].values())
    assert refused > 10_000
    assert taken > 100
