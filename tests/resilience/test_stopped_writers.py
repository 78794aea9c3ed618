"""An API process that is stopped in the middle of a piece, for longer than its lock lives. Another goes on with the
upload, and then the first wakes. At each point where it can be stopped; on each place of files.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT

import httpx
import pytest

from tests.integration.test_tus import PIECE, place, send
from tests.integration.test_upload_digests import WANTED, ended, prefix_digest, sha256_of
from tests.processes import HeadwayProcess, Platform, RedisServer, free_port
from tests.s3_server import S3Server
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc"),
    pytest.mark.timeout(600),
]

SIZE = 2_500_000
SENT_BEFORE = 300_000
#: Each so many-th of the points; EVERY_POINT=1: all of a disk's. A bucket is many times slower.
STRIDE = {"directory": 1, "bucket": 4} if "EVERY_POINT" in os.environ else {"directory": 3, "bucket": 12}


@dataclass
class Stage:
    platform: Platform
    stopping: HeadwayProcess
    stopping_url: str
    stopped_at: Path
    stride: int

    def is_stopped(self) -> bool:
        return Path(f"/proc/{self.stopping.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.fixture(scope="module", params=["directory", "bucket"])
def stage(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stopped")
    stopped_at = folder / "stopped-at"
    env = {"STOPPED_AT": str(stopped_at)}
    if request.param == "bucket":
        server: S3Server = request.getfixturevalue("s3_server")
        env |= {"HEADWAY_STORAGE_URL": f"s3://{server.bucket}/{secrets.token_hex(4)}", **server.environment}
    with Platform(folder, redis_server.fresh_url(), **env) as platform:
        platform.start_worker()
        ports = [free_port(), free_port()]
        for port in ports:
            arguments, log = ["api", "--port", str(port)], folder / f"api-{port}.log"
            process = HeadwayProcess(arguments, env=platform._env, log=log, module="tests.stopping_api")
            process.start()
            platform.apis.append(process)
            platform.urls.append(f"http://127.0.0.1:{port}")
        for url in platform.urls:
            wait_for(f"the API is alive; its log: {folder}", lambda url=url: alive(url))  # type: ignore[misc]
        yield Stage(platform, platform.apis[1], platform.urls[1], stopped_at, STRIDE[request.param])


def alive(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
    return False


def finish(url: str, file: bytes) -> bool:
    """What a client does: goes on where what is stored begins its file. Whether it brought the last byte."""

    def tried() -> list[bool]:
        looked = httpx.head(url, headers=WANTED, timeout=60)
        if looked.status_code != 200:
            return [] if looked.status_code == 423 else [False]
        offset = int(looked.headers["upload-offset"])
        if looked.headers["headway-upload-digest"] != prefix_digest(file[:offset]) or offset == len(file):
            return [False]
        sent = send(url, offset, file[offset:], **{"Headway-Upload-Digest": prefix_digest(file[:offset])})
        return [True] if sent.status_code == 204 else []

    return wait_for("it is finished, or another's", tried)[0]


@pytest.mark.parametrize("same", [False, True], ids=["another file", "the same file"])
def test_a_writer_that_wakes_too_late_mixes_nothing_wherever_it_was_stopped(stage: Stage, same: bool) -> None:
    start = secrets.token_bytes(SENT_BEFORE)
    first = start + secrets.token_bytes(SIZE - SENT_BEFORE)
    second = first if same else start + secrets.token_bytes(SIZE - SENT_BEFORE)
    points, by_second = [], 0
    with ThreadPoolExecutor(1) as sending:
        for at in range(0, 10_000, stage.stride):
            stage.stopped_at.unlink(missing_ok=True)
            task_id, url = place(stage.platform, SIZE)
            assert send(url, 0, start).status_code == 204
            said = {"X-Stop": str(at), "Upload-Offset": str(SENT_BEFORE)}
            said |= PIECE | {"Headway-Upload-Digest": prefix_digest(start)}
            elsewhere = url.replace(stage.platform.url, stage.stopping_url)
            sent = sending.submit(httpx.patch, elsewhere, headers=said, content=first[SENT_BEFORE:], timeout=120)
            wait_for("it is stopped, or through", lambda: stage.is_stopped() or sent.done())  # noqa: B023
            stopped = stage.is_stopped()
            try:
                brought = finish(url, second)
            finally:
                stage.stopping.signal(SIGCONT)
            answer = sent.result(120)
            if not brought and answer.status_code != 204:
                finish(url, first)
            task = ended(stage.platform, task_id)
            points.append(stage.stopped_at.read_text() if stopped else "through")
            why = f"stopped at {at}, {points[-1]}; it was answered {answer.status_code}"
            assert task["status"] == "completed", why
            expected = second if brought else first
            assert task["result"]["summary"]["sha256"] == sha256_of(expected), why
            by_second += brought
            if not stopped:
                break
    assert len(points) > 20 // stage.stride
    assert by_second > len(points) // 3
