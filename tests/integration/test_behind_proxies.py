"""The event stream behind nginx and Caddy as they come: real processes, default buffering, with compression on.

A task is let go on, step by step, only when the client has read the event of the step before: a proxy that keeps an
event back stops the task, and fails the test.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.stream_clients.processors import telling_platform
from tests.processes import Platform, RedisServer, free_port
from tests.proxies import Kind, missing, running
from tests.streams import Frame, assert_true_story, parse_block, watch

#: How a client may reach a proxy, as curl says it, and the version that it then says it had.
TRANSPORTS = {
    "http/1.1": ("http", ["--http1.1"], "1.1"),
    "http/2": ("http", ["--http2-prior-knowledge"], "2"),
    "http/2 over TLS": ("https", ["--http2", "--insecure"], "2"),
}

#: An event that is kept back longer than this was not passed on.
READ_SECONDS = 5.0

STEPS = 8

# Nothing about buffering, and HTTP/1.0 to the API: what nginx does unless told otherwise.
NGINX = """
  gzip on; gzip_proxied any; gzip_min_length 1; gzip_types {compressed};
  server {{
    listen 127.0.0.1:{http1}; listen 127.0.0.1:{http2} http2; listen 127.0.0.1:{tls} ssl http2;
    ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
    location / {{ proxy_pass {target}; }}
  }}
"""

CADDY = """
(site) {{
  bind 127.0.0.1
  {compressed}
  reverse_proxy {host}
}}
http://127.0.0.1:{http1}, http://127.0.0.1:{http2} {{
  import site
}}
https://127.0.0.1:{tls} {{
  import site
  tls {folder}/cert.pem {folder}/key.pem
}}
"""


PROXIES: dict[str, tuple[Kind, str, str]] = {
    "nginx": ("nginx", NGINX, "text/plain text/css application/json"),
    "nginx that compresses everything": ("nginx", NGINX, "*"),
    "caddy": ("caddy", CADDY, ""),
    "caddy that compresses": ("caddy", CADDY, "encode zstd gzip"),
}
COMPRESSING = [name for name in PROXIES if name != "caddy"]


@dataclass(frozen=True)
class Proxy:
    urls: dict[str, str]

    def curl(self, transport: str, path: str, *arguments: str) -> list[str]:
        options = ["--silent", "--no-buffer", "--include", "-H", "Accept-Encoding: gzip, deflate, br, zstd"]
        return ["curl", *options, *TRANSPORTS[transport][1], *arguments, self.urls[transport] + path]


@pytest.fixture(scope="module")
def telling(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    url = redis_server.fresh_url()
    with telling_platform(tmp_path_factory.mktemp("telling"), url) as platform:
        yield platform


@contextmanager
def started(name: str, folder: Path, target: str) -> Iterator[Proxy]:
    """The proxy as a process, with a certificate of its own. Skips where a program is missing."""
    kind, text, compressed = PROXIES[name]
    if why := missing(kind, "openssl", "curl"):
        pytest.skip(why)
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, capture_output=True)
    ports = {port: free_port() for port in ("http1", "http2", "tls")}
    names = {"folder": folder, "target": target, "host": target.removeprefix("http://"), "compressed": compressed}
    urls = {key: f"{TRANSPORTS[key][0]}://127.0.0.1:{ports[port]}" for key, port in zip(TRANSPORTS, ports, strict=True)}
    with running(kind, folder, text.format(**names, **ports), urls["http/1.1"]):
        yield Proxy(urls)


@pytest.fixture(scope="module", params=PROXIES)
def proxy(
    request: pytest.FixtureRequest, telling: Platform, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    with started(request.param, tmp_path_factory.mktemp(request.param.split()[0]), telling.url) as proxy:
        yield proxy


every_transport = pytest.mark.parametrize("transport", TRANSPORTS)
every_proxy = pytest.mark.parametrize("proxy", PROXIES, indirect=True)


@contextmanager
def streamed(command: list[str]) -> Iterator[Iterator[bytes]]:
    """The blocks of an answer while they arrive, its head first, up to a whole end. What says nothing for READ_SECONDS
    is ended, and fails."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield _blocks(process)
            assert process.wait(READ_SECONDS) == 0, "the answer was kept back, or cut"
        finally:
            process.kill()


