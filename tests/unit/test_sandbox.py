"""One child process an attempt, on a real fork server: what it sees, how it ends, what is left of it."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

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

@processor("grandchildren", needs_file=False)
def grandchildren(job):
    started = subprocess.Popen(["sleep", "600"])
    job.log(str(started.pid))
    time.sleep(600)

@processor("orphan", needs_file=False)
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

    def spec(self, processor: str, **options: Any) -> dict[str, Any]:
        return {
            "processor": processor,
            "options": options,
            "input_path": None,
            "output_folder": str(self.folder),
            "filename": None,
            "content_type": None,
            "size_bytes": 0,
            "memory_bytes": 1024**3,
            "attempt": 1,
            "restored": None,
        }

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
        ("not-a-number", "ValueError"),
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
