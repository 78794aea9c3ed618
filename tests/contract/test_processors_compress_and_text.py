"""The processors `compress`, whose files everybody can unpack, and `text-stats`, which counts as everybody does."""

from __future__ import annotations

import gzip
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from headway.shared.errors import BadInput, InvalidRequest
from headway.shared.tasks.registry import load_registry
from headway.worker.processors import text_stats as module
from headway.worker.processors.compress import compress
from headway.worker.processors.text_stats import text_stats
from tests.unit.recording_job import RecordingJob

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESS = load_registry().get("compress")
TEXT = load_registry().get("text-stats")


@pytest.mark.parametrize("size_bytes", [0, 1, 1024 * 1024, 3 * 1024 * 1024 + 5])
@pytest.mark.parametrize("kind", ["zstd", "gzip"])
def test_what_is_compressed_can_be_unpacked_by_others(tmp_path: Path, kind: str, size_bytes: int) -> None:
    data = random.Random(1).randbytes(1000) * (size_bytes // 1000 + 1)
    job = RecordingJob(tmp_path, data[:size_bytes], processor=COMPRESS, options={"format": kind})
    summary = compress(job) or {}
    output = next(job.outputs.iterdir())
    assert output.name == ("input.csv.zst" if kind == "zstd" else "input.csv.gz")
    packed = output.read_bytes()
    assert (zstd if kind == "zstd" else gzip).decompress(packed) == data[:size_bytes]
    assert summary["format"] == kind
    assert (summary["size_bytes"], summary["compressed_bytes"]) == (size_bytes, len(packed))
    assert summary["ratio"] == pytest.approx(size_bytes / len(packed), abs=0.001)
    assert sum(done > 0 for _, done, _ in job.counts) == -(-size_bytes // (1024 * 1024))


def test_a_higher_level_makes_a_smaller_file(tmp_path: Path) -> None:
    data = b"".join(b"%d %d\n" % (n, n * n % 977) for n in range(50_000))
    sizes = []
    for kind, level in (("zstd", 1), ("zstd", 19), ("gzip", 1), ("gzip", 9)):
        (folder := tmp_path / f"{kind}-{level}").mkdir()
        job = RecordingJob(folder, data, processor=COMPRESS, options={"format": kind, "level": level})
        sizes.append((compress(job) or {})["compressed_bytes"])
    assert sizes[0] > sizes[1]
    assert sizes[2] > sizes[3]


@pytest.mark.parametrize("options", [{"format": "rar"}, {"level": 0}, {"level": 20}, {"format": "gzip", "level": 10}])
def test_a_format_or_a_level_that_there_is_not_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        COMPRESS.parse_options(options)


def stats(folder: Path, data: bytes, **options: Any) -> dict[str, Any]:
    return dict(text_stats(RecordingJob(folder, data, processor=TEXT, options=options)) or {})


def test_a_text_is_counted(tmp_path: Path) -> None:
    assert stats(tmp_path, "The cat's “tail”.\r\nThe CAT — élan\nthe end".encode(), top_words=2) == {
        "size_bytes": 48,
        "encoding": "utf-8",
        "lines": 3,
        "words": 9,
        "characters": 41,
        "longest_line": 17,
        "line_endings": ["crlf", "lf"],
        "top_words": [{"word": "the", "count": 3}, {"word": "cat", "count": 1}],
        "top_words_missed": 0,
    }


def test_an_empty_text_is_all_zeros(tmp_path: Path) -> None:
    found = stats(tmp_path, b"")
    assert (found["lines"], found["words"], found["characters"], found["longest_line"]) == (0, 0, 0, 0)
    assert (found["encoding"], found["line_endings"], found["top_words"]) == ("ascii", [], [])


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"])
def test_the_counts_do_not_depend_on_where_a_chunk_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    text = "one  two\r\n\r\nthree,four\rfive\n" * 3 + "x" * 300 + " end"
    text = text if encoding == "ascii" else text + " é"
    found = stats(tmp_path, text.encode(encoding))
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert found["encoding"] == encoding
    assert found["characters"] == len(text)
    assert found["words"] == len(text.split())
    assert found["lines"] == len(lines)
    assert found["longest_line"] == max(map(len, lines))
    assert found["line_endings"] == ["cr", "crlf", "lf"]
    assert {top["word"]: top["count"] for top in found["top_words"]}["three,four"] == 3


def test_words_beyond_what_is_kept_lose_no_more_than_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WORDS", 100)
    monkeypatch.setattr(module, "CHUNK_BYTES", 500)
    words = [f"rare{n}" for n in range(5000)]
    for n in range(500):
        words[n * 10] = "often"
    found = stats(tmp_path, " ".join(words).encode(), top_words=1)
    assert found["top_words"][0]["word"] == "often"
    assert 500 - found["top_words_missed"] <= found["top_words"][0]["count"] <= 500


@pytest.mark.parametrize("data", [b"a\0b", bytes(range(256)) * 99, b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_what_is_no_text_is_bad_input(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadInput, match="not text"):
        stats(tmp_path, data)