def _blocks(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    assert process.stdout is not None
    block = b""
    while True:
        deadline = threading.Timer(READ_SECONDS, process.kill)
        deadline.start()
        line = process.stdout.readline()
        deadline.cancel()
        if not line:
            return
        block += line
        if line in (b"\n", b"\r\n"):
            yield block
            block = b""


def whole(command: list[str]) -> tuple[str, list[Frame]]:
    """Head and events of an answer that ends by itself; curl checks that the end is a whole one."""
    answer = subprocess.run(command, capture_output=True, check=True, timeout=2 * READ_SECONDS).stdout
    head, _, body = answer.partition(b"\r\n\r\n")
    assert_untouched(head.decode().lower())
    frames = [parse_block(block) for block in body.removesuffix(b"\n\n").split(b"\n\n") if body]
    return head.decode().lower(), [frame for frame in frames if frame is not None]


def assert_untouched(head: str) -> None:
    assert re.findall(r"\r\ncontent-encoding: (?!identity\r)\S+", head) == []


@every_proxy
@every_transport
def test_each_event_is_there_before_the_next_one_is_made(
    telling: Platform, proxy: Proxy, transport: str, tmp_path: Path
) -> None:
    task_id = telling.submit("telling", options=json.dumps({"gate": str(tmp_path), "steps": STEPS}))["task_id"]
    story: list[Frame] = []
    try:
        with streamed(proxy.curl(transport, f"/tasks/{task_id}/events?last_event_id=0")) as blocks:
            head = next(blocks).decode().lower()
            assert re.match(rf"http/{TRANSPORTS[transport][2]} 200", head)
            assert_untouched(head)
            for block in blocks:
                if (frame := parse_block(block.removesuffix(b"\n\n"))) is None:
                    continue
                story.append(frame)
                if not frame.name and frame.status == "processing":
                    # This step's event is here: only now may the next step begin, and make its own.
                    (tmp_path / str(frame.data["step"] + 1)).touch()
    finally:
        for step in range(1, STEPS + 1):
            (tmp_path / str(step)).touch()
    assert_true_story(story, first=1)
    assert story == watch(telling.url, task_id, last_event_id=0)


@every_proxy
@every_transport
def test_a_reconnect_passes_its_last_event_id_through(telling: Platform, proxy: Proxy, transport: str) -> None:
    task_id = telling.submit("telling")["task_id"]
    telling.wait(task_id)
    truth = watch(telling.url, task_id, last_event_id=0)
    path = f"/tasks/{task_id}/events"
    for seen in (1, len(truth) - 1):
        head, story = whole(proxy.curl(transport, path, "-H", f"Last-Event-ID: {seen}"))
        assert story == truth[seen:]
    head, story = whole(proxy.curl(transport, path, "-H", f"Last-Event-ID: {truth[-1].id}"))
    assert (head.split()[1], story) == ("204", [])


@pytest.mark.parametrize("proxy", COMPRESSING, indirect=True)
@every_transport
def test_what_is_no_stream_is_compressed_and_an_unknown_task_is_404(proxy: Proxy, transport: str) -> None:
    """So compression is on, and would touch the stream if it could."""
    answer = subprocess.run(proxy.curl(transport, "/processors"), capture_output=True, check=True).stdout
    assert re.search(rb"(?i)\r\ncontent-encoding: (gzip|zstd)\r\n", answer.partition(b"\r\n\r\n")[0] + b"\r\n")
    answer = subprocess.run(proxy.curl(transport, f"/tasks/{'0' * 32}/events"), capture_output=True, check=True).stdout
    assert answer.split()[1] == b"404"
