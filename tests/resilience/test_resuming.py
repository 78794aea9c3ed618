"""A lost attempt's checkpoint: the next one goes on from there, the bar too, and whoever watches is told."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import environ
from pathlib import Path
from typing import Any

import httpx
import pytest

from headway.shared.settings import Settings
from tests.processes import Platform, RedisServer
from tests.resilience.test_worker_faults import running_step, worker_of
from tests.streams import Frame, assert_true_story, watch
from tests.waiting import wait_for

STEPS = '{"steps": 40, "step_seconds": 0.1}'

#: In CI 3 kills; the figure that is published comes of TAKEOVER_KILLS=200.
KILLS = int(environ.get("TAKEOVER_KILLS", "5"))
#: Short, so that the tests are; the takeover is timed with the lease that everybody has.
LEASE_SECONDS = 1.5
DEFAULT_LEASE_SECONDS = Settings().lease_seconds

#: A processor that counts rows and writes down which of them it did: proof that none before the checkpoint came twice.
ROWS = """
import time
from headway.shared.tasks.processors import Options, processor

class Rows(Options):
    rows: int = 400
    large_at: int | None = None
    unclear_at: int | None = None
    bad_after: int | None = None

@processor("rows", needs_file=False, options=Rows, phases={"Rows": 1})
def rows(job):
    first = job.restored["row"] if job.restored else 0
    if first:
        job.log(f"resuming at row {first:,}")
    rows = range(first, job.options.rows)
    with job.phase("Rows", total=job.options.rows, unit="rows", done=first):
        for row in rows:
            if row == job.options.large_at:
                job.checkpoint("x" * 70_000)
            if row == job.options.unclear_at:
                job.checkpoint(object())
            if row == job.options.bad_after:
                raise ValueError("row %d is not to my taste" % row)
            time.sleep(0.005)
            job.advance()
            job.checkpoint({"row": row + 1})
    return {"first": first, "rows": len(rows)}
