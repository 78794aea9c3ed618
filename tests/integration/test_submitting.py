"""Files in: both forms of POST /tasks, the PUT, and everything that can be wrong with them. Nothing is left over."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import re
import socket
from pathlib import Path

import httpx
import pytest

from tests.processes import Platform
from tests.streams import assert_true_story, frames_of, opened, watch
from tests.waiting import wait_for


def stored_files(platform: Platform) -> set[Path]:
    """But for what attempts at other tasks have in their scratch folders."""
    # os.walk: a folder of such an attempt may go while it is looked at.
    files = {Path(folder, name) for folder, _, names in os.walk(platform.data_dir) for name in names}
    return {path for path in files if not re.search(r"/partial/[0-9a-f]{32}-\d+-[0-9a-f]+(/|$)", str(path))}


def assert_problem(answer: httpx.Response, status: int, *fields: str) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, object] = answer.json()
    assert {"type", "title", "status", "detail"} <= body.keys()
    assert body["status"] == status
    assert body["detail"]
    if fields:
        errors = body["errors"]
        assert isinstance(errors, list)
        assert [error["field"] for error in errors] == list(fields)
    return body


def announce(platform: Platform, content: bytes, processor: str = "checksum") -> dict[str, object]:
    answer = httpx.post(
        f"{platform.url}/tasks",
        json={"filename": "a.bin", "size_bytes": len(content), "content_type": "x/y", "processor": processor},
    )
    assert answer.status_code == 201, answer.text
    task: dict[str, object] = answer.json()
    return task


def test_a_form_is_answered_with_the_task_and_its_location(platform: Platform) -> None:
    answer = httpx.post(
        f"{platform.url}/tasks",
        files={"file": ("trips.csv", b"a,b\n1,2\n", "text/csv")},
        data={"processor": "csv-profile", "options": "{}", "batch_id": "b-1"},
    )
    task = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/tasks/{task['task_id']}"
    assert (task["filename"], task["size_bytes"], task["content_type"]) == ("trips.csv", 8, "text/csv")
    assert (task["status"], task["batch_id"], task["attempt"]) == ("queued", "b-1", 1)
    done = platform.wait(task["task_id"])
    assert done["status"] == "completed", done
    assert done["result"]["summary"]["rows"] == 1
    assert [column["name"] for column in done["result"]["summary"]["columns"]] == ["a", "b"]


def test_the_fields_of_a_form_may_come_after_the_file(platform: Platform) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n'
        b'--x\r\nContent-Disposition: form-data; name="processor"\r\n\r\nchecksum\r\n--x--\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{platform.url}/tasks", content=body, headers=headers)
    assert answer.status_code == 202, answer.text
    done = platform.wait(answer.json()["task_id"])
    assert done["result"]["summary"]["sha256"] == hashlib.sha256(b"abc").hexdigest()


def test_an_announced_upload_can_be_watched_from_its_first_byte_to_the_result(platform: Platform) -> None:
    content = bytes(range(256)) * 4 * 4096  # 4 MiB
    task = announce(platform, content)
    links = task["links"]
    assert isinstance(links, dict)
    assert task["status"] == "uploading"

    with opened(f"{platform.url}{links['events']}") as watching:
        arriving = frames_of(watching)
        assert next(arriving).status == "uploading"
        answer = httpx.put(f"{platform.url}{links['upload']}", content=content)
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] != "uploading"
        assert list(arriving)[-1].status == "completed"
    story = watch(platform.url, str(task["task_id"]), last_event_id=0)
    assert_true_story(story, first=1)
    assert story[-1].data["result"]["summary"]["sha256"] == hashlib.sha256(content).hexdigest()
    order = ["uploading", "queued", "processing", "completed"]
    assert list(dict.fromkeys(frame.status for frame in story)) == order


def test_the_bytes_received_show_on_the_stream_while_they_arrive(platform: Platform) -> None:
    content = bytes(2_000_000)
    task = announce(platform, content)
    links = task["links"]
    assert isinstance(links, dict)
    host, port = platform.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock, opened(f"{platform.url}{links['events']}") as watching:
        story = frames_of(watching)
        assert next(story).data["done"] == 0
        head = f"PUT {links['upload']} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        sock.sendall(head.encode() + content[:1_000_000])
        sent, seen = 1_000_000, next(story)
        while seen.data["done"] < 1_000_000:
            sock.sendall(content[sent : sent + 10])
            sent += 10
            seen = next(story)
        assert (seen.status, seen.data["total"], seen.data["unit"]) == ("uploading", 2_000_000, "bytes")
        assert 0 < seen.data["progress"] < 100
        sock.sendall(content[sent:])
        rest = list(story)
    assert rest[-1].status == "completed"


def test_an_upload_that_is_cut_off_leaves_no_file_and_can_be_sent_again(platform: Platform) -> None:
    task = announce(platform, b"x" * 100_000)
    task_id = str(task["task_id"])
    before = stored_files(platform)
    host, port = platform.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        head = f"PUT /tasks/{task_id}/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        sock.sendall(head.encode() + b"x" * 50_000)
    wait_for("the cut is told", lambda: "cut off" in platform.task(task_id)["message"])
    wait_for("nothing is left", lambda: stored_files(platform) == before)
    answer = httpx.put(f"{platform.url}/tasks/{task_id}/upload", content=b"x" * 100_000)
    assert answer.status_code == 200, answer.text
    assert platform.wait(task_id)["status"] == "completed"


def newest_task(platform: Platform) -> list[str]:
    return [task["task_id"] for task in httpx.get(f"{platform.url}/tasks?limit=1").json()["tasks"]]


def test_a_form_that_is_cut_off_leaves_nothing(platform: Platform) -> None:
    before, newest = stored_files(platform), newest_task(platform)
    host, port = platform.url.removeprefix("http://").split(":")
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(
            b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 3000000\r\n\r\n" + head + bytes(2_500_000)
        )
        wait_for("it is arriving", lambda: stored_files(platform) - before)
    wait_for("nothing is left", lambda: stored_files(platform) == before)
    assert newest_task(platform) == newest


@pytest.mark.parametrize(
    ("data", "files", "fields"),
    [
        ({"processor": "checksum"}, {"nothing": ("", b"x")}, ["file"]),
        ({"processor": "nope"}, {"file": ("a", b"x")}, ["processor"]),
        ({}, {"file": ("a", b"x")}, ["processor"]),
        ({"processor": "checksum", "options": "{"}, {"file": ("a", b"x")}, ["options"]),
        ({"processor": "checksum", "options": "[1]"}, {"file": ("a", b"x")}, ["options"]),
        ({"processor": "checksum", "options": '{"x": 1}'}, {"file": ("a", b"x")}, ["options.x"]),
        ({"processor": "rehearsal", "options": '{"steps": -1}'}, {"file": ("a", b"x")}, ["options.steps"]),
        ({"processor": "checksum", "batch_id": "a b"}, {"file": ("a", b"x")}, ["batch_id"]),
        ({"processor": "checksum"}, {"file": ("x" * 5000, b"x")}, ["file"]),
        ({"processor": "checksum"}, {"file": ("..", b"x")}, ["file"]),
        ({"processor": "checksum"}, {"upload": ("a", b"x")}, ["file"]),
        ({"processor": "checksum", "option": "{}"}, {"file": ("a", b"x")}, ["option"]),
    ],
)
def test_a_wrong_form_names_its_field_and_leaves_nothing(
    platform: Platform, data: dict[str, str], files: dict[str, tuple[str, bytes]], fields: list[str]
) -> None:
    before = stored_files(platform)
    answer = httpx.post(f"{platform.url}/tasks", data=data, files=files)
    assert_problem(answer, 422, *fields)
    assert stored_files(platform) == before


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\a.csv", "a.csv"),
        ("täst 日本.csv", "täst 日本.csv"),
        ("a%0Ab.csv", "ab.csv"),
        ("a%41b.csv", "a%41b.csv"),
        ('qu"ote.csv', None),
    ],
)
def test_a_filename_is_kept_as_a_name_and_is_never_a_path(platform: Platform, sent: str, kept: str | None) -> None:
    task = platform.submit("checksum", b"x", filename=sent)
    if kept is not None:
        assert task["filename"] == kept
    assert platform.wait(task["task_id"])["status"] == "completed"
    [path] = (path for path in stored_files(platform) if task["task_id"] in path.parts)
    assert path.name.startswith("input-")


def test_the_name_that_was_sent_is_kept_beside_the_one_that_is_shown(platform: Platform) -> None:
    sent = "Screenshot at 3.45\u202fPM.png"
    task = platform.submit("checksum", b"x", filename=sent)
    assert (task["filename"], task["filename_as_sent"]) == ("Screenshot at 3.45 PM.png", sent)
    answer = httpx.post(f"{platform.url}/tasks", json={"processor": "checksum", "filename": "plain.csv"})
    assert answer.json()["filename_as_sent"] is None
    httpx.post(f"{platform.url}{answer.json()['links']['cancel']}")


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x"])
def test_a_packed_body_is_refused_with_a_word(platform: Platform, content_type: str) -> None:
    headers = {"Content-Type": content_type, "Content-Encoding": "gzip"}
    answer = httpx.post(f"{platform.url}/tasks", content=gzip.compress(b"{}"), headers=headers)
    assert answer.status_code == 415
    assert "gzip" in answer.json()["detail"]


def test_control_characters_in_a_filename_are_dropped(platform: Platform) -> None:
    answer = httpx.post(f"{platform.url}/tasks", json={"processor": "checksum", "filename": "a\0\n\u202eb.csv"})
    assert answer.status_code == 201, answer.text
    assert answer.json()["filename"] == "ab.csv"
    httpx.post(f"{platform.url}{answer.json()['links']['cancel']}")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"filename": "a"}',
        b'{"processor": 1}',
        b'{"processor": "checksum", "size_bytes": -1}',
        b"\xff",
    ],
)
def test_a_wrong_announcement_is_told(platform: Platform, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert_problem(httpx.post(f"{platform.url}/tasks", content=body, headers=headers), 422)


@pytest.mark.parametrize("content_type", ["text/plain", "", "multipart/form-data", "application/x-www-form-urlencoded"])
def test_another_content_type_is_refused(platform: Platform, content_type: str) -> None:
    answer = httpx.post(f"{platform.url}/tasks", content=b"x=1", headers={"Content-Type": content_type})
    assert_problem(answer, 415)


def test_a_file_over_the_limit_is_refused_in_every_form(own_platform: Platform) -> None:
    own_platform.start_api(HEADWAY_MAX_UPLOAD_BYTES="1000000")
    url = f"{own_platform.url}/tasks"
    form = httpx.post(url, data={"processor": "checksum"}, files={"file": ("a", bytes(1_000_001))})
    assert_problem(form, 413)
    larger = httpx.post(url, data={"processor": "checksum"}, files={"file": ("a", bytes(10_000_000))})
    assert_problem(larger, 413)
    announced = httpx.post(url, json={"processor": "checksum", "filename": "a", "size_bytes": 1_000_001})
    assert_problem(announced, 413)
    unsized = httpx.post(url, json={"processor": "checksum", "filename": "a"}).json()
    put = httpx.put(f"{own_platform.url}{unsized['links']['upload']}", content=bytes(1_000_001))
    assert_problem(put, 413)
    assert stored_files(own_platform) == set()
    exact = httpx.post(url, data={"processor": "checksum"}, files={"file": ("a", bytes(1_000_000))})
    assert exact.status_code == 202


def test_an_upload_of_another_size_than_announced_is_refused(platform: Platform) -> None:
    task = announce(platform, b"12345")
    upload = f"{platform.url}/tasks/{task['task_id']}/upload"
    assert_problem(httpx.put(upload, content=b"1234"), 422, "size_bytes")
    assert_problem(httpx.put(upload, content=b"123456"), 422, "size_bytes")
    assert httpx.put(upload, content=b"12345").status_code == 200
    assert_problem(httpx.put(upload, content=b"12345"), 409)


def test_a_cancelled_upload_takes_no_more_bytes(platform: Platform) -> None:
    task = announce(platform, b"12345")
    assert httpx.post(f"{platform.url}/tasks/{task['task_id']}/cancel").status_code == 202
    assert_problem(httpx.put(f"{platform.url}/tasks/{task['task_id']}/upload", content=b"12345"), 409)
    assert_problem(httpx.post(f"{platform.url}/tasks/{task['task_id']}/retry"), 409)


def test_an_empty_file_is_a_file(platform: Platform) -> None:
    task = platform.submit("checksum", b"")
    done = platform.wait(task["task_id"])
    assert done["result"]["summary"]["sha256"] == hashlib.sha256(b"").hexdigest()


def test_a_picture_named_csv_fails_as_bad_input(platform: Platform) -> None:
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(100)
    task = platform.submit("csv-profile", png, filename="data.csv")
    done = platform.wait(task["task_id"])
    assert (done["status"], done["error"]["type"]) == ("failed", "bad_input")
    assert "image/png" in done["error"]["message"]


def test_a_processor_without_a_file_needs_none(platform: Platform) -> None:
    answer = httpx.post(
        f"{platform.url}/tasks", json={"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0}}
    )
    assert answer.status_code == 202
    assert platform.wait(answer.json()["task_id"])["result"]["summary"] == {"steps": 1}


async def test_a_hundred_files_at_once_are_a_hundred_tasks(platform: Platform) -> None:
    async with httpx.AsyncClient(base_url=platform.url, timeout=60) as client:

        async def one(number: int) -> str:
            content = str(number).encode()
            answer = await client.post("/tasks", data={"processor": "checksum"}, files={"file": ("a", content)})
            return str(answer.json()["task_id"])

        ids = await asyncio.gather(*(one(number) for number in range(100)))
    assert len(set(ids)) == 100
    for number, task_id in enumerate(ids):
        done = platform.wait(task_id, seconds=60)
        assert done["result"]["summary"]["sha256"] == hashlib.sha256(str(number).encode()).hexdigest()


def test_the_input_comes_back_as_it_was_sent(platform: Platform) -> None:
    content = json.dumps(list(range(10_000))).encode()
    task = platform.submit("checksum", content, filename="<b>.html")
    answer = httpx.get(f"{platform.url}{task['links']['input']}")
    assert answer.content == content
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    part = httpx.get(f"{platform.url}{task['links']['input']}", headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, content[5:10])
    same = httpx.get(f"{platform.url}{task['links']['input']}", headers={"If-None-Match": answer.headers["etag"]})
    assert same.status_code == 304
