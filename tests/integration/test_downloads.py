"""Downloads, byte for byte, on every way they can go out: by the kernel under both of uvicorn's protocols and event
loops, by reading where something stands in between, and over TLS."""

from __future__ import annotations

import contextlib
import email.message
import email.policy
import hashlib
import http.client
import os
import random
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.processes import START_SECONDS, Platform, free_port
from tests.streams import frames_of, opened
from tests.waiting import wait_for

MIB = 1024 * 1024
KINDS = {
    "uvloop": ("direct", "--loop", "uvloop", "--http", "httptools"),
    "asyncio": ("direct", "--loop", "asyncio", "--http", "h11"),
    "read": ("behind_another", "--loop", "uvloop", "--http", "httptools"),
    "tls": ("direct", "--loop", "uvloop", "--http", "httptools"),
}
BY_THE_KERNEL = ("uvloop", "asyncio")
#: Enough that no kernel buffers it all.
LARGE_BYTES = 32 * MIB
SEND_TIMEOUT_SECONDS = 2


@dataclass(frozen=True)
class Served:
    kind: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    files: Path

    @property
    def url(self) -> str:
        return f"http{'s' if self.kind == 'tls' else ''}://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=False, timeout=30)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(httpx.HTTPError), self.client() as client:
            return client.get("/healthz").status_code == 200
        return False

    def connect(self, receive_buffer_bytes: int | None = None) -> socket.socket:
        sock = socket.socket()
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.settimeout(30)
        sock.connect(("127.0.0.1", self.port))
        return sock

    def times_open(self, path: Path) -> int:
        found = 0
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found += link.readlink() == path
        return found

    def has_open(self, path: Path, *, times: int) -> bool:
        return self.times_open(path) == times

    @property
    def downloads_cut(self) -> int:
        return self.log.read_text().count("download cut")


@contextmanager
def serving(kind: str, platform: Platform, folder: Path) -> Iterator[Served]:
    app, *arguments = KINDS[kind]
    port = free_port()
    if kind == "tls":
        key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
        made = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]
        made += ["-subj", "/CN=test", "-keyout", key, "-out", certificate]
        subprocess.run(made, check=True, capture_output=True)
        arguments += ["--ssl-keyfile", key, "--ssl-certfile", certificate]
    places = {
        "HEADWAY_REDIS_URL": platform.redis_url,
        "HEADWAY_DATA_DIR": str(platform.data_dir),
        "HEADWAY_FILES_DIR": str(platform.files_dir),
        "HEADWAY_SEND_TIMEOUT_SECONDS": str(SEND_TIMEOUT_SECONDS),
    }
    log = folder / f"{kind}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", f"tests.integration.download_apps:{app}", "--port", str(port)),
                *("--timeout-graceful-shutdown", "1", *arguments),
            ],
            env={k: v for k, v in os.environ.items() if not k.startswith("HEADWAY_")} | places,
            stdout=output,
            stderr=output,
        )
    try:
        yield Served(kind, port, process, log, platform.files_dir)
    finally:
        process.terminate()
        process.wait(15)
    # Another server is told in no other way that a download cannot be completed.
    assert kind == "read" or not re.search("ASGI|Traceback", log.read_text()), log.read_text()