"""


@contextmanager
def fleet_of(folder: Path, *, workers: int, lease_seconds: float = LEASE_SECONDS, **env: str) -> Iterator[Platform]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows_processor.py").write_text(ROWS, encoding="utf-8")
    settings = {"HEADWAY_PROCESSORS": "rows_processor", "PYTHONPATH": str(folder), **env}
    settings |= {"HEADWAY_LEASE_SECONDS": str(lease_seconds), "HEADWAY_WORKER_CONCURRENCY": "2"}
    with RedisServer(folder / "redis") as redis, Platform(folder / "platform", redis.url, **settings) as platform:
        platform.start_api()
        for _ in range(workers):
            platform.start_worker()
        yield platform


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Platform]:
    with fleet_of(tmp_path, workers=2) as platform:
        yield platform


def first_state_of(story: list[Frame], attempt: int, status: str = "processing") -> dict[str, Any]:
    return next(
        frame.data for frame in story if not frame.name and frame.data["attempt"] == attempt and frame.status == status
    )


def logs_of(story: list[Frame]) -> list[str]:
    return [frame.data["message"] for frame in story if frame.name == "log"]


def has_done(platform: Platform, task_id: str, percent: float) -> Callable[[], bool]:
    return lambda: platform.task(task_id)["progress"] >= percent


def is_at_attempt(platform: Platform, task_id: str, attempt: int) -> Callable[[], bool]:
    return lambda: platform.task(task_id)["attempt"] == attempt


def test_a_killed_rehearsal_goes_on_at_the_step_where_it_was(fleet: Platform) -> None:
    task_id = fleet.submit("rehearsal", options=STEPS)["task_id"]
    running_step(fleet, task_id, 20)
    worker_of(fleet, task_id).kill()
    assert fleet.wait(task_id)["status"] == "completed"
    story = watch(fleet.url, task_id, last_event_id=0)
    assert_true_story(story, first=1)
    resumed = first_state_of(story, 2)
    assert resumed["message"] == "The worker was lost, resuming from the last checkpoint as attempt 2"
    assert resumed["progress"] >= 100 * 15 / 40
    assert any(text.startswith("Resuming at step") for text in logs_of(story))
    steps = [frame.data["step"] for frame in story if not frame.name and frame.data["step"]]
    assert sorted(set(steps)) == list(range(1, 41))
    assert len(steps) <= 40 + 10  # a few may come twice: those after the last checkpoint, and the last state


def test_no_row_before_the_checkpoint_is_done_again_and_the_count_goes_on(fleet: Platform) -> None:
    task_id = fleet.submit("rows")["task_id"]
    wait_for("half of the rows are done", has_done(fleet, task_id, 50), seconds=20)
    worker_of(fleet, task_id).kill()
    done = fleet.wait(task_id)
    assert (done["status"], done["attempt"]) == ("completed", 2)
    first = done["result"]["summary"]["first"]
    assert done["result"]["summary"]["rows"] == 400 - first
    story = watch(fleet.url, task_id, last_event_id=0)
    assert_true_story(story, first=1)
    assert first_state_of(story, 2)["progress"] == pytest.approx(100 * first / 400, abs=1)
    assert 100 <= first <= 400
    assert logs_of(story) == [f"resuming at row {first:,}"]
    rates = [frame.data["rate"] for frame in story if frame.data.get("attempt") == 2 and frame.data["rate"]]
    assert max(rates) < 1000, "what was done before is not counted into the rate"


def test_a_stopped_workers_task_is_given_back_with_its_checkpoint(fleet: Platform) -> None:
    task_id = fleet.submit("rows")["task_id"]
    wait_for("half of the rows are done", has_done(fleet, task_id, 50), seconds=20)
    stopped = worker_of(fleet, task_id)
    stopped.signal(signal.SIGTERM)
    assert stopped.wait(5) == 0
    done = fleet.wait(task_id)
    assert (done["status"], done["attempt"]) == ("completed", 2)
    assert done["result"]["summary"]["first"] >= 150
    story = watch(fleet.url, task_id, last_event_id=0)
    assert_true_story(story, first=1)
    assert first_state_of(story, 2, "queued")["progress"] >= 35
    assert first_state_of(story, 2)["message"] == "Resuming from the last checkpoint"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with fleet_of(tmp_path_factory.mktemp("single"), workers=1) as platform:
        yield platform


@pytest.mark.parametrize(
    ("options", "word"),
    [('{"large_at": 5}', "a checkpoint is at most 65536 bytes"), ('{"unclear_at": 5}', "object")],
    ids=["too large", "no JSON"],
)
def test_a_checkpoint_that_cannot_be_kept_is_a_processor_error(single: Platform, options: str, word: str) -> None:
    done = single.wait(single.submit("rows", options=options)["task_id"])
    assert (done["status"], done["error"]["type"]) == ("failed", "processor_error")
    assert word in done["error"]["message"]


def test_a_retry_after_the_works_own_error_begins_at_the_start(single: Platform) -> None:
    task_id = single.submit("rows", options='{"bad_after": 100}')["task_id"]
    assert single.wait(task_id)["error"]["message"] == "ValueError: row 100 is not to my taste"
    assert httpx.post(f"{single.url}/tasks/{task_id}/retry").json()["progress"] == 0
    again = single.wait(task_id)
    assert (again["status"], again["attempt"]) == ("failed", 2)
    assert logs_of(watch(single.url, task_id, last_event_id=0)) == []


def test_a_retry_after_a_cancel_begins_at_the_start(single: Platform) -> None:
    task_id = single.submit("rows")["task_id"]
    wait_for("a tenth of the rows is done", has_done(single, task_id, 10), seconds=20)
    assert httpx.post(f"{single.url}/tasks/{task_id}/cancel").status_code == 202
    assert httpx.post(f"{single.url}/tasks/{task_id}/retry").json()["progress"] == 0
    assert single.wait(task_id)["result"]["summary"]["first"] == 0


def test_a_retry_after_a_timeout_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    with fleet_of(tmp_path, workers=1, HEADWAY_TASK_TIMEOUT_SECONDS="2") as platform:
        task_id = platform.submit("rows", options='{"rows": 600}')["task_id"]
        seen = 0.0
        ended = platform.wait(task_id)
        # However slow the machine is: each attempt of 2 s gets further, and the last one is whole.
        while ended["status"] == "failed":
            assert (ended["error"]["type"], ended["error"]["retryable"]) == ("timeout", True)
            begun = httpx.post(f"{platform.url}/tasks/{task_id}/retry").json()["progress"]
            assert begun > seen
            seen = begun
            ended = platform.wait(task_id)
        assert ended["status"] == "completed"
        assert seen > 0
        assert ended["result"]["summary"]["first"] == pytest.approx(seen * 6, abs=1)


@pytest.mark.timeout(240 + 15 * KILLS)
def test_a_killed_worker_is_taken_over_at_whatever_point(tmp_path: Path) -> None:
    """From SIGKILL to `processing`, attempt + 1, and one end. benchmarks/takeover.py measures how soon."""
    chosen, took = random.Random(KILLS), []
    with fleet_of(tmp_path, workers=2, lease_seconds=DEFAULT_LEASE_SECONDS) as fleet:
        for kill in range(KILLS):
            task_id = fleet.submit("rehearsal", options='{"steps": 12, "step_seconds": 0.05}')["task_id"]
            running_step(fleet, task_id, chosen.randint(1, 8))
            victim = worker_of(fleet, task_id)
            started = time.monotonic()
            victim.kill()
            wait_for(f"kill {kill} is taken over", is_at_attempt(fleet, task_id, 2), seconds=10)
            took.append(time.monotonic() - started)
            fleet.start_worker()
            done = fleet.wait(task_id)
            assert (done["status"], done["attempt"]) == ("completed", 2)
            assert_true_story(watch(fleet.url, task_id, last_event_id=0), first=1)
    took.sort()
    seconds = {"median": round(took[KILLS // 2], 2), "longest": round(took[-1], 2)}
    print(json.dumps({"kills": KILLS, "lease_seconds": DEFAULT_LEASE_SECONDS, **seconds}))
