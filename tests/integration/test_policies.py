"""Every route there is, tried by somebody it is not for: another's is what never was, and secrets stay secret."""

from __future__ import annotations

import json
import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest

from headway.api.access.identity import Policy, policies_of
from headway.api.app import create_app
from headway.shared.settings import Settings
from tests.processes import Platform, RedisServer
from tests.streams import frames_of, opened
from tests.waiting import wait_for

KEYS: Final = {"alice": "the-secret-key-of-alice-4711", "bob": "the-secret-key-of-bob-0815"}
ALICE: Final = {"Authorization": f"Bearer {KEYS['alice']}"}
BOB: Final = {"Authorization": f"Bearer {KEYS['bob']}"}
TUS: Final = {"Tus-Resumable": "1.0.0"}

#: Every method of every route, without the mounts and what is public.
ROUTES: Final = sorted(
    (method, stated.path)
    for stated in policies_of(create_app(Settings()))
    if stated.policy is not Policy.PUBLIC
    for method in stated.methods or ()
)
#: Those that name something of somebody.
OWNED: Final = [route for route in ROUTES if "{task_id}" in route[1] or "{batch_id}" in route[1]]


@dataclass
class Belongings:
    """What alice has: a task that is done, one that is under way, one that is uploading; all in a batch."""

    done: dict[str, Any]
    active: dict[str, Any]
    uploading: dict[str, Any]
    resumable: str
    batch_id: str
    webhook_id: str

    @property
    def task_ids(self) -> list[str]:
        return [self.done["task_id"], self.active["task_id"], self.uploading["task_id"], self.resumable]


