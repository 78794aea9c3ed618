"""Workers and their children, killed, stopped and starved for real: the task goes on or ends with a true word, once."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import httpx
import pytest

from tests.processes import HeadwayProcess, Platform
from tests.streams import assert_true_story, watch
from tests.waiting import wait_for

LONG = '{"steps": 60, "step_seconds": 0.1}'


def descendants(pid: int) -> set[int]:
    """Every process below this one, by /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that still run; a zombie does not."""
    running = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            running.add(pid)
    return running


def running_step(platform: Platform, task_id: str, step: int = 2) -> None:
    wait_for(f"step {step} runs", lambda: platform.task(task_id)["step"] >= step, seconds=20)


def worker_of(platform: Platform, task_id: str) -> HeadwayProcess:
    """The worker that started the task's newest attempt."""
    starts = [
        (line["attempt"], number)
        for number, worker in enumerate(platform.workers)
        for line in map(json.loads, worker.log.splitlines())
        if line["event"] == "attempt started" and line["task_id"] == task_id
    ]
    return platform.workers[max(starts)[1]]


@pytest.fixture
def fleet(own_platform: Platform) -> Platform:
    """One API and two workers, each with room for two tasks."""
    own_platform.start_api()
    for _ in range(2):
        own_platform.start_worker(wait=False, HEADWAY_WORKER_CONCURRENCY="2", HEADWAY_LEASE_SECONDS="1.5")
    for worker in own_platform.workers:
        wait_for("the worker is ready", lambda worker=worker: "worker ready" in worker.log, seconds=30)  # type: ignore[misc]
    return own_platform


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


@needs_proc
def test_a_killed_workers_task_goes_on_elsewhere_and_its_child_is_gone(fleet: Platform) -> None:
    task_id = fleet.submit("rehearsal", options=LONG)["task_id"]
    running_step(fleet, task_id)
    victim = worker_of(fleet, task_id)
    below = descendants(victim.pid)
    victim.kill()
    taken = wait_for("attempt 2 runs", lambda: fleet.task(task_id)["attempt"] == 2 and fleet.task(task_id), seconds=10)
    assert isinstance(taken, dict)
    assert taken["status"] == "processing"
    wait_for("the old child is gone", lambda: not alive(below))
    done = fleet.wait(task_id)
    assert (done["status"], done["attempt"]) == ("completed", 2)
    story = watch(fleet.url, task_id, last_event_id=0)
    assert_true_story(story, first=1)
    assert any("worker was lost" in frame.data["message"] for frame in story)


def test_a_task_whose_workers_keep_dying_ends_as_worker_lost(own_platform: Platform) -> None:
    own_platform.start_api(HEADWAY_MAX_ATTEMPTS="2")
    task_id = own_platform.submit("rehearsal", options=LONG)["task_id"]
    for attempt in (1, 2):
        worker = own_platform.start_worker(HEADWAY_LEASE_SECONDS="0.5", HEADWAY_MAX_ATTEMPTS="2")
        wait_for(
            f"attempt {attempt} runs",
            lambda attempt=attempt: (
                (own_platform.task(task_id)["attempt"], own_platform.task(task_id)["step"] > 0)  # type: ignore[misc]
                == (attempt, True)
            ),
            seconds=20,
        )
        worker.kill()
    own_platform.start_worker(HEADWAY_LEASE_SECONDS="0.5", HEADWAY_MAX_ATTEMPTS="2")
    done = own_platform.wait(task_id)
    assert (done["status"], done["error"]["type"], done["error"]["retryable"]) == ("failed", "worker_lost", True)
    assert_true_story(watch(own_platform.url, task_id, last_event_id=0), first=1)


