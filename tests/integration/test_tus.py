"""tus 1.0.0 at /uploads, request by request: what is answered, what is kept, and what everybody who watches sees."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.processes import Platform, RedisServer
from tests.streams import assert_true_story, frames_of, opened, watch
from tests.waiting import wait_for

VERSION = {"Tus-Resumable": "1.0.0"}
PIECE = VERSION | {"Content-Type": "application/offset+octet-stream"}
KEYS = '{"alice": "the-key-of-alice-1234", "bob": "the-key-of-bob-12345"}'


def metadata(**values: str) -> str:
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())


def begun(platform: Platform, size_bytes: int, **headers: str) -> httpx.Response:
    asked = {"Upload-Length": str(size_bytes), "Upload-Metadata": metadata(filename="a.bin", processor="checksum")}
    return httpx.post(f"{platform.url}/uploads", headers=VERSION | asked | headers)


def place(platform: Platform, size_bytes: int) -> tuple[str, str]:
    """A new upload: its id and its address."""
    answer = begun(platform, size_bytes)
    assert answer.status_code == 201, answer.text
    return answer.headers["headway-task-id"], f"{platform.url}{answer.headers['location']}"


def send(url: str, offset: int, content: bytes, **headers: str) -> httpx.Response:
    return httpx.patch(url, headers=PIECE | {"Upload-Offset": str(offset)} | headers, content=content, timeout=120)


def offset_of(url: str) -> int:
    answer = httpx.head(url, headers=VERSION)
    assert answer.status_code == 200
    return int(answer.headers["upload-offset"])


def line_to(url: str, offset: int, size_bytes: int, content: bytes) -> socket.socket:
    """The beginning of a piece; the line stays open."""
    address = urlsplit(url)
    line = socket.create_connection((str(address.hostname), int(address.port or 80)), timeout=120)
    head = f"PATCH {address.path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: {offset}\r\n"
    head += f"Content-Type: application/offset+octet-stream\r\nContent-Length: {size_bytes}\r\n\r\n"
    line.sendall(head.encode() + content)
    return line


def answer_on(line: socket.socket) -> tuple[int, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        data = line.recv(4096)
        assert data, "no answer"
        received += data
    return int(received.split(b" ", 2)[1]), received


def partial(platform: Platform, task_id: str) -> list[Path]:
    return [path for path in (platform.data_dir / "partial").iterdir() if path.name.startswith(task_id)]


def newest_task(platform: Platform) -> list[str]:
    return [task["task_id"] for task in httpx.get(f"{platform.url}/tasks?limit=1").json()["tasks"]]


def test_what_is_spoken_is_told(platform: Platform) -> None:
    for path in ("/uploads", "/uploads/" + "0" * 32):
        answer = httpx.options(f"{platform.url}{path}")
        assert answer.status_code == 204
        assert (answer.headers["tus-version"], answer.headers["tus-resumable"]) == ("1.0.0", "1.0.0")
        extensions = {"creation", "creation-with-upload", "termination", "expiration", "checksum"}
        assert set(answer.headers["tus-extension"].split(",")) == extensions
        assert set(answer.headers["tus-checksum-algorithm"].split(",")) == {"sha1", "md5", "sha256", "crc32"}
        assert int(answer.headers["tus-max-size"]) == 5 * 1024**3


@pytest.mark.parametrize("version", [None, "0.2.2", "1.0"])
def test_another_version_is_refused_and_changes_nothing(platform: Platform, version: str | None) -> None:
    task_id, url = place(platform, 5)
    headers = {"Upload-Offset": "0", "Content-Type": PIECE["Content-Type"]}
    headers |= {} if version is None else {"Tus-Resumable": version}
    for answer in (httpx.patch(url, headers=headers, content=b"12345"), httpx.delete(url, headers=headers)):
        assert (answer.status_code, answer.headers["tus-version"]) == (412, "1.0.0")
    assert (offset_of(url), platform.task(task_id)["status"]) == (0, "uploading")


def test_an_upload_is_a_task_from_its_creation_on(platform: Platform) -> None:
    said = metadata(
        filename="../täst.csv", filetype="text/csv", processor="rehearsal", options='{"steps": 2}', batch_id="b"
    )
    answer = begun(platform, 4, **{"Upload-Metadata": said})
    task = platform.task(answer.headers["headway-task-id"])
    assert answer.headers["location"] == task["links"]["upload"] == f"/uploads/{task['task_id']}"
    assert (task["status"], task["filename"], task["content_type"]) == ("uploading", "täst.csv", "text/csv")
    assert (task["size_bytes"], task["total"], task["done"], task["options"]["steps"]) == (4, 4, 0, 2)
    assert task["batch_id"] == "b"
    expires = parsedate_to_datetime(answer.headers["upload-expires"])
    assert timedelta(hours=23) < expires - datetime.now(UTC) < timedelta(hours=25)
    looked = httpx.head(f"{platform.url}{answer.headers['location']}", headers=VERSION)
    assert (looked.headers["upload-metadata"], looked.headers["upload-length"]) == (said, "4")
    assert looked.headers["cache-control"] == "no-store"
    httpx.delete(f"{platform.url}{answer.headers['location']}", headers=VERSION)


def test_pieces_become_the_file_and_everybody_sees_them_come(platform: Platform) -> None:
    content = os.urandom(3_000_000)
    task_id, url = place(platform, len(content))
    for start in range(0, len(content), 1_000_000):
        answer = send(url, start, content[start : start + 1_000_000])
        assert (answer.status_code, answer.headers["headway-task-id"]) == (204, task_id)
        assert int(answer.headers["upload-offset"]) == start + 1_000_000 == offset_of(url)
    done = platform.wait(task_id)
    assert done["result"]["summary"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert partial(platform, task_id) == []
    story = watch(platform.url, task_id, last_event_id=0)
    assert_true_story(story, first=1)
    assert list(dict.fromkeys(frame.status for frame in story)) == ["uploading", "queued", "processing", "completed"]
    shown = [frame.data["done"] for frame in story if frame.status == "uploading"]
    assert shown == sorted(shown)
    assert {1_000_000, 2_000_000} <= set(shown)


def test_a_lost_last_answer_is_given_again(platform: Platform) -> None:
    task_id, url = place(platform, 5)
    assert send(url, 0, b"12345").status_code == 204
    again = send(url, 5, b"")
    assert (again.status_code, again.headers["upload-offset"]) == (204, "5")
    assert send(url, 0, b"12345").status_code == 409
    assert platform.wait(task_id)["status"] == "completed"
    assert send(url, 5, b"").status_code == 204


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload-Offset": "3"}, 409),
        ({"Upload-Offset": ""}, 400),
        ({"Upload-Offset": "-1"}, 400),
        ({"Upload-Offset": "١"}, 400),
        ({"Content-Type": "text/plain"}, 415),
        ({"Upload-Checksum": "sha512 AAAA"}, 400),
        ({"Upload-Checksum": "sha1"}, 460),
        ({"Upload-Checksum": "sha1 *"}, 400),
    ],
)
def test_a_piece_that_is_not_right_is_refused(platform: Platform, headers: dict[str, str], status: int) -> None:
    _, url = place(platform, 5)
    given = {name.encode(): value.encode() for name, value in (PIECE | {"Upload-Offset": "0"} | headers).items()}
    answer = httpx.patch(url, headers=given, content=b"12345")
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["tus-resumable"] == "1.0.0"
    assert offset_of(url) == 0
    httpx.delete(url, headers=VERSION)


def test_more_than_was_announced_is_refused_and_what_came_before_is_kept(platform: Platform) -> None:
    _, url = place(platform, 5)
    assert send(url, 0, b"123").status_code == 204
    assert send(url, 3, b"456").status_code == 413
    unsized = httpx.patch(url, headers=PIECE | {"Upload-Offset": "3"}, content=iter([b"4", b"56"]))
    assert unsized.status_code == 413
    assert offset_of(url) in (3, 4)
    httpx.delete(url, headers=VERSION)


@pytest.mark.parametrize(
    ("headers", "status", "word"),
    [
        ({"Upload-Length": ""}, 400, "Upload-Length"),
        ({"Upload-Length": "many"}, 400, "Upload-Length"),
        ({"Upload-Defer-Length": "1"}, 400, "Upload-Defer-Length"),
        ({"Upload-Length": str(6 * 1024**3)}, 413, "larger"),
        ({"Upload-Metadata": metadata(filename="a")}, 422, "processor"),
        ({"Upload-Metadata": metadata(processor="nope", filename="a")}, 422, "nope"),
        ({"Upload-Metadata": metadata(processor="checksum")}, 422, "filename"),
        ({"Upload-Metadata": metadata(processor="checksum", filename="..")}, 422, "name"),
        ({"Upload-Metadata": metadata(processor="checksum", filename="a", options="{")}, 422, "options"),
        ({"Upload-Metadata": metadata(processor="rehearsal", filename="a", options='{"steps": -1}')}, 422, "steps"),
        ({"Upload-Metadata": metadata(processor="checksum", filename="a", batch_id="a b")}, 422, "batch_id"),
        ({"Upload-Metadata": "filename ?"}, 400, "base64"),
        ({"Upload-Metadata": "filename YQ==,filename YQ=="}, 400, "one value"),
        ({"Upload-Metadata": "filename /w=="}, 400, "UTF-8"),
        ({"Upload-Metadata": "x" * 20_000}, 400, "longer"),
    ],
)
def test_a_creation_that_is_not_right_is_refused_and_makes_no_task(
    platform: Platform, headers: dict[str, str], status: int, word: str
) -> None:
    newest = newest_task(platform)
    answer = begun(platform, 5, **headers)
    assert answer.status_code == status, answer.text
    assert word in answer.text
    assert newest_task(platform) == newest


ALGORITHMS = {
    "sha1": lambda data: hashlib.sha1(data).digest(),
    "md5": lambda data: hashlib.md5(data).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
    "crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_piece_with_a_wrong_checksum_is_taken_back(platform: Platform, algorithm: str) -> None:
    first, second = os.urandom(200_000), os.urandom(300_000)
    task_id, url = place(platform, 500_000)

    def checked(content: bytes) -> dict[str, str]:
        return {"Upload-Checksum": f"{algorithm} {base64.b64encode(ALGORITHMS[algorithm](content)).decode()}"}

    assert send(url, 0, first, **checked(first)).status_code == 204
    assert send(url, 200_000, second[::-1], **checked(second)).status_code == 460
    assert offset_of(url) == 200_000 == platform.task(task_id)["done"]
    assert send(url, 200_000, second, **checked(second)).status_code == 204
    done = platform.wait(task_id)
    assert done["result"]["summary"]["sha256"] == hashlib.sha256(first + second).hexdigest()


def test_a_piece_with_a_checksum_that_is_cut_off_is_taken_back(platform: Platform) -> None:
    task_id, url = place(platform, 100_000)
    address = urlsplit(url)
    with socket.create_connection((str(address.hostname), int(address.port or 80))) as line:
        head = f"PATCH {address.path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        head += "Upload-Checksum: sha1 AAAA\r\nContent-Type: application/offset+octet-stream\r\n"
        line.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + bytes(50_000))
        wait_for("it is arriving", lambda: platform.task(task_id)["done"])
    wait_for("the cut is told", lambda: "cut off" in platform.task(task_id)["message"])
    assert offset_of(url) == 0 == platform.task(task_id)["done"]
    httpx.delete(url, headers=VERSION)


@pytest.mark.parametrize("sent", [5, 3])
def test_a_creation_may_bring_the_first_piece(platform: Platform, sent: int) -> None:
    said = {"Upload-Length": "5", "Upload-Metadata": metadata(filename="a.bin", processor="checksum")}
    answer = httpx.post(f"{platform.url}/uploads", headers=PIECE | said, content=b"12345"[:sent])
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, str(sent))
    if sent < 5:
        assert send(f"{platform.url}{answer.headers['location']}", 3, b"45").status_code == 204
    done = platform.wait(answer.headers["headway-task-id"])
    assert done["result"]["summary"]["sha256"] == hashlib.sha256(b"12345").hexdigest()


def test_a_creation_that_is_cut_off_with_its_piece_leaves_nothing_that_waits(platform: Platform) -> None:
    address = urlsplit(platform.url)
    said = metadata(filename="cut-as-it-began.bin", processor="checksum")
    head = "POST /uploads HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Length: 100000\r\n"
    head += f"Upload-Metadata: {said}\r\n"
    head += "Content-Type: application/offset+octet-stream\r\nContent-Length: 100000\r\n\r\n"

    def made() -> dict[str, Any] | None:
        tasks = httpx.get(f"{platform.url}/tasks").json()["tasks"]
        return next((task for task in tasks if task["filename"] == "cut-as-it-began.bin"), None)

    with socket.create_connection((str(address.hostname), int(address.port or 80))) as line:
        line.sendall(head.encode() + bytes(50_000))
        wait_for("it is arriving", lambda: (made() or {}).get("done"))
    task = made()
    assert task is not None
    assert platform.wait(task["task_id"])["status"] == "failed"
    wait_for("nothing is left", lambda: not partial(platform, task["task_id"]))


def test_an_empty_file_is_whole_as_it_begins(platform: Platform) -> None:
    answer = begun(platform, 0)
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, "0")
    done = platform.wait(answer.headers["headway-task-id"])
    assert done["result"]["summary"]["sha256"] == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize("way", ["DELETE", "cancel", "override"])
@pytest.mark.parametrize("coming", [True, False], ids=["while it comes", "between pieces"])
def test_a_cancelled_upload_ends_at_once_and_frees_its_bytes(platform: Platform, way: str, coming: bool) -> None:
    task_id, url = place(platform, 1_000_000)
    assert send(url, 0, bytes(2_000)).status_code == 204
    line = line_to(url, 2_000, 998_000, bytes(3_000)) if coming else None
    if coming:
        wait_for("it is arriving", lambda: platform.task(task_id)["done"] == 5_000)
    match way:
        case "DELETE":
            assert httpx.delete(url, headers=VERSION).status_code == 204
        case "override":
            headers = VERSION | {"X-HTTP-Method-Override": "DELETE"}
            assert httpx.post(url, headers=headers).status_code == 204
        case "cancel":
            assert httpx.post(f"{platform.url}/tasks/{task_id}/cancel").status_code == 202
    assert platform.task(task_id)["status"] == "cancelled"
    if line is not None:
        assert answer_on(line)[0] == 410
        line.close()
    wait_for("the bytes are freed", lambda: not partial(platform, task_id))
    assert httpx.head(url, headers=VERSION).status_code == 410
    assert send(url, 5_000, b"x").status_code == 410
    assert httpx.delete(url, headers=VERSION).status_code == 410
    assert httpx.post(f"{platform.url}/tasks/{task_id}/retry").status_code == 409


def test_termination_of_an_ended_task_deletes_it(platform: Platform) -> None:
    task_id, url = place(platform, 1)
    assert send(url, 0, b"x").status_code == 204
    platform.wait(task_id)
    assert httpx.delete(url, headers=VERSION).status_code == 204
    assert httpx.head(url, headers=VERSION).status_code == 404
    assert httpx.get(f"{platform.url}/tasks/{task_id}").status_code == 404


def test_the_method_may_be_said_in_a_header(platform: Platform) -> None:
    task_id, url = place(platform, 5)
    patch = PIECE | {"Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert httpx.post(url, headers=patch, content=b"123").headers["upload-offset"] == "3"
    looked = httpx.post(url, headers=VERSION | {"X-HTTP-Method-Override": "HEAD"})
    assert looked.headers["upload-offset"] == "3"
    assert httpx.post(url, headers=VERSION).status_code == 405
    assert send(url, 3, b"45").status_code == 204
    assert platform.wait(task_id)["status"] == "completed"


def test_a_refusal_before_the_body_is_read_and_its_line_is_closed(platform: Platform) -> None:
    _, url = place(platform, 20_000_000)
    assert send(url, 7, bytes(10_000_000)).status_code == 409, "while all of it is sent"
    with line_to(url, 7, 10_000_000, bytes(100)) as line:  # and nothing more
        status, head = answer_on(line)
        assert status == 409
        assert b"connection: close" in head.lower()
        while line.recv(4096):
            pass
    httpx.delete(url, headers=VERSION)


def test_a_look_while_a_piece_comes_tells_what_is_safe_and_disturbs_nothing(platform: Platform) -> None:
    size = 3_000_000
    task_id, url = place(platform, size)
    with line_to(url, 0, size, bytes(2_500_000)) as line:
        wait_for("some of it is safe", lambda: offset_of(url) >= 1024 * 1024)
        assert offset_of(url) <= 2_500_000
        line.sendall(bytes(size - 2_500_000))
        assert answer_on(line)[0] == 204
    assert platform.wait(task_id)["status"] == "completed"


def test_the_two_ways_to_send_a_file_are_kept_apart(platform: Platform) -> None:
    task_id, url = place(platform, 5)
    assert httpx.put(f"{platform.url}/tasks/{task_id}/upload", content=b"12345").status_code == 409
    httpx.delete(url, headers=VERSION)
    announced = httpx.post(f"{platform.url}/tasks", json={"processor": "checksum", "filename": "a"}).json()
    assert httpx.head(f"{platform.url}/uploads/{announced['task_id']}", headers=VERSION).status_code == 404
    httpx.post(f"{platform.url}{announced['links']['cancel']}")


def test_a_stream_opened_before_the_first_byte_shows_the_whole_way(platform: Platform) -> None:
    task_id, url = place(platform, 6)
    with opened(f"{platform.url}/tasks/{task_id}/events") as watching:
        story = frames_of(watching)
        assert next(story).status == "uploading"
        assert send(url, 0, b"123").status_code == 204
        assert send(url, 3, b"456").status_code == 204
        assert list(story)[-1].status == "completed"


@pytest.fixture(scope="module")
def guarded(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """An API with keys and a friend from another origin."""
    with Platform(tmp_path_factory.mktemp("guarded"), redis_server.fresh_url()) as own:
        own.start_api(HEADWAY_API_KEYS=KEYS, HEADWAY_CORS_ORIGINS="https://app.example.com")
        yield own


def test_anothers_upload_is_not_there_and_its_body_is_not_read(guarded: Platform) -> None:
    alice, bob = ({"Authorization": f"Bearer the-key-of-{key}"} for key in ("alice-1234", "bob-12345"))
    assert begun(guarded, 5).status_code == 401
    url = f"{guarded.url}{begun(guarded, 5, **alice).headers['location']}"
    assert send(url, 0, b"12345", **bob).status_code == 404
    assert httpx.head(url, headers=VERSION | bob).status_code == 404
    assert httpx.delete(url, headers=VERSION | bob).status_code == 404
    with line_to(url, 0, 5, b"") as line:  # without a key, and without a byte of its body
        assert answer_on(line)[0] == 401
    assert httpx.head(url, headers=VERSION | alice).headers["upload-offset"] == "0"
    assert httpx.delete(url, headers=VERSION | alice).status_code == 204


def test_a_page_of_a_friendly_origin_may_upload(guarded: Platform) -> None:
    origin = {"Origin": "https://app.example.com"}
    asked = "tus-resumable,upload-length,upload-metadata,upload-offset,upload-checksum,content-type,authorization"
    for method in ("POST", "PATCH", "HEAD", "DELETE"):
        preflight = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": asked}
        answer = httpx.options(f"{guarded.url}/uploads", headers=origin | preflight)
        assert answer.status_code == 200, answer.text
    alice = {"Authorization": "Bearer the-key-of-alice-1234"}
    answer = begun(guarded, 5, **origin, **alice)
    exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
    assert {
        "location",
        "upload-offset",
        "upload-length",
        "tus-resumable",
        "upload-expires",
        "headway-task-id",
    } <= exposed
    httpx.delete(f"{guarded.url}{answer.headers['location']}", headers=VERSION | alice)
    stranger = begun(guarded, 5, Origin="https://evil.example.com", **alice)
    assert stranger.status_code == 403
