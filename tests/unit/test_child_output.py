"""What a processor prints: a line of the log each, whatever way it is printed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PRINTING = """
import logging, os, subprocess, sys, warnings
from headway.shared.logging import configure
from headway.worker.child_output import speak_for
configure(sys.argv[1])
speak_for("6f1c", 2, as_json=sys.argv[1] == "json")
print("two", "words"); print("to stderr", file=sys.stderr)
print("a"); print("a line\\nand another")
sys.stdout.buffer.write(b"bytes \\xff\\n"); sys.stdout.flush()
print("\\r 10 %", end="", flush=True); print("\\r100 %", flush=True)
print("x" * 20_000)
logging.getLogger("a.library").warning("of a library")
warnings.warn("take care")
subprocess.run([sys.executable, "-c", "pass"], stdout=sys.stdout, check=True)
print("no end", end="")
sys.stdout.close(); sys.stderr.close()
os._exit(0)
"""


def printed(log_format: str) -> str:
    arguments = [sys.executable, "-c", PRINTING, log_format]
    ended = subprocess.run(arguments, capture_output=True, text=True, errors="replace", check=True, timeout=60)
    return ended.stdout + ended.stderr


def test_each_line_that_a_processor_prints_is_a_line_of_the_log_with_its_task() -> None:
    lines = [json.loads(line) for line in printed("json").splitlines()]
    assert {(line["task_id"], line["attempt"]) for line in lines} == {("6f1c", 2)}
    said = [line["text"] for line in lines if line["event"] == "processor printed"]
    assert said[:7] == [
        "two words",
        "to stderr",
        "a",
        "a line",
        "and another",
        "bytes \N{REPLACEMENT CHARACTER}",
        "100 %",
    ]
    assert "".join(said[7:-1]) == "x" * 20_000
    assert said[-1] == "no end"
    assert [line["to"] for line in lines[:3]] == ["stdout", "stderr", "stdout"]
    others = [line["event"] for line in lines if line["event"] != "processor printed"]
    assert others[0] == "of a library"
    assert "take care" in others[1]


@pytest.mark.parametrize("word", ["two words", "to stderr", "no end"])
def test_for_people_it_stays_as_it_is(word: str) -> None:
    assert word in printed("console")
