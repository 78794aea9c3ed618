"""`headway run -- COMMAND`: its output, its exit code, its signals, and the task that they are."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from headway.cli.progress_words import ProgressWords, without_escapes
from tests.processes import Platform, RedisServer, free_port
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def runs(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("runs"), redis_server.fresh_url()) as platform:
        platform.start_api()
        yield platform


def started(platform: Platform, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "headway.cli.main", "run", "--url", platform.url, *arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(platform: Platform, *arguments: str) -> tuple[int, bytes, bytes, dict[str, Any], list[dict[str, Any]]]:
    """Exit code, stdout, stderr, the task, its events."""
    with started(platform, *arguments) as process:
        out, err = process.communicate(timeout=60)
    task = newest(platform)
    url = f"{platform.url}/tasks/{task['task_id']}/events?last_event_id=0"
    lines = httpx.get(url, headers={"Accept": "application/x-ndjson"}).text.splitlines()
    return process.returncode, out, err, task, [json.loads(line) for line in lines]


def newest(platform: Platform) -> dict[str, Any]:
    [task] = httpx.get(f"{platform.url}/tasks?limit=1").json()["tasks"]
    return dict(task)


def python(script: str) -> list[str]:
    return ["--", sys.executable, "-c", textwrap.dedent(script)]


def logged(events: list[dict[str, Any]]) -> list[str]:
    """The lines of the log; those of one event are joined."""
    return [line for event in events if "level" in str(event) for line in _message(event).splitlines()]


def _message(event: dict[str, Any]) -> str:
    data = event.get("data", event)
    return str(data["message"]) if "level" in data else ""


def test_the_output_passes_through_and_is_the_log(runs: Platform) -> None:
    script = r"""
        import sys
        sys.stdout.buffer.write(b"one\n\x1b[31mtwo\x1b[0m\r\n\xff\xfe no end")
        sys.stdout.flush()
        sys.stderr.buffer.write(b"of stderr\n")
    """
    code, out, err, task, events = run(runs, "--title", "My script", *python(script))
    assert (code, out, err) == (0, b"one\n\x1b[31mtwo\x1b[0m\r\n\xff\xfe no end", b"of stderr\n")
    assert (task["status"], task["result"]["summary"]) == ("completed", {"exit_code": 0})
    assert task["options"]["title"] == "My script"
    assert task["processor"] == os.path.basename(sys.executable)  # noqa: PTH119 - a name, no path
    assert set(logged(events)) == {"one", "two", "\ufffd\ufffd no end", "of stderr"}


def test_the_exit_code_is_the_tasks_end_and_ours(runs: Platform) -> None:
    code, _, _, task, _ = run(runs, "--", "sh", "-c", "exit 7")
    assert (code, task["status"], task["error"]["message"]) == (7, "failed", "It exited with 7.")
    code, _, _, task, _ = run(runs, "--", "sh", "-c", "kill -9 $$")
    assert (code, task["error"]["message"]) == (137, "It was ended by SIGKILL.")
    code, _, err, task, _ = run(runs, "--", "no-such-command-anywhere")
    assert (code, task["status"]) == (127, "failed")
    assert b"no-such-command-anywhere" in err


def test_options_after_the_command_are_its_own(runs: Platform) -> None:
    assert run(runs, "echo", "--total", "-n")[:2] == (0, b"--total -n\n")


def test_redrawn_lines_are_progress_and_no_log(runs: Platform) -> None:
    script = r"""
        import sys, time
        for n in range(1, 41):
            sys.stderr.write(f"\r {n * 2}%|████      | {n}/50 [00:01<00:01, 31.20it/s]")
            sys.stderr.flush()
            time.sleep(0.02)
        time.sleep(0.5)
        print("done")
    """
    _, _, err, _, events = run(runs, *python(script))
    assert err.count(b"\r") == 40
    states = [event.get("data", event) for event in events]
    counts = [(state["done"], state["total"]) for state in states if state.get("done")]
    assert counts[-1] == (40, 50)
    assert logged(events) == ["done"]


def test_lines_count_where_a_total_is_given_and_nothing_else_is_understood(runs: Platform) -> None:
    _, _, _, task, _ = run(runs, "--total", "4", "--", "sh", "-c", "echo a; echo b; echo c")
    assert (task["done"], task["total"]) == (3, 4)


def test_a_pattern_says_what_progress_is(runs: Platform) -> None:
    script = "print('99% sure'); print('epoch 3 out of 12')"
    _, _, _, task, _ = run(runs, "--pattern", r"epoch (\d+) out of (\d+)", *python(script))
    assert (task["done"], task["total"]) == (3, 12)
    with started(runs, "--pattern", "(", "--", "true") as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, b"--pattern" in err) == (2, True)


def test_a_cancelled_task_is_sigterm_and_then_sigkill(runs: Platform) -> None:
    script = """
        import signal, time
        signal.signal(signal.SIGTERM, lambda *_: print("asked to stop"))
        print("ready")
        while True:
            time.sleep(0.05)
    """
    with started(runs, "--grace-seconds", "0.5", *python(script)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        began = time.monotonic()
        assert httpx.post(f"{runs.url}/tasks/{newest(runs)['task_id']}/cancel").status_code == 202
        assert process.stdout.readline() == b"asked to stop\n"
        assert time.monotonic() - began < 3
        assert process.wait(30) == 137
    assert newest(runs)["status"] == "cancelled"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_our_signals_are_the_commands(runs: Platform, number: signal.Signals) -> None:
    script = f"""
        import signal, sys, time
        signal.signal({int(number)}, lambda *_: (print("it came"), sys.exit(3)))
        print("ready")
        time.sleep(60)
    """
    with started(runs, *python(script)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == b"it came\n"
        assert process.wait(30) == 3
    assert newest(runs)["error"]["message"] == "It exited with 3."


def test_what_is_left_running_is_not_waited_for(runs: Platform) -> None:
    with started(runs, "--", "sh", "-c", "sleep 30 & echo $!") as process:
        assert process.stdout is not None
        left = int(process.stdout.readline())
        try:
            assert process.wait(20) == 0
        finally:
            os.kill(left, signal.SIGKILL)
    wait_for("it has ended", lambda: newest(runs)["status"] == "completed")


class Terminal:
    """`headway run` on a terminal of 100 columns, as somebody types it."""

    def __init__(self, platform: Platform, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        command = [sys.executable, "-m", "headway.cli.main", "run", "--url", platform.url, *arguments]
        script = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *command], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.seen = b""

    def types(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def until(self, text: bytes) -> None:
        while text not in self.seen:
            self.seen += os.read(self._master, 65536)

    def end(self) -> int:
        with suppress(OSError):  # nobody has the other end any more
            while data := os.read(self._master, 65536):
                self.seen += data
        os.close(self._master)
        return self.process.wait(60)


def test_on_a_terminal_the_command_has_one_too_and_the_log_has_no_colours(runs: Platform) -> None:
    script = """
        import os, sys
        print(sys.stdout.isatty(), sys.stderr.isatty(), os.get_terminal_size().columns)
        print("\\x1b[31mred\\x1b[0m", file=sys.stderr)
        sys.exit(int(input()))
    """
    terminal = Terminal(runs, *python(script))
    terminal.until(b"red\x1b[0m\r\n")
    terminal.types(b"4\n")
    assert terminal.end() == 4
    assert b"True True 100\r\n\x1b[31mred\x1b[0m\r\n" in terminal.seen
    task = newest(runs)
    url = f"{runs.url}/tasks/{task['task_id']}/events?last_event_id=0"
    lines = httpx.get(url, headers={"Accept": "application/x-ndjson"}).text.splitlines()
    assert logged([json.loads(line) for line in lines])[:2] == ["True True 100", "red"]


def test_on_a_terminal_there_is_a_bar_beneath_lines_and_none_where_the_command_draws(runs: Platform) -> None:
    lines = ["sh", "-c", "for n in 1 2 3 4; do echo Copying $n/4; sleep 0.1; done; exit 3"]
    terminal = Terminal(runs, "--", *lines)
    assert terminal.end() == 3
    assert b"] 50%  2/4" in terminal.seen
    assert terminal.seen.endswith(b"\x1b[2K")  # it is gone in the end
    terminal = Terminal(runs, "--quiet", "--", *lines)
    assert terminal.end() == 3
    assert terminal.seen == b"".join(b"Copying %d/4\r\n" % n for n in range(1, 5))
    drawn = "import sys; [sys.stdout.write(f'\\r{n}/4') for n in range(5)]; print(); print('3/4')"
    terminal = Terminal(runs, "--", sys.executable, "-c", drawn)
    assert terminal.end() == 0
    assert b"#" not in terminal.seen


def test_ctrl_c_on_a_terminal_is_the_commands(runs: Platform) -> None:
    script = """
        import time
        try:
            print("ready")
            time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted")
            raise SystemExit(5)
    """
    terminal = Terminal(runs, *python(script))
    terminal.until(b"ready")
    terminal.types(b"\x03")
    assert terminal.end() == 5
    assert terminal.seen.count(b"interrupted") == 1
    assert newest(runs)["error"]["message"] == "It exited with 5."


def test_in_cron_there_is_no_terminal_no_home_and_hardly_any_environment(runs: Platform) -> None:
    command = [sys.executable, "-m", "headway.cli.main", "run", "--quiet", "--", "sh", "-c", "echo 1/2; echo 2/2"]
    environment = {"PATH": "/usr/bin:/bin", "HEADWAY_URL": runs.url}
    where = {"stdin": subprocess.DEVNULL, "start_new_session": True, "cwd": Path(__file__).parents[2]}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False, **where)  # type: ignore[call-overload]
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1/2\n2/2\n", b"")
    assert (newest(runs)["status"], newest(runs)["done"]) == ("completed", 2)


def test_a_platform_that_is_not_there_changes_nothing_for_the_command() -> None:
    command = [sys.executable, "-m", "headway.cli.main", "run", "--url", f"http://127.0.0.1:{free_port()}"]
    done = subprocess.run(
        [*command, "--", "sh", "-c", "echo out; exit 5"], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (5, b"out\n")
    assert done.stderr.count(b"cannot be reached") == 1


@pytest.mark.parametrize(
    ("line", "done", "total"),
    [
        ("42%", 42, 100),
        ("Progress: 42.5 % done", 42.5, 100),
        ("tests/test_a.py ......                       [ 42%]", 42, 100),
        ("      1,238,099  42%    1.18MB/s    0:00:01  ", 42, 100),  # rsync --info=progress2
        ("######################                 55.3%", 55.3, 100),  # curl -#
        ("3/10", 3, 10),
        ("[3/10] Building", 3, 10),
        ("step 3 of 10", 3, 10),
        (" 42%|████▏     | 42/100 [00:01<00:01, 31.20it/s]", 42, 100),
        ("Epoch 1:  25%|██▌       | 5/20 [00:00<00:01,  9.98it/s]", 5, 20),
        ("42", 42, 100),  # pv -n
        ("2026/12/01 10:00 started", None, None),
        ("/usr/lib/3/10/x", None, None),
        ("180% faster", None, None),
        ("12/3", None, None),
        ("101", None, None),
        ("nothing to see", None, None),
    ],
)
def test_what_programs_write_is_read(line: str, done: float | None, total: float | None) -> None:
    reading = ProgressWords().read(line)
    assert (reading.done, reading.total) == (done, total)


def test_ffmpegs_progress_is_read_of_its_duration() -> None:
    words = ProgressWords()
    assert words.read("  Duration: 00:01:40.50, start: 0.000000, bitrate: 1205 kb/s").done is None
    for line in (
        "frame=100",
        "fps=25.00",
        "bitrate= 512.0kbits/s",
        "total_size=1024",
        "speed=1.5x",
        "progress=continue",
    ):
        assert words.read(line).quiet
    reading = words.read("out_time=00:00:25.040000")
    assert (reading.done, reading.total, reading.quiet) == (25, 100, True)


def test_a_pattern_has_groups_by_name_or_by_place() -> None:
    assert ProgressWords(r"at (?P<percent>[\d.]+)").read("at 12.5").done == 12.5
    assert ProgressWords(r"(\d+) files", 50).read("20 files") == ProgressWords(r"(\d+)/(\d+)").read("20/50")
    assert ProgressWords(r"\d+").read("so 7").done == 7
    assert without_escapes("\x1b[1;31mred\x1b[0m\x07\x1b]0;title\x07") == "red"
