"""A whole life with JSON logs: every line of both processes is one object, and every line about a task names it."""

from __future__ import annotations

import json
import os
import re
import signal
import textwrap
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import Platform, RedisServer
from tests.streams import watch
from tests.waiting import wait_for

KEY = "a-key-that-nobody-may-read"

PROCESSORS = """
import logging, sys
from headway.shared.tasks.processors import processor

@processor("talker", needs_file=False)
def talker(job):
    print("on stdout")
    print("on stderr", file=sys.stderr)
    logging.getLogger("a.library").warning("of a library")
"""


@pytest.fixture
def life(redis_server: RedisServer, tmp_path: Path) -> Platform:
    (tmp_path / "headway_test_talker.py").write_text(textwrap.dedent(PROCESSORS))
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {
        "PYTHONPATH": path,
        "HEADWAY_PROCESSORS": "headway_test_talker",
        "HEADWAY_LEASE_SECONDS": "0.5",
        "HEADWAY_LOG_FORMAT": "json",
    }
    return Platform(tmp_path / "platform", redis_server.fresh_url(), **env)


def test_every_line_of_a_whole_life_is_json_and_names_its_task(life: Platform) -> None:
    with life:
        life.start_worker(wait=False)
        life.start_api(server="uvicorn")  # which writes an access log
        seen = live(life)
        last = life.submit("rehearsal", options='{"steps": 100, "step_seconds": 0.1}')["task_id"]
        life.wait(last, "processing")
        for process in (life.workers[-1], life.apis[0]):
            process.signal(signal.SIGTERM)
            process.wait()
        api = lines_of(life.apis[0].log)
        worker = [line for process in life.workers for line in lines_of(process.log)]
    for task_id in (*seen.values(), last):
        for lines in (api, worker):
            about = [line for line in lines if task_id in json.dumps(line)]
            assert about
            assert [line for line in about if line.get("task_id") != task_id] == []
    # An attempt's lines say which, those that a processor printed too.
    attempts = [line for line in worker if "task_id" in line]
    assert {type(line.get("attempt")) for line in attempts} == {int}
    events = {line["event"] for line in attempts}
    assert events >= {"attempt started", "attempt completed", "attempt failed", "attempt given back"}
    talked = [line for line in attempts if line["task_id"] == seen["talker"]]
    assert {line.get("text", line["event"]) for line in talked} >= {"on stdout", "on stderr", "of a library"}
    # What names no task is about the process.
    assert {line["event"] for line in worker if "task_id" not in line} <= {
        *("sandbox ready", "wall missing", "worker ready", "worker stopping", "worker stopped")
    }
    requests = [line for line in api if line["event"] == "request"]
    assert {line["path"] for line in requests if "task_id" not in line} <= {"/healthz"}
    assert KEY not in life.apis[0].log
    assert "?" not in "".join(line["path"] for line in requests)


def live(life: Platform) -> dict[str, str]:
    """Whatever can happen to a task. Returns the tasks by what happened to them."""
    url = life.url
    uploaded = httpx.post(f"{url}/tasks", json={"processor": "checksum", "filename": "f", "size_bytes": 5}).json()
    httpx.put(url + uploaded["links"]["upload"], content=b"12345").raise_for_status()
    watch(url, uploaded["task_id"])
    httpx.get(f"{url}/tasks/{uploaded['task_id']}/input?key={KEY}").raise_for_status()
    talker = life.submit("talker")
    failed = life.submit("rehearsal", options='{"steps": 2, "step_seconds": 0.01, "crash_at": 1}')
    for task in (talker, failed):
        life.wait(task["task_id"])
    httpx.post(f"{url}/tasks/{failed['task_id']}/retry").raise_for_status()
    life.wait(failed["task_id"])
    httpx.delete(f"{url}/tasks/{failed['task_id']}").raise_for_status()
    assert httpx.get(f"{url}/tasks/{failed['task_id']}").status_code == 404
    taken = life.submit("rehearsal", options='{"steps": 200, "step_seconds": 0.1}')
    life.wait(taken["task_id"], "processing")
    life.workers[-1].kill()
    life.start_worker(wait=False)
    wait_for("another worker has it", lambda: life.task(taken["task_id"])["attempt"] == 2, seconds=20)
    life.wait(taken["task_id"], "processing")
    httpx.post(f"{url}/tasks/{taken['task_id']}/cancel").raise_for_status()
    wait_for("it is stopped", lambda: re.search("attempt (stopped|superseded)", life.workers[-1].log))
    tasks = {"uploaded": uploaded, "talker": talker, "failed": failed, "taken": taken}
    return {name: task["task_id"] for name, task in tasks.items()}


def lines_of(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines()]
