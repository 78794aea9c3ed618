"""A result file is read while its processor writes it: what there is, what comes, to the end, and never half of it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.processes import Platform, RedisServer
from tests.s3_server import S3Server
from tests.waiting import wait_for

WRITING = """
import os, time
from headway.processors import BadInput, Job, Options, processor

class WriteOptions(Options):
    folder: str
    ends: str = "well"

def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.02)

@processor("write", needs_file=False, options=WriteOptions, description="Writes as it is told", reads=("/tmp",))
def write(job: Job) -> dict[str, object]:
    with job.create_output("out.txt", "text/plain", live=True) as file:
        file.write(b"first\\n")
        wait_for(os.path.join(job.options.folder, "go"))
        file.write(b"second\\n")
        if job.options.ends == "badly":
            raise BadInput("It ends badly.")
        if job.options.ends == "changed":
            file.seek(0)
            file.write(b"FIRST\\n")
    return {}
"""


@pytest.fixture(scope="module", params=["directory", "bucket"])
def writing(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("writing")
    (folder / "writing_processors.py").write_text(WRITING)
    env = {"PYTHONPATH": str(folder), "HEADWAY_PROCESSORS": "writing_processors", "HEADWAY_CONFINEMENT": "off"}
    if request.param == "bucket":
        server: S3Server = request.getfixturevalue("s3_server")
        env |= {"HEADWAY_STORAGE_URL": f"s3://{server.bucket}/writing", **server.environment}
    with Platform(folder / "platform", redis_server.fresh_url(), **env) as platform:
        platform.start_worker()
        platform.start_api()
        yield platform


class Following:
    """Somebody who reads along, in a thread."""

    def __init__(self, url: str) -> None:
        self.data = b""
        self.ended: str | None = None
        self._url = url
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            with httpx.stream("GET", self._url, headers={"Accept-Encoding": "identity"}, timeout=60) as answer:
                assert answer.status_code == 200
                assert "out.txt" in answer.headers["content-disposition"]
                for piece in answer.iter_raw():
                    self.data += piece
            self.ended = "whole"
        except httpx.HTTPError:
            self.ended = "cut"


def begun(platform: Platform, folder: Path, ends: str = "well") -> tuple[str, Following]:
    body = {"processor": "write", "options": {"folder": str(folder), "ends": ends}}
    task_id = httpx.post(f"{platform.url}/tasks", json=body).json()["task_id"]
    return task_id, Following(f"{platform.url}/tasks/{task_id}/files/out.txt?follow=1")


def end_of(reader: Following) -> str:
    return str(wait_for("it has ended", lambda: reader.ended))


def can_be_seen(platform: Platform) -> bool:
    return "HEADWAY_STORAGE_URL" not in platform._env


def test_what_is_written_is_read_at_once_and_to_the_end(writing: Platform, tmp_path: Path) -> None:
    task_id, reader = begun(writing, tmp_path)
    if can_be_seen(writing):
        wait_for("the first line is read", lambda: reader.data == b"first\n")
    assert reader.ended is None
    (tmp_path / "go").touch()
    assert (end_of(reader), reader.data) == ("whole", b"first\nsecond\n")
    task = writing.wait(task_id)
    [file] = task["result"]["files"]
    assert hashlib.sha256(reader.data).hexdigest() == file["sha256"]
    again = httpx.get(f"{writing.url}{file['url']}?follow=1")
    assert again.content == reader.data


@pytest.mark.parametrize("ends", ["badly", "changed", "cancelled"])
def test_what_is_no_result_does_not_end_well(writing: Platform, tmp_path: Path, ends: str) -> None:
    task_id, reader = begun(writing, tmp_path, ends)
    if can_be_seen(writing):
        wait_for("the first line is read", lambda: reader.data == b"first\n")
    if ends == "cancelled":
        httpx.post(f"{writing.url}/tasks/{task_id}/cancel")
    else:
        (tmp_path / "go").touch()
    if ends == "changed" and not can_be_seen(writing):
        assert (end_of(reader), reader.data) == ("whole", b"FIRST\nsecond\n")
    else:
        assert end_of(reader) == "cut"


def test_a_file_that_never_comes_is_no_empty_file(writing: Platform, tmp_path: Path) -> None:
    task_id, _ = begun(writing, tmp_path)
    other = Following(f"{writing.url}/tasks/{task_id}/files/out.txt.gz?follow=1")
    (tmp_path / "go").touch()
    assert end_of(other) == "cut"
    assert httpx.get(f"{writing.url}/tasks/{task_id}/files/none?follow=1").status_code == 404
