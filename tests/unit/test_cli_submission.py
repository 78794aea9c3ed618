"""What `headway submit` makes of its arguments, before anything is sent."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from headway import WrongUse
from headway.cli.submit import Submission, batch_of, parse_options


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("k=3", 3),
        ("k=0.5", 0.5),
        ("k=true", True),
        ("k=null", None),
        ('k=["a", 1]', ["a", 1]),
        ('k={"a": {}}', {"a": {}}),
        ('k="3"', "3"),
        ("k=zstd", "zstd"),
        ("k=", ""),
        ("k=a=b", "a=b"),
        ("k=NaN", "NaN"),
        ("k=-Infinity", "-Infinity"),
        ("k=[1,", "[1,"),
        ("k=" + "[" * 100_000, "[" * 100_000),
    ],
)
def test_an_option_is_json_where_it_is_json_and_else_text(given: str, value: Any) -> None:
    assert parse_options([given]) == {"k": value}


@pytest.mark.parametrize("given", [["k"], ["=v"], [""], ["k=1", "k=2"]])
def test_an_option_that_is_no_pair_or_comes_twice_is_wrong_use(given: list[str]) -> None:
    with pytest.raises(WrongUse, match="--option"):
        parse_options(given)


def test_a_file_is_announced_with_its_name_size_and_type(tmp_path: Path) -> None:
    path = tmp_path / "trips.csv"
    path.write_text("a,b\n1,2\n")
    assert Submission("checksum", {"x": 1}, path).announced() == {
        "processor": "checksum", "options": {"x": 1},
        "filename": "trips.csv", "size_bytes": 8, "content_type": "text/csv",
        "sha256": hashlib.sha256(b"a,b\n1,2\n").hexdigest(),
    }  # fmt: skip


def test_without_a_file_nothing_of_a_file_is_announced() -> None:
    assert Submission("rehearsal", {}).announced() == {"processor": "rehearsal", "options": {}}


def test_what_is_no_readable_regular_file_is_wrong_use(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, Path(os.devnull)):
        with pytest.raises(WrongUse, match=path.name):
            Submission("checksum", {}, path).announced()


def test_several_files_are_a_batch_and_one_is_none_unless_it_is_named() -> None:
    two = [Path("a"), Path("b")]
    assert batch_of(two, None) not in (None, batch_of(two, None))
    assert [batch_of(two, "mine"), batch_of(two[:1], "mine"), batch_of(two[:1], None)] == ["mine", "mine", None]