@pytest.fixture(scope="module")
def all_served(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    with ExitStack() as stack:
        started = {
            kind: stack.enter_context(serving(kind, platform, tmp_path_factory.mktemp(kind)))
            for kind in KINDS
            if kind != "tls" or shutil.which("openssl")
        }
        for kind, served in started.items():
            wait_for(f"the {kind} server answers", served.answers, seconds=START_SECONDS)
        yield started


@pytest.fixture(params=list(KINDS))
def served(request: pytest.FixtureRequest, all_served: dict[str, Served]) -> Served:
    if request.param not in all_served:
        pytest.skip("openssl is not installed: no certificate for TLS")
    return all_served[request.param]


@pytest.fixture(params=[kind for kind in KINDS if kind != "tls"])
def plainly_served(request: pytest.FixtureRequest, all_served: dict[str, Served]) -> Served:
    return all_served[request.param]


def offer(served: Served, name: str, size: int) -> bytes:
    content = random.Random(size).randbytes(size)
    (served.files / name).write_bytes(content)
    return content


@pytest.fixture
def large(platform: Platform) -> Iterator[Path]:
    path = platform.files_dir / "large.bin"
    with path.open("wb") as file:
        file.truncate(LARGE_BYTES)
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("size", [0, 1, 65_536, 3 * MIB + 17])
def test_a_file_arrives_whole_with_everything_that_is_said_of_it(served: Served, size: int) -> None:
    content = offer(served, f"whole-{size}.csv", size)
    with served.client() as client:
        answer = client.get(f"/download/whole-{size}.csv")
        head = client.head(f"/download/whole-{size}.csv")
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["content-length"] == str(size)
    assert answer.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "text/csv"
    assert answer.headers["content-disposition"] == f'attachment; filename="whole-{size}.csv"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert answer.headers["repr-digest"].startswith("sha-256=:")
    assert answer.headers["last-modified"].endswith(" GMT")
    assert (head.status_code, head.content) == (200, b"")
    dated = ("date",)
    assert {k: v for k, v in head.headers.items() if k not in dated} == {
        k: v for k, v in answer.headers.items() if k not in dated
    }


def test_any_range_is_those_bytes(served: Served) -> None:
    content = offer(served, "ranges.bin", 3 * MIB + 17)
    rng = random.Random(7)
    with served.client() as client:
        for _ in range(20):
            first = rng.randrange(len(content))
            last = rng.randrange(first, len(content))
            answer = client.get("/download/ranges.bin", headers={"Range": f"bytes={first}-{last}"})
            assert (answer.status_code, answer.content) == (206, content[first : last + 1])
            assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(content)}"
            head = client.head("/download/ranges.bin", headers={"Range": f"bytes={first}-{last}"})
            assert (head.status_code, head.headers["content-range"]) == (206, answer.headers["content-range"])
            assert head.headers["content-length"] == str(last - first + 1)
        assert client.get("/download/ranges.bin", headers={"Range": "bytes=-9"}).content == content[-9:]
        assert client.get("/download/ranges.bin", headers={"Range": "bytes=x"}).status_code == 200


def test_several_ranges_come_as_parts_in_the_order_asked_for(served: Served) -> None:
    content = offer(served, "parts.bin", 3 * MIB)
    with served.client() as client:
        asked = {"Range": f"bytes={2 * MIB}-,0-4,100000-1500000"}
        answer = client.get("/download/parts.bin", headers=asked)
        head = client.head("/download/parts.bin", headers=asked)
    assert answer.status_code == 206
    assert len(answer.content) == int(answer.headers["content-length"]) == int(head.headers["content-length"])
    raw = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode() + answer.content
    message = email.message_from_bytes(raw, policy=email.policy.HTTP)
    parts = [(part["content-range"], part.get_payload(decode=True)) for part in message.iter_parts()]
    assert parts == [
        (f"bytes {2 * MIB}-{3 * MIB - 1}/{3 * MIB}", content[2 * MIB :]),
        (f"bytes 0-4/{3 * MIB}", content[:5]),
        (f"bytes 100000-1500000/{3 * MIB}", content[100_000:1_500_001]),
    ]


def test_a_client_is_told_what_it_has_and_what_there_is_not(served: Served) -> None:
    content = offer(served, "known.bin", 5000)
    url = "/download/known.bin"
    os.utime(served.files / "known.bin", (1_700_000_000, 1_700_000_000))
    with served.client() as client:
        first = client.get(url)
        etag, date = first.headers["etag"], first.headers["last-modified"]

        same = client.get(url, headers={"If-None-Match": f'"x", W/{etag}'})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
        assert client.get(url, headers={"If-Modified-Since": date}).status_code == 304

        rest = {"Range": "bytes=4000-"}
        for validator, status in ((etag, 206), (date, 206), (f"W/{etag}", 200), ('"x"', 200)):
            part = client.get(url, headers=rest | {"If-Range": validator})
            assert (part.status_code, part.content) == (status, content[4000:] if status == 206 else content)

        beyond = client.get(url, headers={"Range": "bytes=5000-"})
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */5000")
        assert beyond.headers["content-type"] == "application/problem+json"
        assert beyond.json()["type"] == "urn:headway:problem:range-not-satisfiable"
        failed = client.get(url, headers={"If-Match": '"x"'})
        assert (failed.status_code, failed.json()["status"]) == (412, 412)
        missing = client.get("/download/missing.bin")
        assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")


