"""What real programs write is read as progress: each file of progress_outputs is what one of them wrote, on a terminal
(`_pty`) or through a pipe, byte for byte."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from headway.cli.progress_words import ProgressWords, Reading, without_escapes

OUTPUTS: Final = Path(__file__).parent / "progress_outputs"
#: By file: how many different readings there are at least, and the last one.
WRITTEN: Final[dict[str, tuple[int, float, float | None]]] = {
    "counts.txt": (10, 10, 10),
    "curl.txt": (4, 100, 100),
    "curl_bar.txt": (20, 100, 100),
    "curl_pty.txt": (4, 100, 100),
    "dd.txt": (3, 3_000_000, None),
    "dd_pty.txt": (3, 3_000_000, None),
    "ffmpeg_file.txt": (4, 4, 4),
    "ffmpeg_progress.txt": (3, 3, None),
    "ffmpeg_pty.txt": (4, 4, 4),
    "percentages.txt": (4, 100, 100),
    "pip_pty.txt": (20, 3_000_000, 3_000_000),
    "pv_forced.txt": (3, 100, 100),
    "pv_numeric.txt": (3, 100, 100),
    "pv_pty.txt": (3, 100, 100),
    "pytest.txt": (2, 100, 100),
    "pytest_pty.txt": (2, 100, 100),
    "rich_pty.txt": (10, 100, 100),
    "rsync.txt": (10, 100, 100),
    "rsync_files.txt": (10, 13, 13),
    "rsync_pty.txt": (10, 100, 100),
    "tqdm.txt": (10, 50, 50),
    "tqdm_bytes.txt": (5, 100, 100),
    "tqdm_pty.txt": (10, 50, 50),
    "wget.txt": (30, 3_000_000, 3_000_000),
    "wget_pty.txt": (10, 3_000_000, 3_000_000),
}


def readings(name: str) -> list[Reading]:
    text = (OUTPUTS / name).read_bytes().decode("utf-8", "replace")
    words = ProgressWords()
    lines = (without_escapes(line).rstrip() for line in re.split(r"\r\n|\r|\n", text))
    return [reading for line in lines if (reading := words.read(line)).done is not None]


def test_every_recording_is_looked_at() -> None:
    assert {path.name for path in OUTPUTS.iterdir()} == set(WRITTEN)


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_what_a_program_wrote_is_its_progress(name: str) -> None:
    least, done, total = WRITTEN[name]
    found = readings(name)
    assert (found[-1].done, found[-1].total) == (done, total)
    assert len({(one.done, one.total) for one in found}) >= least
    shares = [one.done / one.total if one.total else one.done for one in found if one.done is not None]
    assert shares == sorted(shares), "it falls"


def test_the_steps_of_a_docker_build_count_and_its_layers_do_not() -> None:
    words = ProgressWords()
    lines = ["#5 [build 1/3] FROM base", "#5 sha256:4abc 29.78MB / 29.78MB 1.2s done", "#6 [stage-1 1/2] FROM base"]
    lines += ["#7 [build 3/3] RUN make", "#7 12.3 [100%] Built target", "#8 [stage-1 2/2] COPY --from=build /x /x"]
    found = [(one.done, one.total) for one in map(words.read, lines) if one.done is not None]
    assert found == [(0, 3), (0, 5), (2, 5), (3, 5)]
