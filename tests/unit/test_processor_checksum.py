"""The processor `checksum`: both hashes are those of everybody else's tools, whatever the size."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from blake3 import blake3

from headway.shared.tasks.registry import load_registry
from headway.worker.processors.checksum import BUFFER_BYTES, checksum
from tests.unit.recording_job import RecordingJob

PROCESSOR = load_registry().get("checksum")


@pytest.mark.parametrize(
    "size_bytes", [0, 1, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 2 * BUFFER_BYTES, 5 * BUFFER_BYTES + 17]
)
def test_a_file_of_any_size_has_the_hashes_other_tools_give(tmp_path: Path, size_bytes: int) -> None:
    data = random.Random(size_bytes).randbytes(size_bytes)
    job = RecordingJob(tmp_path, data, processor=PROCESSOR)
    assert checksum(job) == {
        "sha256": hashlib.sha256(data).hexdigest(),
        "blake3": blake3(data).hexdigest(),
        "size_bytes": size_bytes,
    }


def test_every_byte_is_counted_once_in_one_phase(tmp_path: Path) -> None:
    data = bytes(3 * BUFFER_BYTES + 5)
    job = RecordingJob(tmp_path, data, processor=PROCESSOR)
    checksum(job)
    assert job.phases == list(PROCESSOR.phases) == ["Hashing"]
    assert [done for _, done, _ in job.counts] == [BUFFER_BYTES, 2 * BUFFER_BYTES, 3 * BUFFER_BYTES, len(data)]
    assert {total for *_, total in job.counts} == {len(data)}
