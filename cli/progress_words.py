"""Progress that programs write for people, read off a line of their output.

Known: `42%` (curl, rsync, wget, pip, pytest, docker), `3/10` and `3 of 10`, tqdm, `pv -n`, ffmpeg's `-progress`, and a
pattern of the user's. Pure: a Reading is what one line says, if it says anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

#: Colours, cursor movements, titles: for a terminal, not for a log.
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_TQDM: Final = re.compile(r"\d+%\|[^|]*\|\s*(\d+)/(\d+)\s")
_PERCENT: Final = re.compile(r"(?<![\w.,])(\d{1,3}(?:\.\d+)?) ?%")
_COUNT: Final = re.compile(r"(?<![\w./,:-])(\d{1,15})(?: ?/ ?| of )(\d{1,15})(?![\w./:-])")
_NUMBER: Final = re.compile(r"\d{1,3}")
_DURATION: Final = re.compile(r"Duration: (\d+):(\d\d):(\d\d)(?:\.\d+)?")
_OUT_TIME: Final = re.compile(r"out_time=(\d+):(\d\d):(\d\d)(?:\.\d+)?")
#: What ffmpeg's `-progress` writes twice a second: for programs, so it is no line of the log.
_FFMPEG: Final = re.compile(
    r"(?:frame|fps|stream_\d+_\d+_\w+|bitrate|total_size|out_time(?:_us|_ms)?|dup_frames|drop_frames|speed|progress)=\s*\S*"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """`done` of `total`; of what is not known, None. `quiet`: the line is for programs."""

    done: float | None = None
    total: float | None = None
    quiet: bool = False


class ProgressWords:
    """Reads one program's lines, in order. `total` is what the user says that there is to do. Raises re.error for a
    pattern that is none."""

    def __init__(self, pattern: str | None = None, total: int | None = None) -> None:
        self._pattern = re.compile(pattern) if pattern is not None else None
        self._total = total
        self._seconds: float | None = None

    def read(self, line: str) -> Reading:
        if self._pattern is not None:
            return self._by_pattern(line)
        if _FFMPEG.fullmatch(line.strip()):
            found = _OUT_TIME.match(line.strip())
            return Reading(_seconds(found) if found else None, self._total or self._seconds, quiet=True)
        if (found := _DURATION.search(line)) is not None:
            self._seconds = _seconds(found)
        if (found := _TQDM.search(line)) is not None:
            return _counted(found[1], found[2])
        if _NUMBER.fullmatch(line.strip()) and int(line) <= 100 and self._total is None:
            return Reading(int(line), 100, quiet=True)
        if (percents := [float(one) for one in _PERCENT.findall(line)]) and percents[-1] <= 100:
            return Reading(percents[-1], 100)
        if (found := _COUNT.search(line)) is not None:
            return _counted(found[1], found[2])
        return Reading()

    def _by_pattern(self, line: str) -> Reading:
        """Groups by name (`done`, `total`, `percent`) or by place: one is a percentage, or with a total what is done;
        two are done and total."""
        assert self._pattern is not None
        if (found := self._pattern.search(line)) is None:
            return Reading()
        named = {name: _number(text) for name, text in found.groupdict().items()}
        if named.get("percent") is not None:
            return Reading(named["percent"], 100)
        done, total = named.get("done"), named.get("total")
        if done is None:
            groups = [_number(text) for text in found.groups()] or [_number(found[0])]
            done = groups[0]
            total = groups[1] if len(groups) > 1 else None
        if done is None:
            return Reading()
        return Reading(done, total or self._total or 100)


def without_escapes(line: str) -> str:
    """As a log has it: without what steers a terminal."""
    return "".join(c for c in _ESCAPES.sub("", line) if c.isprintable() or c == "\t")


def _seconds(found: re.Match[str]) -> float:
    return int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3])


def _counted(done: str, total: str) -> Reading:
    if int(total) > 0 and int(done) <= int(total):
        return Reading(int(done), int(total))
    return Reading()


def _number(text: str | None) -> float | None:
    try:
        found = float((text or "").replace(",", ""))
    except ValueError:
        return None
    return found if 0 <= found < 2**53 else None