def test_a_file_that_changes_has_another_tag(served: Served) -> None:
    offer(served, "changing.bin", 1000)
    with served.client() as client:
        before = client.get("/download/changing.bin").headers["etag"]
        content = offer(served, "changing.bin", 1001)
        after = client.get("/download/changing.bin", headers={"If-None-Match": before})
    assert (after.status_code, after.content) == (200, content)


def test_a_name_in_any_script_is_kept(served: Served) -> None:
    offer(served, "Übersicht €.csv", 10)
    with served.client() as client:
        answer = client.get("/download/Übersicht €.csv")
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"Ubersicht _.csv\"; filename*=UTF-8''%C3%9Cbersicht%20%E2%82%AC.csv"
    )


def test_a_connection_goes_on_after_every_kind_of_answer(served: Served) -> None:
    content = offer(served, "kept.bin", 2 * MIB + 1)
    if served.kind == "tls":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            "127.0.0.1", served.port, timeout=30, context=context
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    asked = [
        ("GET", {}, 200, content),
        ("HEAD", {}, 200, b""),
        ("GET", {"Range": "bytes=5-1500000"}, 206, content[5:1_500_001]),
        ("HEAD", {"Range": "bytes=0-3,1000000-"}, 206, b""),
        ("GET", {"Range": "bytes=9999999-"}, 416, None),
        ("GET", {"If-None-Match": "*"}, 304, b""),
        ("GET", {"If-Match": '"x"'}, 412, None),
        ("GET", {"Range": "bytes=0-3,1000000-"}, 206, None),
        ("GET", {}, 200, content),
    ]
    with contextlib.closing(connection):
        connection.connect()
        sock = connection.sock
        for method, headers, status, body in asked:
            connection.request(method, "/download/kept.bin", headers=headers)
            answer = connection.getresponse()
            received = answer.read()
            assert answer.status == status, (method, headers)
            assert body is None or received == body, (method, headers)
            assert connection.sock is sock, "the server has closed the connection"


def test_requests_sent_at_once_are_answered_in_order(plainly_served: Served) -> None:
    content = offer(plainly_served, "pipelined.bin", MIB)
    request = "GET /download/pipelined.bin HTTP/1.1\r\nHost: x\r\n{}\r\n"
    with plainly_served.connect() as sock, sock.makefile("rb") as stream:
        last = request.format("Range: bytes=-3\r\nConnection: close\r\n")
        sock.sendall((request.format("") * 2 + last).encode())
        for _ in range(2):
            while stream.readline() != b"\r\n":
                pass
            assert stream.read(len(content)) == content
        assert stream.read().partition(b"\r\n\r\n")[2] == content[-3:]


def test_the_kernel_sends_where_it_can(served: Served) -> None:
    content = offer(served, "counted.bin", 2 * MIB)
    with served.client() as client:
        before = int(client.get("/sent-by-the-kernel").text)
        assert client.get("/download/counted.bin").content == content
        after = int(client.get("/sent-by-the-kernel").text)
    assert after - before == (len(content) if served.kind in BY_THE_KERNEL else 0)


