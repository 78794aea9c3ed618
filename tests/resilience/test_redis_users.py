"""The users of deploy/redis-users.acl: API and worker do all of their work with them, and neither can do more."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from redis.exceptions import AuthenticationError, NoPermissionError

from tests.processes import Platform, RedisServer, free_port, redis_binary
from tests.streams import assert_true_story, frames_of, watch
from tests.waiting import wait_for

USERS = Path(__file__).parents[2] / "deploy" / "redis-users.acl"
PASSWORDS = {"api": "headway-api", "worker": "headway-worker"}


@pytest.fixture(autouse=True, scope="module")
def _new_enough() -> None:
    told = subprocess.run([redis_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=(\d+)", told)
    if version is not None and int(version[1]) < 7:
        pytest.skip("the file lets the API only read some keys (%R~), which came with Redis 7")


@pytest.fixture
def admin(own_redis: RedisServer) -> Iterator[redis.Redis]:
    """Gives the server the file's users, as its `aclfile` would, and may do what `default` could before."""
    with redis.Redis(port=own_redis.port) as before:
        before.execute_command("ACL", "SETUSER", "admin", "on", ">secret", "~*", "&*", "+@all")
    with redis.Redis(port=own_redis.port, username="admin", password="secret", decode_responses=True) as client:
        for line in USERS.read_text().splitlines():
            _, name, *rules = line.split()
            client.execute_command("ACL", "SETUSER", name, "reset", *rules)
        client.execute_command("ACL", "LOG", "RESET")
        yield client


def url_of(server: RedisServer, user: str) -> str:
    return server.url.replace("redis://", f"redis://{user}:{PASSWORDS[user]}@")


def test_api_and_worker_do_their_work_with_the_users_of_the_file(
    own_platform: Platform, own_redis: RedisServer, admin: redis.Redis
) -> None:
    keys = '{"alice": "a-key-of-sixteen-characters"}'
    own_platform._env["HEADWAY_WEBHOOK_SECRET"] = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    own_platform.start_api(HEADWAY_REDIS_URL=url_of(own_redis, "api"), HEADWAY_API_KEYS=keys)
    worker = own_platform.start_worker(HEADWAY_REDIS_URL=url_of(own_redis, "worker"), HEADWAY_API_KEYS=keys)
    mine = {"Authorization": "Bearer a-key-of-sixteen-characters"}
    with httpx.Client(base_url=own_platform.url, headers=mine) as client:
        assert client.post("/session", json={"key": "a-key-of-sixteen-characters"}).is_success
        form = {"processor": "checksum", "batch_id": "b"}
        for _ in range(2):
            idempotent = {"Idempotency-Key": "one"}
            answer = client.post("/tasks", data=form, files={"file": ("a.txt", b"hello")}, headers=idempotent)
            assert answer.status_code == 202, answer.text
        task = answer.json()
        with client.stream("GET", task["links"]["events"]) as answer:
            story = list(frames_of(answer))
        assert story[-1].status == "completed"
        assert client.get("/tasks").json()["tasks"][0]["status"] == "completed"
        assert client.get("/batches/b").json()["progress"] == 100
        assert client.get("/tasks.csv").text.count("\n") == 2
        assert 'headway_tasks_ended_total{processor="checksum",status="completed"} 1.0' in client.get("/metrics").text
        steps: Any = [{"processor": "checksum"}, {"processor": "checksum"}]
        chained = {"steps": steps, "input": {"task_id": task["task_id"]}, "webhook": {"url": "http://127.0.0.1:9/"}}
        last = client.post("/pipelines", json=chained).json()["tasks"][-1]["links"]["self"]
        wait_for("it is told", lambda: any(one["tries"] for one in client.get(f"{last}/webhooks").json()["webhooks"]))
        notice = client.get(f"{last}/webhooks").json()["webhooks"][0]["id"]
        assert client.post(f"{last}/webhooks/{notice}/resend").status_code == 202
        metadata = "filename YS50eHQ=,processor Y2hlY2tzdW0="
        tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", "Upload-Metadata": metadata}
        address = client.post("/uploads", headers=tus).headers["Location"]
        piece = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        assert client.patch(address, content=b"hello", headers=piece).status_code == 204
        steps = {"processor": "rehearsal", "options": {"steps": 1000, "step_seconds": 0.1}}
        running = client.post("/tasks", json=steps).json()
        workers = client.get("/readyz").json()["checks"]["workers"]
        assert workers["running"] + workers["queued"] >= 1
        assert client.post(f"/tasks/{running['task_id']}/notes", json={"author": "a", "text": "b"}).status_code == 201
        assert client.post(f"/tasks/{running['task_id']}/cancel").status_code == 202
        assert client.post(f"/tasks/{running['task_id']}/retry").status_code == 202
        assert client.post(f"/tasks/{running['task_id']}/cancel").status_code == 202
        assert client.delete(f"/tasks/{running['task_id']}").status_code == 204
        assert client.get("/readyz").json()["status"] == "ready"
    worker.stop()
    log: Any = admin.acl_log()
    refused = [f"{entry['username']}: {entry['context']} {entry['object']}" for entry in log]
    assert refused == []


