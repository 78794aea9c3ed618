"""`from headway import report`: the block's job is a task, whatever the platform does meanwhile."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from headway import Cancelled, report
from headway.client.errors import WrongUse
from tests.processes import Platform, RedisServer, free_port
from tests.streams import frames_of, opened
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def reported(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("reported"), redis_server.fresh_url()) as platform:
        platform.start_api()
        yield platform


def task_of(platform: Platform, job: Any) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{platform.url}/tasks/{job.task_id}").json()
    return found


def test_the_block_is_a_task_with_its_progress_log_files_and_summary(reported: Platform) -> None:
    with report("nightly-report", total=4, unit="rows", title="Of last night", url=reported.url) as job:
        assert job.task_id is not None
        with opened(f"{reported.url}/tasks/{job.task_id}/events") as stream:
            frames = frames_of(stream)
            next(frames)
            for row in job.track(["a", "b", "c", "d"]):
                job.log(f"row {row}")
            assert next(frames).name == "log"
            while (frame := next(frames)).name or frame.data["done"] < 4:
                pass
            assert frame.data["progress"] == 99.9
        job.phase("write", total=2)
        job.advance(1)
        job.checkpoint({"row": 4})
        with job.create_output("report.txt", "text/plain") as file:
            file.write(b"all is well")
        job.summary["rows"] = 4
    task = task_of(reported, job)
    assert (task["status"], task["progress"], task["done"], task["message"]) == ("completed", 100, 1, "Done")
    assert task["result"]["summary"] == {"rows": 4}
    [file_] = task["result"]["files"]
    assert httpx.get(f"{reported.url}{file_['url']}").content == b"all is well"


async def test_async_with_is_the_same(reported: Platform) -> None:
    async with report("nightly-report", total=2, url=reported.url) as job:
        job.advance(2)
    assert (task_of(reported, job)["status"], task_of(reported, job)["done"]) == ("completed", 2)


def test_an_exception_in_the_block_fails_the_task_and_goes_on_its_way(reported: Platform) -> None:
    with pytest.raises(ZeroDivisionError), report("nightly-report", url=reported.url) as job:
        _ = 1 / 0
    error = task_of(reported, job)["error"]
    assert (error["type"], error["message"]) == ("processor_error", "ZeroDivisionError: division by zero")
    with pytest.raises(SystemExit), report("nightly-report", url=reported.url) as job:
        sys.exit(0)
    assert task_of(reported, job)["status"] == "completed"


def test_a_cancelled_task_is_told_to_the_work(reported: Platform) -> None:
    with report("nightly-report", url=reported.url, alive_seconds=0.2) as job:
        assert httpx.post(f"{reported.url}/tasks/{job.task_id}/cancel").status_code == 202
        wait_for("it is told", lambda: job.cancelled)
    assert task_of(reported, job)["status"] == "cancelled"
    job = report("nightly-report", url=reported.url, raise_cancelled=True)
    with pytest.raises(Cancelled):
        _work_until_cancelled(job, reported)
    assert task_of(reported, job)["status"] == "cancelled"


def _work_until_cancelled(work: report, platform: Platform) -> None:
    with work as job:
        httpx.post(f"{platform.url}/tasks/{job.task_id}/cancel")
        for _ in job.track(range(100_000)):
            time.sleep(0.001)


def test_a_platform_that_is_not_there_stops_nothing_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headway.report")
    began = time.monotonic()
    with report("nightly-report", total=1000, url=f"http://127.0.0.1:{free_port()}", patience_seconds=0.5) as job:
        for _ in job.track(range(1000)):
            job.log("a line")
    assert time.monotonic() - began < 5
    said = [record.message for record in caplog.records]
    assert [line for line in said if "cannot be reached" in line] == said[:1]
    assert len(said) == 2  # the other: that its end was not told


def test_what_was_last_is_told_to_a_platform_that_comes_back(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Platform(tmp_path_factory.mktemp("away"), redis_server.fresh_url()) as platform:
        api = platform.start_api()
        with report("nightly-report", total=10, url=platform.url, patience_seconds=60) as job:
            api.signal(signal.SIGSTOP)
            job.advance(3)
            job.log("while it was away")
            job.phase("second", total=5)
            job.advance(2)
            api.signal(signal.SIGCONT)
        task = task_of(platform, job)
        assert (task["status"], task["done"], task["step"]) == ("completed", 2, 1)
        events = httpx.get(
            f"{platform.url}/tasks/{job.task_id}/events?last_event_id=0", headers={"Accept": "application/x-ndjson"}
        ).text
        assert events.count("while it was away") == 1


def test_a_task_that_was_not_known_at_the_beginning_is_made_when_it_can_be(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Platform(tmp_path_factory.mktemp("late"), redis_server.fresh_url()) as platform:
        api = platform.start_api()
        api.signal(signal.SIGSTOP)
        with report("nightly-report", total=10, url=platform.url, patience_seconds=60) as job:
            assert job.task_id is None
            job.advance(3)
            api.signal(signal.SIGCONT)
        assert (task_of(platform, job)["status"], task_of(platform, job)["done"]) == ("completed", 3)
        assert len(httpx.get(f"{platform.url}/tasks").json()["tasks"]) == 1


def test_a_killed_producer_has_lost_its_task_and_a_fork_of_it_ends_nothing(reported: Platform) -> None:
    script = """
        import os, sys, time
        from headway import report
        with report("killed", lease_seconds=1, url=sys.argv[1]) as job:
            with job._lock:  # as the thread has it now and then
                child = os.fork()
            if child == 0:
                job.log("of the fork")
                sys.exit(1)
            os.wait()
            print(job.task_id, flush=True)
            time.sleep(1000)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), reported.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        task_id = process.stdout.readline().strip()
        with opened(f"{reported.url}/tasks/{task_id}/events") as stream:
            frames = frames_of(stream)
            assert next(frames).status == "processing"
            killed_at = time.monotonic()
            os.kill(process.pid, signal.SIGKILL)
            last = list(frames)[-1]
    assert (last.data["error"]["type"], time.monotonic() - killed_at < 3.5) == ("worker_lost", True)


