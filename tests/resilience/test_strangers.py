"""What strangers send: ids that are not theirs, words that would be more than words, and what is hardly HTTP.

STRANGER_TRIES, STRANGER_PAYLOADS and STRANGER_REQUESTS make it more: 10,000, 500 and 100,000 are what is promised.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest

from headway.api.serving.deadlines import HEADERS_BYTES
from headway.api.serving.descriptors import RESERVED_FILES
from tests.processes import Platform, RedisServer
from tests.streams import frames_of, opened
from tests.waiting import wait_for

TRIES: Final = int(os.environ.get("STRANGER_TRIES", "300"))
PAYLOADS: Final = int(os.environ.get("STRANGER_PAYLOADS", "45"))
REQUESTS: Final = int(os.environ.get("STRANGER_REQUESTS", "1000"))
SEED: Final = int(os.environ.get("STRANGER_SEED", "20261122"))

KEYS: Final = {"alice": "the-secret-key-of-alice-4711", "bob": "the-secret-key-of-bob-0815"}
ALICE: Final = {"Authorization": f"Bearer {KEYS['alice']}"}
BOB: Final = {"Authorization": f"Bearer {KEYS['bob']}"}


@pytest.fixture(scope="module")
def keyed(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    url = redis_server.fresh_url()
    with Platform(tmp_path_factory.mktemp("strangers"), url, HEADWAY_API_KEYS=json.dumps(KEYS)) as platform:
        platform.start_api(HEADWAY_RECEIVE_TIMEOUT_SECONDS="0.2", HEADWAY_KEEP_ALIVE_SECONDS="5")
        yield platform


def assert_no_traceback(platform: Platform) -> None:
    log = platform.apis[0].log
    assert "Traceback" not in log, log[-5000:]
    assert [line for line in log.splitlines() if '"level": "error"' in line or '"exception"' in line] == []
    assert platform.apis[0].code is None


def test_whatever_of_anothers_is_tried_it_was_never_there(keyed: Platform) -> None:
    rng = random.Random(SEED)
    body = {"processor": "checksum", "filename": "a", "size_bytes": 1}
    with httpx.Client(base_url=keyed.url, headers=ALICE) as alice:
        tasks = [alice.post("/tasks", json=body).json()["task_id"] for _ in range(5)]
    routes = [
        *(("GET", f"/tasks/{{}}{suffix}") for suffix in ("", "/events", "/input", "/files/x")),
        *(("HEAD", f"/tasks/{{}}{suffix}") for suffix in ("/input", "/files/x")),
        *(("POST", f"/tasks/{{}}{suffix}") for suffix in ("/cancel", "/retry", "/notes")),
        *(("GET", "/task-progress/{}"), ("GET", "/events?task={}"), ("PUT", "/tasks/{}/upload")),
        *(("DELETE", "/tasks/{}"), ("HEAD", "/uploads/{}"), ("PATCH", "/uploads/{}"), ("DELETE", "/uploads/{}")),
    ]
    note = json.dumps({"author": "b", "text": "b"})
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=keyed.url, headers=BOB | {"Tus-Resumable": "1.0.0"}) as bob:
        for _ in range(TRIES):
            method, path = rng.choice(routes)
            task_id = rng.choice(tasks)
            tried = rng.choice((task_id, task_id, task_id, task_id.upper(), f"{task_id}%00", f" {task_id}"))
            statuses[bob.request(method, path.format(tried), content=note).status_code] += 1
    assert statuses == {404: TRIES}
    assert_no_traceback(keyed)


#: What has become more than a word somewhere: a line, a header, an event, a log record, a template, a path, a query.
WORDS: Final = (
    *("\r\nX-Injected: yes", "\nX-Injected: yes", "\rX-Injected: yes", "\r\n\r\n<script>", "%0d%0aX-Injected: yes"),
    *("\n\ndata: injected\n\n", "\rdata: injected\r\r", "\nevent: injected\n", "\nid: 999999\n", "\nretry: 1\n"),
    *("\u2028data: injected\u2028", "\u0085data: injected\u0085", "\x0bdata: injected", "\x0cdata: injected"),
    *('\n{"event": "injected", "level": "error"}\n', '"}\n{"event": "injected"}', "\x1b[2J\x1b[31minjected", "\x00"),
    *("${jndi:ldap://x/injected}", "{{7*7}}", "%s%n%x", "<img src=x onerror=alert(1)>", "'; DROP TABLE tasks; --"),
    *("../../../../etc/passwd", "..\\..\\injected", "/etc/passwd", "file:///etc/passwd", "a/../../b", "C:\\injected"),
    *("\ufeffinjected", "\u202egpj.exe", "\U0001f600injected", "e\u0301" * 50, "\u200binjected", "=cmd|'/c calc'!A1"),
    *(
        "\r\n*1\r\n$8\r\nFLUSHALL\r\n",
        "headway:task:x\r\nDEL",
        'x"; filename="injected',
        "x'; filename*=UTF-8''injected",
    ),
)


def payloads(count: int) -> Iterator[str]:
    rng = random.Random(SEED)
    for number in range(count):
        word = WORDS[number % len(WORDS)]
        if number >= len(WORDS):
            word = rng.choice(("", "a", " ", "é", "\t")) + word + rng.choice(WORDS) + rng.choice(("", "z", '"', "\\"))
        yield word


def test_a_word_stays_a_word(platform: Platform, redis_server: RedisServer) -> None:
    """In names, options, notes, batches, ids, cursors, keys: refused, or given back as it is, and no more than that."""
    logged = len(platform.apis[0].log)
    with httpx.Client(base_url=platform.url, timeout=30) as client:
        body = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0}}
        options = {"steps": 1, "step_seconds": 3000}
        task = client.post("/tasks", json={"processor": "rehearsal", "options": options}).json()
        notes = []
        for word in payloads(PAYLOADS):
            answers = [
                client.post("/tasks", data={"processor": "checksum"}, files={"file": (word, b"x")}),
                client.post("/tasks", json={"processor": "checksum", "filename": word, "size_bytes": 1}),
                client.post("/tasks", json=body | {"processor": word}),
                client.post("/tasks", json=body | {"batch_id": word}),
                client.post("/tasks", json=body | {"options": {word: word}}),
                client.post("/tasks", json=body | {"content_type": word}),
                client.get("/tasks", params={"cursor": word, "processor": word}),
                client.get("/tasks", params={"batch_id": word}),
                client.get("/events", params={"task": word}),
                client.get(f"/tasks/{quoted(word)}"),
                client.get(f"/tasks/{task['task_id']}/files/{quoted(word)}"),
                client.get(f"/download/{quoted(word)}"),
                client.get(f"/{quoted(word)}"),
                client.post("/session", json={"key": word}),
                raw_header(client, "Idempotency-Key", word),
                raw_header(client, "Last-Event-ID", word),
            ]
            said = client.post(f"/tasks/{task['task_id']}/notes", json={"author": "x" + word[:40], "text": "x" + word})
            answers.append(said)
            if said.status_code == 201:
                notes.append("x" + word)
            for answer in answers:
                assert answer.status_code < 500, (word, answer.request.url)
                assert "x-injected" not in answer.headers
                assert answer.headers["content-type"] in ("application/json", "application/problem+json")
                assert answer.status_code < 400 or answer.headers["content-type"] == "application/problem+json"
                answer.json()
            for made in answers[:2]:
                if made.is_success:
                    offered_as_it_is(client, made.json())
        assert client.post(f"/tasks/{task['task_id']}/cancel").status_code == 202
        with opened(f"{platform.url}/tasks/{task['task_id']}/events", **{"Last-Event-ID": "0"}) as stream:
            frames = list(frames_of(stream))  # which fails on whatever is not exactly the wire
        heard = [frame.data["text"] for frame in frames if frame.name == "note"]
        assert heard == notes[-len(heard) :] != []
        assert {frame.name for frame in frames} <= {"", "note", "log", "gap"}
        lines = client.get(f"/tasks/{task['task_id']}/events", headers={"Accept": "text/plain", "Last-Event-ID": "0"})
        assert all(line.isprintable() for line in lines.text.split("\n"))
    for line in platform.apis[0].log[logged:].splitlines():
        record = json.loads(line)  # one record a line, and none that we did not write
        assert record["event"] != "injected"
        assert record["level"] != "error", line


def quoted(word: str) -> str:
    return "".join(f"%{byte:02x}" for byte in word.encode())


def raw_header(client: httpx.Client, name: str, word: str) -> httpx.Response:
    """A header with whatever of the word can be in one; what cannot is for the fuzzer below."""
    value = re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", word.encode()).strip()
    body = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0}}
    return client.post("/tasks", json=body, headers={b"" + name.encode(): value})


def offered_as_it_is(client: httpx.Client, task: dict[str, Any]) -> None:
    """The name that was taken is one line without a path, and so is the header that offers it."""
    assert task["filename"].isprintable()
    assert not set(task["filename"]) & {"/", "\\"}
    if "input" in task["links"]:
        disposition = client.get(task["links"]["input"]).headers["content-disposition"]
        assert disposition.startswith("attachment")
        assert disposition.isascii()
        assert disposition.isprintable()


METHODS: Final = (
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"HEAD",
    b"PATCH",
    b"OPTIONS",
    b"TRACE",
    b"PROPFIND",
    b"G\x00T",
    b"",
)
#: The last two are no part of HTTP.
TAILS: Final = (b"?", b"/", b"%", b"%00", b"%ff", b"?a=%ff", b"?limit=-1", b"?task=x", b"?cursor=\xff", b"#x")
VERSIONS: Final = (*(b"HTTP/1.1",) * 7, b"HTTP/1.0", b"HTTP/9", b"HTTP/1.1 x", b"")
PATHS: Final = (
    *(b"/", b"/tasks", b"/tasks.csv", b"/events", b"/session", b"/uploads", b"/processors", b"/healthz", b"/readyz"),
    *(b"/process-file", b"/docs", b"/openapi.json", b"/static/app.js", b"/download/x", b"/batches/x", b"/nothing"),
    *(b"/tasks/%b" % (b"0" * 32), b"/tasks/%b/notes" % (b"0" * 32), b"/tasks/%b/events" % (b"0" * 32), b"//", b"*"),
    *(b"/tasks/%b/upload" % (b"0" * 32), b"/tasks/%b/files/x" % (b"0" * 32), b"/uploads/%b" % (b"0" * 32)),
)
NAMES: Final = (
    *(b"Content-Type", b"Connection", b"Expect", b"Upgrade", b"Range", b"Accept", b"Accept-Encoding", b"Authorization"),
    *(b"Cookie", b"Origin", b"Sec-Fetch-Site", b"Idempotency-Key", b"Last-Event-ID", b"If-None-Match", b"If-Range"),
    *(b"Upload-Length", b"Upload-Offset", b"Upload-Metadata", b"Upload-Checksum", b"Tus-Resumable"),
    *(b"X-HTTP-Method-Override", b"X-Forwarded-For", b"X-Forwarded-Proto"),
    *(b"Content-Length", b"Transfer-Encoding", b"Host"),  # these last: twice, they make it no HTTP
)
VALUES: Final = (
    *(
        b"",
        b"0",
        b"-1",
        b"1",
        b"5",
        b"99999999999999999999",
        b"1e3",
        b"chunked",
        b"gzip, chunked",
        b"close",
        b"keep-alive",
    ),
    *(b"application/json", b"multipart/form-data; boundary=b", b"multipart/form-data", b"text/csv; charset=utf-7"),
    *(b'multipart/form-data; boundary="\xff"', b"application/x-ndjson", b"text/plain", b"100-continue", b"websocket"),
    *(
        b"Bearer the-secret-key-of-bob-0815",
        b"Bearer x.y.z",
        b"Bearer eyJhbGciOiJub25lIn0.e30.",
        b"headway_session=a.b.c",
    ),
    *(
        b"same-site",
        b"null",
        b"http://[",
        b"bytes=0-,-5,9999999-",
        b"bytes=a-b",
        b"1.0.0",
        b"sha1 AAAA",
        b"filename \xff",
    ),
    *(
        b"filename bGF0ZXI=,processor Y2hlY2tzdW0=",
        b"\xff\xfe\xfd",
        b"x" * 5000,
        b"a\x00b",
        b"a\rb",
        b"::1, 1.2.3.4, x",
    ),
)
BODIES: Final = (
    *(b"", b"{}", b"[]", b"null", b'{"key": 1}', b'{"processor": "checksum", "filename": "\\ud800"}', b'{"a": NaN}'),
    *(
        b'{"processor": "rehearsal", "options": {"steps": 1e999}}',
        b"[" * 3000,
        b'{"processor": {"a": []}}',
        b"\xff\xfe",
    ),
    *(
        b'{"author": "a", "text": "b"}',
        b'{"processor":"checksum","filename":"a","size_bytes":-1}',
        b"5\r\nhello\r\n0\r\n\r\n",
    ),
    *(
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--b--\r\n',
        b"--b--",
        b"--b\r\n\r\n",
    ),
    *(
        b'--b\r\nContent-Disposition: form-data; name="processor"\r\n\r\n\xff\r\n--b--\r\n',
        b"ZZZ\r\n",
        b"-5\r\nhello\r\n",
    ),
    *(
        b"FFFFFFFFFFFFFFFFFF\r\n",
        b"5;a=b\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
        b"\x00" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
    ),
)


def requests(rng: random.Random) -> Iterator[tuple[bytes, bool]]:
    """More or less HTTP: each part from a list, each list with what once broke somebody. Most of it is well-formed and
    wrong; some has bytes turned or ends early, which is then said, because nobody need answer half a request."""
    while True:
        odd = rng.random() < 0.25
        path = rng.choice(PATHS)
        if rng.random() < 0.3:
            path += rng.choice(TAILS[: None if odd else -2])
        method, version = (rng.choice(METHODS), rng.choice(VERSIONS)) if odd else (rng.choice(METHODS[:9]), b"HTTP/1.1")
        lines = [b"%b %b %b" % (method, path, version)]
        lines += [b"Host: x"] * (rng.choice((0, 1, 2)) if odd else 1)
        if rng.random() < 0.6:
            lines.append(b"Authorization: Bearer the-secret-key-of-bob-0815")
        for _ in range(rng.randrange(5)):
            colon = rng.choice((b": ", b":", b" : ", b"")) if odd else b": "
            name, value = rng.choice(NAMES[: None if odd else -3]), rng.choice(VALUES)
            lines.append(name + colon + (value if odd else re.sub(rb"[\x00-\x1f\x7f]", b"", value)))
        body = rng.choice(BODIES)
        if (framing := rng.random()) < 0.6 or not odd:
            lines.append(b"Content-Length: %d" % len(body) if framing < 0.8 else b"Transfer-Encoding: chunked")
        if rng.random() < 0.5:
            lines.append(b"Content-Type: " + rng.choice((b"application/json", b"multipart/form-data; boundary=b")))
        request = (b"\n" if odd and rng.random() < 0.2 else b"\r\n").join(lines) + b"\r\n\r\n" + body
        whole = not (odd and rng.random() < 0.6)
        if not whole and rng.random() < 0.8:
            changed = bytearray(request)
            for _ in range(rng.randrange(1, 8)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            request = bytes(changed)
        elif not whole:
            request = request[: rng.randrange(len(request))]
        yield request, whole


def answer_to(port: int, request: bytes, whole: bool) -> http.client.HTTPResponse | None:
    """The first answer, its body read up to where a stream begins; None where the connection was closed without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(request)
            if not whole:
                sock.shutdown(socket.SHUT_WR)  # nothing more comes: nobody has to wait for the rest
        answer = http.client.HTTPResponse(sock, method=request.partition(b" ")[0].decode("latin-1"))
        try:
            answer.begin()
        except (http.client.BadStatusLine, OSError):
            return None
        if answer.headers.get_content_type() != "text/event-stream":
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer.body = answer.read()  # type: ignore[attr-defined]
        return answer


