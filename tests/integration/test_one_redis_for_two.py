"""Two platforms on one Redis: on two databases, or in two namespaces, neither hears or touches what is the other's; and
a second one with other files in the same place is refused."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from headway.shared import keys
from tests.processes import Platform, RedisServer
from tests.streams import Frame, frames_of, opened
from tests.waiting import wait_for

TWO: list[tuple[tuple[str, str], tuple[str, str]]] = [
    (("0", "headway"), ("1", "headway")),
    (("0", "headway"), ("0", "blue")),
]


@contextmanager
def two(server: RedisServer, folder: Path, places: tuple[tuple[str, str], ...]) -> Iterator[list[Platform]]:
    with ExitStack() as stack:
        found = []
        for database, namespace in places:
            url = f"{server.url.removesuffix('/0')}/{database}"
            own = folder / f"{database}-{namespace}"
            found.append(stack.enter_context(Platform(own, url, HEADWAY_NAMESPACE=namespace)))
        for platform in found:
            platform.start_worker()
            platform.start_api()
        yield found


def heard_until(frames: Iterator[Frame], task_id: str) -> list[str]:
    """The ids of all tasks that are spoken of until this one has completed."""
    heard = []
    for frame in frames:
        heard.append(frame.data["task_id"])
        if frame.data["task_id"] == task_id and frame.data.get("status") == "completed":
            return heard
    raise AssertionError("it never completed")


@pytest.mark.parametrize("places", TWO, ids=["databases", "namespaces"])
def test_each_hears_its_own_tasks_and_no_others(
    places: tuple[tuple[str, str], ...], own_redis: RedisServer, tmp_path: Path
) -> None:
    with two(own_redis, tmp_path, places) as (one, other):
        with opened(f"{one.url}/events") as to_one, opened(f"{other.url}/events") as to_other:
            of_one, of_other = frames_of(to_one), frames_of(to_other)
            for _ in range(3):
                mine = one.submit("rehearsal", options='{"steps": 3, "step_seconds": 0.01}', batch_id="same")
                theirs = other.submit("checksum", b"hello", batch_id="same")
                assert set(heard_until(of_one, mine["task_id"])) == {mine["task_id"]}
                assert set(heard_until(of_other, theirs["task_id"])) == {theirs["task_id"]}
        assert httpx.get(f"{one.url}/tasks/{theirs['task_id']}").status_code == 404
        assert httpx.get(f"{one.url}/batches/same").json()["total"] == 3
        assert httpx.get(f"{one.url}/readyz").json()["checks"]["workers"]["count"] == 1
        wait_for("nothing waits", lambda: httpx.get(f"{one.url}/readyz").json()["checks"]["workers"]["queued"] == 0)


def test_every_key_and_channel_is_in_the_namespace(own_redis: RedisServer, tmp_path: Path) -> None:
    secret = "the-secret-key-of-alice-4711"
    with redis.Redis(port=own_redis.port) as client, Platform(
        tmp_path / "blue", own_redis.url, HEADWAY_NAMESPACE="blue", HEADWAY_API_KEYS=f'{{"alice": "{secret}"}}',
        HEADWAY_MAX_REQUESTS_PER_SECOND="1000",
    ) as platform, client.pubsub() as everything, client.monitor() as monitor:  # fmt: skip
        everything.psubscribe("*")
        platform.start_worker()
        platform.start_api()
        with httpx.Client(base_url=platform.url, headers={"Authorization": f"Bearer {secret}"}) as alice:
            use_everything(alice)
            channels = set[bytes]()
            wait_for("channels are heard", lambda: heard(everything, channels, b"batch"))
            assert [name for name in channels if not name.startswith(b"blue:")] == []
            left = [name for name in client.scan_iter(count=1000) if not is_blue(name)]
            assert left == []
            commands = monitored(monitor, client)
        assert len(commands) > 100
        assert [command for command in commands if "headway:" in command] == []


def heard(everything: Any, channels: set[bytes], wanted: bytes) -> bool:
    while (message := everything.get_message()) is not None:
        if message["type"] == "pmessage":
            channels.add(message["channel"])
    return any(wanted in name for name in channels)


def is_blue(name: bytes) -> bool:
    return name.startswith((b"blue:", b"arq:job:blue:", b"arq:in-progress:blue:", b"LIMITS:blue:"))


def monitored(monitor: Any, client: redis.Redis) -> list[str]:
    """What was asked of Redis until now, without the texts of scripts."""
    client.echo("this is the end")
    commands: list[str] = []
    for one in monitor.listen():
        command = str(one["command"])
        if "this is the end" in command:
            return commands
        if not command.startswith("SCRIPT LOAD"):
            commands.append(command)
    raise AssertionError


def use_everything(alice: httpx.Client) -> None:
    assert alice.post("/session", json={"key": "the-secret-key-of-alice-4711"}).is_success
    form = {"processor": "checksum", "batch_id": "b"}
    for _ in range(2):
        again = {"Idempotency-Key": "one"}
        answer = alice.post("/tasks", data=form, files={"file": ("a.txt", b"hello")}, headers=again)
        assert answer.status_code == 202, answer.text
    task = answer.json()
    wait_for("it is done", lambda: alice.get(f"/tasks/{task['task_id']}").json()["status"] == "completed")
    name, processor = (base64.b64encode(text).decode() for text in (b"a.txt", b"checksum"))
    tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", "Upload-Metadata": f"filename {name},processor {processor}"}
    address = alice.post("/uploads", headers=tus).headers["Location"]
    piece = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    assert alice.patch(address, content=b"hello", headers=piece).status_code == 204
    steps = {"processor": "rehearsal", "options": {"steps": 1000, "step_seconds": 0.1}}
    running = alice.post("/tasks", json=steps).json()["task_id"]
    wait_for("it runs", lambda: alice.get(f"/tasks/{running}").json()["status"] == "processing")
    assert alice.post(f"/tasks/{running}/notes", json={"author": "a", "text": "b"}).status_code == 201
    assert alice.post(f"/tasks/{running}/cancel").status_code == 202
    assert alice.post(f"/tasks/{running}/retry").status_code == 202
    assert alice.post(f"/tasks/{running}/cancel").status_code == 202
    assert alice.delete(f"/tasks/{running}").status_code == 204
    made = alice.post("/tasks", json={"producer": "nightly"}).json()["task_id"]
    assert alice.patch(f"/tasks/{made}/progress", json={"attempt": 1, "done": 1, "log": ["x"]}).is_success
    assert alice.post(f"/tasks/{made}/complete", json={"attempt": 1, "summary": {}}).is_success
    assert alice.get("/tasks").json()["tasks"]
    assert alice.get("/tasks.csv").is_success


@pytest.mark.parametrize("what", ["api", "worker"])
def test_a_second_platform_with_other_files_is_refused_until_the_first_has_gone(
    what: str, own_redis: RedisServer, tmp_path: Path
) -> None:
    with Platform(tmp_path / "one", own_redis.url) as one, Platform(tmp_path / "two", own_redis.url) as other:
        first = one.start_api() if what == "api" else one.start_worker()
        refused = other.start_worker(wait=False) if what == "api" else other.start_api(wait=False)
        assert refused.wait(60) == 2
        for word in ("other files", "HEADWAY_NAMESPACE", "HEADWAY_DATA_DIR"):
            assert word in refused.log
        assert "Traceback" not in refused.log
        one.start_worker()  # of its own place as many as one likes
        assert other.start_api(HEADWAY_NAMESPACE="two").code is None
        for process in (first, *one.workers):
            process.stop()
        assert other.start_worker().code is None


def test_a_process_works_in_one_namespace() -> None:
    code = """
from headway.shared import keys
before = {name: value for name, value in vars(keys).items() if name.isupper()}
keys.use("headway")
assert {name: value for name, value in vars(keys).items() if name.isupper()} == before
assert keys.job_id("a" * 32, 1) == "a" * 32 + ".1"
try:
    keys.use("blue")
except ValueError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'headway' already" in told


def test_channels_have_the_number_of_their_database_but_on_the_first() -> None:
    for channel in (keys.CONTROL, keys.OWNER_LIVE % "a", keys.BATCH_LIVE % ("a", "b")):
        assert keys.on_database(channel, 0) == channel
        assert keys.on_database(channel, 3) == f"headway:3:{channel.removeprefix('headway:')}"
        assert keys.off_database(keys.on_database(channel, 3), 3) == channel
