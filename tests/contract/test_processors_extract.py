"""The processor `extract`: everything of a good archive, nothing of what an archive must not do."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headway.shared.errors import BadInput
from headway.shared.files.storage import check_result_name
from headway.shared.tasks.registry import load_registry
from headway.worker.processors.extract import extract
from headway.worker.processors.result_names import Names, plain_name
from tests.poison_archives import PACK
from tests.unit.recording_job import RecordingJob

PROCESSOR = load_registry().get("extract")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # as in the sandbox


def job_for(folder: Path, data: bytes, name: str = "archive", **options: Any) -> RecordingJob:
    job = RecordingJob(folder, data, processor=PROCESSOR, options=options)
    job.filename = name
    return job


def outputs(job: RecordingJob) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in job.outputs.iterdir()}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


MEMBERS = {"a.txt": b"hello" * 30_000, "b/c.txt": b"", "b/d/e.bin": bytes(range(256)) * 700, "f 512": b"x" * 512}
FLAT = {"a.txt": MEMBERS["a.txt"], "b__c.txt": b"", "b__d__e.bin": MEMBERS["b/d/e.bin"], "f 512": b"x" * 512}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_is_unpacked_whatever_its_method(tmp_path: Path, method: int) -> None:
    job = job_for(tmp_path, zipped(MEMBERS, method))
    summary = extract(job) or {}
    assert outputs(job) == FLAT
    assert (summary["format"], summary["files"], summary["skipped"]) == ("zip", 4, 0)
    assert summary["bytes"] == sum(map(len, MEMBERS.values()))
    assert summary["listing"] == [
        {"name": name, "size_bytes": len(data), "file": file}
        for (name, data), file in zip(MEMBERS.items(), FLAT, strict=True)
    ]


@pytest.mark.parametrize("ending", ["", *PACK])
def test_a_tar_is_unpacked_however_it_is_packed(tmp_path: Path, ending: str) -> None:
    pack: Callable[[bytes], bytes] = PACK.get(ending, bytes)
    job = job_for(tmp_path, pack(tarred(MEMBERS)))
    summary = extract(job) or {}
    assert outputs(job) == FLAT
    assert summary["format"] == ("tar." + ending).rstrip(".")


@pytest.mark.parametrize("ending", PACK)
def test_a_single_file_loses_its_ending(tmp_path: Path, ending: str) -> None:
    job = job_for(tmp_path, PACK[ending](b"a,b\n1,2\n" * 99_999), f"table.csv.{ending}")
    assert (extract(job) or {})["format"] == ending
    assert outputs(job) == {"table.csv": b"a,b\n1,2\n" * 99_999}


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_several_streams_after_each_other_are_one_file(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    job = job_for(tmp_path, pack(b"one ") + pack(b"") + pack(b"two") + bytes(64), "x")
    extract(job)
    assert outputs(job) == {"x": b"one two"}


def test_progress_is_the_part_of_the_archive_that_was_read(tmp_path: Path) -> None:
    job = job_for(tmp_path, zipped(MEMBERS, zipfile.ZIP_STORED))
    extract(job)
    done = [done for _, done, _ in job.counts]
    assert done == sorted(done)
    assert len(set(done)) > 3
    assert job.counts[-1] == ("Unpacking", job.size_bytes, job.size_bytes)


@pytest.mark.parametrize("name", ["../a", "b/../../a", "/etc/a", "..\\a", "C:\\a", "\\\\server\\a"])
@pytest.mark.parametrize("make", [zipped, tarred])
def test_a_path_that_leads_out_is_left_out_counted_and_told(
    tmp_path: Path, make: Callable[[dict[str, bytes]], bytes], name: str
) -> None:
    job = job_for(tmp_path, make({name: b"evil", "good": b"good"}))
    assert (extract(job) or {})["skipped"] == 1
    assert outputs(job) == {"good": b"good"}
    assert name in job.logs[0]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_left_out_and_what_goes_through_them_is_a_file(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("x")
    link.type, link.linkname = kind, str(tmp_path)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(link)
    job = job_for(tmp_path, out.getvalue()[:512] + tarred({"x/y": b"1"}))
    assert (extract(job) or {})["skipped"] == 1
    assert outputs(job) == {"x__y": b"1"}
    assert not (tmp_path / "y").exists()


def test_only_the_first_of_many_that_are_left_out_are_told_one_by_one(tmp_path: Path) -> None:
    job = job_for(tmp_path, tarred({f"../{n}": b"" for n in range(100)}))
    assert extract(job) == {"format": "tar", "files": 0, "bytes": 0, "skipped": 100, "listing": []}
    assert len(job.logs) == 21
    assert job.logs[-1] == "Left out 80 more members"


@pytest.mark.parametrize("make", [zipped, tarred])
def test_many_files_become_one_zip_with_their_folders_and_a_listing(
    tmp_path: Path, make: Callable[[dict[str, bytes]], bytes]
) -> None:
    members = {f"folder/{n}.txt": str(n).encode() for n in range(1200)}
    job = job_for(tmp_path, make(members))
    summary = extract(job) or {}
    assert summary["files"] == 1200
    assert len(summary["listing"]) == 1000
    assert set(outputs(job)) == {"files.zip", "listing.json"}
    with zipfile.ZipFile(job.outputs / "files.zip") as archive:
        assert {info.filename: archive.read(info) for info in archive.infolist()} == members
    assert len(json.loads((job.outputs / "listing.json").read_text())) == 1200


def test_names_are_given_once_and_are_never_those_of_our_own_files(tmp_path: Path) -> None:
    job = job_for(tmp_path, tarred(dict.fromkeys(("a", "./a", "A", "b/c", "b__c", "files.zip", ".hidden", "."), b"x")))
    extract(job)
    assert set(outputs(job)) >= {"a", "a-2", "A-3", "b__c", "b__c-2", "files-2.zip", "_.hidden", "file"}
    assert all(check_result_name(name) for name in outputs(job))


@pytest.mark.parametrize(
    "name",
    ["", ".", "...", " ", "a\0b", "\ud800", "😀" * 300, "n" * 999 + ".txt", "x." + "y" * 999, "\u202egpj", "/" * 9],
)
def test_every_name_becomes_one_that_storage_takes(name: str) -> None:
    plain = plain_name(name)
    assert check_result_name(plain) == plain
    assert plain_name(plain) == plain
    assert check_result_name(Names(plain).give(plain)) != plain


def test_limits_are_options_and_say_so(tmp_path: Path) -> None:
    cases: list[tuple[bytes, dict[str, Any], str]] = [
        (gzip.compress(b"x" * 2000), {"max_bytes": 1999}, "`max_bytes`"),
        (gzip.compress(bytes(17 << 20)), {}, "`max_ratio`"),
        (zipped({"a": b"x" * 2000}), {"max_bytes": 1999}, "`max_bytes`"),
        (tarred({"a": b"x" * 2000}), {"max_bytes": 1999}, "`max_bytes`"),
        (tarred({"a": b"", "b": b""}), {"max_files": 1}, "`max_files`"),
        (zipped({"a": b"", "b": b""}), {"max_files": 1}, "`max_files`"),
    ]
    for number, (data, options, word) in enumerate(cases):
        (folder := tmp_path / str(number)).mkdir()
        with pytest.raises(BadInput, match=word):
            extract(job_for(folder, data, **options))


def test_what_was_staged_is_gone_after_a_failure(tmp_path: Path) -> None:
    job = job_for(tmp_path, gzip.compress(tarred(MEMBERS))[:-200])
    with pytest.raises(BadInput):
        extract(job)
    assert outputs(job) == {}
    assert {path.name for path in tmp_path.iterdir()} == {"input", "outputs"}


@pytest.mark.parametrize("make", [zipped, tarred])
def test_an_attempt_begins_with_the_first_member_and_promises_the_next_one_nothing(
    tmp_path: Path, make: Callable[[dict[str, bytes]], bytes]
) -> None:
    """The next one's folder is empty, so its bar must not begin where this one's was."""
    large = {"large": bytes(65 * 1024 * 1024)}
    job = job_for(tmp_path, make(MEMBERS | large), max_ratio=10_000)
    job.restored = {"members": 1}  # of a version that did
    extract(job)
    assert outputs(job).keys() == FLAT.keys() | {"large"}
    assert (job.logs, job.restored) == ([], {"members": 1})