@pytest.mark.timeout(240 + REQUESTS // 20)
def test_whatever_is_sent_it_is_answered_as_a_problem_and_never_breaks_anything(keyed: Platform) -> None:
    port = int(keyed.url.rpartition(":")[2])
    stream = requests(random.Random(SEED))
    statuses: Counter[int | None] = Counter()
    for _ in range(REQUESTS):
        request, whole = next(stream)
        answer = answer_to(port, request, whole)
        assert answer is not None or not whole, request
        status = answer.status if answer is not None else None
        statuses[status] += 1
        if answer is None or status is None or status < 400:
            continue
        assert status < 500, (status, request)
        assert answer.headers.get_content_type() == "application/problem+json", (status, request)
        body = getattr(answer, "body", b"")
        if body:
            assert json.loads(body)["status"] == status, request
    assert statuses[400] < REQUESTS / 2, statuses  # most get past the parser,
    assert len(statuses) > 10, statuses  # and reach what they are made for
    print(dict(statuses))
    assert_no_traceback(keyed)
    assert httpx.get(f"{keyed.url}/healthz").status_code == 200
    assert KEYS["bob"] not in keyed.apis[0].log


def read_until(sock: socket.socket, end: bytes) -> None:
    data = b""
    while not data.endswith(end):
        chunk = sock.recv(65_536)
        assert chunk, f"closed after {data!r}"
        data += chunk


def read_to_the_end(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65_536):
            data += chunk
    return data


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * (HEADERS_BYTES + 200_000), 431),
    ],
)
def test_what_is_no_request_is_told_as_a_problem_and_the_connection_closed(
    platform: Platform, sent: bytes, status: int
) -> None:
    with socket.create_connection(("127.0.0.1", int(platform.url.rpartition(":")[2])), timeout=20) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(sent)
        data = read_to_the_end(sock)
    if data or status == 400:  # what was not read any more may have reset the connection under the answer
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"content-type: application/problem+json" in head.lower()
        assert json.loads(body)["status"] == status


