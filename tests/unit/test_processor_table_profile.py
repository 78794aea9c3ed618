"""The processor `table-profile`: true figures for every table that is one, and a sentence for all that is none."""

from __future__ import annotations

import csv
import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from headway.shared.errors import BadInput, InvalidRequest
from headway.shared.tasks.registry import load_registry
from headway.worker.processors import table_profile as module
from headway.worker.processors.table_profile import table_profile
from tests.unit.recording_job import RecordingJob

PROCESSOR = load_registry().get("table-profile")
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 8


def job_for(folder: Path, data: bytes | str, **options: Any) -> RecordingJob:
    encoded = data.encode() if isinstance(data, str) else data
    return RecordingJob(folder, encoded, processor=PROCESSOR, options=options)


def profile(folder: Path, data: bytes | str, **options: Any) -> dict[str, Any]:
    return table_profile(job_for(folder, data, **options))  # type: ignore[return-value]


def column(folder: Path, values: list[str], **options: Any) -> dict[str, Any]:
    """The profile of one column of these values."""
    result = profile(folder, "\n".join(("x,y", *(f"{value},1" for value in values), "")), **options)
    assert result["rows"] == len(values)
    found: dict[str, Any] = result["columns"][0]
    return found


def refusal(folder: Path, data: bytes | str, **options: Any) -> str:
    with pytest.raises(BadInput) as raised:
        profile(folder, data, **options)
    return str(raised.value)


def test_a_table_is_profiled_column_by_column(tmp_path: Path) -> None:
    data = "id,city,fare,at,day,paid\n"
    data += "1,Oslo,2.5,2024-01-31 10:00:00,2024-01-31,true\n"
    data += "2,Oslo,,2023-01-31T10:00:00,2024-02-01,false\n"
    data += '3,"Rome, Italy",7.5,2024-01-31 10:00:00.5,2024-02-01,TRUE\n'
    found = profile(tmp_path, data, top_values=1)
    for column in found["columns"]:
        assert column.pop("distinct_estimated") is False
    assert found == {
        "rows": 3,
        "read_as": {"format": "csv", "encoding": "utf-8", "delimiter": ",", "header": True},
        "notes": [],
        "columns": [
            {"name": "id", "type": "integer", "nulls": 0, "distinct": 3, "min": 1, "max": 3, "mean": 2.0}
            | {"top": [{"value": "1", "count": 1}]},
            {"name": "city", "type": "text", "nulls": 0, "distinct": 2, "min": "Oslo", "max": "Rome, Italy"}
            | {"mean": None, "top": [{"value": "Oslo", "count": 2}]},
            {"name": "fare", "type": "number", "nulls": 1, "distinct": 2, "min": 2.5, "max": 7.5, "mean": 5.0}
            | {"top": [{"value": "2.5", "count": 1}]},
            {"name": "at", "type": "timestamp", "nulls": 0, "distinct": 3, "min": "2023-01-31T10:00:00"}
            | {"max": "2024-01-31T10:00:00.5", "mean": None, "top": [{"value": "2023-01-31T10:00:00", "count": 1}]},
            {"name": "day", "type": "date", "nulls": 0, "distinct": 2, "min": "2024-01-31", "max": "2024-02-01"}
            | {"mean": None, "top": [{"value": "2024-02-01", "count": 2}]},
            {"name": "paid", "type": "boolean", "nulls": 0, "distinct": 3, "min": False, "max": True}
            | {"mean": None, "top": [{"value": "TRUE", "count": 1}]},
        ],
    }


def test_the_report_is_a_result_file_too(tmp_path: Path) -> None:
    job = job_for(tmp_path, "a;b\n1;ø\n")
    summary = table_profile(job)
    report = json.loads((job.outputs / "profile.json").read_text(encoding="utf-8"))
    assert report == {"filename": "input.csv", "size_bytes": 9, **(summary or {})["read_as"], **(summary or {})}
    assert (report["delimiter"], report["header"]) == (";", True)


