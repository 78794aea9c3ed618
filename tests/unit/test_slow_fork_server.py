"""A worker whose fork server does not come up in time says so in one sentence, and what to do, and exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

#: `headway worker`, with less patience than it takes to import every processor.
IMPATIENT = """
import sys
import headway.worker.sandbox
headway.worker.sandbox.START_SECONDS = 0.01
from headway.shared.settings import load_settings
from headway.worker.main import run
sys.exit(run(load_settings()))
"""


def test_a_worker_whose_fork_server_is_too_slow_exits_with_a_sentence(tmp_path: Path) -> None:
    env = os.environ | {"HEADWAY_DATA_DIR": str(tmp_path), "HEADWAY_LOG_FORMAT": "json"}
    ended = subprocess.run([sys.executable, "-c", IMPATIENT], env=env, capture_output=True, text=True, timeout=50)
    assert ended.returncode == 1
    [line] = (ended.stdout + ended.stderr).splitlines()
    said = json.loads(line)
    assert said["event"] == "worker not started"
    assert "not ready after 0.01 s" in said["reason"]
    assert "HEADWAY_PROCESSORS" in said["reason"]
