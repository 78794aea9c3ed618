"""headway.integrations for RQ, Dramatiq and executors, with real workers on a real Redis."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from headway import Cancelled
from headway.integrations import current_job
from headway.integrations.executors import reported
from tests.integration.queue_workers import Tasks, module, sends, worker
from tests.processes import Platform, RedisServer
from tests.waiting import wait_for

LEASE_SECONDS = "2"
RQ = """
    import os, pathlib, time
    from redis import Redis
    from rq import Retry
    from rq.group import Group
    from rq.job import get_current_job
    from headway.integrations import current_job
    from headway.integrations.rq import ReportedQueue

    queue = ReportedQueue(connection=Redis.from_url(os.environ["BROKER"]))

    def counts(n):
        job = get_current_job()
        for done in range(n):
            job.meta.update(done=done + 1, total=n)
            job.save_meta()
        return {"n": n}

    def wobbles():
        job = current_job()
        if job.attempt < 3:
            job.checkpoint({"seen": job.attempt})
            raise ValueError("not yet")
        return job.restored

    def breaks():
        raise ValueError("it broke")

    def hangs(pids):
        pathlib.Path(pids).write_text(str(os.getpid()))
        time.sleep(600)
"""
DRAMATIQ = """
    import os, pathlib, time
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker
    from headway.integrations.dramatiq import Reported, current_job

    broker = RedisBroker(url=os.environ["BROKER"], heartbeat_timeout=2000, maintenance_chance=1_000_000)
    broker.add_middleware(Reported(lease_seconds=float(os.environ["HEADWAY_REPORT_LEASE_SECONDS"])))
    dramatiq.set_broker(broker)

    @dramatiq.actor
    def counts(n):
        for _ in current_job().track(range(n)):
            pass
        return {"n": n}

    @dramatiq.actor(max_retries=2, min_backoff=100)
    def wobbles():
        job = current_job()
        if job.attempt < 3:
            raise ValueError("not yet")
        return {"attempt": job.attempt}

    @dramatiq.actor(max_retries=0)
    def breaks():
        raise ValueError("it broke")

    @dramatiq.actor
    def hangs(pids):
        pathlib.Path(pids).write_text(str(os.getpid()))
        for _ in range(60_000):
            time.sleep(0.01)
