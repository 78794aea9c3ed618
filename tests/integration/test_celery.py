"""headway.integrations.celery with real workers: on Redis, and on RabbitMQ where that is installed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.integration.queue_workers import RabbitServer, Tasks, module, said, sends, worker
from tests.processes import Platform, RedisServer
from tests.waiting import wait_for

pytest.importorskip("celery")

SOURCE = """
    import os, pathlib, time
    from celery import Celery
    from headway.integrations import current_job
    from headway.integrations.celery import report_tasks

    app = Celery("work", broker=os.environ["BROKER"], backend=os.environ["BACKEND"] or None)
    app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1,
                    broker_connection_retry_on_startup=True, broker_transport_options={"visibility_timeout": 3600})
    report_tasks(app, lease_seconds=float(os.environ["LEASE"]))

    @app.task(bind=True)
    def counts(self, n):
        for done in range(n):
            self.update_state(state="PROGRESS", meta={"current": done + 1, "total": n})
        return {"n": n}

    @app.task
    def adds(numbers):
        return sum(one["n"] for one in numbers)

    @app.task(bind=True, max_retries=2)
    def wobbles(self):
        job = current_job()
        if self.request.retries < 2:
            job.checkpoint({"seen": self.request.retries})
            raise self.retry(exc=ValueError("not yet"), countdown=0.1)
        return job.restored

    @app.task
    def breaks():
        raise ValueError("it broke")

    @app.task
    def hangs(pids):
        with pathlib.Path(pids).open("a") as file:
            file.write(f"{os.getpid()}\\n")
        if current_job().attempt > 1:
            return "again"
        time.sleep(600)

    @app.task
    def listens():
        for _ in current_job().track(range(100_000)):
            time.sleep(0.01)
"""


LEASE_SECONDS = "2"


class Celery:
    """A broker with a worker, and a client that sends to it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        module(folder, "work", SOURCE)

    def sends(self, script: str) -> str:
        return sends(self.folder, self.environment, f"from celery import chord, group\nfrom work import *\n{script}")

    def worker(self, pool: str = "prefork") -> AbstractContextManager[subprocess.Popen[bytes]]:
        command = ("-m", "celery", "-A", "work", "worker", "-c", "2", "-P", pool, "-l", "INFO")
        return worker(self.folder, self.environment, *command)


@pytest.fixture(scope="module")
def tasks(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tasks]:
    with Platform(tmp_path_factory.mktemp("platform"), redis_server.fresh_url()) as platform:
        platform.start_api()
        yield Tasks(platform)


@pytest.fixture(scope="module")
def on_redis(tasks: Tasks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Celery]:
    with RedisServer(tmp_path_factory.mktemp("broker"), appendfsync="no") as server:
        environment = {"BROKER": server.url, "BACKEND": server.fresh_url(), "HEADWAY_URL": tasks.url}
        yield Celery(tmp_path_factory.mktemp("celery"), environment | {"LEASE": LEASE_SECONDS})


def test_tasks_of_celery_are_seen_with_their_progress_retries_and_errors(tasks: Tasks, on_redis: Celery) -> None:
    on_redis.sends("counts.delay(7)")
    waits = tasks.one("work.counts", "it waits", bool)
    assert (waits["status"], waits["message"], waits["started_at"]) == ("processing", "Waiting to be started", None)
    with on_redis.worker():
        on_redis.sends("wobbles.delay(); breaks.delay()")
        done = tasks.ended("work.counts", "completed")
        assert (done["task_id"], done["attempt"], done["done"], done["total"]) == (waits["task_id"], 1, 7, 7)
        assert done["result"]["summary"] == {"n": 7}
        wobbly = tasks.ended("work.wobbles", "completed")
        assert (wobbly["attempt"], wobbly["result"]["summary"]) == (3, {"seen": 1})
        assert "It is tried again after ValueError: not yet" in str(tasks.states(wobbly))
        broken = tasks.ended("work.breaks", "failed")
        assert (broken["error"]["type"], broken["error"]["message"]) == ("processor_error", "ValueError: it broke")


