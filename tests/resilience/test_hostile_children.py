"""A processor that was taken over does what it can to its worker: other tasks, Redis and the files notice nothing.

HOSTILE_CHILDREN makes it more: 1,000 is what is promised.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest
import redis

from headway.shared import keys
from headway.shared.redis.client import channel_on
from tests.processes import Platform, RedisServer
from tests.waiting import wait_for

CHILDREN: Final = int(os.environ.get("HOSTILE_CHILDREN", "40"))
HONEST: Final = 20

PROCESSORS: Final = """
import json, os, signal, stat, subprocess, sys, time
from headway.shared.tasks.processors import Options, processor

class How(Options):
    way: str = ""
    number: int = 0

def pipes():
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode) and fd > 2:
                found.append(fd)
        except OSError:
            pass
    return found

def write(data):
    for fd in pipes():
        try:
            os.write(fd, data)
        except OSError:
            pass

COUNT = {"kind": "count", "progress": 1, "step": 0, "total_steps": 0, "message": "m", "done": 1}
COUNT |= {"total": None, "unit": None}

@processor("hostile", needs_file=False, options=How)
def hostile(job):
    way, number = job.options.way, job.options.number
    job.log("begun")
    time.sleep(number % 7 / 100)
    if way == "exit":
        os._exit(number % 256)
    if way == "signal":
        os.kill(os.getpid(), [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM][number % 4])
    if way == "close and end later":
        for fd in pipes():
            os.close(fd)
        time.sleep(3)
        os._exit(0)
    if way == "close and return":
        for fd in pipes():
            os.close(fd)
        return {}
    if way == "half a frame":
        write(b'{"kind": "co')
        os._exit(0)
    if way == "garbage":
        write(os.urandom(1000))
    if way == "forged end":
        write(b'{"kind":"done","summary":{"forged":%d},"outputs":{"../../x":null}}\\n' % number)
    if way == "two ends":
        write(b'{"kind":"done","summary":{"first":1},"outputs":{}}\\n' * 2)
    if way == "flood":
        line = json.dumps(COUNT | {"message": "\\U0001f600" * 500}).encode() + b"\\n"
        while True:
            write(line * 10)
    if way == "large frames":
        while True:
            write(json.dumps(COUNT | {"message": "x" * 5_000_000}).encode() + b"\\n")
    if way == "log flood":
        for _ in range(20_000):
            job.log("\\U0001f600" * 500)
    if way == "print flood":
        for _ in range(1000):
            os.write(2, b"x" * 60_000 + b"\\n")
    if way == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if way == "daemon":
        if os.fork() == 0:
            os.setsid()
            time.sleep(60)
            os._exit(0)
    if way == "raise":
        raise RuntimeError("of %d" % number)
    if way == "hang":
        time.sleep(600)
    return {"number": number}

@processor("results", needs_file=False, options=How)
def results(job):
    way = job.options.way
    if way == "sparse":
        with job.create_output("out") as file:
            file.truncate(24 * 1024**3)
    if way == "link":
        os.symlink("/etc/passwd", job.output_path("out"))
    if way == "many":
        for number in range(300):
            with job.create_output(f"out-{number}") as file:
                file.write(b"x")
    if way == "deep":
        for _ in range(3000):
            os.mkdir("d"); os.chdir("d")
    if way == "written":
        with job.create_output("out") as file:
            file.write(b"x" * 1000)
        if os.fork() == 0:
            os.setsid()
            with open(job.output_path("out"), "r+b") as file:
                while True:
                    file.seek(0); file.write(os.urandom(1000)); file.flush()
    return {}
