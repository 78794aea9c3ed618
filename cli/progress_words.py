"""Progress that programs write for people, read off a line of their output.

Known: `42%` (wget, pv, pytest, rich, `curl -#`), `3/10` and `3 of 10`, tqdm, curl's meter, pip's bar, rsync, `dd`,
`pv -n`, ffmpeg, the steps of `docker build`, and a pattern of the user's. Each is tested with what the program really
wrote (tests/unit/progress_outputs). Pure: a Reading is what one line says, if it says anything.
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
#: The line that ffmpeg draws for people.
_FFMPEG_DRAWN: Final = re.compile(r"frame=.* time=(\d+):(\d\d):(\d\d)(?:\.\d+)? ")
#: curl's meter: percent of all, of what was received, and sent, with what else there is between them.
_CURL_HEAD: Final = re.compile(r"% Total\s+% Received")
_CURL: Final = re.compile(
    r"\s*(\d{1,3})(?:\s+[\d.]+[kMGTP]?\s+\d{1,3}){2}\s+[\d.]+[kMGTP]?(?:\s+[\d.]+[kMGTP]?){2}(?:\s+[\d:hdm-]+){3}.*"
)
#: pip, docker's layers: `1.2/3.0 MB`, `1.2MB / 3.0MB`.
_SIZES: Final = re.compile(r"(?<![\w./])(\d+(?:\.\d+)?) ?([kMG]?B)? ?/ ?(\d+(?:\.\d+)?) ?([kMG]?B)\b")
_UNITS: Final = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_DD: Final = re.compile(r"(\d+) bytes (?:\(.*\) )?copied, ")
#: Of one file, or with `--info=progress2` of all. `to-chk` counts the files that are left.
_RSYNC: Final = re.compile(
    r"\s*[\d,]+\s+(\d{1,3})%\s+[\d.]+[kMG]?B/s\s+\d+:\d\d:\d\d(?: \(xfr#\d+, (?:to|ir)-chk=(\d+)/(\d+)\))?"
)
_RSYNC_NAMES: Final = (
    "sending incremental file list",
    "receiving incremental file list",
    "building file list ... done",
)
#: `#7 [build 3/10] RUN …`, and what a step says, which counts for none but itself.
_DOCKER_STEP: Final = re.compile(r"#\d+ \[(?:(\S+) )?(\d+)/(\d+)\] ")
_DOCKER: Final = re.compile(r"#\d+ ")


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
        self._curl = False
        #: Whether rsync's percentages are of all of it; None: nobody knows yet.
        self._rsync_of_all: bool | None = True
        #: Of docker's stages the step that each is at, and how many it has.
        self._stages: dict[str, tuple[int, int]] = {}

    def read(self, line: str) -> Reading:
        if self._pattern is not None:
            return self._by_pattern(line)
        if _FFMPEG.fullmatch(line.strip()):
            found = _OUT_TIME.match(line.strip())
            return Reading(_seconds(found) if found else None, self._total or self._seconds, quiet=True)
        if (found := _FFMPEG_DRAWN.match(line)) is not None:
            return Reading(_seconds(found), self._total or self._seconds)
        if (found := _DURATION.search(line)) is not None:
            self._seconds = _seconds(found)
            return Reading()
        if (found := _DOCKER.match(line)) is not None:
            return self._by_docker(line)
        if line.startswith(_RSYNC_NAMES):
            self._rsync_of_all = None
        if (found := _RSYNC.fullmatch(line)) is not None:
            return self._by_rsync(found)
        self._curl = self._curl or _CURL_HEAD.search(line) is not None
        if self._curl and (found := _CURL.fullmatch(line)) is not None:
            return Reading(int(found[1]), 100)
        if (found := _DD.match(line)) is not None:
            return Reading(int(found[1]), self._total)
        if (found := _TQDM.search(line)) is not None:
            return _counted(found[1], found[2])
        if _NUMBER.fullmatch(line.strip()) and int(line) <= 100 and self._total is None:
            return Reading(int(line), 100, quiet=True)
        if (percents := [float(one) for one in _PERCENT.findall(line)]) and percents[-1] <= 100:
            return Reading(percents[-1], 100)
        if (found := _SIZES.search(line)) is not None:
            done, total = (float(found[n]) * _UNITS[found[n + 1] or found[4]] for n in (1, 3))
            return Reading(min(done, total), total) if total else Reading()
        if (found := _COUNT.search(line)) is not None:
            return _counted(found[1], found[2])
        return Reading()

    def _by_rsync(self, found: re.Match[str]) -> Reading:
        if found[2] is not None:
            if found[1] == "100" and found[2] != "0":  # one file is whole, and others are left
                self._rsync_of_all = False
            elif self._rsync_of_all is None:
                self._rsync_of_all = True
            if not self._rsync_of_all:
                return Reading(int(found[3]) - int(found[2]), int(found[3]))
        return Reading(int(found[1]), 100) if self._rsync_of_all else Reading(quiet=True)

    def _by_docker(self, line: str) -> Reading:
        """The steps that are begun are done but for one, in each of the stages that were seen."""
        found = _DOCKER_STEP.match(line)
        if found is None:
            return Reading()
        stage, step, steps = found[1] or "", int(found[2]), int(found[3])
        self._stages[stage] = (max(step, self._stages.get(stage, (0, 0))[0]), steps)
        done = sum(at - 1 for at, _ in self._stages.values())
        return Reading(done, sum(of for _, of in self._stages.values()))

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