@pytest.fixture(scope="module")
def keyed(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    url = redis_server.fresh_url()
    signed = {"HEADWAY_WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    with Platform(tmp_path_factory.mktemp("keyed"), url, HEADWAY_API_KEYS=json.dumps(KEYS), **signed) as platform:
        platform.start_worker()
        platform.start_api()
        yield platform


@pytest.fixture(scope="module")
def alices(keyed: Platform) -> Belongings:
    batch_id = f"batch-{secrets.token_hex(4)}"
    with httpx.Client(base_url=keyed.url, headers=ALICE) as client:
        form = {"processor": "compress", "batch_id": batch_id, "webhook": '{"url": "https://hooks.invalid/"}'}
        done = client.post("/tasks", data=form, files={"file": ("secret.txt", b"alices secret")}).json()
        options = {"steps": 1, "step_seconds": 3000}
        body = {"processor": "rehearsal", "options": options, "batch_id": batch_id}
        active = client.post("/tasks", json=body).json()
        announced = {"processor": "checksum", "filename": "later.txt", "size_bytes": 5, "batch_id": batch_id}
        uploading = client.post("/tasks", json=announced).json()
        metadata = "filename bGF0ZXIudHh0,processor Y2hlY2tzdW0="
        created = client.post("/uploads", headers=TUS | {"Upload-Length": "5", "Upload-Metadata": metadata})
        assert created.status_code == 201
        assert created.headers["headway-task-token"]
        path = f"/tasks/{done['task_id']}"
        wait_for("it is done", lambda: client.get(path).json()["status"] == "completed", seconds=30)
        done = client.get(path).json()
        [notice] = client.get(f"{path}/webhooks").json()["webhooks"]
    return Belongings(done, active, uploading, created.headers["headway-task-id"], batch_id, notice["id"])


def test_the_routes_tried_here_are_all_there_are() -> None:
    assert len(ROUTES) > 30
    assert len(OWNED) > 15
    named = {name for _, path in ROUTES for name in re.findall(r"{(\w+)", path)}
    assert named == {
        "task_id",
        "batch_id",
        "name",
        "filename",
        "webhook_id",
    }  # a new one has to be thought of in this file


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_nobody_is_nobody_on_every_route(keyed: Platform, alices: Belongings, method: str, path: str) -> None:
    path = path.format(task_id=alices.done["task_id"], batch_id=alices.batch_id, name="x", filename="x", webhook_id="x")
    answer = httpx.request(method, f"{keyed.url}{path}", headers=TUS)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.content == b"" if method == "HEAD" else answer.json()["status"] == 401


def told(answer: httpx.Response, *names: str) -> tuple[Any, ...]:
    """Everything that an answer says, but for the time and the name that was asked for."""
    headers = {name: value for name, value in answer.headers.items() if name not in ("date", "content-length")}
    text = answer.text
    for name in names:
        text = text.replace(name, "NAME")
    return answer.status_code, headers, text


@pytest.mark.parametrize(("method", "path"), OWNED)
def test_anothers_is_answered_as_what_never_was(keyed: Platform, alices: Belongings, method: str, path: str) -> None:
    [file] = alices.done["result"]["files"]
    for task_id in alices.task_ids:
        answers = []
        for known in (True, False):
            names = {
                "task_id": task_id if known else secrets.token_hex(16),
                "batch_id": alices.batch_id if known else "batch-of-nobody",
                "name": file["name"],
                "webhook_id": alices.webhook_id if known else f"msg_{secrets.token_hex(16)}_4",
            }
            answer = httpx.request(method, f"{keyed.url}{path.format(**names)}", headers=BOB | TUS)
            answers.append(told(answer, names["task_id"], names["batch_id"], names["webhook_id"]))
        assert answers[0] == answers[1]
        if method != "OPTIONS":
            assert answers[0][0] == 404


def test_nothing_of_anothers_is_in_any_list_or_stream(keyed: Platform, alices: Belongings) -> None:
    with httpx.Client(base_url=keyed.url, headers=BOB) as client:
        for query in ("", f"?batch_id={alices.batch_id}", "?status=completed", "?processor=compress"):
            assert client.get(f"/tasks{query}").json()["tasks"] == [], query
            assert len(client.get(f"/tasks.csv{query}").text.splitlines()) == 1, query
        cursor = httpx.get(f"{keyed.url}/tasks?limit=1", headers=ALICE).json()["next_cursor"]
        assert client.get("/tasks", params={"cursor": cursor}).json()["tasks"] == []
        for task_id in alices.task_ids:
            asked = client.get(f"/events?task={task_id}", headers={"Last-Event-ID": "0"})
            never = client.get(f"/events?task={'0' * 32}", headers={"Last-Event-ID": "0"})
            assert told(asked, task_id) == told(never, "0" * 32)
            assert asked.status_code == 404
        mine: dict[str, Any] = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0}}
        mine["batch_id"] = f"of-both-{secrets.token_hex(4)}"
        theirs = httpx.post(f"{keyed.url}/tasks", json=mine, headers=ALICE).json()
        wait_until_done(keyed, theirs["task_id"], ALICE)
        with opened(f"{keyed.url}/events", **BOB) as stream, opened(f"{keyed.url}/events", **ALICE) as hers:
            told_to_her = frames_of(hers)
            next(told_to_her)  # what comes before the first snapshot is in it, and no note is
            note = {"author": "alice", "text": "between us"}
            here = f"/tasks/{alices.active['task_id']}"
            assert httpx.post(f"{keyed.url}{here}/notes", json=note, headers=ALICE).status_code == 201
            next(frame for frame in told_to_her if frame.name == "note")
            task = client.post("/tasks", json=mine).json()
            for frame in frames_of(stream):
                assert frame.data["task_id"] == task["task_id"]
                if frame.data.get("status") == "completed":
                    break
        batch = client.get(f"/batches/{mine['batch_id']}").json()  # of the same name, and another one
        assert batch["total"] == 1
        listed = client.get("/tasks", params={"batch_id": mine["batch_id"]}).json()["tasks"]
        assert [found["task_id"] for found in listed] == [task["task_id"]]
        assert client.delete(f"/tasks/{task['task_id']}").status_code == 204


