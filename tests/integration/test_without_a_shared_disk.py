"""API and workers with nothing in common but Redis and a bucket: each has a data directory of its own."""

from __future__ import annotations

import asyncio
import gzip
import random
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import Platform, RedisServer
from tests.s3_server import Road, S3Server
from tests.waiting import wait_for

#: More than one part, so that it is sent and fetched in several.
CONTENT = random.Random(7).randbytes(9 * 1024**2 + 5)


@dataclass
class Apart:
    platform: Platform
    server: S3Server
    prefix: str
    folder: Path
    #: The data directory of the worker that lives.
    worker: str = "worker-data"

    def keys(self, task: dict[str, Any]) -> set[str]:
        return {key for key in self.server.keys(self.prefix) if task["task_id"] in key}

    def disk(self, name: str) -> set[str]:
        """What lies in the data directory of one of them."""
        return {path.name for path in (self.folder / name).rglob("*") if path.is_file()}

    def start_worker(self, name: str) -> None:
        self.worker = name
        self.platform.start_worker(HEADWAY_DATA_DIR=str(self.folder / name))


@pytest.fixture(scope="module")
def apart(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    folder, prefix = tmp_path_factory.mktemp("apart"), secrets.token_hex(4)
    url = f"s3://{s3_server.bucket}/{prefix}"
    env = {"HEADWAY_STORAGE_URL": url, "HEADWAY_LEASE_SECONDS": "1", **s3_server.environment}
    with RedisServer(folder / "redis", appendfsync="no") as redis, Platform(folder, redis.url, **env) as platform:
        found = Apart(platform, s3_server, prefix, folder)
        platform.start_api(wait=False, HEADWAY_DATA_DIR=str(folder / "api-data"))
        found.start_worker("worker-data")
        wait_for("the API is alive", lambda: _alive(platform.url), seconds=30)
        yield found


def _alive(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def url(apart: Apart) -> str:
    return apart.platform.url


def test_a_form_becomes_a_result_that_can_be_downloaded_and_deleted(apart: Apart, url: str) -> None:
    task = apart.platform.submit("compress", CONTENT, options='{"format": "gzip"}')
    task = apart.platform.wait(task["task_id"], "completed", "failed")
    assert task["status"] == "completed", task["error"]
    (file,) = task["result"]["files"]
    whole = httpx.get(url + file["url"])
    assert gzip.decompress(whole.content) == CONTENT
    assert whole.headers["ETag"] == f'"{file["sha256"]}"'
    assert int(whole.headers["Content-Length"]) == file["size_bytes"]
    part = httpx.get(url + file["url"], headers={"Range": "bytes=5000000-7000000"})
    assert (part.status_code, part.content) == (206, whole.content[5_000_000:7_000_001])
    assert httpx.get(url + task["links"]["input"]).content == CONTENT
    assert len(apart.keys(task)) == 2
    assert apart.disk("api-data") | apart.disk(apart.worker) == set()
    assert httpx.delete(url + task["links"]["self"]).status_code == 204
    assert apart.keys(task) == set()


def test_an_announced_file_is_sent_by_put(apart: Apart, url: str) -> None:
    body = {"processor": "checksum", "filename": "a.bin", "size_bytes": len(CONTENT)}
    task = httpx.post(f"{url}/tasks", json=body).json()
    assert httpx.put(url + task["links"]["upload"], content=CONTENT).status_code == 200
    assert apart.platform.wait(task["task_id"])["result"]["summary"]["size_bytes"] == len(CONTENT)


def test_an_upload_that_is_too_long_leaves_nothing(apart: Apart, url: str) -> None:
    task = httpx.post(f"{url}/tasks", json={"processor": "checksum", "filename": "a", "size_bytes": 5}).json()
    pieces = (CONTENT[:5], CONTENT[5:10])
    assert httpx.put(url + task["links"]["upload"], content=iter(pieces)).status_code == 413
    assert apart.keys(task) == set()


def test_a_cancelled_task_leaves_nothing_on_the_workers_disk(apart: Apart, url: str) -> None:
    task = apart.platform.submit("rehearsal", CONTENT, options='{"steps": 1, "step_seconds": 60}')
    wait_for("its input is there", lambda: "input" in apart.disk(apart.worker), seconds=20)
    assert httpx.post(url + task["links"]["cancel"]).status_code == 202
    wait_for("its input is gone", lambda: apart.disk(apart.worker) == set(), seconds=20)
    assert apart.platform.task(task["task_id"])["status"] == "cancelled"


def test_a_task_whose_worker_was_killed_is_completed_by_one_on_another_machine(apart: Apart, url: str) -> None:
    (first,) = apart.platform.workers
    task = apart.platform.submit("rehearsal", CONTENT, options='{"steps": 3, "step_seconds": 1}')
    wait_for("its input is there", lambda: "input" in apart.disk(apart.worker), seconds=20)
    first.signal(signal.SIGKILL)
    first.wait()
    apart.platform.workers.remove(first)
    apart.start_worker("another-worker-data")
    task = apart.platform.wait(task["task_id"], "completed", "failed", seconds=40)
    assert (task["status"], task["attempt"]) == ("completed", 2)


async def test_a_bucket_that_is_away_is_said_with_503_and_not_where_it_is(apart: Apart, tmp_path: Path) -> None:
    task = apart.platform.submit("checksum", b"x")
    async with Road(apart.server) as road:
        await road.open()
        data_dir, endpoint = str(tmp_path / "data"), road.endpoint
        starting = partial(apart.platform.start_api, HEADWAY_DATA_DIR=data_dir, AWS_ENDPOINT_URL=endpoint)
        api = await asyncio.to_thread(starting)
        async with httpx.AsyncClient(base_url=apart.platform.urls.pop(), timeout=30) as client:
            assert (await client.get(task["links"]["input"])).content == b"x"
            await road.close()
            sending = client.post("/tasks", data={"processor": "checksum"}, files={"file": ("a", b"x")})
            for answer in await asyncio.gather(client.get(task["links"]["input"]), sending):
                assert (answer.status_code, answer.json()["type"]) == (503, "urn:headway:problem:storage-away")
                assert int(answer.headers["Retry-After"]) > 0
                assert str(road.port) not in answer.text
                assert apart.server.bucket not in answer.text
        assert apart.server.environment["AWS_SECRET_ACCESS_KEY"] not in api.log
