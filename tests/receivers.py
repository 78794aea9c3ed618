"""A receiver of webhooks on loopback: a real HTTP server that keeps what it gets, and answers as its path says.

`/ok`, `/status/503`, `/redirect` (to /ok), `/hang` (never answers), `/endless` (a body without an end), `/drip`
(headers without an end), `/garbage` (no HTTP), `/cut` (closes), `/fail/2/…` (500 the first two times, for each path).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from standardwebhooks.webhooks import Webhook


@dataclass(frozen=True, slots=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> dict[str, Any]:
        """What the receiver of a library gets out of it. Raises WebhookVerificationError."""
        found: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return found


class Receiver:
    def __init__(self) -> None:
        self.received: list[Received] = []
        self.over = threading.Event()
        self._counts = Counter[str]()
        self._lock = threading.Lock()

    def __enter__(self) -> Receiver:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                with receiver._lock:
                    receiver.received.append(Received(self.path, headers, body))
                    receiver._counts[self.path] += 1
                    count = receiver._counts[self.path]
                with suppress(OSError):
                    receiver._answer(self, count)

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def url(self, path: str = "/ok") -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def at(self, path: str) -> list[Received]:
        return [one for one in self.received if one.path == path]

    def of(self, task_id: str) -> list[Received]:
        return [one for one in self.received if task_id.encode() in one.body]

    def _answer(self, handler: BaseHTTPRequestHandler, count: int) -> None:
        kind, *rest = handler.path.strip("/").split("/")
        match kind:
            case "hang":
                self.over.wait(300)
                handler.close_connection = True
            case "garbage":
                handler.wfile.write(b"this is no answer\r\n\r\n")
                handler.close_connection = True
            case "cut":
                handler.close_connection = True
            case "drip":
                handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not self.over.wait(0.2):
                    handler.wfile.write(b"x-more: 1\r\n")
            case "endless":
                handler.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                deadline = time.monotonic() + 300
                while time.monotonic() < deadline and not self.over.is_set():
                    handler.wfile.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            case "redirect":
                self._say(handler, 307, {"location": self.url("/ok")})
            case "status":
                self._say(handler, int(rest[0]))
            case "fail" if count <= int(rest[0]):
                self._say(handler, 500)
            case _:
                self._say(handler, 204)

    @staticmethod
    def _say(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str] | None = None) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        if status != 204:
            handler.send_header("content-length", "0")
        handler.end_headers()
