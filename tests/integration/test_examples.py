"""Every example does what it says: on a real platform, as a reader would run it. (The package: test_plugins.py; the
tutorial's page: tests/browser.)"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headway import Client
from tests.npm import installed
from tests.processes import Platform, RedisServer
from tests.streams import assert_true_story, watch

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_example_is_run_by_a_test_and_named_in_the_documents() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in EXAMPLES.parent.glob("docs/*.md"))
    names = {path.name for path in EXAMPLES.iterdir()}
    assert names == {
        *("curl.sh", "line_count", "plain_script", "react-hook"),
        *("shell", "node", "go"),
        *("celery", "dramatiq", "pool", "rq"),  # tests/integration/test_queue_integrations.py
    }
    assert {name for name in names if f"examples/{name}" not in pages} == set()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_submits_a_file_and_follows_it_in_lines_for_people(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "a file.txt").write_text("hello\n")
    env = os.environ | {"HEADWAY_URL": platform.url}
    command = ["sh", str(EXAMPLES / "curl.sh"), str(tmp_path / "a file.txt")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, task = done.stdout.splitlines()
    assert "100.0 %  completed" in lines[-1]
    assert json.loads(task)["result"]["summary"]["size_bytes"] == 6


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_says_what_the_platform_declines(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello\n")
    env = os.environ | {"HEADWAY_URL": platform.url}
    command = ["sh", str(EXAMPLES / "curl.sh"), str(tmp_path / "a.txt"), "no-such-processor"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, "no-such-processor" in done.stderr) == (1, "", True)


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here")
def test_the_react_hook_draws_a_task_to_its_end_and_an_unknown_one_as_an_error(platform: Platform) -> None:
    source = EXAMPLES / "react-hook"
    folder = installed(source, "use-task.js", "watch.js")
    task_id = platform.submit("rehearsal", options='{"steps": 4, "step_seconds": 0.3}')["task_id"]

    def drawn(task: str) -> list[dict[str, object]]:
        command = ["node", "watch.js", platform.url, task]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=40)
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    states = [render["task"] for render in drawn(task_id) if render["task"]]
    progress = [state["progress"] for state in states]  # type: ignore[index]
    assert progress == sorted(progress)
    assert states[-1]["status"] == "completed"  # type: ignore[index]
    assert drawn("0" * 32)[-1]["error"] == "There is no such task."


REPORTING = {
    "backup": ("curl", ["sh", "shell/backup.sh"], {"folders": 3}),
    "node-report": ("node", ["node", "node/report.mjs"], {"rows": 3}),
    "go-report": ("go", ["go", "run", "go/report.go"], {"rows": 3}),
}


@pytest.mark.parametrize("producer", sorted(REPORTING))
@pytest.mark.parametrize("key", ["", "a-key-that-nobody-guesses"])
def test_work_in_other_languages_is_a_task(producer: str, key: str, redis_server: RedisServer, tmp_path: Path) -> None:
    program, command, summary = REPORTING[producer]
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")
    keys = {"HEADWAY_API_KEYS": json.dumps({"alice": key})} if key else {}
    environment = {"HEADWAY_API_KEY": key, "SECONDS_EACH": "0", "GOCACHE": str(tmp_path), "GOFLAGS": "-mod=mod"}
    with Platform(tmp_path / "platform", redis_server.fresh_url(), **keys) as platform:
        platform.start_api()
        where = os.environ | environment | {"HEADWAY_URL": platform.url}
        done = subprocess.run(
            command, cwd=EXAMPLES, env=where, capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        with Client(platform.url, key or None) as client:
            [task] = client.tasks(processor=producer)
        assert (task["status"], task["done"], task["total"]) == ("completed", 3, 3)
        assert task["result"] is not None
        assert task["result"]["summary"] == summary
        where["HEADWAY_API_KEY"] = "wrong"
        if key:
            refused = subprocess.run(command, cwd=EXAMPLES, env=where, capture_output=True, timeout=120, check=False)
            assert refused.returncode != 0


class Script:
    """The script whose work is no worker's."""

    def __init__(self, platform: Platform) -> None:
        env = os.environ | {"HEADWAY_URL": platform.url, "PYTHONPATH": str(EXAMPLES.parent)}
        command = [sys.executable, str(EXAMPLES / "plain_script" / "nightly_report.py")]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.task_id = self.process.stdout.readline().strip()

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_plain_script_shows_its_progress(platform: Platform) -> None:
    with Script(platform) as script:
        story = watch(platform.url, script.task_id, last_event_id=0)
        assert script.process.wait(20) == 0
    assert_true_story(story, first=1)
    steps = [frame.data["message"] for frame in story if not frame.name and frame.status == "processing"]
    assert list(dict.fromkeys(steps))[1:] == ["Orders", "Returns", "Stock", "Forecast"]
    assert [frame.name for frame in story].count("log") == 4
    assert story[-1].data["result"]["summary"] == {"words": 2600}


def test_a_plain_script_that_is_cancelled_stops(platform: Platform) -> None:
    with Script(platform) as script, Client(platform.url) as client:
        client.cancel(script.task_id)
        stdout, stderr = script.process.communicate(timeout=20)
        assert (script.process.returncode, stdout, stderr) == (0, "cancelled\n", "")


def test_a_plain_script_that_dies_is_a_task_that_fails(platform: Platform) -> None:
    with Script(platform) as script:
        script.process.kill()
        ended = platform.wait(script.task_id, seconds=50)
    assert (ended["status"], ended["error"]["type"], ended["attempt"]) == ("failed", "worker_lost", 1)
