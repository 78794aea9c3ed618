"""The processor `rehearsal`: steps of equal weight, and the faults that are asked for, at their step."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headway.shared.errors import InvalidRequest
from headway.shared.tasks.registry import load_registry
from headway.worker.processors.rehearsal import rehearsal
from tests.unit.recording_job import RecordingJob

PROCESSOR = load_registry().get("rehearsal")

#: Runs a rehearsal in a process of its own, for faults that a test would not survive. The folder, then the options.
ALONE = """
import json, sys
from pathlib import Path
from tests.unit.recording_job import RecordingJob
from headway.worker.processors.rehearsal import rehearsal

class Said(RecordingJob):
    def phase(self, name, **more):
        print(name, flush=True)
        return super().phase(name, **more)

options = json.loads(sys.argv[2])
rehearsal(Said(Path(sys.argv[1]), processor=rehearsal.__headway_processor__, options=options))
"""


def job_with(folder: Path, **options: Any) -> RecordingJob:
    return RecordingJob(folder, processor=PROCESSOR, options={"step_seconds": 0, **options})


def start_alone(folder: Path, options: str) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", ALONE, str(folder), options], stdout=subprocess.PIPE, cwd=root)


def test_by_default_it_is_ten_steps_of_two_seconds_and_no_file() -> None:
    options = PROCESSOR.parse_options({})
    assert options.model_dump(exclude_none=True) == {"steps": 10, "step_seconds": 2.0}
    assert not PROCESSOR.needs_file


def test_each_step_is_a_phase_of_the_same_weight(tmp_path: Path) -> None:
    job = job_with(tmp_path, steps=4)
    assert rehearsal(job) == {"steps": 4}
    assert job.phases == [f"Processing step {step} of 4" for step in (1, 2, 3, 4)]
    assert job.planned == dict.fromkeys(job.phases, 1.0)


def test_a_step_that_fails_has_begun_and_the_next_has_not(tmp_path: Path) -> None:
    job = job_with(tmp_path, steps=4, fail_at=3)
    with pytest.raises(RuntimeError, match="Step 3 failed"):
        rehearsal(job)
    assert job.phases[-1] == "Processing step 3 of 4"


def test_memory_that_is_not_to_be_had_is_a_memory_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size_bytes: int) -> list[bytearray]:
        raise MemoryError(f"{size_bytes} bytes")

    monkeypatch.setattr("headway.worker.processors.rehearsal._take", refuse)
    with pytest.raises(MemoryError, match="1 bytes"):
        rehearsal(job_with(tmp_path, memory_bytes=1))


def test_the_memory_taken_is_all_that_was_asked_for(tmp_path: Path) -> None:
    from headway.worker.processors.rehearsal import PIECE_BYTES, _take

    pieces = _take(PIECE_BYTES + 5000)
    assert [len(piece) for piece in pieces] == [PIECE_BYTES, 5000]
    assert pieces[0][0] == pieces[1][0] == 1
    assert rehearsal(job_with(tmp_path, memory_bytes=5000)) == {"steps": 10}


def test_a_crash_is_a_kill_at_its_step(tmp_path: Path) -> None:
    with start_alone(tmp_path, '{"step_seconds": 0, "crash_at": 2}') as process:
        said, _ = process.communicate()
    assert said.split(b"\n")[:-1] == [b"Processing step 1 of 10", b"Processing step 2 of 10"]
    assert process.returncode == -signal.SIGKILL


def test_a_hang_goes_on_at_its_step_until_it_is_killed(tmp_path: Path) -> None:
    with start_alone(tmp_path, '{"step_seconds": 0, "hang_at": 2}') as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"Processing step 1 of 10\n"
        assert process.stdout.readline() == b"Processing step 2 of 10\n"
        assert process.poll() is None
        process.kill()
        assert process.stdout.read() == b""
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"steps": 10_001},
        {"step_seconds": -1},
        {"step_seconds": 3601},
        {"step_seconds": float("nan")},
        {"fail_at": 0},
        {"hang_at": 11},
        {"memory_bytes": -1},
        {"step": 1},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as raised:
        PROCESSOR.parse_options(options)
    assert len(raised.value.errors) == 1