def test_what_waits_is_sent_in_requests_that_the_platform_takes() -> None:
    job = report("x", url="http://127.0.0.1:9")
    for _ in range(12):
        job.log("\N{CJK UNIFIED IDEOGRAPH-4E00}" * 500)
    job.checkpoint("c" * 32_000)
    taken = []
    while some := job._take():
        assert len(json.dumps(some)) < 64 * 1024
        taken += some
    assert len([one for one in taken if "log" in one]) == 12
    assert [len(one["checkpoint"]) for one in taken if "checkpoint" in one] == [32_000]


def test_wrong_use_is_said_and_a_wrong_report_stops_nothing(
    reported: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(WrongUse):
        report("nightly-report", url="nowhere at all")
    with report("no\nname", url=reported.url) as job:
        job.advance(1)
    assert job.task_id is None
    assert any("producer" in record.message for record in caplog.records)
    with report("nightly-report", phases=["a", "b"], url=reported.url) as job:
        job.phase("c", total=2)
        job.advance(-5)
        job.progress_to(float("inf"), float("nan"))
        job.summary["x"] = object()
        job.summary["y"] = float("nan")
    assert task_of(reported, job)["status"] == "completed"


def test_a_program_that_is_killed_and_started_again_goes_on_with_its_task(
    reported: Platform, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "run.headway"
    script = f"""
        import time
        from headway import report
        with report("train", total=10, url={reported.url!r}, keep={str(kept)!r}) as job:
            job.advance(5)
            job.checkpoint({{"epoch": 5}})
            print(job.task_id, flush=True)
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        task_id = process.stdout.readline().decode().strip()
        url = f"{reported.url}/tasks/{task_id}"
        wait_for("it is told", lambda: httpx.get(url).json()["done"] == 5)
        process.kill()
    assert kept.stat().st_mode & 0o777 == 0o600
    with report("train", total=10, url=reported.url, keep=kept) as job:
        assert (job.task_id, job.attempt, job.restored) == (task_id, 2, {"epoch": 5})
        job.advance(10)
    task = task_of(reported, job)
    assert (task["status"], task["attempt"], task["done"]) == ("completed", 2, 10)
    assert not kept.exists()
    for text in ("{", "[]", json.dumps({"url": reported.url, "task_id": task_id, "producer_token": "x"})):
        kept.write_text(text)
        with report("train", url=reported.url, keep=kept) as job:
            assert job.task_id != task_id
            assert json.loads(kept.read_text())["task_id"] == job.task_id
        assert task_of(reported, job)["attempt"] == 1


def test_work_with_a_name_of_its_own_is_one_task_however_often_it_begins(reported: Platform) -> None:
    asked: dict[str, Any] = {"url": reported.url, "idempotency_key": "nightly 2026-12-01"}
    with report("nightly-report", **asked) as job:
        job.checkpoint([1])
        job.again("It is tried again", within_seconds=60)
    first = task_of(reported, job)
    assert (first["status"], first["message"], first["attempt"]) == ("processing", "It is tried again", 1)
    with report("nightly-report", **asked) as job:
        assert (job.task_id, job.attempt, job.restored) == (first["task_id"], 2, [1])
    assert task_of(reported, job)["status"] == "completed"
    with report("nightly-report", **asked) as job:  # it is over; the work runs all the same
        job.advance(1)
    assert task_of(reported, job)["attempt"] == 2


def test_work_that_waits_elsewhere_is_the_first_attempt_of_who_begins_it(reported: Platform) -> None:
    said = {"producer": "train", "waits_seconds": 600}
    waits = httpx.post(f"{reported.url}/tasks", json=said, headers={"Idempotency-Key": "train 7"}).json()
    assert (waits["status"], waits["message"], waits["started_at"]) == ("processing", "Waiting to be started", None)
    with report("train", url=reported.url, idempotency_key="train 7") as job:
        job.advance(1)
        assert (job.task_id, job.attempt) == (waits["task_id"], 1)
        wait_for("it has begun", lambda: task_of(reported, job)["started_at"] is not None)
        assert task_of(reported, job)["message"] == "Started"
    assert task_of(reported, job)["status"] == "completed"
