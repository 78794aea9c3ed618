"""The sample table: as large as asked for, always the same, always a CSV."""

from __future__ import annotations

import csv
import io
from datetime import datetime
from pathlib import Path

import pytest

from headway.cli.sample import COLUMNS, ROWS_A_DAY, write_sample

#: More than one day's block, so that what is repeated is seen.
SIZE_BYTES = 900_000


def sample(folder: Path, size_bytes: int = SIZE_BYTES, **more: int) -> bytes:
    write_sample(folder / "sample.csv", size_bytes, **more)
    return (folder / "sample.csv").read_bytes()


def rows_of(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True))


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(tmp_path: Path) -> None:
    assert sample(tmp_path, seed=1) == sample(tmp_path, seed=1)
    assert sample(tmp_path, seed=1) != sample(tmp_path, seed=2)


@pytest.mark.parametrize("size_bytes", [0, 10, 500, 100_000, SIZE_BYTES])
def test_it_is_the_header_and_as_many_whole_rows_as_fit(tmp_path: Path, size_bytes: int) -> None:
    count = write_sample(tmp_path / "sample.csv", size_bytes)
    data = (tmp_path / "sample.csv").read_bytes()
    rows = rows_of(data)
    assert len(rows) == count
    assert data.splitlines()[0].decode() == ",".join(COLUMNS)
    assert all(len(row) == len(COLUMNS) and None not in row.values() for row in rows)
    if count:
        assert size_bytes - 150 < len(data) <= size_bytes
    assert sample(tmp_path, SIZE_BYTES * 2).startswith(data)


def test_a_trip_ends_after_it_began_and_no_two_have_one_number(tmp_path: Path) -> None:
    rows = rows_of(sample(tmp_path))
    assert len(rows) > ROWS_A_DAY
    assert len({row["trip_id"] for row in rows}) == len(rows)
    began = [datetime.fromisoformat(row["pickup_at"]) for row in rows]
    assert began == sorted(began)
    assert all(start < datetime.fromisoformat(row["dropoff_at"]) for start, row in zip(began, rows, strict=True))


def test_it_has_what_real_tables_have(tmp_path: Path) -> None:
    rows = rows_of(sample(tmp_path))
    assert any("," in row["pickup_zone"] for row in rows)
    for column in ("dropoff_zone", "passengers", "tip"):
        assert 0 < sum(not row[column] for row in rows) < len(rows)
    assert {row["payment"] for row in rows} == {"card", "cash", "account", "disputed"}
    assert all(float(row["fare"]) > 3 for row in rows)
