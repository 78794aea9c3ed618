"""A data directory that breaks under a running platform: said in words on every side, and well again with the disk."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import HeadwayProcess, Platform
from tests.waiting import wait_for


@pytest.fixture
def platform_with_a_worker(own_platform: Platform) -> Platform:
    own_platform.start_api()
    own_platform.start_worker()
    return own_platform


def submit(platform: Platform) -> httpx.Response:
    return httpx.post(f"{platform.url}/tasks", data={"processor": "checksum"}, files={"file": ("a.bin", b"abc")})


def logged(process: HeadwayProcess, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in process.log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def storage_of(platform: Platform) -> dict[str, Any]:
    answer = httpx.get(f"{platform.url}/readyz")
    assert answer.status_code == 200
    check: dict[str, Any] = answer.json()["checks"]["storage"]
    return check


def test_a_data_directory_that_is_moved_away_ends_no_process_and_is_not_blamed_on_redis(
    platform_with_a_worker: Platform,
) -> None:
    platform = platform_with_a_worker
    [api], [worker] = platform.apis, platform.workers
    done = submit(platform).json()
    platform.wait(done["task_id"])
    away = platform.data_dir.with_name("away")
    platform.data_dir.rename(away)

    refused = submit(platform)
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:headway:problem:storage-away")
    assert int(refused.headers["Retry-After"]) > 0
    assert str(platform.folder) not in refused.text
    missed = httpx.get(f"{platform.url}/tasks/{done['task_id']}/input")
    assert (missed.status_code, missed.json()["type"]) == (503, "urn:headway:problem:storage-away")
    said = logged(api, "storage away")
    assert {line["errno"] for line in said} == {"ENOENT"}
    assert all(str(platform.data_dir) in line["place"] for line in said)

    # An attempt needs it from its first moment.
    task = platform.wait(platform.submit("rehearsal", options='{"steps": 1, "step_seconds": 0}')["task_id"])
    assert (task["status"], task["error"]["type"], task["error"]["retryable"]) == ("failed", "processor_error", True)
    assert "storage of the files" in task["error"]["message"]
    assert str(platform.folder) not in json.dumps(task)
    assert logged(worker, "attempt failed")[-1]["errno"] == "ENOENT"

    wait_for("readiness says so", lambda: not storage_of(platform)["ok"])
    assert "cannot be used" in storage_of(platform)["reason"]
    wait_for("the sweeper says so", lambda: logged(worker, "sweep failed"))
    assert logged(worker, "sweep put off") == []
    assert (api.code, worker.code) == (None, None)

    away.rename(platform.data_dir)
    assert httpx.get(f"{platform.url}/tasks/{done['task_id']}/input").content == b"abc"
    httpx.post(f"{platform.url}/tasks/{task['task_id']}/retry").raise_for_status()
    assert platform.wait(task["task_id"])["status"] == "completed"
    wait_for("the sweeper works again", lambda: logged(worker, "sweep works again"))
    wait_for("readiness says so", lambda: storage_of(platform)["ok"])


@pytest.fixture
def disk(own_platform: Platform) -> Iterator[Path]:
    folder = own_platform.data_dir
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield folder
    for process in (*own_platform.apis, *own_platform.workers):
        process.stop()
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_becomes_read_only_is_read_from_and_says_so(own_platform: Platform, disk: Path) -> None:
    own_platform.start_api()
    worker = own_platform.start_worker()
    done = submit(own_platform).json()
    own_platform.wait(done["task_id"])
    remount = ["mount", "-o", "remount,ro", str(disk)]  # refused while a file there is open to be written
    wait_for("the disk is read-only", lambda: subprocess.run(remount, capture_output=True).returncode == 0)
    assert submit(own_platform).json()["type"] == "urn:headway:problem:storage-away"
    assert httpx.get(f"{own_platform.url}/tasks/{done['task_id']}/input").content == b"abc"
    failed = own_platform.wait(own_platform.submit("rehearsal", options='{"steps": 1, "step_seconds": 0}')["task_id"])
    assert "Read-only" in failed["error"]["message"]
    wait_for("readiness says so", lambda: "Read-only" in storage_of(own_platform)["reason"])
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert submit(own_platform).status_code == 202
    assert worker.code is None


def lowest_free_descriptor(pid: int) -> int:
    held = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in range(len(held) + 1) if number not in held)


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists() or os.geteuid() != 0,
    reason="our processes hide in /proc, so that only root sees their descriptors",
)
def test_a_process_without_descriptors_says_so_and_goes_on_with_what_is_open(own_platform: Platform) -> None:
    api = own_platform.start_api()
    with httpx.Client(base_url=own_platform.url) as client:
        made = client.post("/tasks", data={"processor": "checksum"}, files={"file": ("a.bin", b"abc")}).json()
        limits = resource.prlimit(api.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(api.pid, resource.RLIMIT_NOFILE, (lowest_free_descriptor(api.pid), limits[1]))
        try:
            refused = client.post("/tasks", data={"processor": "checksum"}, files={"file": ("a.bin", b"abc")})
            assert (refused.status_code, refused.json()["type"]) == (503, "urn:headway:problem:no-descriptors")
            assert int(refused.headers["Retry-After"]) > 0
            assert "Redis" not in refused.text
            assert client.get(f"/tasks/{made['task_id']}").status_code == 200
            assert "descriptor" in client.get("/readyz").json()["checks"]["storage"]["reason"]
        finally:
            resource.prlimit(api.pid, resource.RLIMIT_NOFILE, limits)
        assert client.get(f"/tasks/{made['task_id']}/input").content == b"abc"
    assert logged(api, "no descriptors")[0]["errno"] == "EMFILE"
    assert api.code is None
