"""`table-profile` and `table-to-parquet` with the files people really have, each of a kind: as many rows as there are,
or a sentence that says why not and what helps. Both find the same types; what was left out or guessed is told."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import duckdb
import openpyxl
import pytest

from headway.shared.errors import BadInput, InvalidRequest
from headway.shared.tasks.registry import load_registry
from tests.unit.recording_job import RecordingJob

REGISTRY: Final = load_registry()
SAME: Final = {
    "BIGINT": "integer",
    "DOUBLE": "number",
    "BOOLEAN": "boolean",
    "VARCHAR": "text",
    "DATE": "date",
    "TIMESTAMP": "timestamp",
    "TIME": "time",
}


class Found:
    """What both processors found, which is the same."""

    def __init__(self, folder: Path, data: bytes | str, name: str = "input.csv", **options: Any) -> None:
        encoded = data.encode() if isinstance(data, str) else data
        summaries = []
        for processor in ("table-profile", "table-to-parquet"):
            one = REGISTRY.get(processor)
            (place := folder / processor).mkdir()
            job = RecordingJob(place, encoded, processor=one, options=options)
            job.filename = name
            summaries.append(one.run(job) or {})
        profile, written = summaries
        [path] = job.outputs.iterdir()
        with duckdb.connect() as connection:
            self.rows = connection.execute("SELECT * FROM read_parquet($1)", [str(path)]).fetchall()
        assert profile["rows"] == written["rows"] == len(self.rows)
        self.names = [column["name"] for column in profile["columns"]]
        self.types = [column["type"] for column in profile["columns"]]
        self.nulls = [column["nulls"] for column in profile["columns"]]
        assert self.types == [SAME[column["type"]] for column in written["columns"]]
        assert self.nulls == [column["nulls"] for column in written["columns"]]
        assert {"notes": profile["notes"], "read_as": profile["read_as"]} | profile.get("left_out", {}) == {
            "notes": [note for note in written["notes"] if "renamed" not in note],
            "read_as": written["read_as"],
        } | written.get("left_out", {})
        self.columns: list[dict[str, Any]] = profile["columns"]
        self.read_as: dict[str, Any] = profile["read_as"]
        self.left_out: dict[str, int] = profile.get("left_out", {})
        self.notes = "\n".join(profile["notes"])


def refusal(folder: Path, data: bytes | str, **options: Any) -> str:
    encoded = data.encode() if isinstance(data, str) else data
    said = set()
    for processor in ("table-profile", "table-to-parquet"):
        one = REGISTRY.get(processor)
        (place := folder / processor).mkdir()
        with pytest.raises(BadInput) as raised:
            one.run(RecordingJob(place, encoded, processor=one, options=options))
        said.add(str(raised.value))
    [message] = said
    assert str(folder) not in message
    return message


# What stands above, in and below the table.


@pytest.mark.parametrize(
    ("data", "names", "rows", "left_out"),
    [
        ("Monthly report\na;b;c\n1;2;3\n3;4;5\n", ["a", "b", "c"], 2, {"lines_above": 1}),
        ("Report,,\n,,\nname,b,c\nx,2,3\ny,4,5\n", ["name", "b", "c"], 2, {"lines_above": 2}),
        ("# made by X\n# on a day\na,b\n1,2\n3,4\n", ["a", "b"], 2, {"lines_above": 2}),
        ("sep=;\na;b\n1;2\n3;4\n", ["a", "b"], 2, {"lines_above": 1}),
        ("sep=|\r\na|b|c\r\n1|2|3\r\n", ["a", "b", "c"], 1, {"lines_above": 1}),
        ("Title\n\na,b\n1,2\n3,4\n", ["a", "b"], 2, {"lines_above": 2}),
        ("a,b,c\n1,2,3\n4,5,6\n\nSource: Bureau of X\n", ["a", "b", "c"], 2, {"lines_below": 1, "blank_lines": 1}),
        ("a,b\n1,2\n\n\n3,4\n\n", ["a", "b"], 2, {"blank_lines": 3}),
        ("a\n1\n3\n\n\n", ["a"], 2, {"blank_lines": 2}),
        ("\n\na,b\n1,2\n", ["a", "b"], 1, {"blank_lines": 2}),
        ("#id,name\n1,x\n2,y\n", ["#id", "name"], 2, {}),
        ("name, price\nx, 1\n", ["name", "price"], 1, {}),
        ('"name", "price"\n"foo, or bar",2\nbar,4\n', ["name", "price"], 2, {}),
        ("name\nDoe, John\nRoe, Jane\n", ["name"], 2, {}),
        ("a,b,c,\n1,2,3,\n4,5,6,\n", ["a", "b", "c", "column_4"], 2, {}),
        ("a,b,c\n1,2,3,\n4,5,6,\n", ["a", "b", "c"], 2, {}),
        ("a,b\nr1,1,2\nr2,3,4\n", ["column_1", "a", "b"], 2, {}),
        ("a,b\r\n1,2\n3,4\r5,6\r\n", ["a", "b"], 3, {}),
        ("a,b\r1,2\r3,4\r", ["a", "b"], 2, {}),
        ("a,b\r\n1,2\r\n\x1a", ["a", "b"], 1, {"blank_lines": 1}),
        ('a,b\r\n"x\ny",1\r\n"z\r\nw",2\r\n', ["a", "b"], 2, {}),
        ("'a','b'\n'1,5','2'\n'3','4'\n", ["a", "b"], 2, {}),
    ],
)
def test_what_is_around_the_table_is_left_out_counted_and_told(
    tmp_path: Path, data: str, names: list[str], rows: int, left_out: dict[str, int]
) -> None:
    found = Found(tmp_path, data)
    assert (found.names, len(found.rows), found.left_out) == (names, rows, left_out)
    assert bool(found.notes) or not left_out


@pytest.mark.parametrize(
    ("data", "names", "rows"),
    [
        ("Country,Code,1960,1961\nAruba,ABW,54211,55438\nAngola,AGO,5454933,5531472\n", None, 2),
        ("country,1/22/20,1/23/20\nA,1,2\nB,3,4\n", None, 2),
        (",0,1,2\nx,5,6,7\ny,8,9,10\n", ["column_1", "0", "1", "2"], 2),
        ("city,2019\nOslo,1\n", None, 1),
        ("anna,1999\nbob,2001\n", ["column_1", "column_2"], 2),
        ("1,2\n3,4\n", ["column_1", "column_2"], 2),
    ],
)
def test_names_years_and_dates_are_a_header_and_where_none_was_found_is_told(
    tmp_path: Path, data: str, names: list[str] | None, rows: int
) -> None:
    found = Found(tmp_path, data)
    assert (found.names, len(found.rows)) == (names or data.partition("\n")[0].split(","), rows)
    assert ("No header was found" in found.notes) is (not found.read_as["header"])


def test_no_quote_in_a_header_loses_a_row(tmp_path: Path) -> None:
    found = Found(tmp_path, '"Tube 6" long","price"\n' + '"foo",1\n' * 5000)
    assert found.names == ['Tube 6" long', "price"]
    assert len(found.rows) == 5000
    assert "Line 1 has a quote inside a quoted value" in found.notes


@pytest.mark.parametrize("rows", [3, 200_000])
def test_stray_quotes_lose_no_row(tmp_path: Path, rows: int) -> None:
    found = Found(tmp_path, "a,b\n" + "1,2\n" * rows + '5" pipe,6\n7,"8" and 9"\n10,11\n')
    assert found.rows[-3:] == [('5" pipe', "6"), ("7", '8" and 9'), ("10", "11")]
    assert len(found.rows) == rows + 3


def test_a_quote_after_a_backslash_is_a_part_of_the_value(tmp_path: Path) -> None:
    assert Found(tmp_path, 'a,b\n"say \\"hi\\", you",2\n').rows == [('say "hi", you', 2)]


# Rows that do not fit.


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ("1,2", "Line 3 has fewer than 3 values"),
        ("1,2,3,4", "Line 3 has more than 3 values"),
        ('1,"2,3', "Line 3 opens a quote that is never closed"),
        ('1,"2"x,3', "Line 3 breaks the rules of quotes"),
    ],
)
@pytest.mark.parametrize("rest", [2, 60_000])
def test_a_row_that_does_not_fit_is_refused_with_its_line_or_left_out_and_counted(
    tmp_path: Path, row: str, cause: str, rest: int
) -> None:
    data = f"a,b,c\n1,2,3\n{row}\n" + "4,5,6\n" * rest
    message = refusal(tmp_path, data)
    assert message.startswith(cause)
    assert "`on_bad_rows`" in message
    (tmp_path / "again").mkdir()
    found = Found(tmp_path / "again", data, on_bad_rows="skip")
    assert (len(found.rows), found.left_out) == (rest + 1, {"bad_rows": 1})
    assert cause in found.notes
    assert found.types == ["integer"] * 3


def test_a_table_that_goes_on_below_a_short_line_has_no_footer(tmp_path: Path) -> None:
    assert refusal(tmp_path, "a,b\n1,2\n\nSubtotal\n3,4\n").startswith("Line 4 has fewer than 2 values")


# Encodings.


@pytest.mark.parametrize(
    ("encoding", "said", "options"),
    [
        ("utf-8-sig", "utf-8", {}),
        ("utf-16", "utf-16", {}),
        ("utf-16-le", "utf-16-le", {}),
        ("utf-16-be", "utf-16-be", {}),
        ("utf-32", "utf-32", {}),
        ("latin-1", "cp1252", {}),
        ("cp1252", "cp1252", {}),
        ("shift_jis", "shift_jis", {"encoding": "sjis"}),
        ("gb18030", "gb18030", {"encoding": "gb18030"}),
        ("cp1251", "cp1251", {"encoding": "windows-1251"}),
    ],
)
@pytest.mark.parametrize("before", [0, 300_000])
def test_encodings(tmp_path: Path, encoding: str, said: str, options: dict[str, Any], before: int) -> None:
    word = {"shift_jis": "東京", "gb18030": "北京市", "cp1251": "Москва"}.get(encoding, "Málaga")
    text = "n,city\n" + "1,x\n" * before + f"2,{word}\n3,{word}\n"
    found = Found(tmp_path, text.encode(encoding), **options)
    assert found.rows[-1] == (3, word)
    assert len(found.rows) == before + 2
    assert found.read_as["encoding"] == said
    assert ("guess" in found.notes) is (encoding in ("latin-1", "cp1252", "utf-16-le", "utf-16-be"))


def test_another_alphabet_is_no_guess(tmp_path: Path) -> None:
    message = refusal(tmp_path, "имя,город\nАнна,Москва\n".encode("cp1251"))
    assert message.startswith("Line 1 is not UTF-8")
    assert "`encoding`" in message


@pytest.mark.parametrize("before", [0, 400_000])
def test_a_nul_is_kept_and_told_wherever_it_is(tmp_path: Path, before: int) -> None:
    found = Found(tmp_path, b"a,b\n" + b"1,y\n" * before + b"1,x\0y\n2,z\n")
    assert found.rows[-2:] == [(1, "x\0y"), (2, "z")]
    assert "1 NUL character" in found.notes


# Types and nulls.


def test_words_for_no_value_are_nulls_in_a_column_that_has_a_type_and_text_in_one_of_text(tmp_path: Path) -> None:
    data = "n,d,country\n1,2024-01-31,NA\nNA,--,NO\n#N/A,NULL,SE\n4,,x\n"
    found = Found(tmp_path, data)
    assert found.types == ["integer", "date", "text"]
    assert found.nulls == [2, 3, 0]
    assert "4 values are words for no value" in found.notes
    assert found.columns[0]["distinct"] == 2
    assert {top["value"] for top in found.columns[0]["top"]} == {"1", "4"}


def test_words_that_are_said_to_be_no_value_are_so_everywhere(tmp_path: Path) -> None:
    found = Found(tmp_path, "n,t\n1,x\nnone,?\n3,?\n", null_values=["none", "?"])
    assert (found.types, found.nulls) == (["integer", "text"], [1, 2])
    (tmp_path / "again").mkdir()
    assert Found(tmp_path / "again", "n,t\nNA,x\n1,?\n", null_values="none, ?").types == ["text", "text"]


def test_leading_zeros_offsets_and_ratios_are_text(tmp_path: Path) -> None:
    found = Found(tmp_path, "zip,at,ratio\n00501,2024-01-31T10:00:00+02:00,3:2\n10001,2024-01-31T10:00:00Z,16:9\n")
    assert found.types == ["text"] * 3
    assert found.rows[0] == ("00501", "2024-01-31T10:00:00+02:00", "3:2")


def test_dates_that_may_be_either_stay_text_with_a_word_and_can_be_named(tmp_path: Path) -> None:
    data = "d,x\n1/2/2024,1\n3/4/2024,2\n"
    found = Found(tmp_path, data)
    assert found.types == ["text", "integer"]
    assert "date_dmy" in found.notes
    for kind, day in (("date_dmy", "2024-02-01"), ("date_mdy", "2024-01-02")):
        (tmp_path / kind).mkdir()
        named = Found(tmp_path / kind, data, types={"d": kind})
        assert (named.types, str(named.rows[0][0])) == (["date", "integer"], day)


def test_a_type_that_is_named_is_taken_or_refused_with_its_row(tmp_path: Path) -> None:
    found = Found(tmp_path, "a,b\n007,1\n8,2\n", types="a=integer, *=text")
    assert found.rows == [(7, "1"), (8, "2")]
    (tmp_path / "again").mkdir()
    message = refusal(tmp_path / "again", "a,b\n1,1\nx,2\ny,3\n", types={"a": "integer"})
    assert "'a' has 2 values that are no integer" in message
    assert "in row 2, is 'x'" in message
    (tmp_path / "unknown").mkdir()
    assert "Did you mean 'amount'?" in refusal(tmp_path / "unknown", "amount,b\n1,2\n", types={"amuont": "text"})


def test_different_values_are_counted_exactly_up_to_a_thousand_and_estimated_above(tmp_path: Path) -> None:
    rows = "".join(f"{n % 900},{n % 40},{n}\n" for n in range(9000))
    columns = Found(tmp_path, "few,less,many\n" + rows).columns
    assert [column["distinct"] for column in columns[:2]] == [900, 40]
    assert columns[2]["distinct"] == pytest.approx(9000, rel=0.1)
    assert [column["distinct_estimated"] for column in columns] == [False, False, True]


# How the table is written is said.


def test_options_say_how_a_table_is_written(tmp_path: Path) -> None:
    data = "one\ntwo\nx~'a~b'~1\ny~c~2\n"
    found = Found(tmp_path, data, skip_rows=2, delimiter="~", quote="'", header="no")
    assert found.rows == [("x", "a~b", 1), ("y", "c", 2)]
    assert found.names == ["column_1", "column_2", "column_3"]
    (tmp_path / "again").mkdir()
    assert Found(tmp_path / "again", 'a\tb\n"x\t1\ny"\t2\n', quote="none", delimiter="tab").rows == [
        ('"x', 1),
        ('y"', 2),
    ]


@pytest.mark.parametrize(
    "options",
    [
        *({"encoding": "klingon"}, {"encoding": "zip"}, {"quote": "ab"}, {"skip_rows": -1}, {"on_bad_rows": "x"}),
        *({"types": {"a": "float99"}}, {"header": "perhaps"}, {"null_values": 3}),
    ],
)
@pytest.mark.parametrize("processor", ["table-profile", "table-to-parquet"])
def test_options_that_mean_nothing_are_refused(processor: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        REGISTRY.get(processor).parse_options(options)


def test_the_values_that_options_had_before_go_on_to_work(tmp_path: Path) -> None:
    for name in ("csv-profile", "csv-to-parquet"):
        old = REGISTRY.get(name)
        assert old.alias_of == name.replace("csv", "table")
        assert old.parse_options({"header": True}).header == "yes"  # type: ignore[attr-defined]
    assert Found(tmp_path, "1,2\n3,4\n", header=False, types=False).rows == [("1", "2"), ("3", "4")]


# Other formats in, other formats out.


def _zstd(data: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.compress(data)


def _workbook(**sheets: Any) -> bytes:
    book: Any = openpyxl.Workbook()  # type: ignore[attr-defined, no-untyped-call]
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(out := io.BytesIO())
    return out.getvalue()


def _parquet(folder: Path) -> bytes:
    with duckdb.connect() as connection:
        connection.execute(
            "COPY (SELECT * FROM (VALUES (1, 'x', '007'), (2, NULL, '8')) t(id, name, zip)) "
            f"TO '{folder / 'made.parquet'}' (FORMAT parquet)"
        )
    return (folder / "made.parquet").read_bytes()


ROWS: Final = [(1, "x", "007"), (2, None, "8")]
MADE: Final[dict[str, Callable[[Path], bytes]]] = {
    "t.csv.gz": lambda _: gzip.compress(b"id,name,zip\n1,x,007\n2,,8\n"),
    "t.csv.zst": lambda _: _zstd(b"id,name,zip\n1,x,007\n2,,8\n"),
    "t.tsv": lambda _: b"id\tname\tzip\n1\tx\t007\n2\t\t8\n",
    "t.jsonl": lambda _: b'{"id": 1, "name": "x", "zip": "007"}\n\n{"id": 2, "zip": "8"}\n',
    "t.jsonl.gz": lambda _: gzip.compress(b'{"id": 1, "name": "x", "zip": "007"}\n{"id": 2, "name": null, "zip": "8"}'),
    "t.json": lambda _: json.dumps(
        [dict(zip(("id", "name", "zip"), row, strict=True)) for row in ROWS], indent=1
    ).encode(),
    "t.parquet": _parquet,
    "t.xlsx": lambda _: _workbook(Sheet=[["id", "name", "zip"], *map(list, ROWS)]),
}


@pytest.mark.parametrize("name", MADE)
def test_tables_of_many_formats_are_the_same_table(tmp_path: Path, name: str) -> None:
    found = Found(tmp_path, MADE[name](tmp_path), name)
    assert found.names == ["id", "name", "zip"]
    assert found.rows == ROWS
    assert found.types == ["integer", "text", "text"]


def test_a_sheet_with_a_title_and_a_note_is_the_table_between_them(tmp_path: Path) -> None:
    rows: list[list[Any]] = [["Report"], [], ["name", "n", "at"], ["x", 1.5, None], ["y", 2, None], [], ["Source: us"]]
    data = _workbook(Data=rows, Other=[["a"], ["b"]])
    found = Found(tmp_path, data, "book.xlsx")
    assert found.names == ["name", "n", "at"]
    assert [row[:2] for row in found.rows] == [("x", 1.5), ("y", 2.0)]
    assert found.left_out == {"lines_above": 2, "lines_below": 1, "blank_lines": 1}
    assert "Read the sheet 'Data'" in found.notes
    (tmp_path / "again").mkdir()
    assert Found(tmp_path / "again", data, "book.xlsx", sheet="Other").rows == [("b",)]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b'{\n "a": 1,\n "b": [2]\n}\n', "one JSON document"),
        (b"[1, 2, 3]\n", "not of objects"),
        (b'{"a": 1}\n{"a": \n', "Line 2 is no JSON object"),
        (b'[{"a": 1}, {"a": ', "damaged or cut short"),
        (b"PAR1" + bytes(99), "damaged or cut short"),
        (gzip.compress(b"a,b\n1,2\n" * 999)[:-20], "ends too early"),
        (b"PK\3\4" + bytes(99), "is a zip"),
    ],
)
def test_what_is_no_table_says_what_to_send(tmp_path: Path, data: bytes, word: str) -> None:
    assert word in refusal(tmp_path, data)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_the_table_can_be_written_as_csv_and_as_json_lines(tmp_path: Path, form: str) -> None:
    one = REGISTRY.get("table-to-parquet")
    job = RecordingJob(tmp_path, b'id;name;zip\n1;"a ""b""\nc";007\n2;;8\n', processor=one, options={"format": form})
    summary = one.run(job) or {}
    [path] = job.outputs.iterdir()
    text = path.read_text(encoding="utf-8")
    assert (path.name, summary["rows"]) == ("input-clean.csv" if form == "csv" else "input.jsonl", 2)
    if form == "csv":
        assert list(csv.reader(io.StringIO(text))) == [["id", "name", "zip"], ["1", 'a "b"\nc', "007"], ["2", "", "8"]]
    else:
        lines = [json.loads(line) for line in text.splitlines()]
        assert lines == [{"id": 1, "name": 'a "b"\nc', "zip": "007"}, {"id": 2, "name": None, "zip": "8"}]


def test_every_message_ends_as_a_sentence_does(tmp_path: Path) -> None:
    for number, data in enumerate((b"a,b\n1\n", b"\xff" * 99, b'a\n"x')):
        (place := tmp_path / str(number)).mkdir()
        assert re.fullmatch(r"[A-Z].+\.", refusal(place, data), re.DOTALL)
