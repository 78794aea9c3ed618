"""One child process an attempt, on a real fork server: what it sees, how it ends, what is left of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from headway.shared.cancellation import cancel
from headway.shared.errors import ProcessorFailure
from headway.shared.tasks.models import ErrorType
from headway.worker.sandbox import Sandbox
from tests.waiting import wait_until

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")

#: The module of the tests' own processors, as a user's would be: on PYTHONPATH, named by HEADWAY_PROCESSORS.
PROCESSORS = '''
import ctypes, json, os, stat, subprocess, sys, time
from headway.shared.tasks.processors import Options, processor

class Garbage(Options):
    text: str = ""

def pipes():
    """Every pipe this process could write its progress to."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
        except OSError:
            continue
        if is_pipe and fd > 2:
            yield fd

@processor("environment", needs_file=False)
def environment(job):
    return {"environment": dict(os.environ), "stdin": sys.stdin.read(), "folder": os.getcwd()}

@processor("hold-the-gil", needs_file=False)
def hold_the_gil(job):
    job.log("holding")
    ctypes.PyDLL(None).pause()

@processor("grandchildren", needs_file=False, confined=False)
def grandchildren(job):
    started = subprocess.Popen(["sleep", "600"])
    job.log(str(started.pid))
    time.sleep(600)

@processor("orphan", needs_file=False, confined=False)
def orphan(job):
    return {"pid": subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid}

@processor("garbage", needs_file=False, options=Garbage)
def garbage(job):
    for fd in pipes():
        try:
            os.write(fd, job.options.text.encode() + b"\\n")
        except OSError:
            pass
    time.sleep(600)

@processor("raises", needs_file=False)
def raises(job):
    raise RuntimeError("no luck")

@processor("silent", needs_file=False)
def silent(job):
    os._exit(3)

@processor("not-a-dict", needs_file=False)
def not_a_dict(job):
    return 5

@processor("writes-to-others", needs_file=False)
def writes_to_others(job):
    os.write(2, b"past Python\\n")
    subprocess.run("echo of a program; printf 'no end at all' >&2", shell=True, check=True)
    return {"same": [os.fstat(fd).st_ino for fd in (1, 2)], "pipe": stat.S_ISFIFO(os.fstat(2).st_mode)}

@processor("floods", needs_file=False, options=Garbage)
def floods(job):
    line = job.options.text.encode() * 100 + b"\\n"
    for _ in range(200_000):
        os.write(1, line)

@processor("closes-its-pipe", needs_file=False)
def closes_its_pipe(job):
    for fd in list(pipes()):
        os.close(fd)
    time.sleep(600)

@processor("leaves-a-daemon", needs_file=False)
def leaves_a_daemon(job):
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    return {}

@processor("forks-come-back", needs_file=False)
def forks_come_back(job):
    ends = []
    for number in range(2):
        pid = os.fork()
        if pid == 0 and number:
            raise RuntimeError("in a fork")
        if pid == 0:
            return {"by": "a fork"}
        ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    with open(os.path.join(os.environ["TMPDIR"], "still here"), "w"):
        return {"by": "the attempt", "ends": ends}

@processor("no-words", needs_file=False)
def no_words(job):
    class NoWords(Exception):
        def __str__(self):
            raise ZeroDivisionError("not even that")
    raise NoWords

@processor("many-words", needs_file=False)
def many_words(job):
    raise RuntimeError("word " * 2_000_000)

@processor("interrupted", needs_file=False)
def interrupted(job):
    raise KeyboardInterrupt

@processor("caused", needs_file=False)
def caused(job):
    try:
        {}["the first"]
    except KeyError as error:
        raise RuntimeError("the second") from error

@processor("deep-folders", needs_file=False)
def deep_folders(job):
    os.chdir(os.environ["TMPDIR"])
    for _ in range(3000):
        os.mkdir("d"); os.chdir("d")
    return {}

@processor("shared-memory", needs_file=False)
def shared_memory(job):
    import mmap
    held = mmap.mmap(-1, 300 * 1024**2)
    for at in range(0, len(held), 4096):
        held[at] = 1
    job.log("held")
    time.sleep(600)