def test_a_chord_of_celery_is_one_batch_with_its_body_from_the_beginning_on(tasks: Tasks, on_redis: Celery) -> None:
    on_redis.sends("chord([counts.s(n) for n in range(1, 5)])(adds.s())")
    waits = tasks.one("work.adds", "it waits", bool)
    wait_for("the batch is whole", lambda: tasks.batch(waits["batch_id"])["total"] == 5)
    with on_redis.worker():
        assert tasks.ended("work.adds", "completed")["result"]["summary"] == {"result": 10}
        batch = tasks.batch(waits["batch_id"])
        assert (batch["total"], batch["counts"]["completed"], batch["progress"]) == (5, 5, 100)


def test_a_revoked_task_is_cancelled_and_a_cancelled_one_is_revoked(tasks: Tasks, on_redis: Celery) -> None:
    pids = on_redis.folder / "pids"
    with on_redis.worker():
        task_id = on_redis.sends(f"print(hangs.delay({str(pids)!r}).id)")
        wait_for("it runs", pids.exists)
        tasks.one("work.hangs", "it has begun", lambda task: task["started_at"])
        on_redis.sends(f"app.control.revoke({task_id!r}, terminate=True)")
        tasks.ended("work.hangs", "cancelled")
        pids.unlink()
        on_redis.sends(f"hangs.delay({str(pids)!r})")
        task = tasks.one("work.hangs", "the next one has begun", lambda one: one["started_at"] and pids.exists())
        pid = int(pids.read_text())
        tasks.cancel(task)
        wait_for("its process is gone", lambda: not Path(f"/proc/{pid}").exists())
        on_redis.sends("breaks.apply_async(countdown=3600)")  # a worker that was revoked goes on
        task = tasks.one("work.breaks", "it waits", lambda one: one["started_at"] is None)
        assert tasks.ended("work.hangs", "cancelled")["attempt"] == 1
    with on_redis.worker("threads"):
        on_redis.sends("listens.delay()")
        task = tasks.one("work.listens", "it has begun", lambda one: one["done"])
        tasks.cancel(task)
        wait_for("it is told to the work", lambda: "raised unexpected: Cancelled" in said(on_redis.folder))
    assert "HTTP Request" not in said(on_redis.folder)


def test_a_killed_worker_is_lost_and_its_task_delivered_again_is_the_next_attempt(
    tasks: Tasks, on_redis: Celery
) -> None:
    pids = on_redis.folder / "killed"
    with on_redis.worker():
        on_redis.sends(f"hangs.delay({str(pids)!r})")
        tasks.one("work.hangs", "it has begun", lambda task: task["started_at"] and pids.exists())
        os.kill(int(pids.read_text()), signal.SIGKILL)  # Celery delivers it again: task_reject_on_worker_lost
        task = tasks.ended("work.hangs", "completed")
        assert (task["attempt"], task["result"]["summary"]) == (2, {"result": "again"})
        pids.unlink()
        on_redis.sends(f"hangs.delay({str(pids)!r})")
        tasks.one("work.hangs", "it has begun", lambda task: task["started_at"] and pids.exists())
    lost = tasks.ended("work.hangs", "failed")  # the worker was killed whole
    assert lost["error"]["type"] == "worker_lost"


def test_on_rabbitmq_it_is_the_same(tasks: Tasks, tmp_path: Path) -> None:
    if not RabbitServer.SCRIPT.exists():
        pytest.skip("rabbitmq-server is not installed")
    with RabbitServer(tmp_path) as server:
        environment = {"BROKER": server.url, "BACKEND": "", "HEADWAY_URL": tasks.url, "LEASE": LEASE_SECONDS}
        celery = Celery(tmp_path, environment)
        pids = tmp_path / "pids"
        with celery.worker():
            celery.sends("group(counts.s(n) for n in (2, 3)).apply_async(); wobbles.delay()")
            assert tasks.ended("work.wobbles", "completed")["attempt"] == 3
            done = tasks.ended("work.counts", "completed")
            wait_for("the group is done", lambda: tasks.batch(done["batch_id"])["counts"].get("completed") == 2)
            celery.sends(f"hangs.delay({str(pids)!r})")
            task = tasks.one("work.hangs", "it has begun", lambda one: one["started_at"] and pids.exists())
            pid = int(pids.read_text())
            tasks.cancel(task)
            wait_for("its process is gone", lambda: not Path(f"/proc/{pid}").exists())
