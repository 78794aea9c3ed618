"""A first profile of a large table: of its first rows, marked as that, and never instead of the true one."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from headway.shared.errors import BadInput
from headway.worker.frames import PARTIAL_BYTES
from headway.worker.processors import table_preview
from headway.worker.processors.table_profile import table_profile
from tests.unit.test_processor_table_profile import job_for


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_preview, "LARGE_BYTES", 1000)
    monkeypatch.setattr(table_preview, "FIRST_BYTES", 50_000)


def table(rows: int, columns: int = 2) -> bytes:
    chance = random.Random(4711)
    names = ",".join(f"column {number}" for number in range(columns))
    lines = [",".join(str(chance.randint(0, 99)) for _ in range(columns)) for _ in range(rows)]
    return "\n".join((names, *lines, "")).encode()


def profiled(folder: Path, data: bytes, **options: Any) -> tuple[dict[str, Any], list[Any]]:
    job = job_for(folder, data, **options)
    result: Any = table_profile(job)
    return result, job.partials


def test_the_first_rows_are_profiled_first_and_the_result_is_of_all(tmp_path: Path) -> None:
    data = table(30_000)
    result, [first] = profiled(tmp_path, data)
    assert result["rows"] == 30_000
    head = data[:50_000]
    assert first["rows"] == head.count(b"\n") - 1
    assert first["first_bytes"] == head.rindex(b"\n") + 1
    assert first["size_bytes"] == len(data)
    assert [column["name"] for column in first["columns"]] == ["column 0", "column 1"]
    assert [column["type"] for column in first["columns"]] == ["integer", "integer"]
    assert sum(entry["count"] for entry in first["columns"][0]["top"]) > 0


def test_one_of_many_columns_has_as_many_as_there_is_room_for(tmp_path: Path) -> None:
    result, [first] = profiled(tmp_path, table(500, columns=200))
    assert len(result["columns"]) == 200
    assert 10 < len(first["columns"]) < 200
    assert first["shortened"] is True
    assert len(json.dumps(first)) <= PARTIAL_BYTES


def test_a_small_file_and_one_whose_beginning_is_no_table_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    result, shown = profiled(tmp_path / "a", gzip.compress(table(30_000)))
    assert (result["rows"], shown) == (30_000, [])
    (tmp_path / "b").mkdir()
    job = job_for(tmp_path / "b", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8)
    with pytest.raises(BadInput):
        table_profile(job)
    assert job.partials == []
    monkeypatch.setattr(table_preview, "LARGE_BYTES", 10**9)
    (tmp_path / "c").mkdir()
    assert profiled(tmp_path / "c", table(100))[1] == []


def test_a_file_whose_first_rows_are_right_and_whose_last_are_not_is_still_refused(tmp_path: Path) -> None:
    job = job_for(tmp_path, table(30_000) + b"1,2,3,4\n")
    with pytest.raises(BadInput):
        table_profile(job)
    assert len(job.partials) == 1
