"""The processor `table-to-parquet`: every value of the CSV, in its order, as a type that gives it back."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import duckdb
import pytest

from headway.shared.errors import BadInput
from headway.shared.tasks.registry import load_registry
from headway.worker.processors.table_to_parquet import table_to_parquet
from tests.unit.recording_job import RecordingJob

PROCESSOR = load_registry().get("table-to-parquet")


def job_for(folder: Path, data: bytes | str, **options: Any) -> RecordingJob:
    encoded = data.encode() if isinstance(data, str) else data
    return RecordingJob(folder, encoded, processor=PROCESSOR, options=options, memory_bytes=256 * 1024**2)


def read(job: RecordingJob) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute("SELECT * FROM read_parquet($1)", [str(job.outputs / "input.parquet")]).fetchall()


def type_of(folder: Path, *values: str) -> str:
    job = job_for(folder, "\n".join(("x,y", *(f"{value},z" for value in values), "")))
    found: str = (table_to_parquet(job) or {})["columns"][0]["type"]
    return found


def test_a_table_is_written_with_its_types(tmp_path: Path) -> None:
    job = job_for(
        tmp_path, 'id,name,at,paid\n1,"a, ""b""\nc",2024-01-31 10:00:00,true\n2,,2024-02-01T10:00:00Z,FALSE\n'
    )
    summary = table_to_parquet(job) or {}
    assert summary == {
        "rows": 2,
        "columns": [
            {"name": "id", "type": "BIGINT", "nulls": 0},
            {"name": "name", "type": "VARCHAR", "nulls": 1},
            {"name": "at", "type": "TIMESTAMP", "nulls": 0},
            {"name": "paid", "type": "BOOLEAN", "nulls": 0},
        ],
        "read_as": {"format": "csv", "encoding": "utf-8", "delimiter": ",", "header": True},
        "notes": [],
        "size_bytes": (job.outputs / "input.parquet").stat().st_size,
    }
    assert [(row[0], row[1], row[2].isoformat(), row[3]) for row in read(job)] == [
        (1, 'a, "b"\nc', "2024-01-31T10:00:00", True),
        (2, None, "2024-02-01T10:00:00", False),
    ]


def test_many_rows_keep_their_order_and_their_values(tmp_path: Path) -> None:
    chance = random.Random(3)
    rows = [(n, chance.choice(["x", "y" * 40, None]), chance.random()) for n in range(200_000)]
    text = io.StringIO("id,text,number\n")
    text.seek(0, io.SEEK_END)
    text.writelines(f"{n},{word or ''},{number}\n" for n, word, number in rows)
    job = job_for(tmp_path, text.getvalue())
    assert (table_to_parquet(job) or {})["rows"] == len(rows)
    assert read(job) == rows


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (("1", "-20", ""), "BIGINT"),
        (("9223372036854775807",), "BIGINT"),
        (("9223372036854775808",), "VARCHAR"),
        (("007", "1"), "VARCHAR"),
        (("+47", "1"), "DOUBLE"),
        (("1", "1.5", "-2e10", "0.00012345678901234567"), "DOUBLE"),
        (("1234567890123456.5",), "VARCHAR"),
        (("nan", "1.5"), "DOUBLE"),
        (("inf", "1.5"), "VARCHAR"),
        (("true", "False"), "BOOLEAN"),
        (("t", "f"), "VARCHAR"),
        (("2024-02-29",), "DATE"),
        (("2024-02-30",), "VARCHAR"),
        (("2024-02-29 10:00", "2024-02-29T10:00:01.5Z"), "TIMESTAMP"),
        (("2024-02-29T10:00:00+02:00",), "VARCHAR"),
        (("2024-02-29 10:00:00.123456789",), "VARCHAR"),
        (("10:00", "10:00:00.5"), "TIME"),
        (("", ""), "VARCHAR"),
        (("1",) * 3000 + ("n/a",), "BIGINT"),
        (("1",) * 3000 + ("x",), "VARCHAR"),
        (("",) * 3000 + ("7",), "BIGINT"),
    ],
)
def test_a_type_is_given_where_nothing_is_lost_by_it(tmp_path: Path, values: tuple[str, ...], kind: str) -> None:
    assert type_of(tmp_path, *values) == kind


def test_types_can_be_left_out(tmp_path: Path) -> None:
    job = job_for(tmp_path, "a;b\n1;2\n", types=False, delimiter=";", compression="snappy")
    assert [column["type"] for column in (table_to_parquet(job) or {})["columns"]] == ["VARCHAR", "VARCHAR"]
    assert read(job) == [("1", "2")]


def test_names_are_never_sql_and_come_once(tmp_path: Path) -> None:
    job = job_for(tmp_path, '"a"" FROM x; --",b,B,\'\n1,2,3,4\n')
    names = [column["name"] for column in (table_to_parquet(job) or {})["columns"]]
    assert names == ['a" FROM x; --', "b", "B_2", "'"]
    assert read(job) == [(1, 2, 3, 4)]


def test_a_file_whose_name_has_a_quote_is_written_under_it(tmp_path: Path) -> None:
    job = job_for(tmp_path, "a,b\n1,2\n")
    job.filename = 'o\'hara "x".csv'
    table_to_parquet(job)
    assert [path.name for path in job.outputs.iterdir()] == ['o\'hara "x".parquet']


def test_both_passes_are_counted_to_their_end(tmp_path: Path) -> None:
    job = job_for(tmp_path, "\n".join([",".join("abc"), *["1,2,3"] * 100_000, ""]))
    table_to_parquet(job)
    assert job.phases == list(PROCESSOR.phases)
    for phase in job.phases[1:]:
        counts = [(done, total) for name, done, total in job.counts if name == phase]
        assert counts == sorted(counts)
        assert counts[-1] == (job.size_bytes, job.size_bytes)


def test_an_attempt_with_the_types_of_the_one_before_it_reads_once(tmp_path: Path) -> None:
    job = job_for(tmp_path, "a,b\n1,2\n")
    job.restored = {"kinds": ["number", None], "nulls": [0, 0], "notes": []}
    table_to_parquet(job)
    assert read(job) == [(1.0, "2")]
    assert "Finding types" not in job.phases


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "The file is empty."),
        (b"a,b\n1," + bytes(99), "binary"),
        (b"a,b\n1,2\n1,2,3\n", "Line 3 has more than 2 values"),
        ("a,é\n1,".encode() + b"\xff\n", "Line 2 is not UTF-8"),
        (b'a,b\n1,"2\n', "never closed"),
        (b"a," * 2000 + b"b\n", "columns can be written"),
    ],
)
def test_what_is_no_csv_is_bad_input_and_says_what_to_do(tmp_path: Path, data: bytes, word: str) -> None:
    with pytest.raises(BadInput) as raised:
        table_to_parquet(job_for(tmp_path, data))
    assert word in str(raised.value)
    assert str(tmp_path) not in str(raised.value)
