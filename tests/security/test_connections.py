"""Connections of strangers: answers that nobody reads, requests sent ahead, bodies that trickle, and more of them than
there are files. Who has a key is heard beside all of them, and the log says little."""

from __future__ import annotations

import json
import resource
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import httpx
import pytest

from headway.api.serving.deadlines import HEADERS_BYTES
from headway.api.serving.descriptors import OPERATORS, RESERVED_FILES
from tests.processes import HeadwayProcess, Platform, RedisServer
from tests.resilience.test_strangers import ALICE, KEYS, read_to_the_end, read_until
from tests.streams import opened
from tests.waiting import PATIENCE_SECONDS, wait_for

STYLE: Final = b"GET /static/style.css HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def keyed(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    url = redis_server.fresh_url()
    with Platform(tmp_path_factory.mktemp("connections"), url, HEADWAY_API_KEYS=json.dumps(KEYS)) as platform:
        platform.start_api(HEADWAY_SEND_TIMEOUT_SECONDS="0.5")
        yield platform


def address(platform: Platform) -> tuple[str, int]:
    return "127.0.0.1", int(platform.url.rpartition(":")[2])


def narrow(platform: Platform) -> socket.socket:
    """A connection whose window is small."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(PATIENCE_SECONDS)
    sock.connect(address(platform))
    return sock


def is_cut(sock: socket.socket) -> bool:
    """By the other side, seen without reading a byte."""
    poll = select.poll()
    poll.register(sock, select.POLLERR | select.POLLHUP)
    return bool(poll.poll(0))


def leave(sock: socket.socket) -> None:
    """With a reset, in the midst of whatever there is."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def assert_quiet(api: HeadwayProcess, since: int) -> None:
    lines = api.log[since:].splitlines()
    assert [line for line in lines if "Traceback" in line or '"level": "error"' in line] == []
    assert len(lines) < 10, lines


@pytest.mark.parametrize("path", [b"/static/style.css", b"/tasks"])
def test_answers_that_nobody_reads_are_not_kept(keyed: Platform, path: bytes) -> None:
    """Without a key, with one, and of many requests sent ahead."""
    logged = len(keyed.apis[0].log)
    ask = STYLE.replace(b"/static/style.css", path)
    if path == b"/tasks":
        ask = ask[:-2] + b"Authorization: Bearer the-secret-key-of-nobody-at-all-" + b"x" * 400 + b"\r\n\r\n"
    with narrow(keyed) as sock:
        sock.settimeout(1)
        with suppress(TimeoutError, ConnectionError):
            for _ in range(20):  # or until it is not read any more either
                sock.sendall(ask * 400)
        wait_for("the connection is cut", lambda: is_cut(sock))
    assert_quiet(keyed.apis[0], logged)


def test_requests_sent_ahead_are_all_answered_in_order(keyed: Platform) -> None:
    paths = [f"/nothing/{number}" for number in range(500)]
    asks = [f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {ALICE['Authorization']}\r\n\r\n" for path in paths]
    with socket.create_connection(address(keyed), timeout=PATIENCE_SECONDS) as sock:
        sock.sendall("".join(asks).encode())
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        told = read_to_the_end(sock)
    assert told.count(b"HTTP/1.1 404 ") == 500
    assert told.endswith(b'{"status":"ok"}')


def test_clients_that_leave_in_the_midst_are_no_errors_of_ours(keyed: Platform) -> None:
    logged = len(keyed.apis[0].log)
    asks: tuple[bytes, ...] = (STYLE * 400, (b"GET /session HTTP/1.1\r\nHost: x\r\n\r\n" + STYLE) * 200)
    key = f"Authorization: {ALICE['Authorization']}\r\n\r\n".encode()
    for path in (b"/download-large-csv", b"/stream-numbers", b"/sse-updates", b"/events", b"/tasks.csv", b"/metrics"):
        asks += (b"GET %b HTTP/1.1\r\nHost: x\r\n%b" % (path, key) * 3,)
    for _ in range(10):
        for ask in asks:
            sock = narrow(keyed)
            sock.sendall(ask)
            sock.recv(1)
            leave(sock)
    wait_for("all are gone", lambda: httpx.get(f"{keyed.url}/healthz").status_code == 200)
    wait_for("no stream is left", lambda: streams(keyed) == 0)
    assert_quiet(keyed.apis[0], logged)


def streams(platform: Platform) -> int:
    return int(httpx.get(f"{platform.url}/readyz").json()["checks"]["relay"]["streams"])


def test_a_body_without_a_key_is_small_and_soon_there(keyed: Platform) -> None:
    head = b"POST /session HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(address(keyed), timeout=PATIENCE_SECONDS) as sock:
        sock.sendall(head % 60)
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        while not poll.poll(200):
            sock.sendall(b" ")
        assert sock.recv(100).startswith(b"HTTP/1.1 408 ")
    large = httpx.post(f"{keyed.url}/session", content=json.dumps({"key": "x" * 5000}))
    assert large.status_code == 413


@pytest.mark.parametrize(
    ("ask", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (HEADERS_BYTES + 5000) + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * (HEADERS_BYTES + 5000) + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(9000)) + b"\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 8000 + b"\r\nConnection: close\r\n\r\n", 200),
    ],
)
def test_a_head_is_of_one_host_and_not_longer_than_its_limit_however_it_comes(
    keyed: Platform, ask: bytes, status: int
) -> None:
    with socket.create_connection(address(keyed), timeout=PATIENCE_SECONDS) as sock:
        with suppress(ConnectionError):
            sock.sendall(ask)
        told = read_to_the_end(sock)
    assert told.startswith(b"HTTP/1.1 %d " % status) or (told == b"" and status == 431), told[:200]