def test_an_idempotency_key_is_its_owners(keyed: Platform) -> None:
    body = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0}}
    made = [
        httpx.post(f"{keyed.url}/tasks", json=body, headers=owner | {"Idempotency-Key": "one-for-two"})
        for owner in (ALICE, BOB, ALICE)
    ]
    ids = [answer.json()["task_id"] for answer in made]
    assert ids[0] == ids[2] != ids[1]
    for answer, owner in zip(made, (ALICE, BOB, ALICE), strict=True):
        wait_until_done(keyed, answer.json()["task_id"], owner)
    httpx.delete(f"{keyed.url}/tasks/{ids[1]}", headers=BOB)


def wait_until_done(keyed: Platform, task_id: str, owner: dict[str, str]) -> None:
    with opened(f"{keyed.url}/tasks/{task_id}/events", **owner) as stream:
        assert list(frames_of(stream))[-1].status == "completed"


def test_the_owner_of_all_this_still_has_it(keyed: Platform, alices: Belongings) -> None:
    """Or what was tried above would prove nothing."""
    with httpx.Client(base_url=keyed.url, headers=ALICE) as client:
        for task_id in alices.task_ids:
            assert client.get(f"/tasks/{task_id}").status_code == 200
        [file] = alices.done["result"]["files"]
        assert client.get(file["url"]).status_code == 200
        assert client.get(f"/batches/{alices.batch_id}").json()["total"] == 3


def test_no_secret_is_in_a_log_an_answer_or_an_error(keyed: Platform, alices: Belongings) -> None:
    session = httpx.post(f"{keyed.url}/session", json={"key": KEYS["alice"]})
    cookie = session.headers["set-cookie"].split(";")[0].partition("=")[2]
    token, key = alices.active["token"], KEYS["alice"]
    shown: list[str] = []
    broken = [secret[:-1] + ("x" if secret[-1] != "x" else "y") for secret in (key, token, cookie)]
    for secret in (key, token, cookie, *broken):
        tried = [
            {"Authorization": f"Bearer {secret}"},
            {"Authorization": f"bearer  {secret} {secret}"},
            {"Authorization": secret},
            {"Authorization": f"Basic {secret}"},
            {"Cookie": f"headway_session={secret}"},
            {"Cookie": f"other={secret}", "Idempotency-Key": secret, "Last-Event-ID": secret, "Range": secret},
            {"Content-Type": secret, "Origin": secret, "Host": "x", "X-Forwarded-For": secret},
        ]
        for headers in tried:
            for method, path in (("GET", "/tasks"), ("POST", "/tasks"), ("GET", "/nothing"), ("PATCH", "/tasks")):
                answer = httpx.request(method, f"{keyed.url}{path}", headers=headers)
                shown += [answer.text, str(answer.headers)]
        bodies: list[dict[str, Any]] = [
            {"json": {"key": [secret]}},
            {"json": {"key": secret, "more": 1}},
            {"content": f'{{"key": "{secret}"'},
            {"json": secret},
        ]
        for body in bodies:
            answer = httpx.post(f"{keyed.url}/session", **body)
            assert answer.status_code in (401, 422, 429)
            shown += [answer.text, str(answer.headers)]
    logs = [process.log for process in (*keyed.apis, *keyed.workers)]
    for secret in (key, KEYS["bob"], token, cookie):
        assert not [text for text in (*shown, *logs) if secret in text]
        assert not [text for text in logs if secret[:-4] in text]


def test_nobodys_body_is_not_waited_for(keyed: Platform) -> None:
    head = b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n--b"
    with socket.create_connection(("127.0.0.1", int(keyed.url.rpartition(":")[2])), timeout=20) as sock:
        sock.sendall(head)
        assert sock.recv(100).startswith(b"HTTP/1.1 401 ")