@processor("four-of-us", needs_file=False)
def four_of_us(job):
    for _ in range(3):
        if os.fork() == 0:
            break
    held = b"x" * (100 * 1024**2)
    time.sleep(600)

@processor("sparse", needs_file=False)
def sparse(job):
    with job.create_output("holes") as file:
        file.truncate(24 * 1024**3)
    time.sleep(600)

@processor("nameless", needs_file=False)
def nameless(job):
    file = open("file", "wb+")
    os.unlink("file")
    file.truncate(24 * 1024**3)
    time.sleep(600)

@processor("not-a-number", needs_file=False)
def not_a_number(job):
    return {"mean": float("nan")}

@processor("noisy", needs_file=False)
def noisy(job):
    print("to stdout"); print("to stderr", file=sys.stderr)
    job.phase("one"); job.log("two")
    with job.create_output("three.txt", "text/plain") as file: file.write(b"3")
    return {"four": 4}
'''

MODULE = "headway_test_sandbox_processors"


def alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Bench:
    """A sandbox, and attempts in a folder of their own."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self.sandbox = sandbox
        self.folder = folder
        self.memory_bytes = 1024**3

    def spec(self, processor: str, **options: Any) -> dict[str, Any]:
        return {
            "processor": processor,
            "options": options,
            "input_path": None,
            "output_folder": str(self.folder),
            "filename": None,
            "content_type": None,
            "size_bytes": 0,
            "memory_bytes": self.memory_bytes,
            "disk_bytes": 1024**3,
            "task_id": "6f1c",
            "attempt": 1,
            "restored": None,
        }

    async def watched(self, processor: str) -> ProcessorFailure:
        """How it ends where its limits are watched, as the worker does."""
        async with self.sandbox.attempt(self.spec(processor)) as child:
            watching = asyncio.create_task(child.watch(self.sandbox.threads))
            try:
                messages = [message async for message in child.messages()]
            except ProcessorFailure as failure:
                return failure
            finally:
                await cancel(watching)
        raise AssertionError(messages)

    async def run(self, processor: str, **options: Any) -> list[dict[str, Any]]:
        async with self.sandbox.attempt(self.spec(processor, **options)) as child:
            return [message async for message in child.messages()]

    async def failure(self, processor: str, **options: Any) -> ProcessorFailure:
        with pytest.raises(ProcessorFailure) as failed:
            await self.run(processor, **options)
        return failed.value


@pytest.fixture
def typed() -> Iterator[None]:
    """This process's stdin has something to read."""
    before = os.dup(0)
    read, write = os.pipe()
    os.write(write, b"what was typed")
    os.close(write)
    os.dup2(read, 0)
    os.close(read)
    yield
    os.dup2(before, 0)
    os.close(before)


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / f"{MODULE}.py").write_text(PROCESSORS)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "plugins"))
    monkeypatch.setenv("HEADWAY_API_KEYS", '{"alice": "a-secret-of-the-worker"}')
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-machine")
    async with Sandbox([MODULE]) as sandbox:
        yield Bench(sandbox, tmp_path / "scratch")


async def test_a_processor_on_pythonpath_runs_and_its_messages_come_in_order(bench: Bench) -> None:
    messages = await bench.run("noisy")
    kinds = [message["kind"] for message in messages]
    assert [kind for kind in kinds if kind != "count"] == ["phase", "log", "done"]
    assert messages[-1]["summary"] == {"four": 4}
    assert messages[-1]["outputs"] == {"three.txt": "text/plain"}
    assert (bench.folder / "three.txt").read_bytes() == b"3"


async def test_a_child_sees_no_setting_and_no_secret(bench: Bench) -> None:
    *_, done = await bench.run("environment")
    seen = done["summary"]["environment"]
    assert [name for name in seen if name.startswith("HEADWAY_")] == []
    assert "AWS_SECRET_ACCESS_KEY" not in seen
    assert "a-secret-of-the-" not in json.dumps(seen)
    assert "PATH" in seen


async def test_a_child_works_in_the_folder_of_its_outputs(bench: Bench) -> None:
    *_, done = await bench.run("environment")
    assert done["summary"]["folder"] == str(bench.folder)


async def test_what_is_typed_at_the_worker_does_not_reach_a_child(bench: Bench, typed: None) -> None:
    async with Sandbox([MODULE]) as sandbox:
        *_, done = await Bench(sandbox, bench.folder).run("environment")
    assert done["summary"]["stdin"] == ""


@needs_proc
async def test_a_child_that_holds_the_gil_is_gone_when_the_block_is_left(bench: Bench) -> None:
    async with bench.sandbox.attempt(bench.spec("hold-the-gil")) as child:
        assert (await anext(child.messages()))["message"] == "holding"
        assert alive(child.pid)
    assert not alive(child.pid)


@needs_proc
async def test_what_a_child_started_goes_with_it(bench: Bench) -> None:
    async with bench.sandbox.attempt(bench.spec("grandchildren")) as child:
        grandchild = int((await anext(child.messages()))["message"])
        assert alive(grandchild)
    await wait_until("the grandchild is gone", lambda: not alive(grandchild))


@needs_proc
async def test_what_a_child_left_behind_at_a_good_end_goes_too(bench: Bench) -> None:
    async with bench.sandbox.attempt(bench.spec("orphan")) as child:
        *_, done = [message async for message in child.messages()]
        await wait_until("the orphan is gone", lambda: not alive(done["summary"]["pid"]))


async def test_a_child_that_is_killed_says_by_what(bench: Bench) -> None:
    async with bench.sandbox.attempt(bench.spec("hold-the-gil")) as child:
        messages = child.messages()
        await anext(messages)
        child.kill()
        with pytest.raises(ProcessorFailure, match="was killed by SIGKILL") as failed:
            await anext(messages)
    assert failed.value.type is ErrorType.PROCESSOR_ERROR


@pytest.mark.parametrize(
    ("processor", "words"),
    [
        ("raises", "RuntimeError: no luck"),
        ("silent", "ended with code 3 without a result"),
        ("not-a-dict", "a processor returns a dict or nothing, not int"),
    ],
)
async def test_each_bad_end_of_a_processor_has_its_word(bench: Bench, processor: str, words: str) -> None:
    failure = await bench.failure(processor)
    assert failure.type is ErrorType.PROCESSOR_ERROR
    assert words in str(failure)


@needs_proc
@pytest.mark.parametrize("text", ["garbage", '{"no": "kind"}', "\0\0\0", "{"])
async def test_a_processor_that_writes_to_its_pipe_fails_at_once(bench: Bench, text: str) -> None:
    failure = await bench.failure("garbage", text=text)
    assert failure.type is ErrorType.PROCESSOR_ERROR
    assert "disturbed its progress pipe" in str(failure)


@needs_proc
@pytest.mark.parametrize(
    "text", ["5", "[]", "null", '{"kind": "failed"}', '{"kind": "failed", "type": "x"}', "[" * 100_000]
)
async def test_json_that_is_no_message_is_garbage_too(bench: Bench, text: str) -> None:
    assert "disturbed its progress pipe" in str(await bench.failure("garbage", text=text))


async def test_a_failed_attempt_harms_no_later_one(bench: Bench) -> None:
    await bench.failure("silent")
    assert (await bench.run("noisy"))[-1]["kind"] == "done"


@needs_proc
async def test_the_fork_server_goes_with_the_sandbox(tmp_path: Path) -> None:
    async with Sandbox([]) as sandbox:
        async with Bench(sandbox, tmp_path).sandbox.attempt(Bench(sandbox, tmp_path).spec("rehearsal")) as child:
            server = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[1])
            assert b"headway.worker.forkserver" in Path(f"/proc/{server}/cmdline").read_bytes()
        assert alive(server)
    assert not alive(server)


async def test_a_number_that_is_none_is_null_and_said(bench: Bench) -> None:
    *_, log, done = [message for message in await bench.run("not-a-number") if message["kind"] != "count"]
    assert done["summary"] == {"mean": None}
    assert (log["level"], "summary.mean" in log["message"]) == ("warning", True)


@pytest.mark.parametrize(
    ("processor", "words"),
    [
        ("no-words", "NoWords: (its text cannot be had: ZeroDivisionError)"),
        ("interrupted", "KeyboardInterrupt"),
        ("caused", "RuntimeError: the second"),
    ],
)
async def test_an_exception_has_its_type_and_what_text_there_is(bench: Bench, processor: str, words: str) -> None:
    assert str(await bench.failure(processor)) == words


async def test_of_a_long_message_as_much_is_told_as_fits(bench: Bench) -> None:
    said = str(await bench.failure("many-words"))
    assert said.startswith("RuntimeError: word word")
    assert 1000 < len(said) <= 2000


async def test_a_traceback_is_in_the_log_with_what_caused_it(bench: Bench) -> None:
    with capture_logs() as lines:
        await bench.failure("caused")
    printed = [line["text"] for line in lines if line["event"] == "processor printed"]
    assert [text for text in printed if "Error: " in text] == ["KeyError: 'the first'", "RuntimeError: the second"]
    assert any("in caused" in text for text in printed)


@needs_proc
async def test_what_is_printed_past_python_is_a_line_of_the_log_too_and_no_descriptor_is_the_worker_s(
    bench: Bench,
) -> None:
    with capture_logs() as lines:
        *_, done = await bench.run("writes-to-others")
    assert done["summary"]["pipe"]
    assert os.fstat(2).st_ino not in done["summary"]["same"]
    said = [(line["text"], line["task_id"], line["attempt"]) for line in lines if line["event"] == "processor printed"]
    assert said == [(text, "6f1c", 1) for text in ("past Python", "of a program", "no end at all")]


@needs_proc
async def test_a_flood_of_print_is_cut_and_said_and_the_task_ends_well(bench: Bench) -> None:
    with capture_logs() as lines:
        assert (await bench.run("floods", text="x"))[-1]["kind"] == "done"
    printed = [line for line in lines if line["event"] == "processor printed"]
    assert 0 < len(printed) < 10_000
    left_out = [line["lines_left_out"] for line in lines if line["event"] == "processor printed too much"]
    assert sum(left_out) + len(printed) <= 200_000
    assert sum(left_out) > 100_000


@needs_proc
async def test_a_child_that_closes_its_pipe_is_ended_and_harms_no_other(bench: Bench) -> None:
    server = bench.sandbox._server
    assert "disturbed its progress pipe: it closed it" in str(await bench.failure("closes-its-pipe"))
    assert (await bench.run("noisy"))[-1]["kind"] == "done"
    assert bench.sandbox._server is server


@needs_proc
async def test_the_last_word_is_the_end_also_where_a_process_that_was_left_holds_the_pipe(bench: Bench) -> None:
    async with bench.sandbox.attempt(bench.spec("leaves-a-daemon")) as child:
        assert [message["kind"] async for message in child.messages()][-1] == "done"
        assert child.left


async def test_a_fork_of_a_processor_that_comes_back_says_nothing_of_the_attempt(bench: Bench) -> None:
    last = (await bench.run("forks-come-back"))[-1]
    assert (last["kind"], last["summary"]) == ("done", {"by": "the attempt", "ends": [0, 1]})


@needs_proc
async def test_temporary_folders_too_deep_for_any_path_are_removed(bench: Bench) -> None:
    assert (await bench.run("deep-folders"))[-1]["kind"] == "done"
    assert not (bench.folder / ".temporary").exists()


@needs_proc
@pytest.mark.parametrize("processor", ["shared-memory", "four-of-us"])
async def test_memory_counts_for_all_of_a_group_and_shared_memory_too(bench: Bench, processor: str) -> None:
    bench.memory_bytes = 200 * 1024**2
    failure = await bench.watched(processor)
    assert failure.type is ErrorType.MEMORY
    assert "200 MiB" in str(failure)


@needs_proc
@pytest.mark.parametrize("processor", ["sparse", "nameless"])
async def test_a_file_counts_with_its_holes_and_without_a_name(bench: Bench, processor: str) -> None:
    failure = await bench.watched(processor)
    assert failure.type is ErrorType.STORAGE_FULL
    assert "HEADWAY_TASK_DISK_BYTES" in str(failure)
