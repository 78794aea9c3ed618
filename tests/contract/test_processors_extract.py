"""The processor `extract`: everything of a good archive, nothing of what an archive must not do."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headway.shared.errors import BadInput
from headway.shared.files.storage import check_result_name
from headway.shared.tasks.registry import load_registry
from headway.worker.child import check_content
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


@pytest.mark.parametrize("name", ["../a", "b/../../a", "..\\a", "/../a", "C:\\..\\a"])
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
    summary = extract(job) or {}
    assert (summary["files"], summary["skipped"], summary["left_out"]) == (0, 100, {"path": 100})
    assert len(job.logs) == 21
    assert job.logs[-1] == summary["notes"][0] == "Left out 100 members: a path out of its folder (100)."


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


# What people really have.


def _zip_entry(raw: bytes, data: bytes = b"data", *, flags: int = 0, extra: bytes = b"", method: int = 0) -> bytes:
    """A zip of one member whose name is any bytes."""
    packed = data
    if method == 9:
        inflate64 = pytest.importorskip("inflate64")
        deflater = inflate64.Deflater()
        packed = deflater.deflate(data) + deflater.flush()
    sizes = struct.pack("<LLLHH", zlib.crc32(data), len(packed), len(data), len(raw), len(extra))
    local = b"PK\3\4" + struct.pack("<HHHHH", 20, flags, method, 0, 33) + sizes + raw + extra + packed
    central = b"PK\1\2" + struct.pack("<HHHHHH", 20, 20, flags, method, 0, 33) + sizes
    central += struct.pack("<HHHLL", 0, 0, 0, 0, 0) + raw + extra
    return local + central + b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 1, 1, len(central), len(local), 0)


def _unicode_path(raw: bytes, name: str) -> bytes:
    data = b"\1" + struct.pack("<L", zlib.crc32(raw)) + name.encode()
    return struct.pack("<HH", 0x7075, len(data)) + data


@pytest.mark.parametrize(
    ("raw", "flags", "extra", "name", "guess"),
    [
        ("été.txt".encode(), 0x800, b"", "été.txt", None),
        ("été.txt".encode(), 0, b"", "été.txt", None),
        (b"\x82t\x82.txt", 0, _unicode_path(b"\x82t\x82.txt", "été.txt"), "été.txt", None),
        (b"_t_.txt", 0, _unicode_path(b"another", "wrong.txt"), "_t_.txt", None),
        ("été.txt".encode("cp437"), 0, b"", "été.txt", "cp437"),
        ("Größe Ä.txt".encode("cp437"), 0, b"", "Größe Ä.txt", "cp437"),
        ("报告 北京.txt".encode("gbk"), 0, b"", "报告 北京.txt", "gbk"),
        ("東京レポート.txt".encode("shift_jis"), 0, b"", "東京レポート.txt", "shift_jis"),
    ],
)
def test_a_zips_names_are_read_as_they_were_written_and_a_guess_is_told(
    tmp_path: Path, raw: bytes, flags: int, extra: bytes, name: str, guess: str | None
) -> None:
    job = job_for(tmp_path, _zip_entry(raw, flags=flags, extra=extra))
    summary = extract(job) or {}
    assert outputs(job) == {name: b"data"}
    assert summary["notes"] == [note for note in summary["notes"] if guess and guess in note]
    assert len(summary["notes"]) == (guess is not None)


@pytest.mark.parametrize("name", ["/etc/a", "C:\\etc\\a", "c:/etc/a", "\\\\etc\\a", "//etc/a", "\\\\?\\C:\\etc\\a"])
@pytest.mark.parametrize("make", [zipped, tarred])
def test_an_absolute_path_is_taken_below_the_folder_and_told(
    tmp_path: Path, make: Callable[[dict[str, bytes]], bytes], name: str
) -> None:
    job = job_for(tmp_path, make({name: b"x", "good": b"good"}))
    summary = extract(job) or {}
    assert outputs(job) == {"etc__a": b"x", "good": b"good"}
    assert summary["skipped"] == 0
    assert "absolute paths of 1 file were" in summary["notes"][0]


def test_a_member_without_a_name_comes_out_and_is_told(tmp_path: Path) -> None:
    job = job_for(tmp_path, _zip_entry(b""))
    summary = extract(job) or {}
    assert outputs(job) == {"file": b"data"}
    assert "no name" in summary["notes"][0]


def _tar_with_links(*links: tuple[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("src/a.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
        for name, target in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.LNKTYPE, target
            archive.addfile(link)
    return out.getvalue()


def test_a_hard_link_is_a_copy_of_the_earlier_member(tmp_path: Path) -> None:
    job = job_for(tmp_path, _tar_with_links(("b.txt", "src/a.txt"), ("c.txt", "b.txt"), ("d.txt", "nothing")))
    summary = extract(job) or {}
    assert outputs(job) == {"src__a.txt": b"abc", "b.txt": b"abc", "c.txt": b"abc"}
    assert summary["left_out"] == {"hard_link": 1}
    assert summary["bytes"] == 9


def test_hard_links_count_towards_the_limit(tmp_path: Path) -> None:
    job = job_for(tmp_path, _tar_with_links(*((f"{n}.txt", "src/a.txt") for n in range(9))), max_bytes=20)
    with pytest.raises(BadInput, match="unpacks to more than 20 bytes"):
        extract(job)


def test_what_macos_adds_for_itself_is_left_out_and_counted(tmp_path: Path) -> None:
    members = {"photo.jpg": b"x", "__MACOSX/._photo.jpg": b"y", ".DS_Store": b"z", "a/.DS_Store": b"z", "a/._b": b"w"}
    job = job_for(tmp_path, zipped(members))
    summary = extract(job) or {}
    assert outputs(job) == {"photo.jpg": b"x"}
    assert (summary["skipped"], summary["left_out"]) == (4, {"macos": 4})
    assert "Left out 4 files that macOS adds" in summary["notes"][0]


@pytest.mark.parametrize("front", [b"#!/bin/sh\nexit 0\n", b"MZ" + bytes(999)])
def test_a_zip_with_a_program_in_front_is_a_zip(tmp_path: Path, front: bytes) -> None:
    job = job_for(tmp_path, front + zipped({"a.txt": b"hello", "b.txt": b"x" * 5000}))
    assert (extract(job) or {})["format"] == "zip"
    assert outputs(job) == {"a.txt": b"hello", "b.txt": b"x" * 5000}


@pytest.mark.parametrize("data", [b"", b"hello" * 60_000, bytes(300_000)])
def test_deflate64_is_unpacked(tmp_path: Path, data: bytes) -> None:
    job = job_for(tmp_path, _zip_entry(b"a.bin", data, method=9))
    extract(job)
    assert outputs(job) == {"a.bin": data}


@pytest.mark.parametrize(
    ("magic", "word"), [(b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"), (b"Rar!\x1a\7\1\0", "a RAR archive")]
)
def test_another_kind_of_archive_says_what_to_send_instead(tmp_path: Path, magic: bytes, word: str) -> None:
    job = job_for(tmp_path, magic + bytes(999))
    with pytest.raises(BadInput, match=rf"This is {word}.+send a \.zip"):
        extract(job)
    check_content(Path(job.input_path), PROCESSOR)