def test_headers_that_never_end_are_not_waited_for(platform: Platform) -> None:
    """Nothing, half a request, half of a second one: each is closed, the first without a word."""
    port = int(platform.url.rpartition(":")[2])
    halves = (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET / HT")
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in halves]
        for sock, half in zip(socks, halves, strict=True):
            sock.sendall(half)
        silent, first, second = (read_to_the_end(sock) for sock in socks)
    assert silent == b""
    assert first.startswith(b"HTTP/1.1 408 ")
    assert second.startswith(b"HTTP/1.1 200 ")


def test_a_body_that_nobody_waits_for_does_not_hold_its_connection(keyed: Platform) -> None:
    """An answer that came before the end of the body, and then the rest of it: the connection is free for the next."""
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345"
    address = ("127.0.0.1", int(keyed.url.rpartition(":")[2]))
    with (
        socket.create_connection(address, timeout=30) as ends,
        socket.create_connection(address, timeout=30) as trickles,
    ):
        for sock in (ends, trickles):
            sock.sendall(ask)
            read_until(sock, b'{"status":"ok"}')
        ends.sendall(b"67890GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        read_until(ends, b'{"status":"ok"}')
        trickles.sendall(b"6")
        assert read_to_the_end(trickles) == b""  # it is not kept for ever
        assert read_to_the_end(ends) == b""


def test_connections_that_leave_no_room_for_files_give_way_to_new_ones(own_platform: Platform) -> None:
    api = own_platform.start_api(wait=False)
    resource.prlimit(api.pid, resource.RLIMIT_NOFILE, (RESERVED_FILES + 80,) * 2)  # before it looks
    wait_for("it is alive", lambda: is_alive(own_platform.url), seconds=30)
    address = ("127.0.0.1", int(own_platform.url.rpartition(":")[2]))
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(90)]
        told = read_to_the_end(socks[0])
        assert told.startswith(b"HTTP/1.1 503 ")
        assert json.loads(told.partition(b"\r\n\r\n")[2])["type"] == "urn:headway:problem:full"
        socks[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert socks[-1].recv(4096).startswith(b"HTTP/1.1 200 ")
    wait_for("there is room again", lambda: is_alive(own_platform.url))


def is_alive(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def test_the_seed_says_what_is_sent() -> None:
    one, two = (requests(random.Random(SEED)) for _ in range(2))
    assert [next(one) for _ in range(50)] == [next(two) for _ in range(50)]
    assert len(set(payloads(500))) > 480
