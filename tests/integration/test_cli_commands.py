"""The client commands on a real platform: exit codes, what goes to stdout, what to stderr, and what Ctrl-C leaves."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headway import AsyncClient, WrongUse
from headway.cli.main import app
from headway.cli.submit import choose
from tests.processes import Platform
from tests.waiting import wait_for

HELLO_SHA256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
HIDE_CURSOR = b"\x1b[?25l"
LONG = ("--option", "steps=300", "--option", "step_seconds=0.1")


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.txt"
    path.write_text("hello\n")
    return path


def terminal() -> tuple[int, int]:
    """A pseudo-terminal's two ends; a container without /dev/pts has none."""
    try:
        return pty.openpty()
    except OSError as error:
        pytest.skip(f"no pseudo-terminal can be had here: {error.strerror or error}")


def environ(platform: Platform, **env: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")} | {
        "HEADWAY_URL": platform.url,
        **env,
    }


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def headway(platform: Platform, *arguments: object, **env: str) -> Done:
    """The command in this process, which is twenty times as fast as one of its own. An error of its own is raised."""
    result = CliRunner().invoke(
        app, [*map(str, arguments)], env={"HEADWAY_URL": platform.url, **env}, prog_name="headway"
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


@contextlib.contextmanager
def started(platform: Platform, *arguments: object, stderr: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "headway.cli.main", *map(str, arguments)]
    process = subprocess.Popen(argv, env=environ(platform), stdout=subprocess.PIPE, stderr=stderr)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def first_object(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    read: dict[str, Any] = json.loads(process.stdout.readline())
    return read


def test_a_completed_task_is_a_summary_on_stdout_and_exit_0(platform: Platform, small_file: Path) -> None:
    done = headway(platform, "submit", small_file, "--processor", "checksum")
    assert done.returncode == 0, done.stderr
    assert re.match(r"completed  small\.txt  in .* s  task [0-9a-f]{32}\n", done.stdout)
    assert f"  sha256      {HELLO_SHA256}\n" in done.stdout
    assert done.stderr == "", "no bar where there is no terminal"


def test_json_is_every_event_of_the_stream_a_line(platform: Platform, small_file: Path) -> None:
    done = headway(platform, "submit", small_file, "--processor", "checksum", "--json")
    events = objects(done.stdout)
    assert done.returncode == 0, done.stderr
    assert events[0]["status"] == "uploading", "the stream is open before the first byte is sent"
    assert [event["version"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["result"]["summary"]["sha256"] == HELLO_SHA256


def test_a_processor_without_a_file_takes_options(platform: Platform) -> None:
    options = ("--option", "steps=2", "--option", "step_seconds=0.05")
    done = headway(platform, "submit", "--processor", "rehearsal", *options)
    assert (done.returncode, "  steps  2\n" in done.stdout) == (0, True), done.stderr


def test_a_failed_task_is_its_reason_on_stderr_and_exit_1(platform: Platform) -> None:
    options = ("--option", "steps=2", "--option", "step_seconds=0.05", "--option", "fail_at=1")
    failed = headway(platform, "submit", "--processor", "rehearsal", *options)
    assert failed.returncode == 1
    assert failed.stdout.startswith("failed  rehearsal")
    assert failed.stderr.startswith("processor_error: ")
    task_id = failed.stdout.split()[-1]
    again = headway(platform, "watch", task_id, "--json")
    assert again.returncode == 1
    assert [event["status"] for event in objects(again.stdout)] == ["failed"]


def test_a_task_cancelled_while_it_is_watched_is_exit_1_and_can_be_retried(platform: Platform) -> None:
    with started(platform, "submit", "--processor", "rehearsal", *LONG, "--json") as submitting:
        task_id = first_object(submitting)["task_id"]
        cancelled = headway(platform, "cancel", task_id)
        assert cancelled.returncode == 0, cancelled.stderr
        assert submitting.wait(20) == 1
        assert submitting.stdout is not None
        assert objects(submitting.stdout.read().decode())[-1]["status"] == "cancelled"
    retried = headway(platform, "retry", task_id)
    assert (retried.returncode, "attempt 2" in retried.stdout) == (0, True), retried.stderr
    assert headway(platform, "cancel", task_id).returncode == 0
    platform.wait(task_id, "cancelled")
    refused = headway(platform, "cancel", task_id)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


def test_ctrl_c_leaves_the_task_running_and_says_how_to_watch_it(platform: Platform) -> None:
    with started(platform, "submit", "--processor", "rehearsal", *LONG, "--json") as submitting:
        task_id = first_object(submitting)["task_id"]
        submitting.send_signal(signal.SIGINT)
        _, stderr = submitting.communicate(timeout=120)
        assert submitting.returncode == 130
    assert f"headway watch {task_id} --url {platform.url}" in stderr.decode()
    assert "Traceback" not in stderr.decode()
    assert platform.task(task_id)["status"] in {"queued", "processing"}
    headway(platform, "cancel", task_id)


def test_on_a_terminal_a_bar_is_drawn_on_stderr_and_the_result_alone_on_stdout(platform: Platform) -> None:
    ours, theirs = terminal()
    options = ("--option", "steps=4", "--option", "step_seconds=0.2")
    drawn = b""
    with started(platform, "submit", "--processor", "rehearsal", *options, stderr=theirs) as submitting:
        os.close(theirs)
        with contextlib.suppress(OSError):  # how the end of a terminal reads on Linux
            while piece := os.read(ours, 65536):
                drawn += piece
        os.close(ours)
        assert submitting.wait(20) == 0
        assert submitting.stdout is not None
        result = submitting.stdout.read()
    assert result.startswith(b"completed  rehearsal")
    assert b"\x1b" not in result
    shown = re.findall(rb"([0-9.]+) %", drawn)
    assert {b"25.0", b"50.0", b"75.0", b"100.0"} <= set(shown)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("submit", "--processor", "rehearsal", "--option", "steps=many"), "steps: "),
        (("submit", "--processor", "no-such-processor"), "no-such-processor"),
        (("submit", "missing.csv", "--processor", "checksum"), "missing.csv cannot be read"),
        (("submit", "--processor", "rehearsal", "--option", "steps"), "name=value"),
        (("submit",), "--processor"),
        (("watch", "0" * 32), "no such task"),
        (("watch", "../tasks"), ""),
        (("cancel", "0" * 32), "no such task"),
        (("retry", "0" * 32), "no such task"),
        (("fetch", "0" * 32), "no such task"),
        (("tasks", "--status", "done"), "status"),
        (("tasks", "--limit", "0"), "limit"),
        (("tasks", "--url", "nowhere"), "http://127.0.0.1:8000"),
        (("watch",), "--batch"),
        (("watch", "0" * 32, "--batch", "b"), "--batch"),
        (("watch", "--batch", "no-such-batch"), "no such batch"),
        (("cancel",), "--batch"),
        (("cancel", "--batch", "no-such-batch"), "no such batch"),
        (("delete", "0" * 32), "no such task"),
        (("dance",), "dance"),
    ],
)
def test_wrong_use_is_exit_2_and_says_what_is_wrong(platform: Platform, arguments: tuple[str, ...], said: str) -> None:
    refused = headway(platform, *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("command", ["watch", "cancel", "delete", "fetch", "tasks", "submit"])
def test_a_platform_that_is_not_there_is_exit_3(platform: Platform, command: str) -> None:
    arguments = {"tasks": (), "submit": ("--processor", "rehearsal")}.get(command, ("0" * 32,))
    refused = headway(platform, command, *arguments, HEADWAY_URL="http://127.0.0.1:9")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (3, "", 1)
    assert "headway up" in refused.stderr


def test_tasks_are_listed_newest_first_by_status_and_processor(platform: Platform) -> None:
    for steps in (1, 2):
        platform.wait(platform.submit("rehearsal", options=f'{{"steps": {steps}, "step_seconds": 0}}')["task_id"])
    filters = ("--status", "completed", "--processor", "rehearsal", "--limit", 2)
    listed = objects(headway(platform, "tasks", *filters, "--json").stdout)
    assert [task["options"]["steps"] for task in listed] == [2, 1]
    table = headway(platform, "tasks", *filters).stdout.splitlines()
    assert [line.split()[0] for line in table] == ["TASK", listed[0]["task_id"], listed[1]["task_id"]]


def test_files_are_fetched_whole_and_never_over_others(platform: Platform, tmp_path: Path) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text("id,name\n1,one\n2,two\n")
    done = headway(platform, "submit", csv, "--processor", "csv-profile", "--json")
    last = objects(done.stdout)[-1]
    (file,) = last["result"]["files"]
    out = tmp_path / "out"
    for _ in range(2):
        fetched = headway(platform, "fetch", last["task_id"], "-o", out)
        assert fetched.returncode == 0, fetched.stderr
        assert fetched.stdout.startswith(str(out / file["name"]))
    content = (out / file["name"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == file["sha256"]
    (out / file["name"]).write_text("mine")
    refused = headway(platform, "fetch", last["task_id"], "-o", out)
    assert (refused.returncode, (out / file["name"]).read_text()) == (2, "mine")
    assert [path.name for path in out.iterdir()] == [file["name"]], "nothing half is left"


def test_an_api_that_restarts_is_waited_for(own_platform: Platform) -> None:
    own_platform.start_worker()
    api = own_platform.start_api()
    port = int(own_platform.url.rpartition(":")[2])
    options = ("--option", "steps=30", "--option", "step_seconds=0.1")
    with started(own_platform, "submit", "--processor", "rehearsal", *options, "--json") as submitting:
        task_id = first_object(submitting)["task_id"]
        api.kill()
        own_platform.start_api(port=port)
        stdout, stderr = submitting.communicate(timeout=120)
    events = objects(stdout.decode())
    assert submitting.returncode == 0, stderr
    assert {event["task_id"] for event in events} == {task_id}
    versions = [event["version"] for event in events]
    assert versions == list(range(versions[0], versions[0] + len(versions))), "each event once, in order"
    assert events[-1]["status"] == "completed"


def test_a_key_from_the_environment_is_sent_and_a_missing_one_is_told(own_platform: Platform) -> None:
    key = "a-long-random-key-for-alice"
    own_platform.start_api(HEADWAY_API_KEYS=json.dumps({"alice": key}))
    assert headway(own_platform, "tasks", HEADWAY_API_KEY=key).returncode == 0
    refused = headway(own_platform, "tasks")
    assert (refused.returncode, "Authorization" in refused.stderr) == (2, True)


def test_a_large_file_is_sent_and_its_arrival_is_what_the_stream_says(platform: Platform, tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(300_000_000)
    done = headway(platform, "submit", path, "--processor", "checksum", "--json")
    events = objects(done.stdout)
    assert done.returncode == 0, done.stderr
    arriving = [event["done"] for event in events if event["status"] == "uploading"]
    assert arriving == sorted(arriving)
    assert len(set(arriving)) > 1
    assert events[-1]["result"]["summary"]["size_bytes"] == 300_000_000


def test_ctrl_c_while_sending_says_that_the_task_cannot_run(platform: Platform, tmp_path: Path) -> None:
    path = tmp_path / "sparse.bin"
    with path.open("wb") as file:
        file.truncate(3 * 1024**3)
    with started(platform, "submit", path, "--processor", "checksum", "--json") as submitting:
        first_object(submitting)
        submitting.send_signal(signal.SIGINT)
        _, stderr = submitting.communicate(timeout=120)
    assert submitting.returncode == 130
    assert "Submit it again" in stderr.decode()


def test_an_upload_that_is_cancelled_ends_the_sending(platform: Platform, tmp_path: Path) -> None:
    path = tmp_path / "sparse.bin"
    with path.open("wb") as file:
        file.truncate(3 * 1024**3)
    with started(platform, "submit", path, "--processor", "checksum", "--json") as submitting:
        task_id = first_object(submitting)["task_id"]
        assert headway(platform, "cancel", task_id).returncode == 0
        assert wait_for("the command has ended", lambda: submitting.poll() is not None, seconds=20)
        assert submitting.returncode == 1


@pytest.fixture
def three_files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.txt" for name in ("one", "two", "three")]
    for path in paths:
        path.write_text(path.stem + "\n")
    return paths


def test_a_batch_is_cancelled_by_its_name(platform: Platform) -> None:
    batch = "long-" + os.urandom(4).hex()
    for _ in range(3):
        platform.submit("rehearsal", options='{"steps": 100, "step_seconds": 1}', batch_id=batch)
    done = headway(platform, "cancel", "--batch", batch)
    assert (done.returncode, done.stdout) == (0, f"cancelled  batch {batch}  3 of 3\n")
    [again] = objects(headway(platform, "cancel", "--batch", batch, "--json").stdout)
    assert again == {"batch_id": batch, "tasks": 3, "cancelled": 0, "ended": 3}


def test_several_files_are_a_batch_that_is_followed_as_one(platform: Platform, three_files: list[Path]) -> None:
    done = headway(platform, "submit", *three_files, "--processor", "checksum")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["completed", path.name] for path in three_files]
    batch_id = platform.task(lines[0].split()[-1])["batch_id"]
    watched = headway(platform, "watch", "--batch", batch_id)
    assert (watched.returncode, watched.stdout) == (0, f"ended  batch {batch_id}  3 completed\n")
    listed = objects(headway(platform, "tasks", "--batch", batch_id, "--json").stdout)
    ids = [line.split()[-1] for line in lines]
    assert {task["task_id"] for task in listed} == set(ids)
    again = headway(platform, "watch", *ids, "--json")
    assert again.returncode == 0, again.stderr
    assert {event["task_id"]: event["status"] for event in objects(again.stdout)} == dict.fromkeys(ids, "completed")
    assert headway(platform, "delete", *ids).stdout.count("deleted") == 3
    assert headway(platform, "watch", ids[0]).returncode == 2


def test_one_bad_file_of_several_is_exit_1_and_the_others_are_done(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text("a,b\n1,2\n")
    (tmp_path / "bad.csv").write_bytes(b"\x00\xff" * 500)
    paths = (tmp_path / "good.csv", tmp_path / "bad.csv")
    done = headway(platform, "submit", *paths, "--processor", "csv-profile", "--batch", "mixed-" + os.urandom(4).hex())
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["completed", "failed"]
    assert (done.returncode, done.stderr.startswith("bad.csv: bad_input: ")) == (1, True)


def test_a_file_with_an_odd_name_is_named_and_the_others_are_sent(platform: Platform, tmp_path: Path) -> None:
    odd = [tmp_path / "\u200d\x01", Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.csv"))]
    paths = [tmp_path / "a.csv", *odd, tmp_path / "b c.csv"]
    for path in paths:
        path.write_text("a,b\n1,2\n")
    done = headway(platform, "submit", *paths, "--processor", "checksum")
    assert (done.returncode, done.stdout.count("completed")) == (1, 3), done.stderr
    assert "is not sent: the file needs a name" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_submitted_where_one_of_several_cannot_be_read(platform: Platform, three_files: list[Path]) -> None:
    batch = "none-" + os.urandom(4).hex()
    paths = (*three_files, three_files[0].parent / "missing")
    refused = headway(platform, "submit", *paths, "--processor", "checksum", "--batch", batch)
    assert (refused.returncode, "missing cannot be read" in refused.stderr) == (2, True)
    assert headway(platform, "tasks", "--batch", batch).stderr == "No tasks.\n"


def test_who_detaches_gets_an_id_a_line(platform: Platform, three_files: list[Path]) -> None:
    done = headway(platform, "submit", *three_files, "--processor", "checksum", "--detach")
    assert done.returncode == 0, done.stderr
    for task_id in done.stdout.split():
        assert platform.wait(task_id)["status"] == "completed"


def test_a_note_is_said_to_who_watches_and_named_events_keep_their_name_in_json(platform: Platform) -> None:
    with started(platform, "submit", "--processor", "rehearsal", *LONG, "--json") as submitting:
        task_id = first_object(submitting)["task_id"]
        assert headway(platform, "note", task_id, "hello", "--author", "ada").returncode == 0
        headway(platform, "cancel", task_id)
        assert submitting.wait(20) == 1
        assert submitting.stdout is not None
        told = [event for event in objects(submitting.stdout.read().decode()) if event.get("event")]
    assert [(event["event"], event["author"], event["text"]) for event in told] == [("note", "ada", "hello")]


def test_processors_are_listed(platform: Platform) -> None:
    table = headway(platform, "processors").stdout.splitlines()
    assert any(line.startswith("rehearsal ") and "step_seconds" in line for line in table)
    named = {processor["name"] for processor in objects(headway(platform, "processors", "--json").stdout)}
    assert {"checksum", "csv-profile"} <= named


@pytest.mark.parametrize(
    ("words", "offered"),
    [("headway wat", "watch"), ("headway submit --processor csv-p", "csv-profile"), ("headway tasks --st", "--status")],
)
def test_tab_completes_commands_options_and_what_the_platform_has(platform: Platform, words: str, offered: str) -> None:
    env = {"_HEADWAY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = "import sys; sys.argv[0] = 'headway'; from headway.cli.main import main; main()"
    said = subprocess.run(
        [sys.executable, "-c", code], env=environ(platform, **env), capture_output=True, text=True, timeout=50
    )
    assert offered in said.stdout.split()


def test_tab_offers_nothing_and_says_nothing_where_nobody_answers(platform: Platform) -> None:
    words = "headway watch 0"
    env = {"_HEADWAY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "2"}
    code = "import sys; sys.argv[0] = 'headway'; from headway.cli.main import main; main()"
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=environ(platform, **env) | {"HEADWAY_URL": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (said.stdout.strip(), said.stderr) == ("", "")


class Terminal:
    """A command whose stdin and stderr are a terminal; its stdout is a pipe."""

    def __init__(self, platform: Platform, *arguments: object) -> None:
        self._ours, theirs = terminal()
        argv = [sys.executable, "-m", "headway.cli.main", *map(str, arguments)]
        self.process = subprocess.Popen(
            argv, env=environ(platform), stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self.seen = b""

    def read_until(self, text: bytes) -> None:
        while text not in self.seen:
            self.seen += os.read(self._ours, 65536)

    def rest(self) -> str:
        with contextlib.suppress(OSError):  # how the end of a terminal reads on Linux
            while piece := os.read(self._ours, 65536):
                self.seen += piece
        return self.seen.decode()

    def type(self, text: bytes) -> None:
        os.write(self._ours, text)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._ours)


def test_ctrl_c_on_a_terminal_asks_and_enter_watches_on(platform: Platform) -> None:
    with Terminal(platform, "submit", "--processor", "rehearsal", *LONG) as terminal:
        for answer in (b"\n", b"c\n"):
            terminal.read_until(b"Processing step")
            terminal.process.send_signal(signal.SIGINT)
            terminal.read_until(b"[c] cancel it")
            terminal.seen = b""
            terminal.type(answer)
            terminal.read_until(HIDE_CURSOR)  # it draws again
        assert "Traceback" not in terminal.rest()
        assert terminal.process.wait(20) == 1
        assert terminal.process.stdout is not None
        assert terminal.process.stdout.read().startswith(b"cancelled  rehearsal")


@pytest.mark.parametrize("answer", ["l", "a second Ctrl-C"])
def test_who_leaves_at_the_question_leaves_the_task_running(platform: Platform, answer: str) -> None:
    with Terminal(platform, "submit", "--processor", "rehearsal", *LONG) as terminal:
        terminal.read_until(b"Processing step")
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until(b"[l] leave it running")
        if answer == "l":
            terminal.type(b"l\n")
        else:
            terminal.process.send_signal(signal.SIGINT)
        said = terminal.rest()
        assert terminal.process.wait(20) == 130
    assert "Traceback" not in said
    [task_id] = re.findall(r"headway watch ([0-9a-f]{32})", said)
    assert platform.task(task_id)["status"] in {"queued", "processing"}
    headway(platform, "cancel", task_id)


def test_several_files_have_several_bars_on_a_terminal(platform: Platform, tmp_path: Path) -> None:
    ids = [platform.submit("rehearsal", options='{"steps": 300, "step_seconds": 0.1}')["task_id"] for _ in range(2)]
    with Terminal(platform, "watch", *ids) as terminal:
        for task_id in ids:
            terminal.read_until(task_id[:8].encode())
        assert headway(platform, "cancel", *ids).returncode == 0
        terminal.rest()
        assert terminal.process.wait(20) == 1
        assert terminal.process.stdout is not None
        assert terminal.process.stdout.read().decode().count("cancelled  rehearsal") == 2


def test_a_reader_that_has_seen_enough_is_no_traceback(platform: Platform) -> None:
    with started(platform, "submit", "--processor", "rehearsal", *LONG, "--json") as submitting:
        task_id = first_object(submitting)["task_id"]
        assert submitting.stdout is not None
        submitting.stdout.close()
        assert submitting.wait(20) == 1
        assert submitting.stderr is not None
        assert submitting.stderr.read() == b""
        submitting.stdout = None
    headway(platform, "cancel", task_id)


def test_the_version_is_an_option_and_a_command(platform: Platform) -> None:
    said = headway(platform, "--version")
    assert (said.returncode, said.stdout) == (0, headway(platform, "version").stdout)


def test_an_address_needs_no_scheme(platform: Platform) -> None:
    assert headway(platform, "tasks", "--url", platform.url.removeprefix("http://")).returncode == 0
    elsewhere = headway(platform, "tasks", "--url", "127.0.0.1:1")
    assert elsewhere.returncode == 3


def test_without_a_processor_those_that_take_the_file_are_named(platform: Platform, small_file: Path) -> None:
    done = headway(platform, "submit", small_file)
    assert done.returncode == 2
    assert done.stderr.startswith("Several processors take text/plain: checksum, compress, ")
    assert "image-thumbnails" not in done.stderr
    none = headway(platform, "submit")
    assert (none.returncode, "Say which files" in none.stderr) == (2, True)


def test_the_only_processor_that_takes_the_files_is_taken() -> None:
    takes = [
        {"name": "any", "accepts": [], "needs_file": True},
        {"name": "png", "accepts": ["image/*"], "needs_file": True},
        {"name": "csv", "accepts": ["text/csv"], "needs_file": True},
    ]

    async def chosen(*names: str) -> str:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(AsyncClient, "processors", lambda _: _soon(takes))
            return await choose("http://127.0.0.1:1", None, [Path(name) for name in names])

    async def _soon(value: Any) -> Any:
        return value

    assert asyncio.run(chosen("a.png", "b.jpeg")) == "png"
    assert asyncio.run(chosen("a.csv")) == "csv"
    for wrong in (("a.png", "a.csv"), ("a.bin",)):
        with pytest.raises(WrongUse, match="No processor takes"):
            asyncio.run(chosen(*wrong))


def test_a_folder_is_sent_whole_where_that_is_said(platform: Platform, tmp_path: Path) -> None:
    for name in ("in/a.txt", "in/deep/b.txt", "in/.hidden", "in/.git/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    refused = headway(platform, "submit", tmp_path / "in", "--processor", "checksum")
    assert (refused.returncode, "To send the 2 files in it, add --recursive." in refused.stderr) == (2, True)
    done = headway(platform, "submit", tmp_path / "in", "--processor", "checksum", "--recursive")
    assert (done.returncode, done.stdout.count("completed")) == (0, 2), done.stderr
    (tmp_path / "empty").mkdir()
    assert headway(platform, "submit", tmp_path / "empty", "-r", "--processor", "checksum").returncode == 2