def test_the_limit_of_open_files_is_raised_and_who_asks_after_health_is_heard_when_all_are_taken(
    own_platform: Platform,
) -> None:
    most = 80
    api = own_platform.start_api(wait=False, HEADWAY_API_KEYS=json.dumps(KEYS), HEADWAY_MAX_STREAMS="0")
    resource.prlimit(api.pid, resource.RLIMIT_NOFILE, (RESERVED_FILES + 20, RESERVED_FILES + most))  # before it looks
    wait_for("it has raised its limit", lambda: open_files(api) == RESERVED_FILES + most)
    wait_for("it is alive", lambda: is_alive(own_platform.url))
    # Strangers, twice as many as there is room for: each is let in, and the oldest give way.
    with ExitStack() as stack:
        for _ in range(2 * most):
            stack.enter_context(socket.create_connection(address(own_platform), timeout=PATIENCE_SECONDS))
        for _ in range(20):
            assert httpx.get(f"{own_platform.url}/session", headers=ALICE).status_code == 200
        assert is_alive(own_platform.url)
    # Now those who have a key take all there is.
    with ExitStack() as stack:
        for _ in range(most):
            stack.enter_context(opened(f"{own_platform.url}/events", **ALICE))
        full = httpx.get(f"{own_platform.url}/session", headers=ALICE)
        assert (full.status_code, full.json()["type"]) == (503, "urn:headway:problem:full")
        for path in ("/healthz", "/readyz"):
            assert httpx.get(f"{own_platform.url}{path}").status_code == 200
        assert httpx.get(f"{own_platform.url}/metrics", headers=ALICE).status_code == 200
        # Silent ones in the places of operators do not keep them.
        for _ in range(OPERATORS + 5):
            stack.enter_context(socket.create_connection(address(own_platform), timeout=PATIENCE_SECONDS))
        wait_for("operators are heard", lambda: is_alive(own_platform.url))
    wait_for("there is room again", lambda: httpx.get(f"{own_platform.url}/session", headers=ALICE).status_code == 200)
    assert_quiet(api, 0)


def open_files(api: HeadwayProcess) -> int:
    return resource.prlimit(api.pid, resource.RLIMIT_NOFILE)[0]


def is_alive(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
    return False


def test_an_address_has_its_share_of_the_strangers(tmp_path: Path, own_redis: RedisServer) -> None:
    """One address opens without an end; those that another has opened before it stay."""
    with Platform(tmp_path / "platform", own_redis.url, HEADWAY_API_KEYS=json.dumps(KEYS)) as platform:
        api = platform.start_api(wait=False)
        wait_for("it listens", lambda: "api listening" in api.log)
        resource.prlimit(api.pid, resource.RLIMIT_NOFILE, (RESERVED_FILES + 80,) * 2)
        wait_for("it is alive", lambda: is_alive(platform.url))
        with ExitStack() as stack:

            def connected(source: str) -> socket.socket:
                sock = socket.create_connection(address(platform), PATIENCE_SECONDS, source_address=(source, 0))
                return stack.enter_context(sock)

            others = [connected("127.0.0.2") for _ in range(5)]
            many = [connected("127.0.0.3") for _ in range(100)]
            wait_for("the oldest of the many give way", lambda: sum(map(readable, many)) >= 100 - 10)
            for sock in (*others, many[-1]):
                sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                read_until(sock, b'{"status":"ok"}')


def readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])
