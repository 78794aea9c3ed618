"""An upload is finished with the rest of the same bytes, or not at all: digests of what is stored, and of the whole."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.test_tus import VERSION, line_to, metadata, offset_of, place, send
from tests.processes import Platform
from tests.waiting import wait_for

#: 200 of either side is what was promised and measured: FACE_CUTS=200.
FACE_CUTS = int(os.environ.get("FACE_CUTS", "60"))
PIECE_BYTES = 8 * 1024 * 1024
WANTED = VERSION | {"Headway-Want-Digest": "1"}


def prefix_digest(content: bytes) -> str:
    pieces = [content[at : at + PIECE_BYTES] for at in range(0, len(content), PIECE_BYTES)]
    joined = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    return base64.b64encode(hashlib.sha256(joined).digest()).decode()


def stored_at(url: str) -> tuple[int, str]:
    answer = httpx.head(url, headers=WANTED, timeout=120)
    assert answer.status_code == 200
    return int(answer.headers["upload-offset"]), answer.headers["headway-upload-digest"]


def ended(platform: Platform, task_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        found.update(httpx.get(f"{platform.url}/tasks/{task_id}").json())
        return found["status"] in ("completed", "failed", "cancelled")

    wait_for(f"{task_id} has ended", has_ended, seconds=60)
    return found


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_what_is_stored_is_told_by_digest_at_every_offset(platform: Platform) -> None:
    content = os.urandom(2 * PIECE_BYTES + 5)
    task_id, url = place(platform, len(content))
    offset = 0
    assert stored_at(url) == (0, prefix_digest(b""))
    for to in (5, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 3, 2 * PIECE_BYTES, len(content)):
        answer = send(url, offset, content[offset:to], **{"Headway-Upload-Digest": prefix_digest(content[:offset])})
        assert answer.status_code == 204, answer.text
        offset = to
        assert stored_at(url) == (to, prefix_digest(content[:to]))
    assert ended(platform, task_id)["result"]["summary"]["sha256"] == sha256_of(content)


def test_the_rest_of_another_file_changes_nothing(platform: Platform) -> None:
    content = os.urandom(3000)
    task_id, url = place(platform, len(content))
    assert send(url, 0, content[:1000]).status_code == 204
    other = send(url, 1000, os.urandom(2000), **{"Headway-Upload-Digest": prefix_digest(os.urandom(1000))})
    assert (other.status_code, other.json()["type"]) == (409, "urn:headway:problem:another-file")
    assert stored_at(url) == (1000, prefix_digest(content[:1000]))
    right = send(url, 1000, content[1000:], **{"Headway-Upload-Digest": prefix_digest(content[:1000])})
    assert right.status_code == 204
    assert ended(platform, task_id)["result"]["summary"]["sha256"] == sha256_of(content)
    late = send(url, 3000, b"", **{"Headway-Upload-Digest": prefix_digest(os.urandom(3000))})
    assert late.status_code == 409


@pytest.mark.parametrize("value", ["", "x", "AAAA", base64.b64encode(bytes(31)).decode()])
def test_a_digest_that_is_none_is_refused(platform: Platform, value: str) -> None:
    _, url = place(platform, 10)
    assert send(url, 0, b"0123456789", **{"Headway-Upload-Digest": value}).status_code == 400


def test_a_piece_that_was_taken_back_is_not_in_the_digest(platform: Platform) -> None:
    """Also where it filled a piece whose digest would be kept."""
    content = os.urandom(PIECE_BYTES + 10)
    _, url = place(platform, len(content))
    wrong = {"Upload-Checksum": f"crc32 {base64.b64encode(bytes(4)).decode()}"}
    assert send(url, 0, os.urandom(PIECE_BYTES + 1), **wrong).status_code == 460
    assert stored_at(url) == (0, prefix_digest(b""))
    assert send(url, 0, content[: PIECE_BYTES + 1]).status_code == 204
    assert stored_at(url) == (PIECE_BYTES + 1, prefix_digest(content[: PIECE_BYTES + 1]))


def announce(platform: Platform, content: bytes, **more: str) -> dict[str, Any]:
    body = {"filename": "a.bin", "size_bytes": len(content), "processor": "checksum", **more}
    answer = httpx.post(f"{platform.url}/tasks", json=body)
    assert answer.status_code == 201, answer.text
    task: dict[str, Any] = answer.json()
    return task


def begin(platform: Platform, content: bytes, *, headers: dict[str, str], **more: str) -> tuple[str, str]:
    asked = {
        "Upload-Length": str(len(content)),
        "Upload-Metadata": metadata(filename="a", processor="checksum", **more),
    }
    answer = httpx.post(f"{platform.url}/uploads", headers=VERSION | asked | headers)
    assert answer.status_code == 201, answer.text
    return answer.headers["headway-task-id"], f"{platform.url}{answer.headers['location']}"


def hex_in_base64(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


HOW = ["JSON", "JSON, upper case", "metadata", "Upload-Checksum", "PUT Repr-Digest", "PUT Content-Digest", "PUT crc32"]


@pytest.mark.parametrize("same", [True, False], ids=["the file", "another"])
@pytest.mark.parametrize(
    "how",
    ["JSON", "JSON, upper case", "metadata", "Upload-Checksum", "PUT Repr-Digest", "PUT Content-Digest", "PUT crc32"],
)
def test_a_file_is_held_to_the_digest_that_was_declared(platform: Platform, how: str, same: bool) -> None:
    announced = os.urandom(5000)
    sent = announced if same else os.urandom(5000)
    headers: dict[str, str] = {}
    if how in ("metadata", "Upload-Checksum"):
        more = {"sha256": sha256_of(announced)} if how == "metadata" else {}
        declared = {"Upload-Checksum": f"sha256 {hex_in_base64(announced)}"} if not more else {}
        task_id, url = begin(platform, announced, headers=declared, **more)
        assert send(url, 0, sent[:2000]).status_code == 204
        answer = send(url, 2000, sent[2000:])
    else:
        digest = sha256_of(announced)
        declares = {"JSON": {"sha256": digest}, "JSON, upper case": {"sha256": digest.upper()}}
        task = announce(platform, announced, **declares.get(how, {}))
        task_id = task["task_id"]
        headers = {
            "PUT Repr-Digest": {"Repr-Digest": f"sha-256=:{hex_in_base64(announced)}:"},
            "PUT Content-Digest": {"Content-Digest": f"md5=:x:, sha-256=:{hex_in_base64(announced)}:"},
            "PUT crc32": {"Upload-Checksum": f"crc32 {base64.b64encode(zlib.crc32(announced).to_bytes(4)).decode()}"},
        }.get(how, {})
        answer = httpx.put(f"{platform.url}{task['links']['upload']}", content=sent, headers=headers)
    task = ended(platform, task_id)
    if same:
        assert answer.status_code in (200, 204)
        assert task["result"]["summary"]["sha256"] == sha256_of(announced)
    else:
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:headway:problem:not-the-announced-file")
        assert (task["status"], task["error"]["type"], task["error"]["retryable"]) == ("failed", "bad_input", False)
        assert "not the file that was announced" in task["error"]["message"]
        assert httpx.get(f"{platform.url}/tasks/{task_id}/input").status_code == 404


def test_a_form_is_held_to_the_digest_that_it_declares(platform: Platform) -> None:
    content = os.urandom(100)
    asked = {"processor": "checksum", "sha256": sha256_of(content)}
    right = httpx.post(f"{platform.url}/tasks", data=asked, files={"file": ("a.bin", content)})
    assert right.status_code == 202
    wrong = httpx.post(f"{platform.url}/tasks", data=asked, files={"file": ("a.bin", os.urandom(100))})
    assert (wrong.status_code, wrong.json()["type"]) == (422, "urn:headway:problem:not-the-announced-file")
    bad = httpx.post(f"{platform.url}/tasks", data=asked | {"sha256": "x"}, files={"file": ("a.bin", content)})
    assert (bad.status_code, bad.json()["errors"][0]["field"]) == (422, "sha256")


@pytest.mark.parametrize("size_bytes", [0, 1])
def test_the_smallest_files_are_held_to_it_too(platform: Platform, size_bytes: int) -> None:
    task = announce(platform, bytes(size_bytes), sha256=sha256_of(b"another"))
    answer = httpx.put(f"{platform.url}{task['links']['upload']}", content=bytes(size_bytes))
    assert answer.status_code == 422
    assert ended(platform, task["task_id"])["status"] == "failed"


async def test_two_that_send_different_files_to_one_task_never_mix(platform: Platform) -> None:
    """Both begin at once, in pieces of random sizes, each saying what its pieces follow. Ten times."""
    chance = random.Random(7)
    async with httpx.AsyncClient(timeout=60) as client:

        async def sender(url: str, content: bytes) -> None:
            offset = 0
            while offset < len(content):
                step = chance.randint(1, 60_000)
                said = {"Upload-Offset": str(offset), "Headway-Upload-Digest": prefix_digest(content[:offset])}
                headers = VERSION | said | {"Content-Type": "application/offset+octet-stream"}
                answer = await client.patch(url, headers=headers, content=content[offset : offset + step])
                if answer.status_code == 204:
                    offset = int(answer.headers["upload-offset"])
                    continue
                answer = await client.head(url, headers=WANTED)
                if answer.status_code == 423:
                    continue
                if answer.status_code != 200:
                    return
                there = int(answer.headers["upload-offset"])
                if answer.headers["headway-upload-digest"] != prefix_digest(content[:there]):
                    return
                offset = there

        for _ in range(10):
            files = [chance.randbytes(200_000), chance.randbytes(200_000)]
            same = chance.choice([0, 70_000])
            files[1] = files[0][:same] + files[1][same:]
            task_id, url = place(platform, 200_000)
            await asyncio.gather(*(sender(url, content) for content in files))
            task = await asyncio.to_thread(ended, platform, task_id)
            assert task["result"]["summary"]["sha256"] in {sha256_of(content) for content in files}


async def test_of_two_files_put_to_one_task_one_is_taken_whole(platform: Platform) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        for _ in range(5):
            files = [os.urandom(300_000), os.urandom(300_000)]
            task = announce(platform, files[0])
            url = f"{platform.url}{task['links']['upload']}"
            answers = await asyncio.gather(*(client.put(url, content=content) for content in files))
            assert sorted(answer.status_code for answer in answers) in ([200, 409], [200, 200])
            done = await asyncio.to_thread(ended, platform, task["task_id"])
            assert done["result"]["summary"]["sha256"] in {sha256_of(content) for content in files}


def test_cut_uploads_gone_on_with_any_file_of_the_same_face_are_never_wrong(platform: Platform) -> None:
    """What a client does that finds an upload of a file with this name, size and date: it asks what is stored, and goes
    on where that is the beginning of its file, else begins anew."""
    chance = random.Random(21)
    expected: dict[str, str] = {}
    went_on = 0
    for _ in range(FACE_CUTS):
        size = chance.randint(2, 30_000)
        first, cut = chance.randbytes(size), chance.randint(0, size - 1)
        task_id, url = place(platform, size)
        if cut:
            assert send(url, 0, first[:cut]).status_code == 204
        kept = chance.choice([0, size, chance.randint(0, size)])  # another file, the same, or the same beginning
        second = first[:kept] + chance.randbytes(size - kept)
        offset, digest = stored_at(url)
        if offset == 0 or digest != prefix_digest(second[:offset]):
            task_id, url = place(platform, size)
            offset = 0
        else:
            went_on += 1
        said = {"Headway-Upload-Digest": prefix_digest(second[:offset])}
        assert send(url, offset, second[offset:], **said).status_code == 204
        expected[task_id] = sha256_of(second)
    assert FACE_CUTS / 4 < went_on < FACE_CUTS * 0.9
    for task_id, sha256 in expected.items():
        assert ended(platform, task_id)["result"]["summary"]["sha256"] == sha256


def test_a_hundred_files_of_one_face_by_the_command_line(platform: Platform, tmp_path: Path) -> None:
    paths = []
    for number in range(100):
        path = tmp_path / str(number) / "data.bin"
        path.parent.mkdir()
        path.write_bytes(os.urandom(1000))
        os.utime(path, (1_700_000_000, 1_700_000_000))
        paths.append(path)
    argv = [sys.executable, "-m", "headway.cli.main", "submit", *map(str, paths), "--processor", "checksum", "--json"]
    done = subprocess.run([*argv, "--url", platform.url], capture_output=True, text=True, timeout=55, check=True)
    tasks = [json.loads(line) for line in done.stdout.splitlines()]
    sums = {task["result"]["summary"]["sha256"] for task in tasks if task["status"] == "completed"}
    assert sums == {sha256_of(path.read_bytes()) for path in paths}


def test_two_apis_agree_on_a_digest_while_the_upload_goes_from_one_to_the_other(own_platform: Platform) -> None:
    """Each keeps digests of whole pieces. The first is killed in the middle of a piece; the second goes on."""
    own_platform.start_worker()
    first = own_platform.start_api()
    own_platform.start_api()
    content = os.urandom(2 * PIECE_BYTES + 100_000)
    task_id, url = place(own_platform, len(content))
    path = url.removeprefix(own_platform.url)
    here, there = (f"{base}{path}" for base in own_platform.urls[:2])
    assert send(here, 0, content[: PIECE_BYTES + 3]).status_code == 204
    assert stored_at(there) == stored_at(here) == (PIECE_BYTES + 3, prefix_digest(content[: PIECE_BYTES + 3]))
    wrong = {"Upload-Checksum": f"crc32 {base64.b64encode(bytes(4)).decode()}"}
    assert send(there, PIECE_BYTES + 3, os.urandom(PIECE_BYTES), **wrong).status_code == 460
    assert stored_at(here) == stored_at(there) == (PIECE_BYTES + 3, prefix_digest(content[: PIECE_BYTES + 3]))
    with line_to(here, PIECE_BYTES + 3, len(content) - PIECE_BYTES - 3, content[PIECE_BYTES + 3 : 2 * PIECE_BYTES + 9]):
        wait_for("a part of it is stored", lambda: offset_of(there) > PIECE_BYTES + 3)
        first.kill()
    offset, digest = stored_at(there)
    assert digest == prefix_digest(content[:offset])
    said = {"Headway-Upload-Digest": digest}
    assert send(there, offset, content[offset:], **said).status_code == 204
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        found.update(httpx.get(f"{own_platform.urls[1]}/tasks/{task_id}").json())
        return found["status"] in ("completed", "failed")

    wait_for("it has ended", has_ended)
    assert found["result"]["summary"]["sha256"] == sha256_of(content)
