"""The corpus of tests/corpus.py through the processors, beside independent tools: nothing is lost, nothing is added.

One file in twenty by default; all of them, 1,100, by `make corpus`.
"""

from __future__ import annotations

import csv
import datetime
import io
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any, Final

import duckdb
import pytest
from PIL import Image, ImageOps

from headway.shared.tasks.registry import load_registry
from tests.corpus import ARCHIVES, PICTURES, TABLES, Archive, Picture, Table, archives, pictures, tables
from tests.unit.recording_job import RecordingJob

#: Read here, because conftest.py takes every HEADWAY_ variable away from the tests.
ALL: Final = os.environ.get("HEADWAY_CORPUS") == "all"
PARTS: Final = 20
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

part = pytest.mark.parametrize("number", range(PARTS) if ALL else (7,))


def test_the_corpus_is_large() -> None:
    assert TABLES + ARCHIVES + PICTURES >= 1000


def run(folder: Path, processor: str, name: str, data: bytes, **options: Any) -> tuple[dict[str, Any], Path]:
    one = REGISTRY.get(processor)
    (place := folder / f"{processor}-{name}").mkdir(parents=True)
    job = RecordingJob(place, data, processor=one, options=options, memory_bytes=256 * 1024**2)
    job.filename = name
    return dict(one.run(job) or {}), job.outputs


@part
def test_profile_and_parquet_agree_with_each_other_and_with_what_was_written(tmp_path: Path, number: int) -> None:
    for table in tables()[number::PARTS]:
        try:
            _check_table(table, tmp_path)
        except Exception as error:
            error.add_note(f"table {table.name}: {table.make()[:500]!r}")
            raise
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


def _check_table(table: Table, folder: Path) -> None:
    data = table.make()
    if table.plainly is not None:
        encoding, delimiter, above, below = table.plainly
        lines = io.StringIO(data.decode(encoding), newline="").readlines()
        rows = [row for row in csv.reader(lines[above : len(lines) - below], delimiter=delimiter) if row]
        assert rows == [table.names, *table.rows]
    profile, _ = run(folder, "table-profile", table.name, data, **table.options)
    written, out = run(folder, "table-to-parquet", table.name, data, **table.options)
    assert profile["rows"] == written["rows"] == len(table.rows)
    assert [column["name"] for column in profile["columns"]] == table.names
    assert [column["type"] for column in profile["columns"]] == [SAME[one["type"]] for one in written["columns"]]
    assert [column["type"] for column in profile["columns"]] == table.types
    assert [one["nulls"] for one in profile["columns"]] == [one["nulls"] for one in written["columns"]] == table.nulls
    assert profile["notes"] == written["notes"]
    [path] = out.iterdir()
    with duckdb.connect() as connection:
        found = connection.execute("SELECT * FROM read_parquet($1)", [str(path)]).fetchall()
    for n, kind in enumerate(table.types):
        texts = [row[n] for row in table.rows]
        for text, value in zip(texts, (row[n] for row in found), strict=True):
            assert (value is None and (text == "" or kind != "text")) or _is(text, value), (kind, text, value)
    for column, values in zip(profile["columns"], zip(*found, strict=True), strict=True):
        assert column["distinct"] <= len({row[table.names.index(column["name"])] for row in table.rows})
        assert column["nulls"] == sum(value is None for value in values)


def _is(text: str, value: Any) -> bool:
    match value:
        case bool():
            return text.lower() == str(value).lower()
        case int() | float():
            return float(text) == value
        case datetime.datetime():
            return text == value.isoformat(" ")
        case datetime.date():
            forms = (
                value.isoformat(),
                f"{value.day}/{value.month}/{value.year}",
                f"{value.month}/{value.day}/{value.year}",
            )
            return text in forms
    return bool(text == value)


@part
def test_an_archive_gives_what_is_in_it_as_other_tools_list_it(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for archive in archives()[number::PARTS]:
        (place := tmp_path / archive.name).mkdir()
        monkeypatch.chdir(place)  # as in the sandbox
        summary, out = run(place, "extract", archive.name, archive.data)
        assert {one["name"]: (out / one["file"]).read_bytes() for one in summary["listing"]} == archive.members
        assert summary["skipped"] == archive.left_out
        listed = _listed(archive, place)
        assert listed is None or listed == len(archive.members) + archive.left_out


def _listed(archive: Archive, folder: Path) -> int | None:
    """How many members another tool lists, where there is one."""
    (path := folder / "archive").write_bytes(archive.data)
    if archive.name.endswith(".zip"):
        if shutil.which("unzip"):
            listed = subprocess.run(["unzip", "-Z1", str(path)], capture_output=True, check=False).stdout
            return len(listed.splitlines())
        return len(zipfile.ZipFile(path).namelist())
    if not shutil.which("tar"):
        return None
    return len(subprocess.run(["tar", "-tf", str(path)], capture_output=True, check=True).stdout.splitlines())


@part
def test_a_pictures_sides_are_those_of_pillow_and_it_stands_upright(tmp_path: Path, number: int) -> None:
    for picture in pictures()[number::PARTS]:
        summary, out = run(tmp_path, "image-thumbnails", picture.name, picture.data, sizes=[64])
        with Image.open(io.BytesIO(picture.data)) as opened:
            upright = _upright(picture, opened)
        assert (summary["width"], summary["height"]) == upright, picture.name
        with Image.open(out / summary["thumbnails"][0]["file"]) as small:
            share = min(1.0, 64 / max(upright))
            assert small.size == tuple(max(1, round(side * share)) for side in upright)


def _upright(picture: Picture, opened: Image.Image) -> tuple[int, int]:
    opened.load()
    return ImageOps.exif_transpose(opened).size