@needs_proc
def test_a_worker_that_slept_through_its_lease_changes_nothing_and_its_child_is_gone(fleet: Platform) -> None:
    task_id = fleet.submit("rehearsal", options=LONG)["task_id"]
    running_step(fleet, task_id)
    sleeper = worker_of(fleet, task_id)
    forked = [pid for pid in descendants(sleeper.pid) if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    server = max(forked, key=lambda pid: len(descendants(pid)))  # its keepers and children have its command line
    child = {pid for pid in descendants(server) if Path(f"/proc/{pid}/comm").read_text() != "headway-ahead\n"}
    sleeper.signal(signal.SIGSTOP)
    wait_for("another worker has it", lambda: fleet.task(task_id)["attempt"] == 2, seconds=10)
    sleeper.signal(signal.SIGCONT)
    wait_for("the old child is gone", lambda: not alive(child), seconds=10)
    done = fleet.wait(task_id)
    assert (done["status"], done["attempt"]) == ("completed", 2)
    assert_true_story(watch(fleet.url, task_id, last_event_id=0), first=1)
    wait_for("the sleeper works again", lambda: sleeper.code is None)


def test_a_stopped_worker_hands_its_tasks_on_and_exits(fleet: Platform) -> None:
    task_id = fleet.submit("rehearsal", options=LONG)["task_id"]
    running_step(fleet, task_id)
    stopped = worker_of(fleet, task_id)
    stopped.signal(signal.SIGTERM)
    assert stopped.wait(5) == 0
    wait_for("another worker has it", lambda: worker_of(fleet, task_id) is not stopped, seconds=5)
    done = fleet.wait(task_id)
    assert (done["status"], done["attempt"]) == ("completed", 2)
    assert_true_story(watch(fleet.url, task_id, last_event_id=0), first=1)


@needs_proc
@pytest.mark.parametrize(
    "options",
    ['{"steps": 2, "step_seconds": 600}', '{"steps": 2, "step_seconds": 0, "hang_at": 1}'],
    ids=["in a sleep", "in C, holding the GIL"],
)
def test_cancelling_ends_the_task_and_its_child_whatever_it_does(fleet: Platform, options: str) -> None:
    task_id = fleet.submit("rehearsal", options=options)["task_id"]
    running_step(fleet, task_id, 1)
    worker = worker_of(fleet, task_id)
    idle = descendants(worker.pid)
    answer = httpx.post(f"{fleet.url}/tasks/{task_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    wait_for("the child is gone", lambda: len(alive(idle)) < len(idle), seconds=5)
    assert worker.code is None
    assert httpx.post(f"{fleet.url}/tasks/{task_id}/cancel").status_code == 409
    assert_true_story(watch(fleet.url, task_id, last_event_id=0), first=1)
    again = httpx.post(f"{fleet.url}/tasks/{task_id}/retry")
    assert (again.status_code, again.json()["attempt"]) == (202, 2)
    running_step(fleet, task_id, 1)
    assert httpx.post(f"{fleet.url}/tasks/{task_id}/cancel").status_code == 202


@pytest.mark.parametrize(
    ("options", "error_type", "word"),
    [
        ('{"steps": 3, "step_seconds": 0, "fail_at": 2}', "processor_error", "Step 2 failed"),
        ('{"steps": 3, "step_seconds": 0, "crash_at": 2}', "processor_error", "SIGKILL"),
        ('{"steps": 3, "step_seconds": 0, "hang_at": 2}', "timeout", "HEADWAY_TASK_TIMEOUT_SECONDS"),
        ('{"steps": 3, "step_seconds": 60}', "timeout", "HEADWAY_TASK_TIMEOUT_SECONDS"),
        ('{"steps": 3, "step_seconds": 0, "memory_bytes": 1000000000}', "memory", "HEADWAY_TASK_MEMORY_BYTES"),
    ],
)
def test_each_way_to_fail_has_its_own_word_and_the_worker_lives(
    faulty: Platform, options: str, error_type: str, word: str
) -> None:
    task_id = faulty.submit("rehearsal", options=options)["task_id"]
    done = faulty.wait(task_id)
    assert (done["status"], done["error"]["type"]) == ("failed", error_type)
    assert word in done["error"]["message"]
    assert_true_story(watch(faulty.url, task_id, last_event_id=0), first=1)
    assert faulty.workers[0].code is None
    after = faulty.submit("checksum", b"still here")
    assert faulty.wait(after["task_id"])["status"] == "completed"


@pytest.fixture(scope="module")
def faulty(redis_server: object, tmp_path_factory: pytest.TempPathFactory) -> object:
    """A platform with tight limits."""
    from tests.processes import RedisServer

    folder = tmp_path_factory.mktemp("faulty")
    limits = {"HEADWAY_TASK_TIMEOUT_SECONDS": "10", "HEADWAY_TASK_MEMORY_BYTES": "300000000"}
    with RedisServer(folder / "redis") as server, Platform(folder, server.url, **limits) as platform:
        platform.start_worker()
        platform.start_api()
        yield platform


@needs_proc
def test_the_fork_server_killed_fails_its_task_and_the_worker_goes_on(own_platform: Platform) -> None:
    own_platform.start_api()
    worker = own_platform.start_worker()
    task_id = own_platform.submit("rehearsal", options=LONG)["task_id"]
    running_step(own_platform, task_id)
    server = min(pid for pid in descendants(worker.pid) if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(server, signal.SIGKILL)
    ended = own_platform.wait(task_id)
    assert (ended["status"], ended["error"]["type"]) == ("failed", "processor_error")
    after = own_platform.submit("checksum", b"still here")
    assert own_platform.wait(after["task_id"])["status"] == "completed"