def test_the_figures_are_those_of_a_plain_count(tmp_path: Path) -> None:
    chance = random.Random(7)
    texts = [f"word {number}\n{'x' * chance.randrange(9)}" for number in range(40)]
    rows = [(chance.choice(texts), chance.choice(["", str(chance.randrange(300))])) for _ in range(30_000)]
    text = io.StringIO()
    csv.writer(text).writerows([("word", "number"), *rows])
    result = profile(tmp_path, text.getvalue())
    assert result["rows"] == len(rows)
    for index, found in enumerate(result["columns"]):
        filled = [row[index] for row in rows if row[index]]
        counts = Counter(filled)
        assert found["nulls"] == len(rows) - len(filled)
        assert found["distinct"] == pytest.approx(len(counts), rel=0.1)
        assert [top["count"] for top in found["top"]] == [counts[top["value"]] for top in found["top"]]
    words = Counter(row[0] for row in rows)
    assert result["columns"][0]["distinct"] == len(words) == 40
    most = sorted(words.items(), key=lambda item: (-item[1], item[0]))[:5]
    assert [(top["value"], top["count"]) for top in result["columns"][0]["top"]] == most
    assert result["columns"][1]["mean"] == pytest.approx(sum(int(row[1] or 0) for row in rows) / len(filled))


def test_the_bytes_of_both_passes_are_counted_to_their_end(tmp_path: Path) -> None:
    job = job_for(tmp_path, "a,b\n1,2\n")
    table_profile(job)
    assert job.phases == list(PROCESSOR.phases)
    for phase in job.phases[1:]:
        counts = [(done, total) for name, done, total in job.counts if name == phase]
        assert counts == sorted(counts)
        assert counts[-1] == (job.size_bytes, job.size_bytes)


# What a CSV may look like.


def test_a_header_alone_is_columns_without_rows(tmp_path: Path) -> None:
    result = profile(tmp_path, "a,b")
    assert result["rows"] == 0
    assert [found["name"] for found in result["columns"]] == ["a", "b"]
    assert result["columns"][0] == {"name": "a", "type": "text", "nulls": 0, "distinct": 0} | dict.fromkeys(
        ("min", "max", "mean")
    ) | {"top": [], "distinct_estimated": False}


def test_one_column_needs_no_separator(tmp_path: Path) -> None:
    result = profile(tmp_path, "name\nanna\nbob\nanna\n")
    assert [found["name"] for found in result["columns"]] == ["name"]
    assert result["columns"][0]["top"][0] == {"value": "anna", "count": 2}


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(tmp_path: Path, separator: str) -> None:
    others = ".".join({",", ";", "|"} - {separator})
    data = "".join(separator.join((f'"{others}"', str(number), "z")) + "\n" for number in range(9))
    assert len(profile(tmp_path, data)["columns"]) == 3


def test_a_separator_that_is_given_is_taken(tmp_path: Path) -> None:
    assert len(profile(tmp_path, "a,b;c\n1,2;3\n", delimiter=";")["columns"]) == 2


def test_a_tab_can_be_given_as_it_is_typed(tmp_path: Path) -> None:
    assert len(profile(tmp_path, "a,b\tc\n1,2\t3\n", delimiter="\\t")["columns"]) == 2


def test_quoted_lines_quotes_and_separators_are_part_of_the_value(tmp_path: Path) -> None:
    found = profile(tmp_path, 'a,b\r\n"x\r\ny, ""z""",1\r\n')
    assert found["rows"] == 1
    assert found["columns"][0]["min"] == 'x\r\ny, "z"'


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert profile(tmp_path, b"\xef\xbb\xbfa,b\n1,2\n")["columns"][0]["name"] == "a"


def test_blank_lines_before_the_header_are_left_out(tmp_path: Path) -> None:
    result = profile(tmp_path, "\n\na,b\n1,2\n")
    assert result["rows"] == 1
    assert [found["name"] for found in result["columns"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ("1,2\n3,4\n", ["column_1", "column_2"]),
        ("anna,1\nbob,2\n", ["column_1", "column_2"]),
        ("city,2019\nOslo,1\n", ["city", "2019"]),
        ("id,2019\n1,2\n", ["id", "2019"]),
        ("a,,a\nx,y,z\n", ["a", "column_2", "a"]),
    ],
)
def test_a_header_is_told_from_data(tmp_path: Path, data: str, names: list[str]) -> None:
    assert [found["name"] for found in profile(tmp_path, data)["columns"]] == names