def ask_for(sock: socket.socket, path: Path) -> int:
    """Returns how much of the body came with the head."""
    sock.sendall(f"GET /download/{path.name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    received = b""
    while b"\r\n\r\n" not in received:
        received += sock.recv(1000)
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"content-length: {LARGE_BYTES}".encode() in head.lower()
    return len(body)


def receive_all(sock: socket.socket, *, up_to: int = LARGE_BYTES) -> int:
    """Until so much is there or the server ends the connection, one way or the other; fails where it hangs."""
    total = 0
    with contextlib.suppress(ConnectionError):
        while total < up_to and (received := len(sock.recv(MIB))):
            total += received
    return total


def test_a_client_that_leaves_in_the_middle_frees_the_file_at_once(plainly_served: Served, large: Path) -> None:
    cut = plainly_served.downloads_cut
    for linger in (struct.pack("ii", 0, 0), struct.pack("ii", 1, 0)):  # FIN, RST
        with plainly_served.connect(receive_buffer_bytes=4096) as sock:
            ask_for(sock, large)
            wait_for("the file is open", lambda: plainly_served.times_open(large))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        wait_for("the file is closed", lambda: not plainly_served.times_open(large))
    assert plainly_served.downloads_cut == cut, "it was the deadline that ended it"


def test_a_file_that_becomes_shorter_cuts_the_connection(plainly_served: Served, large: Path) -> None:
    with plainly_served.connect(receive_buffer_bytes=4096) as sock:
        received = ask_for(sock, large)
        os.truncate(large, MIB)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
        received += receive_all(sock)
    assert received < LARGE_BYTES
    wait_for("the file is closed", lambda: not plainly_served.times_open(large))


def test_a_deleted_file_is_sent_to_its_end_to_those_who_have_it(plainly_served: Served, large: Path) -> None:
    with plainly_served.connect(receive_buffer_bytes=4096) as sock:
        received = ask_for(sock, large)
        wait_for("the file is open", lambda: plainly_served.times_open(large))
        large.unlink()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
        assert received + receive_all(sock, up_to=LARGE_BYTES - received) == LARGE_BYTES


def test_a_client_that_stops_reading_is_dropped_and_a_slow_one_is_not(
    all_served: dict[str, Served], large: Path
) -> None:
    servers = [served for kind, served in all_served.items() if kind != "tls"]
    with ExitStack() as stack:
        stalled = [(served, stack.enter_context(served.connect(4096))) for served in servers]
        # Of another server's connections nothing is known but whether they take what they are sent.
        slow = [stack.enter_context(served.connect(100_000)) for served in servers if served.kind != "read"]
        heads = [ask_for(sock, large) for _, sock in stalled]
        for sock in slow:
            ask_for(sock, large)
        beginning = time.monotonic()
        # The pace is what is tested: in the time of the deadline they take far less than the kernel holds for them.
        while time.monotonic() - beginning < 2 * SEND_TIMEOUT_SECONDS:
            threading.Event().wait(SEND_TIMEOUT_SECONDS / 8)
            for sock in slow:
                assert sock.recv(30_000)
        for (served, sock), head in zip(stalled, heads, strict=True):
            held = 0 if served.kind == "read" else 1  # by the slow one
            wait_for("the stalled one's file is closed", partial(served.has_open, large, times=held))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
            assert head + receive_all(sock) < LARGE_BYTES
        for sock in slow:
            assert sock.recv(30_000)


def test_others_watch_a_transfer_with_its_own_share(plainly_served: Served, platform: Platform) -> None:
    content = random.Random(1).randbytes(24 * MIB)
    task = platform.submit("rehearsal", content, options='{"steps": 1000, "step_seconds": 1}')
    url = f"/tasks/{task['task_id']}"
    with opened(f"{platform.url}{url}/events") as answer:
        frames = (frame.data for frame in frames_of(answer) if frame.name == "transfer")
        with plainly_served.connect(receive_buffer_bytes=100_000) as sock, sock.makefile("rb") as stream:
            first, total = 1000, len(content) - 1000
            request = f"GET {url}/input?transfer=1 HTTP/1.1\r\nHost: x\r\nRange: bytes={first}-\r\n\r\n"
            sock.sendall(request.encode())
            while stream.readline() != b"\r\n":
                pass
            received = stream.read(12 * MIB)
            midway = next(frames)
            while midway["sent"] < 4 * MIB:
                midway = next(frames)
            assert midway["total"] == total
            assert 0 < midway["progress"] < 100
            assert received + stream.read(total - len(received)) == content[first:]
            end = midway
            while end["progress"] < 100:
                before, end = end, next(frames)
                assert before["sent"] <= end["sent"]
    assert (end["file"], end["sent"], end["total"]) == ("file.bin", total, total)
    httpx.post(f"{platform.url}{url}/cancel")
