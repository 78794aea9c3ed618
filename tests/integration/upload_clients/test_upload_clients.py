"""tus-js-client, Uppy and tuspy, unchanged, each upload a file over a line that is cut fifty times.

UPLOAD_BYTES=1073741824 for the full size.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.integration.upload_clients.cutting_proxy import CuttingProxy
from tests.npm import installed
from tests.processes import Platform
from tests.streams import assert_true_story, watch

HERE = Path(__file__).parent
SIZE = int(os.environ.get("UPLOAD_BYTES", str(64 * 1024 * 1024)))
CUTS = 50
#: So that fifty pieces, half as long on average, and what is lost on the way stay short of the file.
MOST_BYTES = SIZE // CUTS * 3 // 2
RUN_SECONDS = 45 + SIZE / 2_000_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.bin"
    with path.open("wb") as file:
        for start in range(0, SIZE, 1 << 20):
            file.write(os.urandom(min(1 << 20, SIZE - start)))
    return path


def command_of(client: str) -> tuple[list[str], Path]:
    if client == "tuspy":
        return [sys.executable, "-m", "tests.integration.upload_clients.python_clients"], HERE.parents[2]
    if (node := shutil.which("node")) is None:
        pytest.skip("there is no node here")
    return [node, "node_clients.mjs", client], installed(HERE, "node_clients.mjs")


@pytest.mark.timeout(RUN_SECONDS + 240)
@pytest.mark.parametrize("client", ["tus-js-client", "uppy", "tuspy"])
async def test_a_file_comes_whole_over_a_line_that_is_cut_fifty_times(
    client: str, platform: Platform, large: Path
) -> None:
    command, folder = command_of(client)
    async with CuttingProxy(platform.url, cuts=CUTS, most_bytes=MOST_BYTES, seed=len(client)) as proxy:
        process = await asyncio.create_subprocess_exec(
            *(*command, f"{proxy.url}/uploads", str(large)),
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(RUN_SECONDS):
                stdout, stderr = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, stderr.decode()
    assert proxy.cuts == CUTS
    task_id = stdout.decode().strip().rpartition("/")[2]
    task = await asyncio.to_thread(platform.wait, task_id)
    assert (task["status"], task["filename"], task["size_bytes"]) == ("completed", "large.bin", SIZE)
    with large.open("rb") as file:
        assert task["result"]["summary"]["sha256"] == hashlib.file_digest(file, "sha256").hexdigest()
    story = await asyncio.to_thread(watch, platform.url, task_id, 0)
    assert_true_story(story, first=1)
    shown = [frame.data["done"] for frame in story if frame.status == "uploading"]
    assert shown == sorted(shown)
    assert any("cut off" in frame.data["message"] for frame in story)