"""

WAYS: Final = (
    *("exit", "signal", "close and end later", "close and return", "half a frame", "garbage", "forged end", "two ends"),
    *("flood", "large frames", "log flood", "print flood", "stop", "daemon", "raise", "hang", "return"),
)


@pytest.fixture(scope="module")
def platform(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "headway_test_hostile.py").write_text(PROCESSORS)
    env = {
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HEADWAY_PROCESSORS": "headway_test_hostile",
        # Of the honest ones too, on a machine that does other work: what hangs is mostly cancelled.
        "HEADWAY_TASK_TIMEOUT_SECONDS": "60",
        "HEADWAY_TASK_DISK_BYTES": "50MiB",
        "HEADWAY_WORKER_CONCURRENCY": "8",
        "HEADWAY_LOG_FORMAT": "json",
    }
    with Platform(folder / "platform", redis_server.fresh_url(), **env) as started:
        started.start_worker()
        started.start_api()
        yield started


def lines_of(platform: Platform) -> list[dict[str, object]]:
    return [json.loads(line) for line in platform.workers[0].log.splitlines() if line.startswith("{")]


def test_children_that_end_in_any_way_are_noticed_by_no_honest_task(platform: Platform) -> None:
    rng = random.Random(27)
    tasks: dict[str, str] = {}
    honest_at = set(rng.sample(range(CHILDREN + HONEST), HONEST))
    for number in range(CHILDREN + HONEST):
        if number in honest_at:
            options = {"steps": 20, "step_seconds": 0.05}
            tasks[platform.submit("rehearsal", options=json.dumps(options))["task_id"]] = "honest"
        else:
            way = WAYS[number % len(WAYS)]
            answer = platform.submit("hostile", options=json.dumps({"way": way, "number": number}))
            tasks[answer["task_id"]] = way
            if rng.random() < (0.8 if way in ("hang", "stop", "close and end later") else 0.05):
                httpx.post(f"{platform.url}/tasks/{answer['task_id']}/cancel")
    ended = {task_id: platform.wait(task_id, "completed", "failed", "cancelled", seconds=600) for task_id in tasks}
    by_way: dict[str, list[dict[str, object]]] = {}
    for task_id, way in tasks.items():
        by_way.setdefault(way, []).append(ended[task_id])
    assert [one["status"] for one in by_way["honest"]] == ["completed"] * HONEST
    assert {one["attempt"] for one in by_way["honest"]} == {1}
    assert {one["status"] for one in by_way["return"]} <= {"completed", "cancelled"}
    for way in ("garbage", "forged end", "flood", "large frames"):
        for one in by_way[way]:
            assert one["status"] in ("failed", "cancelled"), way
            assert one["status"] == "cancelled" or "disturbed its progress pipe" in str(one["error"]), (
                way,
                one["error"],
            )
    lines = lines_of(platform)
    events = [line["event"] for line in lines]
    assert "fork server died; starting another" not in events
    assert [line for line in lines if line["event"] in ("attempt broke", "job broke", "sweep broke")] == []


@pytest.mark.parametrize(
    ("way", "status", "words"),
    [
        ("sparse", "failed", "HEADWAY_TASK_DISK_BYTES"),
        ("link", "failed", "did not write"),
        ("many", "completed", ""),
        ("written", "completed", ""),
    ],
)
def test_results_of_every_kind_end_with_the_truth(platform: Platform, way: str, status: str, words: str) -> None:
    task = platform.wait(platform.submit("results", options=json.dumps({"way": way}))["task_id"], "completed", "failed")
    assert (task["status"], words in str(task["error"])) == (status, True), task["error"]
    if way == "sparse":
        assert task["error"]["type"] == "storage_full"
    partial = Path(platform.folder) / "data" / "partial"
    wait_for("the scratch folder is gone", lambda: not list(partial.glob(f"{task['task_id']}*")))


def test_a_folder_that_no_path_can_reach_is_gone_with_its_attempt(platform: Platform) -> None:
    """Looked at while it is being made, it is too deep; made and left in time, it is nothing that is kept."""
    task = platform.wait(platform.submit("results", options='{"way": "deep"}')["task_id"], "completed", "failed")
    assert task["status"] == "completed" or "deep" in task["error"]["message"], task["error"]
    partial = Path(platform.folder) / "data" / "partial"
    wait_for("the scratch folder is gone", lambda: not list(partial.glob(f"{task['task_id']}*")))


def test_what_a_task_keeps_in_redis_is_bounded_whatever_its_child_sends(platform: Platform) -> None:
    client = redis.Redis.from_url(platform.redis_url)
    for way in ("log flood", "flood", "large frames"):
        task_id = platform.submit("hostile", options=json.dumps({"way": way}))["task_id"]
        platform.wait(task_id, "completed", "failed", seconds=120)
        names = list(client.scan_iter(match=f"*{task_id}*", count=1000))
        used = sum(int(str(client.memory_usage(name, samples=0))) for name in names)
        assert 0 < used < 1024**2, (way, used)


def test_messages_and_queue_members_that_are_none_are_left_out_and_counted(platform: Platform) -> None:
    client = redis.Redis.from_url(platform.redis_url)
    worker = platform.workers[0]
    pid = worker.pid
    messages = [
        b"\xff\xfe",
        b"",
        b"stop",
        b"stop ../../x",
        b"stop " + b"\xff" * 32,
        b"[" * 100_000,
        b"9" * 10_000,
        b"{}",
    ]
    for message in messages:
        client.publish(channel_on(client, keys.CONTROL), message)
    payloads = [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"9" * 10_000,
        b"null",
        b'{"v":1}',
        b'{"v":1,"f":[],"a":5,"k":5,"t":1,"et":1}',
    ]
    for number, payload in enumerate(payloads):
        client.set(keys.job(f"strange-{number}"), payload)
        client.zadd(keys.QUEUE, {f"strange-{number}": 1})
    client.zadd(keys.QUEUE, {b"\xff\xfe\xfd": 1, b"": 2, b"x" * 1000: 3, b"a\nb": 4})
    client.publish(channel_on(client, keys.CONTROL), "wake")
    task_id = platform.submit("rehearsal", options='{"steps": 1, "step_seconds": 0}')["task_id"]
    assert platform.wait(task_id, "completed", "failed")["status"] == "completed"
    wait_for("the queue is empty", lambda: not client.exists(keys.QUEUE, keys.LINE_JOBS))
    assert (worker.pid, worker.code) == (pid, None)
    said = [
        line["what"] for line in lines_of(platform) if str(line["event"]).startswith("not understood, and left out")
    ]
    assert sorted(map(str, said)) == ["message", "queue member"]


def test_a_worker_that_hashes_large_results_ends_soon_when_it_is_told_to(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    (tmp_path / "headway_test_hostile.py").write_text(PROCESSORS)
    env = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HEADWAY_PROCESSORS": "headway_test_hostile",
        "HEADWAY_TASK_DISK_BYTES": "100TiB",
    }
    with Platform(tmp_path / "platform", redis_server.fresh_url(), **env) as platform:
        worker = platform.start_worker()
        platform.start_api()
        task_id = platform.submit("results", options='{"way": "sparse"}')["task_id"]
        partial = tmp_path / "platform" / "data" / "partial"
        wait_for("its result is being hashed", lambda: len(list(partial.glob(f"{task_id}-*"))) > 1)
        worker.signal(signal.SIGTERM)
        assert worker.wait(30) == 0
        assert platform.task(task_id)["status"] == "queued"
