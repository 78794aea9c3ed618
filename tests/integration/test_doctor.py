"""`headway doctor` through real nginx, right and wrong, a proxy that cuts idle lines and one that compresses streams.

Each is looked at by a doctor of its own, all at the same time; each test looks at what one of them found.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import Platform, RedisServer, free_port
from tests.proxies import missing, running

IDLE_SECONDS = 5.0
CUT_SECONDS = 2.0

RIGHT = "proxy_set_header Host $http_host; proxy_buffering off; proxy_read_timeout 1h; client_max_body_size 0;"
#: Buffering on, whatever the API asks for, and all compressed, which is what holds a stream back; and the body's limit
#: as nginx has it.
WRONG = (
    "proxy_ignore_headers X-Accel-Buffering; proxy_buffering on; proxy_buffer_size 64k; proxy_buffers 8 64k; "
    "proxy_hide_header Content-Encoding; gzip on; gzip_types *; gzip_proxied any; gzip_min_length 1;"
)


def nginx(folder: Path, target: str, options: str) -> AbstractContextManager[str]:
    port = free_port()
    inside = f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {target}; {options} }} }}"
    return running("nginx", folder, inside, f"http://127.0.0.1:{port}")


@contextmanager
def idle_cutter(target: str) -> Iterator[str]:
    """Passes bytes on, and cuts a line that carries none from the server for CUT_SECONDS."""
    upstream = httpx.URL(target)
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def connect(client: socket.socket) -> None:
        with client, socket.create_connection((upstream.host, upstream.port)) as server:
            server.settimeout(CUT_SECONDS)
            asking = threading.Thread(target=pump, args=(client, server), daemon=True)
            asking.start()
            pump(server, client)
            asking.join()

    def serve() -> None:
        with listener, suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=connect, args=(client,), daemon=True).start()

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        serving.join()


@contextmanager
def compressor(target: str) -> Iterator[str]:
    """Compresses every answer, streams too, each piece when it comes."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            sent = {name: self.headers[name] for name in ("accept", "content-type") if name in self.headers}
            sent["accept-encoding"] = "identity"
            with (
                suppress(httpx.TransportError, OSError),
                httpx.stream(self.command, target + self.path, headers=sent, content=body, timeout=60) as answer,
            ):
                self.send_response(answer.status_code)
                for name in ("content-type", "cache-control", "location"):
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
                if answer.status_code == 204:
                    self.end_headers()
                    return
                self.send_header("content-encoding", "gzip")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                gzip = zlib.compressobj(wbits=31)
                for piece in answer.iter_raw():
                    self.chunk(gzip.compress(piece) + gzip.flush(zlib.Z_SYNC_FLUSH))
                self.chunk(gzip.flush())
                self.wfile.write(b"0\r\n\r\n")

        def chunk(self, piece: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()

        do_GET = do_POST = do_PUT = do_DELETE = pass_on

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass(frozen=True)
class Examination:
    code: int
    findings: Mapping[str, Mapping[str, str]]
    stderr: str

    @property
    def problems(self) -> set[str]:
        return {check for check, finding in self.findings.items() if finding["level"] == "problem"}


def doctor(url: str, *arguments: str) -> subprocess.Popen[str]:
    argv = [
        sys.executable,
        "-m",
        "headway.cli.main",
        "doctor",
        "--url",
        url,
        "--idle-seconds",
        str(IDLE_SECONDS),
        *arguments,
    ]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def examined(process: subprocess.Popen[str]) -> Examination:
    stdout, stderr = process.communicate(timeout=120)
    findings = {finding["check"]: finding for finding in map(json.loads, stdout.splitlines())}
    return Examination(process.returncode, findings, stderr)


@pytest.fixture(scope="module")
def well(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Room for the tasks of all doctors at a time."""
    folder = tmp_path_factory.mktemp("well")
    url = redis_server.fresh_url()
    with Platform(folder, url, HEADWAY_WORKER_CONCURRENCY="8") as platform:
        platform.start_worker()
        platform.start_api()
        yield platform


@pytest.fixture(scope="module")
def examinations(well: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Examination]]:
    folder = tmp_path_factory.mktemp("proxies")
    with ExitStack() as stack:
        urls = {
            "nothing between": well.url,
            "idle cutter": stack.enter_context(idle_cutter(well.url)),
            "compressor": stack.enter_context(compressor(well.url)),
        }
        if not missing("nginx"):
            urls["nginx"] = stack.enter_context(nginx(folder / "right", well.url, RIGHT))
            urls["nginx that buffers"] = stack.enter_context(nginx(folder / "wrong", well.url, WRONG))
        started = {name: doctor(url, "--json") for name, url in urls.items()}
        yield {name: examined(process) for name, process in started.items()}


needs_nginx = pytest.mark.skipif(missing("nginx") is not None, reason="there is no nginx here")


@pytest.mark.parametrize("between", ["nothing between", pytest.param("nginx", marks=needs_nginx)])
def test_a_healthy_way_has_no_problem_and_exit_0(examinations: dict[str, Examination], between: str) -> None:
    found = examinations[between]
    assert (found.problems, found.code, found.stderr) == (set(), 0, "")
    assert set(found.findings) == {
        *("reach", "version", "redis", "durability", "relay", "storage", "workers", "clock", "buffering", "headers"),
        *("compression", "connections", "idle", "uploads", "origin", "progress"),
    }
    assert all(finding["change"] == "" for finding in found.findings.values() if finding["level"] == "ok")


def test_every_check_is_documented_and_no_other(examinations: dict[str, Examination]) -> None:
    table = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8").split("| check |")[1]
    documented = {
        name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.partition("|")[2].partition("|")[0])
    }
    assert documented == set(examinations["nothing between"].findings)


@needs_nginx
def test_a_buffering_nginx_is_told_with_the_line_to_change(examinations: dict[str, Examination]) -> None:
    found = examinations["nginx that buffers"]
    assert found.code == 1
    assert found.problems == {"buffering", "compression", "uploads", "origin"}
    assert "in 1 bunch" in found.findings["buffering"]["what"]
    assert "proxy_buffering off" in found.findings["buffering"]["change"]
    assert "client_max_body_size" in found.findings["uploads"]["change"]
    assert "Host $http_host" in found.findings["origin"]["change"]
    assert not any(name in found.findings["origin"]["change"] for name in ("Caddy", "Apache"))


@needs_nginx
def test_an_nginx_that_collects_bodies_is_told_with_the_line_to_change(examinations: dict[str, Examination]) -> None:
    collected = examinations["nginx"].findings["progress"]
    assert (collected["level"], "proxy_request_buffering off" in collected["change"]) == ("warning", True)
    assert examinations["nothing between"].findings["progress"]["level"] == "ok"


def test_a_proxy_that_cuts_idle_lines_is_told_with_its_seconds(examinations: dict[str, Examination]) -> None:
    found = examinations["idle cutter"]
    assert (found.code, "idle" in found.problems) == (1, True)
    said = re.search(r"cut after ([0-9.]+) s", found.findings["idle"]["what"])
    assert said is not None
    assert CUT_SECONDS / 2 < float(said[1]) < IDLE_SECONDS  # a loaded machine hears of the last byte late
    assert "HEADWAY_HEARTBEAT_SECONDS=" in found.findings["idle"]["change"]


def test_a_proxy_that_compresses_streams_is_told(examinations: dict[str, Examination]) -> None:
    found = examinations["compressor"]
    assert (found.code, found.problems) == (1, {"compression"})
    assert "gzip_types" in found.findings["compression"]["change"]


def test_nothing_of_an_examination_is_left_behind(well: Platform, examinations: dict[str, Examination]) -> None:
    assert examinations
    assert httpx.get(f"{well.url}/tasks").json()["tasks"] == []


def test_a_platform_without_a_worker_and_a_redis_that_forgets_are_told_for_people(
    own_platform: Platform, own_redis: RedisServer
) -> None:
    own_platform.start_api()
    import redis

    with redis.Redis(port=own_redis.port) as client:
        client.config_set("appendonly", "no")
        client.config_set("maxmemory-policy", "allkeys-lru")
    process = doctor(own_platform.url, "--idle-seconds", "0")
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (1, "")
    lines = [line for line in stdout.splitlines() if line.startswith("problem")]
    assert [line.split()[1] for line in lines] == ["redis", "durability", "workers"]
    assert "Start one: headway worker" in stdout
    assert "maxmemory-policy noeviction" in stdout
    assert stdout.splitlines()[-1].startswith("3 problems, ")


def test_who_is_not_there_or_not_headway_is_exit_3(own_redis: RedisServer) -> None:
    for url in (f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{own_redis.port}"):
        process = doctor(url)
        stdout, stderr = process.communicate(timeout=120)
        assert (process.returncode, stdout, stderr.count("\n")) == (3, "", 1)
        assert "Traceback" not in stderr