def test_the_users_of_another_namespace_are_made_from_the_same_file(
    own_platform: Platform, own_redis: RedisServer, admin: redis.Redis
) -> None:
    """As docs/operating.md says it, with `sed`."""
    for line in USERS.read_text().replace("headway:", "blue:").splitlines():
        _, name, *rules = line.split()
        admin.execute_command("ACL", "SETUSER", name, "reset", *rules)  # type: ignore[no-untyped-call]
    env: dict[str, Any] = {"HEADWAY_NAMESPACE": "blue"}
    own_platform.start_api(HEADWAY_REDIS_URL=url_of(own_redis, "api"), **env)
    own_platform.start_worker(HEADWAY_REDIS_URL=url_of(own_redis, "worker"), **env)
    task = own_platform.submit("checksum", b"hello", batch_id="b")
    assert own_platform.wait(task["task_id"])["status"] == "completed"
    assert list(admin.scan_iter(match="headway:*", count=1000)) == []
    refused: Any = admin.acl_log()
    assert [entry["object"] for entry in refused] == []


FORBIDDEN = (
    *("FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG SET maxmemory 1", "SHUTDOWN NOSAVE", "ACL LIST"),
    *("REPLICAOF NO ONE", "MONITOR", "SAVE", "MODULE LIST", "SCRIPT FLUSH", "FUNCTION LIST", "CLIENT KILL TYPE normal"),
    *("GET other:key", "SET other:key 1", "RENAME headway:queue headway:other", "PUBLISH other 1", "SUBSCRIBE other"),
)


@pytest.mark.parametrize("user", PASSWORDS)
def test_a_user_of_the_file_can_do_nothing_else(own_redis: RedisServer, admin: redis.Redis, user: str) -> None:
    for command in FORBIDDEN:
        with redis.Redis.from_url(url_of(own_redis, user)) as client, pytest.raises(NoPermissionError):
            client.execute_command(*command.split())


def test_a_worker_reaches_no_session_and_nobody_else_reaches_anything(
    own_redis: RedisServer, admin: redis.Redis
) -> None:
    with redis.Redis.from_url(url_of(own_redis, "worker")) as client, pytest.raises(NoPermissionError):
        client.get("headway:session:x")
    with redis.Redis(port=own_redis.port, username="health", password="any") as client:
        assert client.ping()
        with pytest.raises(NoPermissionError):
            client.get("headway:queue")
    with redis.Redis(port=own_redis.port) as client, pytest.raises(AuthenticationError):
        client.ping()


def test_what_the_users_wrote_is_there_when_redis_has_read_its_file_again(tmp_path: Path) -> None:
    """It reads transactions, and so whatever a script wrote, as the default user: what that may not do is lost."""
    port = free_port()
    command = [*(redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", "")]
    command += ["--aclfile", str(USERS), "--appendonly", "yes", "--appendfsync", "always"]
    worker = redis.Redis(port=port, username="worker", password=PASSWORDS["worker"])

    def answers() -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(worker.ping())
        return False

    with worker:
        for start in ("first", "second"):
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
                try:
                    wait_for("Redis answers", answers)
                    if start == "first":
                        both: Any = worker.pipeline(transaction=True)
                        both.set("headway:task:a", 1).set("headway:task:b", 2).execute()
                    else:
                        assert [worker.get("headway:task:a"), worker.get("headway:task:b")] == [b"1", b"2"]
                finally:
                    server.kill()


@pytest.fixture
def tls_redis(tmp_path: Path) -> Iterator[str]:
    """The URL of a server that speaks TLS alone and asks for a password."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*made, "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True)
    port = free_port()
    files = ["--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem", "--tls-ca-cert-file", "cert.pem"]
    server = subprocess.Popen(
        [
            *(redis_binary(), "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", ""),
            *(*files, "--tls-auth-clients", "no", "--requirepass", "a-password"),
        ],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    url = f"rediss://:a-password@localhost:{port}/0?ssl_ca_certs={tmp_path / 'cert.pem'}"

    def answers() -> bool:
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(url) as client:
            return bool(client.ping())
        if server.poll() is not None:
            pytest.skip("this server was built without TLS")
        return False

    try:
        wait_for("Redis answers", answers)
        yield url
    finally:
        server.kill()
        server.wait()


def test_tls_and_a_password_come_with_the_url(tmp_path: Path, tls_redis: str) -> None:
    with Platform(tmp_path / "platform", tls_redis) as platform:
        platform.start_api()
        platform.start_worker()
        task = platform.submit("rehearsal", options='{"steps": 3, "step_seconds": 0.05}')
        story = watch(platform.url, task["task_id"], 0)
        assert_true_story(story, first=1)
        assert story[-1].status == "completed"