@pytest.mark.parametrize(("header", "rows"), [(True, 1), (False, 2)])
def test_a_header_that_is_said_to_be_there_or_not_is_believed(tmp_path: Path, header: bool, rows: int) -> None:
    assert profile(tmp_path, "1,2\n3,4\n", header=header)["rows"] == rows


def test_too_many_columns_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="16,385 columns"):
        profile(tmp_path, ",".join(["1"] * 16_385) + "\n")


@pytest.mark.parametrize("together", [True, False])
def test_many_columns_are_read_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool) -> None:
    if not together:
        monkeypatch.setattr(module, "WIDE_BYTES", 2**60)
    size = 1001 if together else 301
    names = [f"column {number}" for number in range(size)]
    rows = ([str(number * row) for number in range(size)] for row in range(20))
    job = job_for(tmp_path, "\n".join(map(",".join, (names, *rows))), top_values=0)
    result = table_profile(job) or {}
    assert result["rows"] == 20
    assert [found["name"] for found in result["columns"]] == names
    assert [found["max"] for found in result["columns"]] == [number * 19 for number in range(size)]
    done, total = job.counts[-1][1:]
    assert done == total
    assert together or done > job.size_bytes


def test_a_summary_too_large_for_a_task_is_shortened_and_the_file_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SUMMARY_BYTES", 400)
    job = job_for(tmp_path, "a,b,c,d,e\n1,2,3,4,5\n")
    summary = table_profile(job) or {}
    assert summary["shortened"]
    assert [(found["name"], found["top"]) for found in summary["columns"]] == [("a", []), ("b", []), ("c", [])]
    report = json.loads((job.outputs / "profile.json").read_text(encoding="utf-8"))
    assert len(report["columns"]) == 5
    assert report["columns"][4]["top"] == [{"value": "5", "count": 1}]


def test_names_and_values_are_never_sql(tmp_path: Path) -> None:
    evil = "'; DROP TABLE x; --"
    result = profile(tmp_path, f'"{evil}",b""\n"{evil}",$path\n"{evil}",$top0\n')
    assert result["columns"][0]["name"] == evil
    assert result["columns"][0]["top"] == [{"value": evil, "count": 2}]


# What a type is.


@pytest.mark.parametrize(
    ("values", "kind", "low", "high"),
    [
        (["1", "-2", ""], "integer", -2, 1),
        (["1", "1.5"], "number", 1.0, 1.5),
        (["1"] * 3000 + ["2.5"], "number", 1.0, 2.5),
        (["1"] * 3000 + ["n/a"], "integer", 1, 1),
        (["1"] * 3000 + ["x"], "text", "1", "x"),
        ([""] * 3000 + ["7"], "integer", 7, 7),
        (["9223372036854775808"], "text", "9223372036854775808", "9223372036854775808"),
        (["nan", "1.5"], "number", 1.5, 1.5),
        (["nan"], "text", "nan", "nan"),
        (["007", "1"], "text", "007", "1"),
        (["3:2", "1:1"], "text", "1:1", "3:2"),
        (["2024-02-29T10:00:00+02:00"], "text", "2024-02-29T10:00:00+02:00", "2024-02-29T10:00:00+02:00"),
        (["2024-02-29T10:00:00Z"], "timestamp", "2024-02-29T10:00:00Z", "2024-02-29T10:00:00Z"),
        (["31/1/2024", "1/2/2024"], "date", "2024-01-31", "2024-02-01"),
        (["1/31/2024", "2/1/2024"], "date", "2024-01-31", "2024-02-01"),
        (["31.1.2024", "1.2.2024"], "date", "2024-01-31", "2024-02-01"),
        (["1/2/2024", "3/2/2024"], "text", "1/2/2024", "3/2/2024"),
        (["31/12/2024 9:30", "1/1/2024 10:00"], "timestamp", "2024-01-01T10:00:00", "2024-12-31T09:30:00"),
        (["2024-02-29", "2024-03-01 12:00"], "timestamp", "2024-02-29T00:00:00", "2024-03-01T12:00:00"),
        (["2024-02-30"], "text", "2024-02-30", "2024-02-30"),
        (["12:30:00", "08:00:00"], "time", "08:00:00", "12:30:00"),
        (["t", "f"], "text", "f", "t"),
        (["", ""], "text", None, None),
    ],
)
def test_a_type_is_what_every_value_fits(tmp_path: Path, values: list[str], kind: str, low: Any, high: Any) -> None:
    found = column(tmp_path, values)
    assert (found["type"], found["min"], found["max"]) == (kind, low, high)
    json.dumps(found, allow_nan=False)


