"""A disk without room, and an owner without room: said before and while bytes arrive, nothing left half, and all is
well again when there is room. On a small disk of memory, which root may mount; else it skips.

FULL_DISKS=100 for the scoreboard's number of trials."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import Platform
from tests.waiting import wait_for

MIB = 1024**2
DISK_BYTES = 24 * MIB
TRIALS = int(os.environ.get("FULL_DISKS", "6"))


@pytest.fixture
def disk(own_platform: Platform) -> Iterator[Path]:
    folder = own_platform.data_dir
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield folder
    for process in (*own_platform.apis, *own_platform.workers):
        process.stop()
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def post(platform: Platform, content: bytes) -> httpx.Response:
    form, file = {"processor": "checksum"}, {"file": ("a.bin", content)}
    return httpx.post(f"{platform.url}/tasks", data=form, files=file)


def announced(platform: Platform, size_bytes: int | None) -> Any:
    body = {"processor": "checksum", "filename": "a.bin", "size_bytes": size_bytes}
    return httpx.post(f"{platform.url}/tasks", json=body)


def put(platform: Platform, pieces: Iterator[bytes]) -> httpx.Response:
    """Of unknown length, so that only the disk can say that it is too much."""
    task = announced(platform, None).json()
    return httpx.put(f"{platform.url}{task['links']['upload']}", content=pieces)


def assert_full(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (507, "application/problem+json"), answer.text
    assert answer.json()["type"] == "urn:headway:problem:storage-full"
    assert "try again" in answer.json()["detail"]


def test_an_upload_that_a_full_disk_refuses_leaves_nothing_and_the_next_one_fits(
    own_platform: Platform, disk: Path
) -> None:
    own_platform.start_api()
    own_platform.start_worker()
    for trial in range(TRIALS):
        if trial % 2:
            assert_full(post(own_platform, bytes(DISK_BYTES)))
        else:
            assert_full(put(own_platform, (bytes(MIB) for _ in range(30))))
        wait_for("nothing is left", lambda: files(disk) == [])
    assert_full(announced(own_platform, DISK_BYTES * 2))
    fits = post(own_platform, bytes(MIB))
    assert fits.status_code == 202
    assert own_platform.wait(fits.json()["task_id"])["status"] == "completed"


def test_a_result_without_room_is_said_and_the_retry_works_when_there_is_some(
    own_platform: Platform, disk: Path
) -> None:
    own_platform.start_api()
    worker = own_platform.start_worker()
    other = disk / "of-somebody-else"
    task_id = ""
    for _ in range(TRIALS):
        other.write_bytes(os.urandom(10 * MIB))
        if task_id:
            httpx.delete(f"{own_platform.url}/tasks/{task_id}").raise_for_status()
        task_id = own_platform.submit("compress", os.urandom(8 * MIB))["task_id"]
        task = own_platform.wait(task_id)
        assert (task["status"], task["error"]["type"], task["error"]["retryable"]) == ("failed", "storage_full", True)
        assert len(files(disk)) == 2, "the input, and the other's file"
        assert worker.code is None
    other.unlink()
    httpx.post(f"{own_platform.url}/tasks/{task_id}/retry").raise_for_status()
    task = own_platform.wait(task_id, "completed")
    assert task["result"]["files"][0]["size_bytes"] > 8 * MIB


def test_the_reserve_is_left_free(own_platform: Platform, disk: Path) -> None:
    own_platform.start_api(HEADWAY_DISK_RESERVE_BYTES=str(16 * MIB))
    assert_full(post(own_platform, bytes(9 * MIB)))
    assert_full(put(own_platform, (bytes(MIB) for _ in range(9))))
    assert post(own_platform, bytes(6 * MIB)).status_code == 202


def test_an_owner_over_its_quota_is_told_before_the_file_is_read_and_can_make_room(own_platform: Platform) -> None:
    own_platform.start_api(HEADWAY_OWNER_QUOTA_BYTES="1MiB")
    own_platform.start_worker()
    first = post(own_platform, bytes(700_000))
    assert first.status_code == 202
    own_platform.wait(first.json()["task_id"])
    for refused in (post(own_platform, bytes(700_000)), announced(own_platform, 700_000)):
        assert refused.status_code == 507
        assert refused.json()["type"] == "urn:headway:problem:quota-full"
        assert "hold 700000 of 1048576 bytes" in refused.json()["detail"]
    unknown = put(own_platform, (bytes(100_000) for _ in range(7)))
    assert unknown.json()["type"] == "urn:headway:problem:quota-full"
    httpx.delete(f"{own_platform.url}/tasks/{first.json()['task_id']}").raise_for_status()
    assert post(own_platform, bytes(700_000)).status_code == 202