"""


class Worked:
    """A queue with a worker of its kind, and programs that enqueue."""

    def __init__(self, folder: Path, environment: dict[str, str], source: str, command: tuple[str, ...]) -> None:
        self.folder, self._environment, self._command = folder, environment, command
        module(folder, "work", source)

    def sends(self, script: str) -> str:
        return sends(self.folder, self._environment, f"from work import *\n{script}")

    def worker(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        return worker(self.folder, self._environment, *self._command)


@pytest.fixture(scope="module")
def tasks(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tasks]:
    with Platform(tmp_path_factory.mktemp("platform"), redis_server.fresh_url()) as platform:
        platform.start_api()
        yield Tasks(platform)


@pytest.fixture
def environment(tasks: Tasks, redis_server: RedisServer) -> dict[str, str]:
    return {"BROKER": redis_server.fresh_url(), "HEADWAY_URL": tasks.url, "HEADWAY_REPORT_LEASE_SECONDS": LEASE_SECONDS}


def test_jobs_of_rq_are_reported_tasks(tasks: Tasks, environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("rq")
    command = ("-m", "rq.cli", "worker", "--worker-class", "headway.integrations.rq.ReportedWorker", "--with-scheduler")
    rq = Worked(tmp_path, environment, RQ, (*command, "--url", environment["BROKER"]))
    pids = tmp_path / "pids"
    rq.sends("queue.enqueue('work.counts', 7)")
    waits = tasks.one("work.counts", "it waits", bool)
    assert (waits["message"], waits["started_at"]) == ("Waiting to be started", None)
    with rq.worker():
        done = tasks.ended("work.counts", "completed")
        assert (done["task_id"], done["attempt"], done["done"], done["total"]) == (waits["task_id"], 1, 7, 7)
        assert done["result"]["summary"] == {"n": 7}
        rq.sends("queue.enqueue('work.wobbles', retry=Retry(max=2)); queue.enqueue('work.breaks')")
        wobbly = tasks.ended("work.wobbles", "completed")
        assert (wobbly["attempt"], wobbly["result"]["summary"]) == (3, {"seen": 2})
        assert "It is tried again after ValueError: not yet" in str(tasks.states(wobbly))
        assert tasks.ended("work.breaks", "failed")["error"]["message"] == "ValueError: it broke"
        rq.sends(
            "Group.create(connection=queue.connection, name='nightly').enqueue_many("
            "queue, [queue.prepare_data('work.counts', (n,)) for n in (2, 3)])"
        )
        wait_for("the group is done", lambda: tasks.batch("nightly")["counts"].get("completed") == 2)
        # Stopped there, cancelled here; and the other way round.
        job_id = rq.sends(f"print(queue.enqueue('work.hangs', {str(pids)!r}).id)")
        tasks.one("work.hangs", "it has begun", lambda task: task["started_at"] and pids.exists())
        rq.sends(f"from rq.command import send_stop_job_command; send_stop_job_command(queue.connection, {job_id!r})")
        tasks.ended("work.hangs", "cancelled")
        pids.unlink()
        rq.sends(f"queue.enqueue('work.hangs', {str(pids)!r})")
        tasks.cancel(tasks.one("work.hangs", "it has begun", lambda task: task["started_at"] and pids.exists()))
        wait_for("its horse is gone", lambda: not Path(f"/proc/{pids.read_text()}").exists())
        # Killed: lost.
        pids.unlink()
        rq.sends(f"queue.enqueue('work.hangs', {str(pids)!r})")
        tasks.one("work.hangs", "it has begun", lambda task: task["started_at"] and pids.exists())
        os.kill(int(pids.read_text()), signal.SIGKILL)
        assert tasks.ended("work.hangs", "failed")["error"]["type"] == "worker_lost"


def test_messages_of_dramatiq_are_reported_tasks(tasks: Tasks, environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("dramatiq")
    command = ("-m", "dramatiq", "work", "--processes", "1", "--threads", "2")
    dramatiq = Worked(tmp_path, environment, DRAMATIQ, command)
    pids = tmp_path / "pids"
    dramatiq.sends("counts.send_with_options(args=(7,), headway_batch='weekly')")
    waits = tasks.one("counts", "it waits", bool)
    assert (waits["message"], waits["batch_id"]) == ("Waiting to be started", "weekly")
    with dramatiq.worker():
        done = tasks.ended("counts", "completed")
        assert (done["task_id"], done["attempt"], done["done"], done["total"]) == (waits["task_id"], 1, 7, 7)
        assert tasks.batch("weekly")["counts"]["completed"] == 1
        dramatiq.sends("wobbles.send(); breaks.send()")
        wobbly = tasks.ended("wobbles", "completed")
        assert (wobbly["attempt"], wobbly["result"]["summary"]) == (3, {"attempt": 3})
        assert tasks.ended("breaks", "failed")["error"]["message"] == "ValueError: it broke"
        dramatiq.sends(f"hangs.send({str(pids)!r})")
        tasks.cancel(tasks.one("hangs", "it has begun", lambda task: task["started_at"] and pids.exists()))
        log = tmp_path / "worker.log"
        wait_for("the actor is interrupted", lambda: "Aborting message" in log.read_text())
        pids.unlink()
        dramatiq.sends(f"hangs.send({str(pids)!r})")
        task = tasks.one("hangs", "it has begun", lambda task: task["started_at"] and pids.exists())
    assert tasks.ended("hangs", "failed")["error"]["type"] == "worker_lost"
    pids.unlink()
    with dramatiq.worker():  # it is delivered again
        again = tasks.one("hangs", "it has begun again", lambda task: task["status"] == "processing" and pids.exists())
        assert (again["task_id"], again["attempt"]) == (task["task_id"], 2)


def square(n: int) -> int:
    if n == 13:
        raise ValueError("unlucky")
    if n == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    if n == 99:
        time.sleep(0.05)
    return n * n


def test_the_calls_of_an_executor_are_one_task(tasks: Tasks) -> None:
    with reported(ProcessPoolExecutor(2), "squares", url=tasks.url) as pool:
        assert list(pool.map(square, range(10))) == [n * n for n in range(10)]
    done = tasks.ended("squares", "completed")
    assert (done["done"], done["total"], done["unit"]) == (10, 10, "calls")
    with reported(ThreadPoolExecutor(2), "squares", url=tasks.url) as pool:
        futures = [pool.submit(square, n) for n in (1, 13, 2)]
    assert [future.exception() is None for future in futures] == [True, False, True]
    message = tasks.ended("squares", "failed")["error"]["message"]
    assert message == "1 of 3 calls failed; the first: ValueError: unlucky"
    with pytest.raises(BrokenProcessPool), reported(ProcessPoolExecutor(1), "squares", url=tasks.url) as pool:
        list(pool.map(square, [1, -1]))
    assert "BrokenProcessPool" in tasks.ended("squares", "failed")["error"]["message"]


def test_the_calls_of_a_multiprocessing_pool_are_one_task(tasks: Tasks) -> None:
    context = multiprocessing.get_context("spawn")
    with reported(context.Pool(2), "cubes", url=tasks.url) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
        assert list(pool.imap(square, [5])) == [25]
    done = tasks.ended("cubes", "completed")
    assert (done["done"], done["total"]) == (6, 6)


def _work_until_cancelled(pool: Any, tasks: Tasks, name: str) -> None:
    results = pool.imap(square, [99] * 10_000) if hasattr(pool, "imap") else None
    futures = [] if results else [pool.submit(square, 99) for _ in range(10_000)]
    tasks.cancel(tasks.one(name, "it runs", lambda task: task["done"]))
    for future in futures:
        future.result()
    for _ in results or ():
        pass


def test_a_cancelled_pool_begins_no_further_call(tasks: Tasks) -> None:
    asked = {"url": tasks.url, "alive_seconds": 0.2}
    for pool, stopped in (
        (ThreadPoolExecutor(1), CancelledError),
        (multiprocessing.get_context("spawn").Pool(1), Cancelled),
    ):
        name = f"many-{type(pool).__name__}"
        with pytest.raises(stopped), reported(pool, name, **asked) as counted:
            _work_until_cancelled(counted, tasks, name)
        tasks.ended(name, "cancelled")


def test_who_asks_for_a_job_where_none_is_reported_gets_one_that_nobody_hears() -> None:
    job = current_job()
    assert [*job.track([1, 2])] == [1, 2]
    job.log("a line")
    job.fail("no")


@pytest.mark.parametrize("kind", ["celery", "rq", "dramatiq", "pool"])
def test_the_examples_are_short_and_run(kind: str, tasks: Tasks, environment: dict[str, str], tmp_path: Path) -> None:
    [example] = (Path(__file__).parents[2] / "examples" / kind).glob("*.py")
    assert len(example.read_text().splitlines()) <= 15
    broker = environment["BROKER"]
    (tmp_path / example.name).write_text(example.read_text().replace("RedisBroker()", f"RedisBroker(url={broker!r})"))
    if kind == "pool":
        assert (
            subprocess.run(
                [sys.executable, example.name],
                cwd=tmp_path,
                env=os.environ | environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            ).stdout.strip()
            == "285"
        )
        assert tasks.ended("squares", "completed")["total"] == 10
        return
    pytest.importorskip(kind)
    environment |= {"CELERY_BROKER_URL": broker}
    command = {
        "celery": ("-m", "celery", "-A", "tasks", "worker", "-c", "1"),
        "rq": ("-m", "rq.cli", "worker", "--worker-class", "headway.integrations.rq.ReportedWorker", "--url", broker),
        "dramatiq": ("-m", "dramatiq", "tasks", "--processes", "1", "--threads", "1"),
    }[kind]
    script = {
        "celery": "from tasks import thumbnails; thumbnails.delay(10)",
        "rq": f"import tasks; tasks.send({broker!r})",
        "dramatiq": "from tasks import thumbnails; thumbnails.send(10)",
    }[kind]
    name = "thumbnails" if kind == "dramatiq" else "tasks.thumbnails"
    before = len(tasks.all(processor=name))
    with worker(tmp_path, environment, *command):
        sends(tmp_path, environment, script)
        wait_for("it is known", lambda: len(tasks.all(processor=name)) > before)
        task = tasks.one(name, "it has ended", lambda one: one["status"] == "completed")
        assert task["result"]["summary"] == {"made": 10}
        assert (task["done"], task["total"]) == (10, 10)