def test_a_long_text_is_cut_and_says_so(tmp_path: Path) -> None:
    found = column(tmp_path, ["é" * 80, "é" * 81, "é" * 200])
    assert found["min"] == "é" * 80
    assert found["max"] == "é" * 79 + "…"
    assert {top["value"]: top["count"] for top in found["top"]} == {"é" * 80: 1, "é" * 79 + "…": 2}


def test_a_value_that_comes_once_is_no_top_value_among_many(tmp_path: Path) -> None:
    found = column(tmp_path, [str(number) for number in range(5000)] + ["17"] * 500)
    assert found["top"] == [{"value": "17", "count": 501}]
    assert found["distinct"] == pytest.approx(5000, rel=0.1)


def test_top_values_can_be_left_out(tmp_path: Path) -> None:
    assert column(tmp_path, ["a"], top_values=0)["top"] == []


# What is no CSV.


def test_a_png_named_csv_is_bad_input(tmp_path: Path) -> None:
    assert refusal(tmp_path, PNG).startswith("This is a file of the type image/png, not a table.")


@pytest.mark.parametrize("data", [b"", b"\n\r\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_bad_input(tmp_path: Path, data: bytes) -> None:
    assert refusal(tmp_path, data).startswith("The file is empty.")


def test_a_binary_file_is_bad_input(tmp_path: Path) -> None:
    assert refusal(tmp_path, bytes(range(256)) * 9).startswith("This is a binary file, not a table.")


def test_utf_8_and_something_else_in_one_file_is_bad_input_with_its_line(tmp_path: Path) -> None:
    data = "a,b\né,1\n".encode() + b"xy,1\n" * 3 + "é,1\n".encode("latin-1")
    assert refusal(tmp_path, data).startswith("Line 6 is not UTF-8 text, and others are.")


@pytest.mark.parametrize(("row", "is_said"), [("1,2", "fewer than 3"), ("1,2,3,4", "more than 3")])
@pytest.mark.parametrize("rows", [5, 300_000])
def test_a_ragged_row_is_bad_input_with_its_line(tmp_path: Path, row: str, is_said: str, rows: int) -> None:
    message = refusal(tmp_path, "a,b,c\n" + "1,2,3\n" * rows + row + "\n1,2,3\n")
    assert message.startswith(f"Line {rows + 2} has {is_said} values")


def test_a_quote_that_is_never_closed_is_bad_input(tmp_path: Path) -> None:
    assert "opens a quote that is never closed" in refusal(tmp_path, 'a,b\n1,2\n"3,4\n')


@pytest.mark.parametrize("data", ['a,b\n"1"x,2\n', "{\n  'a': 1,\n  'b': [1, 2]\n}\n"])
def test_what_breaks_the_rules_of_csv_is_bad_input_without_a_path(tmp_path: Path, data: str) -> None:
    assert str(tmp_path) not in refusal(tmp_path, data)


def test_a_line_that_never_ends_is_bad_input(tmp_path: Path) -> None:
    assert "never closed" in refusal(tmp_path, b"a,b\n1,2\n" + b"x" * (5 * 1024 * 1024))


@pytest.mark.parametrize(
    "options", [{"delimiter": ""}, {"delimiter": ",,"}, {"delimiter": '"'}, {"top_values": 21}, {"header": "perhaps"}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        PROCESSOR.parse_options(options)


def test_a_table_that_needs_more_memory_than_there_is_is_a_memory_error(tmp_path: Path) -> None:
    job = RecordingJob(tmp_path, b"a,b\n1,2\n", processor=PROCESSOR, memory_bytes=1024 * 1024)
    with pytest.raises(MemoryError):
        table_profile(job)
